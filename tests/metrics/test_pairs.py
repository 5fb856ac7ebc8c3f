"""Pair accuracies: hand counts, ties, symmetry, padding, emptiness."""

import pytest
import torch
from torch import Tensor

from safe_rlhf_v.metrics import GroundingGap, PairwiseAccuracy

SCORES = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5], [3.0, 1.0], [9.0, 0.0]])
TARGET = torch.tensor([0, 0, 1, -1, 1])
VALID = torch.tensor([True, True, True, True, False])


def accuracy(scores: Tensor, target: Tensor, valid: Tensor) -> float | None:
    metric = PairwiseAccuracy()
    metric.update(scores, target, valid)
    value = metric.compute()
    return None if value is None else float(value)


def test_by_hand() -> None:
    # row 0 right, row 1 wrong, row 2 a tie (wrong), row 3 undecided, row 4 padding
    assert accuracy(SCORES, TARGET, VALID) == pytest.approx(1 / 3)


def test_swap_symmetry() -> None:
    flipped = torch.where(TARGET >= 0, 1 - TARGET, TARGET)
    assert accuracy(SCORES.flip(1), flipped, VALID) == accuracy(SCORES, TARGET, VALID)


def test_a_constant_model_scores_nothing() -> None:
    assert accuracy(torch.zeros(8, 2), torch.arange(8) % 2, torch.ones(8, dtype=torch.bool)) == 0.0


def test_batches_add_up_to_the_whole() -> None:
    metric = PairwiseAccuracy()
    for row in range(5):  # one-row batches, one of them padding only, one undecided
        metric.update(SCORES[row : row + 1], TARGET[row : row + 1], VALID[row : row + 1])
    assert metric.compute().item() == pytest.approx(accuracy(SCORES, TARGET, VALID))
    metric.reset()
    assert metric.total.item() == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_no_value() -> None:
    assert PairwiseAccuracy().compute() is None
    assert accuracy(SCORES[:0], TARGET[:0], VALID[:0]) is None
    assert GroundingGap().compute() is None


def test_grounding_gap() -> None:
    metric = GroundingGap()
    real = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    blank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    target, valid = torch.zeros(4, dtype=torch.int64), torch.tensor([True, True, True, False])
    metric.update(real, blank, target, valid)
    assert metric.compute().item() == pytest.approx(2 / 3 - 1 / 3)
    metric.reset()
    metric.update(blank, real, target, valid)
    assert metric.compute().item() == pytest.approx(-1 / 3)
    metric.reset()
    metric.update(real, real, target, valid)
    assert metric.compute().item() == 0.0
