"""Advantages over time and within groups, their combination, and standardising over batches."""

import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.functional.grids import JUNK, LENGTHS, SEEDS, assert_rows, double, left, normal

from safe_rlhf_v.functional.policy import (
    combine_advantages,
    generalised_advantage,
    group_advantage,
    mean_and_std,
    moments,
    standardise,
    terminal_signal,
)


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
