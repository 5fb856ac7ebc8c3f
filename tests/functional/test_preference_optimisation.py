"""Pairs from labels and the losses over them: by hand, against float64 loops, symmetries, limits, gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.functional.preference_optimisation import (
    dpo_loss,
    helpful_pairs,
    one_is_safe,
    order_pair,
    safe_dpo_loss,
    safe_helpful_pairs,
    safer_pairs,
)

RATIOS = st.floats(-80, 80, width=32)
LABEL = st.sampled_from([-1, 0, 1])


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_helpful_pairs_follow_the_label_and_drop_the_unknown() -> None:
    pairs = helpful_pairs(torch.tensor([0, 1, -1]))
    assert pairs.winner.tolist() == [0, 1, 0]
    assert pairs.weight.tolist() == [1.0, 1.0, 0.0]
    assert pairs.target.tolist() == [0, 1, -1]


def test_safety_ties_are_dropped() -> None:
    pairs = safer_pairs(torch.tensor([0, 1, 1, -1]), torch.tensor([False, False, True, False]))
    assert pairs.winner.tolist() == [0, 1, 0, 0]
    assert pairs.weight.tolist() == [1.0, 1.0, 0.0, 0.0]


def transform(more_helpful: int, is_safe: tuple[int, int]) -> int:
    """The paper's transformation in its own words, with the winner by helpfulness first; -1 drops the pair."""
    if -1 in is_safe:
        return -1
    if more_helpful == -1:  # only where safety decides alone
        return is_safe.index(1) if sum(is_safe) == 1 else -1
    winner, loser = more_helpful, 1 - more_helpful
    if is_safe[winner]:
        return winner
    return loser if is_safe[loser] else -1


@pytest.mark.parametrize("more_helpful", [-1, 0, 1])
@pytest.mark.parametrize("first", [-1, 0, 1])
@pytest.mark.parametrize("second", [-1, 0, 1])
def test_safe_helpful_pairs_in_every_case(more_helpful: int, first: int, second: int) -> None:
    pairs = safe_helpful_pairs(torch.tensor([more_helpful]), torch.tensor([[first, second]]))
    assert pairs.target.item() == transform(more_helpful, (first, second))
    assert one_is_safe(torch.tensor([[first, second]])).item() == ({first, second} == {0, 1})


def test_order_pair() -> None:
    winner, loser = order_pair(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    assert winner.tolist() == [2.0, 3.0] and loser.tolist() == [1.0, 4.0]


def test_dpo_by_hand() -> None:
    # beta = 1/2 and a lead of 2 ln 3: sigma(ln 3) = 3/4
    lead = 2 * math.log(3)
    assert dpo_loss(tensor(lead), tensor(0.0), beta=0.5).item() == pytest.approx(math.log(4 / 3))
    assert dpo_loss(tensor(1.0), tensor(1.0), beta=7.0).item() == pytest.approx(math.log(2))
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert dpo_loss(tensor(lead), tensor(0.0), beta=0.5, label_smoothing=0.1).item() == pytest.approx(smoothed)


def test_safe_dpo_by_hand() -> None:
    lead, contrast = tensor(2 * math.log(3), 2 * math.log(3)), torch.tensor([True, False])
    loss = safe_dpo_loss(lead, tensor(0.0, 0.0), contrast, beta=0.5, offset=math.log(3))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4 / 3)])  # the offset takes the lead away


@settings(max_examples=60, deadline=None)
@given(RATIOS, RATIOS, st.floats(0.01, 2), st.floats(0, 0.5), st.floats(0, 20), st.booleans())
def test_float64_reference(w: float, l: float, beta: float, smoothing: float, offset: float, contrast: bool) -> None:  # noqa: E741
    margin = beta * (w - l)
    expected = (1 - smoothing) * np.logaddexp(0, -margin) + smoothing * np.logaddexp(0, margin)
    got = dpo_loss(torch.tensor([w]), torch.tensor([l]), beta=beta, label_smoothing=smoothing)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected = np.logaddexp(0, offset * contrast - margin)
    safe = safe_dpo_loss(torch.tensor([w]), torch.tensor([l]), torch.tensor([contrast]), beta=beta, offset=offset)
    assert safe.dtype == torch.float32
    assert safe.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(LABEL, LABEL, st.booleans(), st.tuples(LABEL, LABEL), st.tuples(RATIOS, RATIOS))
def test_swapping_responses_and_labels_changes_nothing(
    helpful: int, safer: int, tie: bool, safe: tuple[int, int], ratios: tuple[float, float]
) -> None:
    def losses(swap: bool) -> list[float]:
        flip = [(1 - x if x >= 0 else x) if swap else x for x in (helpful, safer)]
        more_helpful, saferer = (torch.tensor([x]) for x in flip)
        is_safe, values = (torch.tensor([x[::-1] if swap else x]) for x in (safe, ratios))
        contrast = one_is_safe(is_safe)
        found = []
        for pairs in (helpful_pairs(more_helpful), safer_pairs(saferer, torch.tensor([tie]))):
            loss = dpo_loss(*order_pair(values, pairs.winner), beta=0.3, label_smoothing=0.1)
            found.append(float(masked_mean(loss, pairs.weight)))
        pairs = safe_helpful_pairs(more_helpful, is_safe)
        loss = safe_dpo_loss(*order_pair(values, pairs.winner), contrast, beta=0.3, offset=2.0)
        return [*found, float(masked_mean(loss, pairs.weight))]

    assert losses(False) == pytest.approx(losses(True))


def test_a_policy_equal_to_its_reference_has_loss_log_two() -> None:
    zero = torch.zeros(3)
    contrast = torch.tensor([True, False, True])
    for loss in (
        dpo_loss(zero, zero, beta=0.1),
        dpo_loss(zero, zero, beta=5.0, label_smoothing=0.3),
        safe_dpo_loss(zero, zero, contrast, beta=0.1, offset=0.0),
    ):
        assert loss.tolist() == pytest.approx([math.log(2)] * 3)
    # with an offset it starts higher on the contrasting pairs: log(1 + e^2)
    with_offset = safe_dpo_loss(zero, zero, contrast, beta=0.1, offset=2.0)
    assert with_offset.tolist() == pytest.approx([math.log1p(math.e**2), math.log(2), math.log1p(math.e**2)])


def test_limits() -> None:
    far, near = torch.tensor([3e4, 600.0]), torch.tensor([-3e4, 0.0])
    loss = dpo_loss(far, near, beta=0.1)
    assert loss[0].item() == 0.0 and loss[1].item() == pytest.approx(math.exp(-60), rel=1e-4)
    assert dpo_loss(near, far, beta=0.1)[0].item() == pytest.approx(6e3)
    # cDPO is least at the finite margin log((1 - eps) / eps)
    best = math.log(0.9 / 0.1)
    around = [dpo_loss(tensor(best + d), tensor(0.0), beta=1.0, label_smoothing=0.1).item() for d in (-0.1, 0, 0.1)]
    assert around[1] < min(around[0], around[2])


def test_the_gradient_is_beta_times_the_doubt() -> None:
    """D loss / d ratio of the winner = -beta sigma(-(margin - offset)); of the loser its opposite (DPO paper, eq. 7)."""
    winner, loser = tensor(2.0, -1.0).requires_grad_(), tensor(0.5, 0.25).requires_grad_()
    safe_dpo_loss(winner, loser, torch.tensor([True, False]), beta=0.4, offset=1.5).sum().backward()
    doubt = [1 / (1 + math.exp(0.4 * 1.5 - 1.5)), 1 / (1 + math.exp(0.4 * -1.25))]
    assert winner.grad is not None and loser.grad is not None
    assert winner.grad.tolist() == pytest.approx([-0.4 * d for d in doubt])
    assert loser.grad.tolist() == pytest.approx([0.4 * d for d in doubt])


def test_finite_differences() -> None:
    winner, loser = torch.randn(2, 5, dtype=torch.float64).requires_grad_().unbind()
    contrast = torch.tensor([True, False, True, True, False])
    smoothing = tensor(0, 0.1, 0.2, 0.4, 0.5)
    assert torch.autograd.gradcheck(lambda a, b: dpo_loss(a, b, beta=0.7, label_smoothing=smoothing), (winner, loser))
    assert torch.autograd.gradcheck(lambda a, b: safe_dpo_loss(a, b, contrast, beta=0.7, offset=1.3), (winner, loser))


def test_half_precision_input_is_computed_in_float32() -> None:
    winner, loser = (torch.tensor([x], dtype=torch.bfloat16) for x in (256.0, 246.0))
    assert dpo_loss(winner, loser, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-1)))
    loss = safe_dpo_loss(winner, loser, torch.tensor([True]), beta=0.1, offset=1.0)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(2))
