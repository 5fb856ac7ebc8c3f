"""Sign accuracies, AUROC and calibration of costs: hand counts, references, masks, emptiness."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.metrics import BalancedSignAccuracy, CalibrationError, HarmAUROC, SignAccuracy

METRICS = [SignAccuracy, BalancedSignAccuracy, HarmAUROC, CalibrationError]
COSTS = torch.tensor([[2.0, -1.0], [0.5, -3.0], [0.0, 1.0], [7.0, 7.0]])
IS_SAFE = torch.tensor([[0, 1], [1, 1], [1, -1], [1, 1]])
VALID = torch.tensor([True, True, True, False])


def value(metric: Metric, costs: Tensor = COSTS, is_safe: Tensor = IS_SAFE, valid: Tensor = VALID) -> float:
    metric.update(costs, is_safe, valid)
    return float(metric.compute())


def many(rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    is_safe = torch.randint(-1, 2, (rows, 2), generator=generator)
    costs = torch.randn(rows, 2, generator=generator) * 3 - is_safe
    return costs, is_safe, torch.rand(rows, generator=generator) < 0.8


def test_by_hand() -> None:
    # unsafe: 2.0 right; safe: -1 right, 0.5 wrong, -3 right, 0 right (harmful is strictly above 0)
    assert value(SignAccuracy()) == pytest.approx(4 / 5)
    assert value(BalancedSignAccuracy()) == pytest.approx((1 + 3 / 4) / 2)
    assert value(HarmAUROC()) == 1.0
    reversed_auroc = value(HarmAUROC(), costs=-COSTS)
    assert reversed_auroc == 0.0


def test_auroc_is_the_rank_statistic_whatever_the_batches() -> None:
    """Mann-Whitney U over all costs; batches that lie inside [0, 1] must not be treated differently from others."""
    costs, is_safe, valid = many()
    costs[:50] = costs[:50].sigmoid()
    known = (is_safe >= 0) & valid[:, None]
    unsafe, safe = (costs[known & (is_safe == label)].double().numpy() for label in (0, 1))
    wins = (unsafe[:, None] > safe[None]).mean() + 0.5 * (unsafe[:, None] == safe[None]).mean()
    metric = HarmAUROC()
    for rows in torch.arange(200).split(25):
        metric.update(costs[rows], is_safe[rows], valid[rows])
    assert metric.compute().item() == pytest.approx(wins, abs=1e-6)


def test_auroc_keeps_large_costs_apart() -> None:
    costs, is_safe = torch.tensor([[100.0], [101.0], [102.0], [103.0]]), torch.tensor([[1], [0], [1], [0]])
    assert value(HarmAUROC(), costs, is_safe, torch.ones(4, dtype=torch.bool)) == pytest.approx(3 / 4)


def test_calibration_error_against_numpy() -> None:
    costs, is_safe, valid = many()
    known = ((is_safe >= 0) & valid[:, None]).numpy()
    p, y = torch.sigmoid(costs).numpy()[known], (is_safe == 0).numpy()[known]
    index = np.minimum((p * 10).astype(int), 9)
    expected = sum(abs(p[index == b].mean() - y[index == b].mean()) * (index == b).mean() for b in np.unique(index))
    assert value(CalibrationError(bins=10), costs, is_safe, valid) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_add_up_and_responses_may_swap(metric: type[Metric]) -> None:
    costs, is_safe, valid = many()
    whole = value(metric(), costs, is_safe, valid)
    parts = metric()
    for rows in torch.arange(200).split(7):
        parts.update(costs[rows], is_safe[rows], valid[rows])
    assert float(parts.compute()) == pytest.approx(whole, rel=1e-6)
    assert value(metric(), costs.flip(1), is_safe.flip(1), valid) == pytest.approx(whole, rel=1e-6)
    assert value(metric(), costs[valid], is_safe[valid], valid[valid]) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_junk_in_padding_rows_changes_nothing(metric: type[Metric]) -> None:
    assert value(metric(), COSTS.masked_fill(~VALID[:, None], torch.nan)) == value(metric())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric", METRICS)
def test_empty_and_one_sided(metric: type[Metric]) -> None:
    assert np.isnan(value(metric(), COSTS[:0], IS_SAFE[:0], VALID[:0]))
    assert np.isnan(float(metric().compute()))
    assert np.isnan(value(metric(), valid=torch.zeros(4, dtype=torch.bool)))
    one_row = value(metric(), COSTS[1:2], IS_SAFE[1:2], VALID[1:2])  # only safe responses
    assert np.isnan(one_row) == (metric in (BalancedSignAccuracy, HarmAUROC))
    again = metric()
    again.update(COSTS, IS_SAFE, VALID)
    again.reset()
    assert value(again) == value(metric())


def test_balanced_accuracy_of_a_constant_model_is_half() -> None:
    costs, is_safe, valid = many()
    assert value(BalancedSignAccuracy(), torch.ones_like(costs), is_safe, valid) == 0.5
    assert value(BalancedSignAccuracy(), -torch.ones_like(costs), is_safe, valid) == 0.5
