"""Equal scores, but for rounding, earn nothing; real differences are whitened as ever."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_rlhf_v.functional.policy import terminal_signal
from safe_rlhf_v.policy.advantages import GAE, AdvantageEstimator, GroupRelative, Signals
from safe_rlhf_v.policy.rollout import Values

N, R = 8, 5
MASK = torch.arange(R) < torch.tensor([5, 1, 3, 4, 2, 5, 0, 3])[:, None]  # one padding row
VALID = MASK.any(1)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signals(reward: Tensor, cost: Tensor, unit: tuple[float, float] = (1.0, 1.0), valid: Tensor = VALID) -> Signals:
    mask = MASK & valid[:, None]
    per_token = (terminal_signal(scores, mask) for scores in (reward, cost))
    return Signals(*per_token, reward, cost, mask, valid, 4, unit)


def advantages(estimator: AdvantageEstimator, found: Signals, lam: float = 1.0, values: Values | None = None) -> Tensor:
    if values is None:  # a true critic: every token expects the score to come
        values = Values(*(s[:, None] * found.mask for s in (found.reward_score, found.cost_score)))
    return estimator(found, values, torch.full((N, 1), lam), lambda x: x)


ESTIMATORS = [
    GroupRelative(),
    GroupRelative(whiten=False),
    GroupRelative(divide=True),
    GroupRelative(divide=True, eps=1e-4),
    GroupRelative(divide=True, eps=1e-4, whiten=False),
    GroupRelative(divide=True, eps=1e-8),
    GAE(),
    GAE(centre=False),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{type(e).__name__}{vars(e)}")
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-3])
@pytest.mark.parametrize("where", [(0.0, 0.0), (0.3, -1.2), (2.0, -6.8)])
@pytest.mark.parametrize("lam", [0.0, 1.0, 100.0])
def test_rounding_errors_of_equal_scores_earn_nothing(
    estimator: AdvantageEstimator, scale: float, where: tuple[float, float], lam: float
) -> None:
    """In any unit of the scores. Divided by their own spread they came out as plus and minus 1."""
    reward, cost = (scale * (place + 1e-7 * noise(i, N)) for i, place in enumerate(where))
    values = Values(*(s[:, None] + scale * 1e-7 * noise(i, N, R) for i, s in enumerate((reward, cost), 2)))
    found = advantages(estimator, signals(reward, cost, (scale, scale)), lam, values)
    if estimator.whiten or estimator.divide:  # type: ignore[attr-defined]
        assert float(found.abs().max()) < 0.01
    else:
        assert float(found.abs().max()) < 2e-6 * scale


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{type(e).__name__}{vars(e)}")
def test_exactly_equal_scores_and_single_rows_earn_exactly_nothing(estimator: AdvantageEstimator) -> None:
    equal = torch.full((N,), 0.1)
    one = torch.arange(N) == 2
    none = torch.zeros(N, dtype=torch.bool)
    for valid in (VALID, one, none):
        found = advantages(estimator, signals(equal, -equal, valid=valid))
        assert bool((found == 0).all())
    if isinstance(estimator, GroupRelative):  # alone in its group, whatever it scored
        assert bool((advantages(estimator, signals(noise(0, N), noise(1, N), valid=one)) == 0).all())


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_one_token_alone_is_finite_without_a_floor(floor: float) -> None:
    single = torch.arange(N) == 1
    zero = Values(torch.zeros(N, R), torch.zeros(N, R))
    found = advantages(GAE(floor=floor), signals(noise(0, N), noise(1, N), valid=single), values=zero)
    assert bool((found == 0).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 10), st.sampled_from([1e-3, 1.0, 1e4]))
def test_real_differences_are_whitened_as_without_a_floor(seed: int, spread: float, scale: float) -> None:
    reward, cost = scale * spread * noise(seed, N), scale * spread * noise(seed + 1, N)
    zero = Values(torch.zeros(N, R), torch.zeros(N, R))
    for make in (GAE, GroupRelative):
        pair = [advantages(make(floor=f), signals(reward, cost, (scale, scale)), values=zero) for f in (0.0, 0.01)]
        assert torch.equal(*pair)
        kept = pair[0][MASK] if make is GAE else pair[0][VALID, 0]
        assert float(kept.std()) == pytest.approx(1.0, rel=1e-3)


def test_groups_own_constant_by_hand() -> None:
    """Scores 1, 2, 3, 6: deviations -2 .. 3, population variance 3.5."""
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0])
    everywhere = torch.ones(N, dtype=torch.bool)
    for eps in (1e-4, 0.1, 2.0):
        estimator = GroupRelative(divide=True, eps=eps, whiten=False)
        found = advantages(estimator, signals(scores, scores, valid=everywhere), lam=0.0)
        real = MASK[:4, 0]
        expected = [x / (math.sqrt(3.5) + eps) for x in (-2, -1, 0, 3)]
        assert found[:4, 0][real].tolist() == pytest.approx(expected, rel=1e-6)
        assert bool((found[4:] == 0).all())


def test_a_small_difference_counts_in_proportion() -> None:
    """Below the floor the whitened advantage grows with the difference, from 0; above it is the usual one."""
    sizes = []
    for spread in (1e-6, 1e-4, 1e-2, 1.0):
        found = advantages(GroupRelative(), signals(spread * noise(0, N), torch.zeros(N)), lam=0.0)
        sizes.append(float(found[:, 0].std()))
    assert (
        sizes[0] < 2e-4
        and sizes[1] == pytest.approx(100 * sizes[0], rel=1e-2)
        and sizes[1] < sizes[2] <= sizes[3] * 1.001
    )


@pytest.mark.parametrize("lam", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("whiten", [False, True])
def test_what_a_critic_says_of_unconstrained_prompts_moves_no_advantage(lam: float, whiten: bool) -> None:
    constrained = torch.arange(N) % 2 == 0
    plain = signals(noise(1, N), noise(2, N) * constrained)
    some = plain._replace(constrained=constrained & VALID)
    multipliers = torch.where(constrained, lam, 0.0)[:, None]
    values = [Values(noise(3, N, R), noise(4, N, R) + off * ~constrained[:, None]) for off in (0.0, -3.0, 50.0)]
    first, *others = (GAE(whiten=whiten)(some, v, multipliers, lambda x: x) for v in values)
    assert all(torch.equal(first, other) for other in others)
    if not whiten:  # the centred advantages of constrained responses still have the mean 0
        reward_only = GAE(whiten=False)(some, values[0], torch.zeros(N, 1), lambda x: x)
        cost = reward_only - (1 + multipliers) * first
        assert float((cost * some.cost_mask).sum()) == pytest.approx(0.0, abs=1e-4)


def test_where_all_prompts_are_constrained_nothing_changes() -> None:
    plain = signals(noise(1, N), noise(2, N))
    values = Values(noise(3, N, R), noise(4, N, R))
    for estimator in (GAE(), GAE(whiten=False), GAE(centre=False)):
        one, other = (advantages(estimator, s, 2.0, values) for s in (plain, plain._replace(constrained=VALID)))
        assert torch.equal(one, other)
