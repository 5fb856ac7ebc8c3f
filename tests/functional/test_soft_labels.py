"""Votes as soft labels: hand-computed values, a float64 reference, both orders, the optimum, unknown shares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.pairwise import bradley_terry
from safe_rlhf_v.functional.soft_labels import expected_loss, has_votes, soft_order

NAN = math.nan
SCORES = st.floats(-30, 30, width=32)


def cross_entropy(scores: torch.Tensor, label: int, share: float, smoothing: float = 0.0) -> torch.Tensor:
    """The loss of one pair (2,) by its label and its votes."""
    index, other = soft_order(torch.tensor([label]), torch.tensor([share], dtype=torch.float64), smoothing)
    return bradley_terry(scores[index], scores[1 - index], label_smoothing=other).sum()


def test_by_hand() -> None:
    scores = torch.tensor([math.log(3), 0.0], dtype=torch.float64)  # P(response 0 is better) = 3/4
    expected = 0.4 * math.log(4 / 3) + 0.6 * math.log(4)
    for label in (0, 1, -1):  # the votes decide, whatever was made of them
        assert cross_entropy(scores, label, 0.6).item() == pytest.approx(expected, rel=1e-12)
    index, other = soft_order(torch.tensor([0, 1, 1, -1, -1, -1]), torch.tensor([0.25, 0.25, NAN, NAN, 0.75, 0.5]))
    assert index.tolist() == [0, 1, 1, -1, 1, 0]
    assert other.tolist() == [0.25, 0.75, 0.0, 0.0, 0.25, 0.5]
    shares = torch.tensor([[0.5, 0.25, 0.25], [NAN, NAN, NAN]])
    assert has_votes(shares).tolist() == [True, False]
    assert expected_loss(torch.tensor([[1.0, 2.0, 4.0]] * 2), shares).tolist() == [2.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.integers(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_float64_reference(first: float, second: float, label: int, share: float, smoothing: float) -> None:
    p = (1 - smoothing) * share + smoothing * (1 - share)  # that response 1 is better
    expected = (1 - p) * np.logaddexp(0, second - first) + p * np.logaddexp(0, first - second)
    scores = torch.tensor([first, second], dtype=torch.float64)
    assert cross_entropy(scores, label, share, smoothing).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    swapped = cross_entropy(scores.flip(0), -1 if label < 0 else 1 - label, 1 - share, smoothing)
    assert swapped.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_gradients_lead_to_the_share(share: float) -> None:
    scores = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    cross_entropy(scores, 0, share).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([0.5 - (1 - share), 0.5 - share])  # up where most votes are
    best = torch.tensor([0.0, math.log(share / (1 - share))], dtype=torch.float64, requires_grad=True)
    cross_entropy(best, 1, share).backward()
    assert best.grad is not None and best.grad.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_no_votes_have_no_gradient_and_no_nan() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    expected_loss(losses, torch.tensor([[NAN, NAN], [0.25, 0.75]])).sum().backward()
    assert losses.grad is not None and losses.grad.tolist() == [[0, 0], [0.25, 0.75]]
