"""The cost model's pointwise terms: direction, hand-computed values, a float64 reference and the known flaw of one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.pointwise import classifier_loss, graded_loss, sign_correct, sign_loss, weighted_sign_loss

COSTS, LEVELS = st.floats(-40, 40, width=32), st.integers(-3, 3)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_by_hand() -> None:
    c = one(math.log(3))  # sigma = 3/4
    assert sign_loss(c, torch.tensor([True])).item() == pytest.approx(math.log(4 / 3))
    assert sign_loss(c, torch.tensor([False])).item() == pytest.approx(math.log(4))
    # slope 2 (level -2): sigma(2 ln 3) = 9/10; level 1: sigma(-ln 3) = 1/4
    assert graded_loss(c, torch.tensor([-2])).item() == pytest.approx(math.log(10 / 9))
    assert graded_loss(c, torch.tensor([1])).item() == pytest.approx(math.log(4))
    assert weighted_sign_loss(c, torch.tensor([-3])).item() == pytest.approx(3 * math.log(4 / 3))
    assert weighted_sign_loss(c, torch.tensor([0])).item() == pytest.approx(math.log(4))
    weighted = classifier_loss(c, torch.tensor([True]), harmful_weight=2.0, label_smoothing=0.1)
    assert weighted.item() == pytest.approx(2 * (0.9 * math.log(4 / 3) + 0.1 * math.log(4)))


@settings(max_examples=60, deadline=None)
@given(COSTS, LEVELS, st.floats(0, 0.5))
@example(-18.0, 0, 1e-6)
@example(18.0, -1, 1e-6)
@example(30.0, -2, 1e-7)
def test_float64_reference(cost: float, level: int, smoothing: float) -> None:
    c, levels, harmful = torch.tensor([cost]), torch.tensor([level]), torch.tensor([level < 0])
    z = 1.0 if level < 0 else -1.0
    target = 1 - smoothing if level < 0 else smoothing
    bce = target * np.logaddexp(0, -cost) + (1 - target) * np.logaddexp(0, cost)
    for got, expected in [
        (sign_loss(c, harmful), np.logaddexp(0, -z * cost)),
        (graded_loss(c, levels), np.logaddexp(0, level * cost)),
        (weighted_sign_loss(c, levels), max(abs(level), 1) * np.logaddexp(0, -z * cost)),
        (classifier_loss(c, harmful, label_smoothing=smoothing), bce),
    ]:
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(expected, rel=2e-5, abs=1e-12)


@pytest.mark.parametrize("level", [-3, -1, 1, 3])
def test_every_term_pushes_harmful_costs_up_and_harmless_ones_down(level: int) -> None:
    for term in (
        graded_loss,
        weighted_sign_loss,
        lambda c, s: sign_loss(c, s < 0),
        lambda c, s: classifier_loss(c, s < 0),
    ):
        cost = one(0.0).requires_grad_()
        term(cost, torch.tensor([level])).sum().backward()
        assert cost.grad is not None and math.copysign(1, -cost.grad.item()) == (1 if level < 0 else -1)


def test_level_zero() -> None:
    cost = one(1.3).requires_grad_()
    loss = graded_loss(cost, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and cost.grad is not None and cost.grad.item() == 0.0
    assert weighted_sign_loss(one(1.3), torch.tensor([0])) > weighted_sign_loss(one(-1.3), torch.tensor([0]))


def test_the_released_slope_asks_less_of_severe_answers() -> None:
    """Loss 0.05 is reached at a third of the cost: the reason why the other terms exist."""
    at = math.log(1 / math.expm1(0.05))
    assert graded_loss(one(at), torch.tensor([-1])).item() == pytest.approx(0.05)
    assert graded_loss(one(at / 3), torch.tensor([-3])).item() == pytest.approx(0.05)


def test_symmetry_and_equalities() -> None:
    costs, harmful = torch.randn(50, dtype=torch.float64), torch.rand(50) < 0.5
    torch.testing.assert_close(sign_loss(costs, harmful), sign_loss(-costs, ~harmful))
    torch.testing.assert_close(sign_loss(costs, harmful), classifier_loss(costs, harmful))
    torch.testing.assert_close(sign_loss(costs, harmful), graded_loss(costs, torch.where(harmful, -1, 1)))


def test_extremes_are_finite_with_finite_gradients() -> None:
    costs = torch.tensor([1e4, -1e4], requires_grad=True)
    levels = torch.tensor([3, -3])
    total = graded_loss(costs, levels) + weighted_sign_loss(costs, levels) + classifier_loss(costs, levels < 0)
    total.sum().backward()
    assert total.tolist() == pytest.approx([7e4, 7e4]) and costs.grad is not None and bool(costs.grad.isfinite().all())


def test_gradients() -> None:
    costs = torch.randn(7, dtype=torch.float64, requires_grad=True)
    levels = torch.arange(-3, 4)
    assert torch.autograd.gradcheck(lambda c: graded_loss(c, levels), (costs,))
    assert torch.autograd.gradcheck(lambda c: weighted_sign_loss(c, levels), (costs,))
    assert torch.autograd.gradcheck(lambda c: classifier_loss(c, levels < 0, label_smoothing=0.2), (costs,))


def test_sign_correct() -> None:
    costs = torch.tensor([0.1, 0.1, -0.1, -0.1, 0.0, 0.0, torch.nan, 5.0])
    is_safe = torch.tensor([0, 1, 0, 1, 0, 1, 1, -1])
    assert sign_correct(costs, is_safe).tolist() == [True, False, False, True, False, True, False, False]
