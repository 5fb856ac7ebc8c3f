"""P(harmful) against plain-Python references, by hand, and at its limits."""

import numpy as np
import pytest
import torch

from safe_rlhf_v.metrics import Collected, harm_by_group, harm_values, harmful_label, score_values
from safe_rlhf_v.modules.cost import sign_values

GENERATOR = torch.Generator().manual_seed(0)
HARM = torch.rand(80, generator=GENERATOR, dtype=torch.float64)
HARM[::9] = HARM[1]  # ties
HARMFUL = (torch.rand(80, generator=GENERATOR) < HARM).long()
ROWS = list(zip(HARM.tolist(), HARMFUL.tolist(), strict=True))
BAD, GOOD = [p for p, y in ROWS if y], [p for p, y in ROWS if not y]


def average(values):
    return sum(values) / len(values)


def ece(bins):
    total = 0.0
    for b in range(bins):
        inside = [(p, y) for p, y in ROWS if min(int(p * bins), bins - 1) == b]
        total += abs(sum(p for p, _ in inside) - sum(y for _, y in inside))
    return total / len(ROWS)


def average_precision():
    total, last = 0.0, 0.0
    for t in sorted({p for p, _ in ROWS}, reverse=True):
        recall = average([p >= t for p in BAD])
        total += (recall - last) * average([y for p, y in ROWS if p >= t])
        last = recall
    return total


def test_against_plain_references():
    thresholds = [*sorted({p for p, _ in ROWS}), 2.0]
    expected = {
        "accuracy": average([(p > 0.5) == bool(y) for p, y in ROWS]),
        "balanced_accuracy": (average([p > 0.5 for p in BAD]) + average([p <= 0.5 for p in GOOD])) / 2,
        "auroc": average([(a > b) + 0.5 * (a == b) for a in BAD for b in GOOD]),
        "auprc": average_precision(),
        "calibration_error": ece(15),
        "fpr_at_95_recall": min(
            average([p >= t for p in GOOD]) for t in thresholds if average([p >= t for p in BAD]) >= 0.95
        ),
        "recall_at_5_fpr": max(
            average([p >= t for p in BAD]) for t in thresholds if average([p >= t for p in GOOD]) <= 0.05
        ),
    }
    found = {name: float(value) for name, value in harm_values(HARM, HARMFUL).items()}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("total", [20, 40, 100])
def test_shares_that_meet_a_limit_exactly_keep_it(total):
    """19 of 20 is a recall of 0.95, and 1 of 20 a rate of 0.05, whatever floating point makes of them."""
    scores = torch.arange(2 * total, dtype=torch.float64) / (2 * total)
    harmful = torch.arange(2 * total) % 2
    values = harm_values(scores, harmful)
    missed = total // 20  # harmful rows that may be missed: the lowest ones, at 1, 3, ...
    assert float(values["fpr_at_95_recall"]) == pytest.approx(1 - (missed + 1) / total, abs=1e-6)
    assert float(values["recall_at_5_fpr"]) == pytest.approx((missed + 1) / total, abs=1e-6)


def test_limits():
    certain, kinds = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    best = {name: float(value) for name, value in harm_values(certain, kinds).items()}
    zeros = ("calibration_error", "fpr_at_95_recall")
    assert best == {name: pytest.approx(0.0 if name in zeros else 1.0, abs=1e-6) for name in best}
    worst = {name: float(value) for name, value in harm_values(certain, 1 - kinds).items()}
    assert (worst["accuracy"], worst["auroc"], worst["fpr_at_95_recall"], worst["calibration_error"]) == (0, 0, 1, 1)
    for one in (0, 1):
        only = harm_values(HARM, torch.full_like(HARMFUL, one))
        assert set(only) == {"accuracy", "calibration_error"}  # nothing to compare with
    assert harm_values(HARM[:0], HARMFUL[:0]) == {}


def test_a_probability_of_one_belongs_to_the_last_bin():
    """As in the reliability diagram; a bin of its own would count the errors of 0.97 and of 1 separately."""
    harm, harmful = torch.tensor([0.97, 1.0]), torch.tensor([1, 0])
    assert float(harm_values(harm, harmful, bins=10)["calibration_error"]) == pytest.approx(0.97 / 2 + 1 / 2 - 0.5)


COSTS = torch.tensor([[2.0, -1.0], [0.5, -3.0], [0.0, 1.0], [7.0, 7.0]])
IS_SAFE = torch.tensor([[0, 1], [1, 1], [1, -1], [1, 1]])
VALID = torch.tensor([True, True, True, False])


def values_of(costs, is_safe=IS_SAFE, valid=VALID):
    metric = Collected(sign_values)
    metric.update(costs, harmful_label(is_safe), valid)
    return {name: float(value) for name, value in metric.compute().items()}


def test_costs_by_hand():
    # unsafe: 2.0 right; safe: -1 right, 0.5 wrong, -3 right, 0 right (harmful is strictly above 0)
    found = values_of(COSTS)
    assert found["sign_accuracy"] == pytest.approx(4 / 5)
    assert found["balanced_sign_accuracy"] == pytest.approx((1 + 3 / 4) / 2)
    assert found["auroc"] == 1.0 and values_of(-COSTS)["auroc"] == 0.0
    assert values_of(COSTS.flip(1), IS_SAFE.flip(1)) == pytest.approx(found)
    assert set(values_of(COSTS[1:2], IS_SAFE[1:2], VALID[1:2])) == {"sign_accuracy", "calibration_error"}


def test_a_constant_cost_has_a_balanced_accuracy_of_half():
    for sign in (1.0, -1.0):
        assert values_of(torch.full_like(COSTS, sign))["balanced_sign_accuracy"] == 0.5


def test_the_area_under_the_curve_is_exact_for_large_scores():
    """A sigmoid would tie them: ranks decide, whatever the scale."""
    costs = torch.tensor([[5000.0], [5001.0], [-9000.0], [-8999.0], [30.0], [29.5]])
    labels = torch.tensor([[1], [0], [1], [0], [1], [0]])
    metric = Collected(sign_values)
    for row in range(6):
        metric.update(costs[row : row + 1], harmful_label(labels[row : row + 1]), torch.ones(1, dtype=torch.bool))
    pairs = [(h > s) for h in (5001.0, -8999.0, 29.5) for s in (5000.0, -9000.0, 30.0)]
    assert float(metric.compute()["auroc"]) == pytest.approx(sum(pairs) / 9)


def test_auroc_is_the_rank_statistic_whatever_the_batches():
    """Mann-Whitney U over all costs; batches that lie inside [0, 1] must not be treated differently from others."""
    costs = 3 * torch.randn(200, generator=GENERATOR)
    costs[:50] = costs[:50].sigmoid()
    harmful = torch.randint(0, 2, (200,), generator=GENERATOR)
    unsafe, safe = (costs[harmful == kind].double().numpy() for kind in (1, 0))
    wins = (unsafe[:, None] > safe[None]).mean() + 0.5 * (unsafe[:, None] == safe[None]).mean()
    metric = Collected(score_values)
    for rows in torch.arange(200).split(25):
        metric.update(costs[rows], harmful[rows], torch.ones(25, dtype=torch.bool))
    assert float(metric.compute()["auroc"]) == pytest.approx(wins, abs=1e-6)


def test_calibration_error_against_numpy():
    costs = 3 * torch.randn(300, generator=GENERATOR)
    harmful = torch.randint(0, 2, (300,), generator=GENERATOR)
    p, y = torch.sigmoid(costs.double()).numpy(), harmful.numpy()
    index = np.minimum((p * 15).astype(int), 14)
    expected = sum(abs(p[index == b].mean() - y[index == b].mean()) * (index == b).mean() for b in np.unique(index))
    assert float(score_values(costs, harmful)["calibration_error"]) == pytest.approx(expected, rel=1e-5)


def test_groups_by_hand():
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.45, 0.25, 0.3], [0.05, 0.9, 0.05]]).log()
    levels = torch.tensor([0, 0, 2, 1])
    groups = [("a",), ("a", "b"), ("b",), ()]
    assert harm_by_group(log_probs, levels, groups, boundary=1) == {
        "a": {"responses": 2, "harmful": 2, "level_accuracy": 0.5, "harm_accuracy": 0.5},
        "b": {"responses": 2, "harmful": 1, "level_accuracy": 0.0, "harm_accuracy": 0.5},
    }
    assert harm_by_group(log_probs, levels, [()] * 4, boundary=1) == {}
