"""Divergence and token signals of a policy: hand-computed cases, references in plain Python, limits, and junk in the padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.functional.grids import JUNK, LENGTHS, SEEDS, assert_rows, double, left, normal

from safe_rlhf_v.functional.masked import masked_median
from safe_rlhf_v.functional.policy import (
    combine_advantages,
    generalised_advantage,
    group_advantage,
    importance_weights,
    kl_estimate,
    limit_scores,
    mean_and_std,
    moments,
    sequence_kl,
    standardise,
    terminal_signal,
)

# --- divergence


def test_kl_by_hand() -> None:
    policy, reference = double(0.5, 0.25, 0.9).log()[None], double(0.25, 0.5, 0.1).log()[None]
    mask = torch.tensor([[True, True, False]])
    k1 = kl_estimate(policy, reference, mask)
    assert k1[0].tolist() == pytest.approx([math.log(2), -math.log(2), 0.0])
    # d = ln 2: 1/2 - 1 + ln 2; d = -ln 2: 2 - 1 - ln 2
    k3 = kl_estimate(policy, reference, mask, estimator="k3")
    assert k3[0].tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0])
    k2 = kl_estimate(policy, reference, mask, estimator="k2")
    assert k2[0].tolist() == pytest.approx([math.log(2) ** 2 / 2, math.log(2) ** 2 / 2, 0.0])
    assert sequence_kl(k3, mask).tolist() == pytest.approx([0.5])


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_kl_reference(seed: int) -> None:
    policy, reference, mask = normal(seed, 5, 6), normal(seed + 1, 5, 6), left(LENGTHS)
    rows = [
        [(float(p), float(q)) for p, q, real in zip(*row, strict=True) if real]
        for row in zip(policy, reference, mask, strict=True)
    ]
    assert_rows(kl_estimate(policy, reference, mask), mask, [[p - q for p, q in row] for row in rows])
    k3 = kl_estimate(policy, reference, mask, estimator="k3")
    assert_rows(k3, mask, [[math.exp(q - p) - 1 + p - q for p, q in row] for row in rows])
    assert float(k3.min()) >= 0
    sums = [math.fsum(math.exp(q - p) - 1 + p - q for p, q in row) for row in rows]
    assert sequence_kl(k3, mask).tolist() == pytest.approx(sums)


def test_k1_and_k3_have_the_divergence_as_their_mean() -> None:
    p, q = double(0.7, 0.2, 0.1), double(0.3, 0.3, 0.4)
    exact = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    mask, spread = torch.ones(1, 3, dtype=torch.bool), []
    for estimator in ("k1", "k3"):
        kl = kl_estimate(p.log()[None], q.log()[None], mask, estimator=estimator)[0]
        assert (p * kl).sum().item() == pytest.approx(exact)
        spread.append((p * (kl - exact).square()).sum().item())
    assert spread[1] < spread[0]


def test_k3_of_nearly_equal_policies_is_not_lost_to_rounding() -> None:
    """exp(-d) - 1 in float32 would be off by 1e-7, twenty times the response."""
    policy, reference = torch.tensor([[1e-4]]), torch.tensor([[0.0]])
    kl = kl_estimate(policy, reference, torch.tensor([[True]]), estimator="k3")
    assert kl.item() == pytest.approx(0.5e-8, rel=1e-2)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_gradients(estimator: str) -> None:
    policy, reference, mask = normal(0, 5, 6).requires_grad_(), normal(1, 5, 6), left(LENGTHS)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, reference, mask, estimator=estimator), (policy,))


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_ignores_junk(junk: float, estimator: str) -> None:
    mask, results = left(LENGTHS), []
    for fill in (0.0, junk):
        policy = normal(0, 5, 6).masked_fill(~mask, fill).requires_grad_()
        kl = kl_estimate(policy, normal(1, 5, 6).masked_fill(~mask, fill), mask, estimator=estimator)
        (gradient,) = torch.autograd.grad(kl.square().sum(), policy)
        results.append((kl.detach(), gradient, sequence_kl(kl.detach().masked_fill(~mask, fill), mask)))
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


def test_kl_of_half_precision_is_taken_in_float32() -> None:
    policy = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    kl = kl_estimate(policy, torch.tensor([[-1.001]]), torch.tensor([[True]]))
    assert kl.dtype == torch.float32 and kl.item() == pytest.approx(1e-3, rel=1e-3)


# --- token signals


def test_signal_by_hand() -> None:
    mask = left((3, 1, 0), 3)
    scores, kl = double(2.0, -60.0, 7.0), torch.full((3, 3), 0.5, dtype=torch.float64)
    assert terminal_signal(scores, mask).tolist() == [[0, 0, 2], [-60, 0, 0], [0, 0, 0]]
    shaped = terminal_signal(scores, mask, kl=kl, kl_weight=-0.2)
    assert shaped[0].tolist() == pytest.approx([-0.1, -0.1, 1.9])
    assert shaped[1].tolist() == pytest.approx([-60.1, 0.0, 0.0])
    assert shaped[2].tolist() == [0.0, 0.0, 0.0]


def test_limits_by_hand() -> None:
    scores = double(-20.0, -8.0, -7.0, -6.5, 3.0)
    assert limit_scores(scores, double(-7.0).squeeze(), 5.0).tolist() == [-12.0, -8.0, -7.0, -6.5, -2.0]
    columns = torch.stack([scores, -scores], 1)
    both = limit_scores(columns, double(-7.0, 7.0), 5.0)
    torch.testing.assert_close(both[:, 0], -both[:, 1], rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(-1e4, 1e4), st.integers(2, 70), st.floats(0.1, 20))
def test_limited_scores_differ_wherever_they_lie(seed: int, where: float, count: int, limit: float) -> None:
    """A fixed range of +-5 left nothing of costs about -6.8. Order is kept, and what is near is not touched."""
    scores = where + normal(seed, count)
    centre = masked_median(scores[:, None], torch.ones(count, 1, dtype=torch.bool))[0]
    limited = limit_scores(scores, centre, limit)
    assert float(limited.max()) > float(limited.min())
    assert bool((limited[scores.argsort()].diff() >= 0).all())
    near = (scores - centre).abs() < limit
    assert torch.equal(limited[near], scores[near])


@pytest.mark.parametrize("wild", [1e6, -1e6, math.inf])
def test_one_wild_score_leaves_the_others_alone(wild: float) -> None:
    """About the mean, all others would be equal: 1e6 among eight moves it by 125,000."""
    scores = torch.cat([normal(0, 7) - 6.8, double(wild)])
    centre = masked_median(scores[:, None], torch.ones(8, 1, dtype=torch.bool))[0]
    limited = limit_scores(scores, centre, 5.0)
    assert torch.equal(limited[:7], scores[:7]) and float((limited[7] - centre).abs()) == pytest.approx(5.0)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(-1, 1))
def test_signal_reference(seed: int, weight: float) -> None:
    scores, kl, mask = 4 * normal(seed, 5), normal(seed + 1, 5, 6), left(LENGTHS)
    expected = []
    for score, row, length in zip(scores.tolist(), kl.tolist(), LENGTHS, strict=True):
        raw = [weight * row[t] + (score if t == length - 1 else 0.0) for t in range(length)]
        expected.append(raw)
    assert_rows(terminal_signal(scores, mask, kl=kl, kl_weight=weight), mask, expected)


@pytest.mark.parametrize("junk", JUNK)
def test_signal_ignores_junk_in_padding_and_in_empty_rows(junk: float) -> None:
    mask, kl, scores = left(LENGTHS), normal(0, 5, 6), normal(1, 5)
    clean = terminal_signal(scores, mask, kl=kl, kl_weight=0.3)
    dirty_scores = scores.masked_fill(~mask.any(1), junk)
    dirty = terminal_signal(dirty_scores, mask, kl=kl.masked_fill(~mask, junk), kl_weight=0.3)
    torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


@pytest.mark.parametrize("lam", [0.0, 0.01, 1.0, 20.0])
def test_the_combined_signal_holds_the_divergence_once_for_every_multiplier(lam: float) -> None:
    """Subtracted from the reward and added to the cost, it comes out as -beta, not twice and not scaled."""
    mask, kl, beta = left(LENGTHS), normal(0, 5, 6).masked_fill(~left(LENGTHS), 0.0), 0.05
    reward, cost = normal(1, 5), normal(2, 5)
    combined = combine_advantages(
        terminal_signal(reward, mask, kl=kl, kl_weight=-beta), terminal_signal(cost, mask, kl=kl, kl_weight=beta), lam
    )
    expected = terminal_signal((reward - lam * cost) / (1 + lam), mask) - beta * kl
    torch.testing.assert_close(combined, expected)


def test_nothing_to_do() -> None:
    for shape in ((0, 4), (3, 0)):
        empty, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        advantages, returns = generalised_advantage(empty, empty, mask)
        assert advantages.shape == returns.shape == shape
    assert group_advantage(torch.zeros(0), 4, torch.zeros(0, dtype=torch.bool), divide=True).shape == (0,)


# --- mistakes that broadcasting would hide


def test_errors() -> None:
    mask, grid, scores = left((2, 3), 3), torch.zeros(2, 3), torch.zeros(2)
    valid = torch.ones(6, dtype=torch.bool)
    cases = [
        ("reference has shape", lambda: kl_estimate(grid, torch.zeros(3), mask)),
        ("must be bool", lambda: kl_estimate(grid, grid, mask.long())),
        ("estimator", lambda: kl_estimate(grid, grid, mask, estimator="k4")),  # type: ignore[arg-type]
        ("limit must be above 0", lambda: limit_scores(scores, scores[0], 0.0)),
        ("kl has shape", lambda: sequence_kl(torch.zeros(1, 3), mask)),
        ("one per response", lambda: terminal_signal(torch.zeros(3), mask)),
        ("one per response", lambda: terminal_signal(torch.zeros(2, 1), mask)),
        ("no kl was given", lambda: terminal_signal(scores, mask, kl_weight=0.1)),
        ("kl has shape", lambda: terminal_signal(scores, mask, kl=torch.zeros(2, 1), kl_weight=0.1)),
        ("values has shape", lambda: generalised_advantage(grid, torch.zeros(2, 1), mask)),
        ("gamma and lam", lambda: generalised_advantage(grid, grid, mask, gamma=1.1)),
        ("gamma and lam", lambda: generalised_advantage(grid, grid, mask, lam=-0.1)),
        ("groups of 4", lambda: group_advantage(torch.zeros(6), 4, valid, divide=False)),
        ("at least 2", lambda: group_advantage(torch.zeros(6), 1, valid, divide=False)),
        ("scores has shape", lambda: group_advantage(torch.zeros(4), 2, valid, divide=False)),
        ("scores must be", lambda: group_advantage(grid, 2, mask, divide=False)),
        ("eps", lambda: group_advantage(torch.zeros(6), 2, valid, divide=True, eps=0.0)),
        ("must both be", lambda: combine_advantages(grid, torch.zeros(2, 1), 1.0)),
        ("lam must be one number", lambda: combine_advantages(grid, grid, torch.ones(3))),
        ("lam must be one number", lambda: combine_advantages(torch.zeros(3, 3), torch.zeros(3, 3), torch.ones(3))),
        ("must not be negative", lambda: combine_advantages(grid, grid, -0.1)),
        ("must not be negative", lambda: combine_advantages(grid, grid, torch.tensor([[1.0], [torch.nan]]))),
        ("values has shape", lambda: moments(torch.zeros(2, 1), mask)),
        ("moments must be", lambda: mean_and_std(torch.zeros(2, 3))),
        ("scalars", lambda: standardise(grid, mask, torch.zeros(3))),
        ("floor", lambda: standardise(grid, mask, torch.zeros(()), torch.ones(()), floor=-1.0)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


# --- weights of tokens that another program sampled


def test_importance_weights_by_hand() -> None:
    own, engine = double(0.5, 0.5, 0.2, 0.9).log()[None], double(0.5, 0.4, 0.05, 0.1).log()[None]
    mask = torch.tensor([[True, True, True, False]])
    weights, truncated = importance_weights(own, engine, mask, 2.0)
    assert weights[0].tolist() == pytest.approx([1.0, 1.25, 2.0, 1.0])
    assert truncated.tolist() == [[False, False, True, False]]
    small, _ = importance_weights(own, engine, mask, 0.5)
    assert small[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0])


def test_importance_weights_are_constants_within_bounds_whatever_stands_in_the_padding() -> None:
    own = torch.tensor([[-1.0, -1e4, -1e-30, -0.25]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    for junk in JUNK:
        engine = torch.tensor([[-1.0, -1e-30, -1e4, junk]])
        weights, truncated = importance_weights(own, engine, mask, 2.0)
        assert weights.tolist() == [[1.0, 0.0, 2.0, 1.0]]
        assert truncated.tolist() == [[False, False, True, False]]
        assert not weights.requires_grad
    with pytest.raises(ValueError, match="engine has shape"):
        importance_weights(own, own[:, :2], mask, 2.0)
    with pytest.raises(ValueError, match="cap must be above 0"):
        importance_weights(own, own, mask, 0.0)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.2, 5.0))
def test_importance_weights_mend_a_mean_where_nothing_is_truncated(seed: int, cap: float) -> None:
    """The weighted mean over the engine's tokens is the policy's own; a cap only lowers it."""
    generator = torch.Generator().manual_seed(seed)
    own, engine = (torch.randn(1, 50, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values = torch.rand(1, 50, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 50, dtype=torch.bool)
    weights, _ = importance_weights(own, engine, mask, 1e6)
    exact = float((own.exp() * values).sum())
    assert float((engine.exp() * weights * values).sum()) == pytest.approx(exact)
    capped, truncated = importance_weights(own, engine, mask, cap)
    assert float((engine.exp() * capped * values).sum()) <= exact + 1e-12
    assert torch.equal(capped[~truncated], weights[~truncated])
