"""Bradley-Terry and pair counts: hand-computed values, a float64 reference, symmetries and limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.pairwise import bradley_terry, pair_correct, preferred

SCORES = st.floats(-30, 30, width=32)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # sigma(ln 3) = 3/4
    assert bradley_terry(tensor(math.log(3)), tensor(0.0)).item() == pytest.approx(math.log(4 / 3))
    assert bradley_terry(tensor(0.0), tensor(0.0)).item() == pytest.approx(math.log(2))
    # a margin of ln 3 takes the lead away
    assert bradley_terry(tensor(math.log(3)), tensor(0.0), margin=math.log(3)).item() == pytest.approx(math.log(2))
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert bradley_terry(tensor(math.log(3)), tensor(0.0), label_smoothing=0.1).item() == pytest.approx(smoothed)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.floats(0, 3), st.floats(0, 1))
def test_float64_reference(higher: float, lower: float, margin: float, smoothing: float) -> None:
    d = higher - lower
    expected = (1 - smoothing) * np.logaddexp(0, margin - d) + smoothing * np.logaddexp(0, margin + d)
    got = bradley_terry(torch.tensor([higher]), torch.tensor([lower]), margin=margin, label_smoothing=smoothing)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_swapping_the_responses_is_flipping_the_label() -> None:
    a, b, eps = tensor(0.3, -2.0), tensor(1.1, 4.0), tensor(0.1, 0.4)
    torch.testing.assert_close(
        bradley_terry(a, b, margin=0.5, label_smoothing=eps), bradley_terry(b, a, margin=0.5, label_smoothing=1 - eps)
    )


def test_limits_and_shift() -> None:
    a, b = torch.tensor([1e4, -1e4, 60.0]), torch.tensor([-1e4, 1e4, 0.0])
    loss = bradley_terry(a, b)
    assert loss[0].item() == 0.0 and loss[1].item() == pytest.approx(2e4)
    assert loss[2].item() == pytest.approx(math.exp(-60), rel=1e-4)  # not rounded to 0
    torch.testing.assert_close(bradley_terry(tensor(2.0), tensor(1.0)), bradley_terry(tensor(9.0), tensor(8.0)))


def test_half_smoothing_is_indifferent_and_pulls_together() -> None:
    d = tensor(2.0).requires_grad_()
    bradley_terry(d, tensor(0.0), label_smoothing=0.5).sum().backward()
    assert d.grad is not None and d.grad.item() == pytest.approx(torch.sigmoid(tensor(2.0)).item() - 0.5)


def test_gradients() -> None:
    higher, lower = torch.randn(2, 5, dtype=torch.float64).requires_grad_().unbind()

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return bradley_terry(a, b, margin=tensor(0, 1, 0, 2, 0), label_smoothing=tensor(0, 0, 0.1, 0.2, 0.5))

    assert torch.autograd.gradcheck(loss, (higher, lower))


def test_rows_are_independent() -> None:
    a, b = torch.randn(2, 6).unbind()
    alone = torch.cat([bradley_terry(a[i : i + 1], b[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(bradley_terry(a, b), alone, rtol=1e-5, atol=0)


def test_half_precision_input_is_computed_in_float32() -> None:
    loss = bradley_terry(torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([255.0], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log1p(math.exp(-1)))


def test_preferred() -> None:
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [torch.nan, 1.0], [3.0, 1.0]])
    known = torch.tensor([[True, True]] * 4 + [[True, False]])
    assert preferred(values, known).tolist() == [1, 0, -1, -1, -1]
    levels = torch.tensor([[-3, 2], [0, -1]])
    assert preferred(levels, torch.ones(2, 2, dtype=torch.bool)).tolist() == [1, 0]


def test_pair_correct_counts_ties_as_wrong_either_way() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [torch.nan, 0.0], [1.0, 0.0]])
    assert pair_correct(scores, torch.tensor([0, 0, 0, 0, -1])).tolist() == [True, False, False, False, False]
    assert pair_correct(scores.flip(1), torch.tensor([1, 1, 1, 1, -1])).tolist() == [True, False, False, False, False]
