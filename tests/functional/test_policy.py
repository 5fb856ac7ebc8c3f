"""From scores to advantages: hand-computed cases, references in plain Python, limits, and junk in the padding."""

import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.masked import masked_median
from safe_rlhf_v.functional.policy import (
    combine_advantages,
    generalised_advantage,
    group_advantage,
    kl_estimate,
    limit_scores,
    mean_and_std,
    moments,
    sequence_kl,
    standardise,
    terminal_signal,
)

JUNK = [1e30, -1e30, torch.nan, torch.inf, -torch.inf]
LENGTHS = (1, 4, 0, 6, 3)  # a one-token response and an empty row among others
SEEDS = st.integers(0, 2**31)


def left(lengths: tuple[int, ...], width: int = 6) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_rows(got: torch.Tensor, mask: torch.Tensor, expected: list[list[float]], tolerance: float = 1e-12) -> None:
    """The real entries of each row are the expected ones and everything else is exactly 0."""
    assert bool((got[~mask] == 0).all())
    for row, real, wanted in zip(got, mask, expected, strict=True):
        assert row[real].tolist() == pytest.approx(wanted, rel=tolerance, abs=tolerance)


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


# --- advantages over time


def advantages_in_plain_python(signal: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The double sum of the definition, not the recursion."""
    n = len(signal)
    delta = [signal[t] + (gamma * values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [math.fsum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


def test_gae_by_hand() -> None:
    # gamma = 1, lam = 1/2: delta = (0 + 2 - 1, 0 + 4 - 2, 10 - 4) = (1, 2, 6); A = (1 + 1 + 1.5, 2 + 3, 6)
    signal, values = double(0, 0, 10, 99)[None], double(1, 2, 4, 99)[None]
    advantages, returns = generalised_advantage(signal, values, left((3,), 4), gamma=1.0, lam=0.5)
    assert advantages[0].tolist() == [3.5, 5.0, 6.0, 0.0]
    assert returns[0].tolist() == [4.5, 7.0, 10.0, 0.0]
    # gamma = 1/2 as well: delta = (0, 0, 6), gamma lam = 1/4
    advantages, _ = generalised_advantage(signal, values, left((3,), 4), gamma=0.5, lam=0.5)
    assert advantages[0].tolist() == [0.375, 1.5, 6.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_gae_reference(seed: int, gamma: float, lam: float) -> None:
    signal, values, mask = normal(seed, 5, 6), normal(seed + 1, 5, 6), left(LENGTHS)
    expected = [
        advantages_in_plain_python(s[:n], v[:n], gamma, lam)
        for s, v, n in zip(signal.tolist(), values.tolist(), LENGTHS, strict=True)
    ]
    advantages, returns = generalised_advantage(signal, values, mask, gamma=gamma, lam=lam)
    assert_rows(advantages, mask, expected)
    targets = [[a + float(v[t]) for t, a in enumerate(row)] for row, v in zip(expected, values, strict=True)]
    assert_rows(returns, mask, targets)
    single = generalised_advantage(signal.float(), values.float(), mask, gamma=gamma, lam=lam)[0]
    assert single.dtype == torch.float32
    assert_rows(single, mask, expected, tolerance=1e-5)


def test_gae_limits() -> None:
    signal, values, mask = normal(0, 5, 6), normal(1, 5, 6), left(LENGTHS)
    monte_carlo, returns = generalised_advantage(signal, values, mask, gamma=0.9, lam=1.0)
    one_step, _ = generalised_advantage(signal, values, mask, gamma=0.9, lam=0.0)
    for i, n in enumerate(LENGTHS):
        for t in range(n):
            tail = math.fsum(0.9 ** (k - t) * float(signal[i, k]) for k in range(t, n))
            assert float(returns[i, t]) == pytest.approx(tail)
            assert float(monte_carlo[i, t]) == pytest.approx(tail - float(values[i, t]))
            following = float(values[i, t + 1]) if t + 1 < n else 0.0
            assert float(one_step[i, t]) == pytest.approx(float(signal[i, t] + 0.9 * following - values[i, t]))


def test_a_true_critic_leaves_no_advantage() -> None:
    mask = left(LENGTHS)
    scores = normal(0, 5)
    values = scores[:, None].expand(5, 6)  # gamma 1: every token's value is the score to come
    advantages, returns = generalised_advantage(terminal_signal(scores, mask), values, mask)
    assert float(advantages.abs().max()) < 1e-12
    torch.testing.assert_close(returns, values.masked_fill(~mask, 0.0))


def test_a_short_response_beside_a_long_one_is_as_alone() -> None:
    """The released code filled the mask with ones: of four tokens' signal 0.95^36 = 0.158 was left."""
    lengths, scores = (4, 40), double(2.0, -1.0)
    values = normal(0, 2, 40)
    mask = left(lengths, 40)
    both, _ = generalised_advantage(terminal_signal(scores, mask), values, mask)
    for i, n in enumerate(lengths):
        own = torch.ones(1, n, dtype=torch.bool)
        signal = terminal_signal(scores[i : i + 1], own)
        alone, _ = generalised_advantage(signal, values[i : i + 1, :n], own)
        torch.testing.assert_close(both[i : i + 1, :n], alone, rtol=0, atol=0)
    # with the critic at 0 the last real token gets the whole score, the first one 0.95^3 of it
    advantages, _ = generalised_advantage(terminal_signal(scores, mask), torch.zeros_like(values), mask)
    assert advantages[0, :4].tolist() == pytest.approx([2 * 0.95**k for k in (3, 2, 1, 0)])
    wrong = torch.ones_like(mask)
    attenuated, _ = generalised_advantage(terminal_signal(scores, wrong), torch.zeros_like(values), wrong)
    assert float(attenuated[0, 3]) == pytest.approx(2 * 0.158, abs=1e-3)


def test_gae_on_left_padded_rows() -> None:
    signal, values = normal(0, 1, 4), normal(1, 1, 4)
    mask = torch.tensor([[True, True, True, True]])
    advantages, returns = generalised_advantage(signal, values, mask)
    pad = torch.full((1, 3), torch.nan, dtype=torch.float64)
    wide = torch.tensor([[False] * 3 + [True] * 4])
    padded = generalised_advantage(torch.cat([pad, signal], 1), torch.cat([pad, values], 1), wide)
    torch.testing.assert_close(padded[0][:, 3:], advantages, rtol=0, atol=0)
    torch.testing.assert_close(padded[1][:, 3:], returns, rtol=0, atol=0)
    assert padded[0][:, :3].tolist() == [[0.0] * 3] == padded[1][:, :3].tolist()


@pytest.mark.parametrize("junk", JUNK)
def test_gae_ignores_junk_and_has_no_graph(junk: float) -> None:
    mask = left(LENGTHS)
    clean = generalised_advantage(normal(0, 5, 6), normal(1, 5, 6), mask)
    signal = normal(0, 5, 6).masked_fill(~mask, junk).requires_grad_()
    values = normal(1, 5, 6).masked_fill(~mask, junk).requires_grad_()
    dirty = generalised_advantage(signal, values, mask)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not b.requires_grad


def test_nothing_to_do() -> None:
    for shape in ((0, 4), (3, 0)):
        empty, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        advantages, returns = generalised_advantage(empty, empty, mask)
        assert advantages.shape == returns.shape == shape
    assert group_advantage(torch.zeros(0), 4, torch.zeros(0, dtype=torch.bool), divide=True).shape == (0,)


# --- advantages within a group


def test_group_by_hand() -> None:
    scores = double(1, 2, 3, 6, 5, 5, 5, 5)
    valid = torch.ones(8, dtype=torch.bool)
    assert group_advantage(scores, 4, valid, divide=False).tolist() == [-2, -1, 0, 3, 0, 0, 0, 0]
    # population variance (4 + 1 + 0 + 9) / 4 = 3.5
    scaled = group_advantage(scores, 4, valid, divide=True)
    assert scaled.tolist() == pytest.approx([x / (math.sqrt(3.5) + 0.1) for x in (-2, -1, 0, 3)] + [0.0] * 4)
    # groups are neighbours, so a different size cuts elsewhere
    assert group_advantage(scores, 2, valid, divide=False).tolist() == [-0.5, 0.5, -1.5, 1.5, 0, 0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 5), st.booleans())
def test_group_reference(seed: int, samples: int, divide: bool) -> None:
    rng = random.Random(seed)
    scores = [rng.gauss(3, 2) for _ in range(3 * samples)]
    valid = [rng.random() < 0.7 for _ in scores]
    expected = []
    for start in range(0, len(scores), samples):
        kept = [scores[i] for i in range(start, start + samples) if valid[i]]
        for i in range(start, start + samples):
            scale = statistics.pstdev(kept) + 0.25 if divide and kept else 1.0
            expected.append((scores[i] - statistics.fmean(kept)) / scale if valid[i] else 0.0)
    got = group_advantage(double(*scores), samples, torch.tensor(valid), divide=divide, eps=0.25)
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("divide", [True, False])
def test_group_shift_invariance_and_scale(divide: bool) -> None:
    scores, valid = normal(0, 12), torch.arange(12) % 5 != 3
    advantages = group_advantage(scores, 4, valid, divide=divide)
    shifts = double(100.0, -7.0, 0.5).repeat_interleave(4)  # another constant for each prompt
    torch.testing.assert_close(group_advantage(scores + shifts, 4, valid, divide=divide), advantages)
    scaled = group_advantage(3 * scores, 4, valid, divide=divide, eps=0.3)
    expected = group_advantage(scores, 4, valid, divide=divide, eps=0.1) * (1 if divide else 3)
    torch.testing.assert_close(scaled, expected)
    assert advantages.reshape(3, 4).sum(1).abs().max().item() < 1e-12


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("divide", [True, False])
def test_group_ignores_invalid_rows(junk: float, divide: bool) -> None:
    valid = torch.tensor([True, False, True, True, False, False, False, False, False, False, True, False])
    clean = group_advantage(normal(0, 12), 4, valid, divide=divide)
    scores = normal(0, 12).masked_fill(~valid, junk).requires_grad_()
    dirty = group_advantage(scores, 4, valid, divide=divide)
    torch.testing.assert_close(clean, dirty, rtol=0, atol=0)
    assert not dirty.requires_grad
    assert dirty[4:].tolist() == [0.0] * 8  # nobody valid; and one alone is its own mean


# --- reward and cost together


def test_combination_by_hand() -> None:
    reward, cost = double(3, -1)[None], double(1, 2)[None]
    assert combine_advantages(reward, cost, 0.0).tolist() == [[3.0, -1.0]]
    assert combine_advantages(reward, cost, 1.0).tolist() == [[1.0, -1.5]]
    assert combine_advantages(reward, cost, torch.tensor([3.0])).tolist() == [[0.0, -1.75]]


@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.7, 20.0, 1e4])
def test_combination_reference(lam: float) -> None:
    reward, cost = normal(0, 5, 6), normal(1, 5, 6)
    expected = [
        [(r - lam * c) / (1 + lam) for r, c in zip(*rows, strict=True)]
        for rows in zip(reward.tolist(), cost.tolist(), strict=True)
    ]
    whole = torch.ones(5, 6, dtype=torch.bool)
    exact = torch.tensor([lam], dtype=torch.float64)
    for multiplier in (lam, exact, exact[0], exact.expand(5, 1)):
        assert_rows(combine_advantages(reward, cost, multiplier), whole, expected)
    single = combine_advantages(reward.float(), cost.float(), torch.tensor(lam, dtype=torch.float64))
    assert single.dtype == torch.float32
    assert_rows(single, whole, expected, tolerance=1e-5)


def test_combination_per_response_and_at_the_ends() -> None:
    reward, cost = normal(0, 3, 4), normal(1, 3, 4)
    combined = combine_advantages(reward, cost, torch.tensor([[0.0], [1.0], [1e30]]))
    torch.testing.assert_close(combined[0], reward[0], rtol=0, atol=0)
    torch.testing.assert_close(combined[1], (reward[1] - cost[1]) / 2)
    torch.testing.assert_close(combined[2], -cost[2])
    assert combine_advantages(reward.bfloat16(), cost.bfloat16(), 1.0).dtype == torch.float32


# --- standardising over batches and ranks


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_pooled_moments_are_those_of_all_values(seed: int) -> None:
    parts = [(5 + 3 * normal(seed + i, 5, 6), left(lengths)) for i, lengths in enumerate((LENGTHS, (2, 0, 0, 6, 1)))]
    kept = [float(x) for values, mask in parts for x in values[mask]]
    pooled = torch.stack([moments(values, mask) for values, mask in parts]).sum(0)
    assert pooled.dtype == torch.float64
    assert pooled.tolist() == pytest.approx([len(kept), math.fsum(kept), math.fsum(x * x for x in kept)])
    mean, std = mean_and_std(pooled)
    assert mean.item() == pytest.approx(statistics.fmean(kept))
    assert std.item() == pytest.approx(statistics.stdev(kept))
    values, mask = parts[0]
    centred = [[float(x) - statistics.fmean(kept) for x in row[real]] for row, real in zip(values, mask, strict=True)]
    assert_rows(standardise(values, mask, mean), mask, centred, 1e-9)
    scaled = [[x / statistics.stdev(kept) for x in row] for row in centred]
    assert_rows(standardise(values, mask, mean, std), mask, scaled, 1e-7)
    assert standardise(values.float(), mask, mean, std).dtype == torch.float32


def test_few_or_equal_values_have_no_spread() -> None:
    nothing = moments(torch.full((2,), torch.nan), torch.zeros(2, dtype=torch.bool))
    assert nothing.tolist() == [0, 0, 0] and [x.item() for x in mean_and_std(nothing)] == [0.0, 0.0]
    one = moments(torch.tensor([3.0, 8.0]), torch.tensor([True, False]))
    assert [x.item() for x in mean_and_std(one)] == [3.0, 0.0]
    below_zero = torch.full((3,), 0.1, dtype=torch.float64)  # the sum of squares falls a rounding error short
    count, total, squares = moments(below_zero, torch.ones(3, dtype=torch.bool)).tolist()
    assert squares - total * (total / count) < 0
    assert mean_and_std(double(count, total, squares))[1].item() == 0.0
    values, mask = torch.full((1000,), 0.1), torch.ones(1000, dtype=torch.bool)
    mean, std = mean_and_std(moments(values, mask))
    assert std.isfinite() and standardise(values, mask, mean, std).abs().max().item() == 0.0


@pytest.mark.parametrize("junk", JUNK)
def test_standardising_ignores_junk(junk: float) -> None:
    mask, values = left(LENGTHS), normal(0, 5, 6)
    dirty = values.masked_fill(~mask, junk)
    torch.testing.assert_close(moments(dirty, mask), moments(values.masked_fill(~mask, 0.0), mask), rtol=0, atol=0)
    mean, std = mean_and_std(moments(values, mask))
    for spread in (None, std):
        clean = standardise(values, mask, mean, spread)
        torch.testing.assert_close(standardise(dirty, mask, mean, spread), clean, rtol=0, atol=0)


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
