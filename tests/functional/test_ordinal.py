"""Cumulative link: high-precision and float64 references, normalisation, monotonicity, limits and gradients."""

import itertools
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from safe_rlhf_v.functional.ordinal import (
    MIN_GAP,
    expected_level,
    gaps_from_thresholds,
    level_log_probs,
    log1mexp,
    ordinal_loss,
    thresholds_from_gaps,
)

THRESHOLDS = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    # Latent 0, thresholds at +-ln 3: P = 1/4, 1/2, 1/4
    log_probs = level_log_probs(torch.zeros(1), torch.tensor([-math.log(3), math.log(3)]))
    assert log_probs.exp()[0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert ordinal_loss(torch.zeros(1), torch.tensor([-math.log(3), math.log(3)]), torch.tensor([1])).item() == (
        pytest.approx(math.log(2))
    )
    assert expected_level(log_probs, lowest=-1).item() == pytest.approx(0.0, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.floats(-12, 12), arrays(np.float64, 5, elements=st.floats(-4, 4)))
def test_subtracted_sigmoids_in_float64(latent: float, free: np.ndarray) -> None:
    thresholds = thresholds_from_gaps(torch.tensor(free), anchor=2)
    exceed = [1.0, *(sigmoid(latent - t) for t in thresholds.tolist()), 0.0]
    expected = torch.tensor([a - b for a, b in itertools.pairwise(exceed)], dtype=torch.float64)
    torch.testing.assert_close(
        level_log_probs(torch.tensor(latent).double(), thresholds).exp(), expected, rtol=1e-6, atol=1e-12
    )


def test_far_tail_keeps_its_digits_in_float32() -> None:
    """Sixty decimal digits against float32: a subtraction of sigmoids would give log(0) here."""
    getcontext().prec = 60
    low, high, latent = Decimal("0.5"), Decimal("0.625"), Decimal(40)
    exact = (1 / (1 + (low - latent).exp())) - (1 / (1 + (high - latent).exp()))
    got = level_log_probs(torch.tensor(40.0), torch.tensor([0.5, 0.625]))[1]
    assert torch.sigmoid(torch.tensor(39.5)) - torch.sigmoid(torch.tensor(39.375)) == 0
    assert got.item() == pytest.approx(float(exact.ln()), rel=1e-5)


@pytest.mark.parametrize("x", [1e-6, 1e-3, 0.3, 0.6931, 0.6932, 2.0, 30.0])
def test_log1mexp(x: float) -> None:
    getcontext().prec = 60
    exact = (1 - (-Decimal(x)).exp()).ln()
    assert log1mexp(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(float(exact), rel=1e-13)
    assert torch.autograd.gradcheck(log1mexp, (torch.tensor([x + 0.01], dtype=torch.float64, requires_grad=True),))


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), arrays(np.float32, 5, elements=st.floats(-50, 50, width=32)), st.integers(0, 5))
def test_always_a_distribution(latent: float, free: np.ndarray, anchor: int) -> None:
    thresholds = thresholds_from_gaps(torch.tensor(free), anchor)
    assert thresholds[anchor] == 0 and bool((thresholds.diff() > MIN_GAP / 2).all())
    log_probs = level_log_probs(torch.tensor(latent), thresholds)
    assert bool(log_probs.isfinite().all()) and bool((log_probs <= 0).all())
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_more_latent_is_more_level() -> None:
    log_probs = level_log_probs(torch.linspace(-15, 15, 200, dtype=torch.float64), THRESHOLDS)
    cumulative = log_probs.exp().cumsum(-1)[:, :-1]  # P(level <= k) falls with the latent
    assert bool((cumulative.diff(dim=0) < 0).all())
    level = expected_level(log_probs, lowest=-3)
    assert bool((level.diff() > 0).all())
    assert level[0].item() == pytest.approx(-3, abs=1e-4) and level[-1].item() == pytest.approx(3, abs=1e-4)


def test_reversing_the_scale_reverses_the_probabilities() -> None:
    latent = torch.randn(9, dtype=torch.float64)
    reversed_scale = level_log_probs(-latent, -THRESHOLDS.flip(0)).flip(-1)
    torch.testing.assert_close(level_log_probs(latent, THRESHOLDS), reversed_scale)


def test_the_sign_of_the_cost_is_the_verdict() -> None:
    cost = torch.randn(30, dtype=torch.float64) * 4
    below = level_log_probs(-cost, THRESHOLDS).exp()[:, :3].sum(-1)  # levels -3, -2, -1
    torch.testing.assert_close(below, torch.sigmoid(cost))
    assert bool(((below > 0.5) == (cost > 0)).all())


def test_two_levels_are_logistic_regression() -> None:
    latent, levels = torch.randn(8), torch.tensor([0, 1] * 4)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(latent, levels.float(), reduction="none")
    torch.testing.assert_close(ordinal_loss(latent, torch.zeros(1), levels), expected)


def test_gaps_round_trip_up_to_the_anchor() -> None:
    free = gaps_from_thresholds(THRESHOLDS)
    torch.testing.assert_close(thresholds_from_gaps(free, anchor=2), THRESHOLDS)
    torch.testing.assert_close(thresholds_from_gaps(free, anchor=0), THRESHOLDS + 2)
    large = torch.tensor([-100.0, 0.0, 100.0])
    torch.testing.assert_close(thresholds_from_gaps(gaps_from_thresholds(large), 1), large)


def test_thresholds_that_do_not_increase_are_refused() -> None:
    with pytest.raises(ValueError, match=r"increase by more than 0\.05, got \[0\.0, 1\.0, 1\.0\]"):
        gaps_from_thresholds(torch.tensor([0.0, 1.0, 1.0]))


def test_order_survives_hostile_updates() -> None:
    """Gradient steps that all pull the thresholds together leave them ordered and the loss finite."""
    free = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.SGD([free], lr=50.0)
    for _ in range(300):
        optimizer.zero_grad()
        thresholds = thresholds_from_gaps(free, 2)
        (
            thresholds.diff().sum() + ordinal_loss(torch.tensor([1e3, -1e3]), thresholds, torch.tensor([0, 6])).sum()
        ).backward()
        optimizer.step()
    thresholds = thresholds_from_gaps(free.detach(), 2)
    assert bool((thresholds.diff() >= MIN_GAP * 0.99).all())
    assert bool(level_log_probs(torch.tensor([0.0, 1e4]), thresholds).isfinite().all())


def test_gradients() -> None:
    latent = torch.randn(7, dtype=torch.float64, requires_grad=True)
    free = torch.randn(5, dtype=torch.float64, requires_grad=True)
    levels = torch.arange(7)
    assert torch.autograd.gradcheck(lambda f, g: ordinal_loss(f, thresholds_from_gaps(g, 2), levels), (latent, free))
    extreme = torch.tensor([1e4, -1e4], requires_grad=True)
    ordinal_loss(extreme, THRESHOLDS.float(), torch.tensor([0, 3])).sum().backward()
    assert extreme.grad is not None and bool(extreme.grad.isfinite().all())


def test_rows_are_independent_and_half_precision_is_lifted() -> None:
    latent, levels = torch.randn(3, 2), torch.randint(0, 7, (3, 2))
    whole = ordinal_loss(latent, THRESHOLDS.float(), levels)
    alone = torch.stack([ordinal_loss(latent[i], THRESHOLDS.float(), levels[i]) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=0)
    assert ordinal_loss(latent.bfloat16(), THRESHOLDS.float(), levels).dtype == torch.float32
