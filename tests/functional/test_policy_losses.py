"""Losses of actor and critics: hand-computed cases, references in plain Python, gradients, micro-batches, junk."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.functional.policy_losses import (
    MAX_LOG_RATIO,
    Reduction,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    reduce_tokens,
    reduction_count,
)

JUNK = [1e30, -1e30, torch.nan, torch.inf, -torch.inf]
LENGTHS = (1, 4, 0, 6, 3)  # a one-token response and an empty row among others
REDUCTIONS = ["token", "sequence"]
SEEDS = st.integers(0, 2**31)

Rows = list[list[float]]


def left(lengths: tuple[int, ...], width: int = 6) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grids(seed: int, count: int) -> list[torch.Tensor]:
    return [normal(seed + i, len(LENGTHS), 6) for i in range(count)]


def cut(grid: torch.Tensor) -> Rows:
    return [row[:n] for row, n in zip(grid.tolist(), LENGTHS, strict=True)]


def average(rows: Rows, reduction: str) -> float:
    if reduction == "token":
        return statistics.fmean([x for row in rows for x in row])
    return statistics.fmean([statistics.fmean(row) for row in rows if row])


def each(function: Callable[..., float], *grids: torch.Tensor) -> Rows:
    """The function over the real entries of several grids, row by row."""
    return [[function(*xs) for xs in zip(*rows, strict=True)] for rows in zip(*map(cut, grids), strict=True)]


def surrogate_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip: float = 0.2,
    dual_clip: float | None = None,
    reduction: Reduction = "token",
    total: torch.Tensor | float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean of the tokens' losses, and the means of their statistics."""
    losses, statistics_ = clipped_surrogate(
        log_probs, old_log_probs, advantages, mask, clip=(clip, clip), dual_clip=dual_clip
    )
    loss = reduce_tokens(losses, mask, reduction=reduction, total=total)
    return loss, {name: masked_mean(values, mask) for name, values in statistics_.items()}


# --- averaging


def test_averaging_by_hand() -> None:
    values, mask = double(6, 9, 99, 1, 2, 6).reshape(2, 3), left((2, 3), 3)
    assert reduce_tokens(values, mask).item() == pytest.approx(24 / 5)
    assert reduce_tokens(values, mask, reduction="sequence").item() == pytest.approx((7.5 + 3) / 2)
    assert reduce_tokens(values, mask, total=12).item() == 2.0
    assert reduce_tokens(values, mask, reduction="sequence", total=torch.tensor([4])).item() == pytest.approx(10.5 / 4)
    assert reduction_count(mask, "token").item() == 5
    assert reduction_count(left(LENGTHS), "sequence").item() == 4  # the empty row is no response
    assert reduce_tokens(values, mask, total=0.5).item() == 48.0  # a mean count per rank may lie below 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_real_is_zero_with_a_graph(reduction: str) -> None:
    mask, junk = torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), torch.nan)
    leaf = junk.clone().requires_grad_()
    policy, statistics_ = surrogate_loss(leaf, junk, junk, mask, dual_clip=3.0, reduction=reduction)
    value = clipped_value_loss(leaf, junk, junk, mask, reduction=reduction)
    assert policy.item() == 0.0 == value.item()
    assert all(x.item() == 0.0 for x in statistics_.values())
    (gradient,) = torch.autograd.grad(policy + value, leaf)
    assert gradient.tolist() == [[0.0] * 3] * 2
    assert explained_variance(junk, junk, mask).item() == 0.0


# --- the actor


def surrogate(new: float, old: float, advantage: float, clip: float, dual: float | None) -> tuple[float, bool, bool]:
    """Loss of one token and whether each clip is active, by cases instead of minima."""
    ratio = math.exp(new - old)
    if advantage > 0 and ratio > 1 + clip:
        return -(1 + clip) * advantage, True, False
    if advantage < 0 and ratio < 1 - clip:
        return -(1 - clip) * advantage, True, False
    if dual is not None and advantage < 0 and ratio > dual:
        return -dual * advantage, False, True
    return -ratio * advantage, False, False


def test_surrogate_by_hand() -> None:
    """Every corner: both signs of the advantage with a ratio above, inside and below, and the dual clip."""
    ratios = double(1.5, 1.1, 0.5, 1.5, 1.1, 0.5, 4.0)
    advantages = double(1, 1, 1, -1, -1, -1, -1)
    objective = [1.2, 1.1, 0.5, -1.5, -1.1, -0.8, -4.0]
    mask = torch.ones(1, 7, dtype=torch.bool)
    loss, stats = surrogate_loss(ratios.log()[None], double(*[0] * 7)[None], advantages[None], mask)
    assert loss.item() == pytest.approx(-sum(objective) / 7)
    assert set(stats) == {"clip_fraction"}
    assert stats["clip_fraction"].item() == pytest.approx(2 / 7)  # the first and the sixth
    loss, stats = surrogate_loss(ratios.log()[None], double(*[0] * 7)[None], advantages[None], mask, dual_clip=3.0)
    assert loss.item() == pytest.approx(-(sum(objective) + 1) / 7)  # -4 is raised to -3
    assert stats["clip_fraction"].item() == pytest.approx(2 / 7)
    assert stats["dual_clip_fraction"].item() == pytest.approx(1 / 7)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.05, 0.9), st.one_of(st.none(), st.floats(1.05, 4)), st.sampled_from(REDUCTIONS))
def test_surrogate_reference(seed: int, clip: float, dual: float | None, reduction: str) -> None:
    new, old, advantages = grids(seed, 3)
    mask = left(LENGTHS)
    tokens = [
        [surrogate(*xs, clip, dual) for xs in zip(*rows, strict=True)]
        for rows in zip(cut(new), cut(old), cut(advantages), strict=True)
    ]
    loss, stats = surrogate_loss(new, old, advantages, mask, clip=clip, dual_clip=dual, reduction=reduction)
    assert loss.item() == pytest.approx(average([[t[0] for t in row] for row in tokens], reduction))
    assert stats["clip_fraction"].item() == pytest.approx(average([[t[1] for t in row] for row in tokens], "token"))
    if dual is not None:
        floored = average([[t[2] for t in row] for row in tokens], "token")
        assert stats["dual_clip_fraction"].item() == pytest.approx(floored)
    single, _ = surrogate_loss(
        new.float(), old.float(), advantages.float(), mask, clip=clip, dual_clip=dual, reduction=reduction
    )
    assert single.dtype == torch.float32 and single.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dual", [None, 2.0])
def test_surrogate_gradients(reduction: str, dual: float | None) -> None:
    new, old, advantages = grids(3, 3)
    assert torch.autograd.gradcheck(
        lambda x: surrogate_loss(x, old, advantages, left(LENGTHS), dual_clip=dual, reduction=reduction)[0],
        (new.requires_grad_(),),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dual", [None, 3.0])
def test_at_ratio_one_the_gradient_is_the_policy_gradient(reduction: str, dual: float | None) -> None:
    """-A / n per token, also when the tensor itself is given as the old one: it is not differentiated."""
    (log_probs, advantages), mask = grids(0, 2), left(LENGTHS)
    log_probs.requires_grad_()
    for old in (log_probs.detach().clone(), log_probs):
        loss, stats = surrogate_loss(log_probs, old, advantages, mask, dual_clip=dual, reduction=reduction)
        (gradient,) = torch.autograd.grad(loss, log_probs)
        for i, n in enumerate(LENGTHS):
            share = 14 if reduction == "token" else 4 * n
            assert gradient[i, :n].tolist() == pytest.approx([-a / share for a in advantages[i, :n].tolist()])
            assert gradient[i, n:].tolist() == [0.0] * (6 - n)
        assert stats["clip_fraction"].item() == 0.0


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_its_ratio() -> None:
    log_probs = double(1.5, 0.5, 4.0, 1.5)[None].log().requires_grad_()
    zero, mask = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    loss, _ = surrogate_loss(log_probs, zero, double(1, -1, -1, -1)[None], mask, dual_clip=3.0)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[0].tolist() == pytest.approx([0, 0, 0, 1.5 / 4])


def test_only_the_policy_is_differentiated() -> None:
    new, old, advantages = (x.requires_grad_() for x in grids(0, 3))
    loss, stats = surrogate_loss(new, old, advantages, left(LENGTHS))
    assert torch.autograd.grad(loss, [new, old, advantages], allow_unused=True)[1:] == (None, None)
    assert not any(x.requires_grad for x in stats.values())


@pytest.mark.parametrize("dual", [None, 3.0])
def test_huge_ratios_stay_finite(dual: float | None) -> None:
    log_probs = torch.tensor([[0.0, 0.0, 0.0, -500.0]], requires_grad=True)
    old, advantages = torch.tensor([[-500.0, -500.0, -500.0, 0.0]]), torch.tensor([[1.0, -1.0, 0.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, _ = surrogate_loss(log_probs, old, advantages, mask, dual_clip=dual)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    worst = math.exp(MAX_LOG_RATIO) if dual is None else dual
    assert loss.item() == pytest.approx((-1.2 + worst + 0.8) / 4, rel=1e-6)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_surrogate_ignores_junk(junk: float, reduction: str) -> None:
    mask, results = left(LENGTHS), []
    for fill in (0.0, junk):
        new, old, advantages = (x.masked_fill(~mask, fill) for x in grids(0, 3))
        new.requires_grad_()
        loss, stats = surrogate_loss(new, old, advantages, mask, dual_clip=1.5, reduction=reduction)
        results.append([loss.detach(), *torch.autograd.grad(loss, new), *stats.values()])
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_wider_padding_and_empty_rows_change_nothing(reduction: str) -> None:
    """Every row alone, unpadded, with the batch's total, sums to the padded batch."""
    new, old, advantages = grids(0, 3)
    mask, wide = left(LENGTHS), left((*LENGTHS, 0, 0), 9)
    padded = [torch.full((7, 9), torch.nan, dtype=torch.float64) for _ in range(3)]
    for target, source in zip(padded, (new, old, advantages), strict=True):
        target[:5, :6] = source
    loss, _ = surrogate_loss(new, old, advantages, mask, reduction=reduction)
    assert surrogate_loss(*padded, wide, reduction=reduction)[0].item() == pytest.approx(loss.item(), rel=1e-12)
    value = clipped_value_loss(new, old, advantages, mask, reduction=reduction)
    assert clipped_value_loss(*padded, wide, reduction=reduction).item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("cuts", [[5], [1, 4], [2, 1, 2], [1, 1, 1, 1, 1]])
def test_micro_batches_sum_to_the_whole(reduction: str, cuts: list[int]) -> None:
    """Loss and gradient, though the parts hold different numbers of tokens and one of them none."""
    new, old, other = grids(0, 3)
    new.requires_grad_()
    mask = left(LENGTHS)
    total = torch.stack([reduction_count(m, reduction) for m in mask.split(cuts)]).sum()
    for loss in (lambda *xs, **kw: surrogate_loss(*xs, **kw)[0], lambda *xs, **kw: clipped_value_loss(*xs, **kw)):
        whole = loss(new, old, other, mask, reduction=reduction)
        parts = [
            loss(*part, reduction=reduction, total=total)
            for part in zip(*(x.split(cuts) for x in (new, old, other, mask)), strict=True)
        ]
        assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), rel=1e-12)
        (expected,) = torch.autograd.grad(whole, new, retain_graph=True)
        (summed,) = torch.autograd.grad(torch.stack(parts).sum(), new)
        torch.testing.assert_close(summed, expected)


# --- the critics


def value_error(value: float, old: float, target: float, clip: float | None) -> float:
    plain = (value - target) ** 2
    if clip is None:
        return plain / 2
    return max(plain, (min(max(value, old - clip), old + clip) - target) ** 2) / 2


def test_value_loss_by_hand() -> None:
    # clip 1 around 0. Towards the target too far: V = 3, R = 4 -> (1 - 4)^2; away from it: V = -3, R = 1 -> (-3 - 1)^2;
    # inside: V = 0.5, R = 2 -> 1.5^2; past the target: V = 3, R = 1.5 -> max(1.5^2, 0.5^2)
    values, returns = double(3, -3, 0.5, 3)[None].requires_grad_(), double(4, 1, 2, 1.5)[None]
    old, mask = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    loss = clipped_value_loss(values, old, returns, mask, clip=1.0)
    assert loss.item() == pytest.approx((9 + 16 + 2.25 + 2.25) / 8)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient[0].tolist() == pytest.approx([0, -4 / 4, -1.5 / 4, 1.5 / 4])  # the first has gone far enough
    plain = clipped_value_loss(values, old, returns, mask, clip=None)
    assert plain.item() == pytest.approx((1 + 16 + 2.25 + 2.25) / 8)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.one_of(st.none(), st.floats(0.1, 3)), st.sampled_from(REDUCTIONS))
def test_value_loss_reference(seed: int, clip: float | None, reduction: str) -> None:
    values, old, returns = grids(seed, 3)
    expected = average(each(lambda *xs: value_error(*xs, clip), values, old, returns), reduction)
    got = clipped_value_loss(values, old, returns, left(LENGTHS), clip=clip, reduction=reduction)
    assert got.item() == pytest.approx(expected)
    half = [x.bfloat16() for x in (values, old, returns)]
    assert clipped_value_loss(*half, left(LENGTHS), clip=clip, reduction=reduction).dtype == torch.float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_value_gradients(reduction: str, clip: float | None) -> None:
    values, old, returns = grids(3, 3)
    assert torch.autograd.gradcheck(
        lambda x: clipped_value_loss(x, old, returns, left(LENGTHS), clip=clip, reduction=reduction),
        (values.requires_grad_(),),
    )


def test_only_the_new_values_are_differentiated() -> None:
    values, old, returns = (x.requires_grad_() for x in grids(0, 3))
    loss = clipped_value_loss(values, old, returns, left(LENGTHS))
    assert torch.autograd.grad(loss, [values, old, returns], allow_unused=True)[1:] == (None, None)
    # at the start of an update the old values are the values: the gradient is (V - R) / n
    loss = clipped_value_loss(values, values, returns, left(LENGTHS))
    (gradient,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(gradient, ((values - returns) / 14).masked_fill(~left(LENGTHS), 0.0).detach())


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_value_loss_ignores_junk(junk: float, clip: float | None) -> None:
    mask, results = left(LENGTHS), []
    for fill in (0.0, junk):
        values, old, returns = (x.masked_fill(~mask, fill) for x in grids(0, 3))
        loss = clipped_value_loss(values.requires_grad_(), old, returns, mask, clip=clip)
        results.append([loss.detach(), *torch.autograd.grad(loss, values)])
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


# --- what to watch


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_explained_variance_reference(seed: int) -> None:
    values, returns = grids(seed, 2)
    mask = left(LENGTHS)
    targets = [x for row in cut(returns) for x in row]
    missed = [x for row in each(lambda v, r: r - v, values, returns) for x in row]
    expected = 1 - statistics.pvariance(missed) / statistics.pvariance(targets)
    assert explained_variance(values, returns, mask).item() == pytest.approx(expected)
    single = explained_variance(values.float(), returns.float(), mask)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_explained_variance_limits() -> None:
    (returns,), mask = grids(0, 1), left(LENGTHS)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(returns + 7, returns, mask).item() == pytest.approx(
        1.0
    )  # a constant offset is not variance
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)
    # 0.1 is not a binary fraction: float32 sums would make a variance of rounding errors, and of the result any number
    constant = torch.full((5, 6), 0.1)
    assert explained_variance(normal(1, 5, 6).float(), constant, mask).item() == 0.0
    assert explained_variance(constant[:1, :1], constant[:1, :1], mask[:1, :1]).item() == 0.0


@pytest.mark.parametrize("junk", JUNK)
def test_what_to_watch_ignores_junk(junk: float) -> None:
    (values, returns), mask = grids(0, 2), left(LENGTHS)
    dirty = [x.masked_fill(~mask, junk) for x in (values, returns)]
    clean = [x.masked_fill(~mask, 0.0) for x in (values, returns)]
    assert explained_variance(*dirty, mask).item() == explained_variance(*clean, mask).item()


def test_errors() -> None:
    mask, grid, column = left((2, 3), 3), torch.zeros(2, 3), torch.zeros(2, 1)
    cases = [
        ("clip must be above 0", lambda: surrogate_loss(grid, grid, grid, mask, clip=0.0)),
        ("clip must be above 0", lambda: surrogate_loss(grid, grid, grid, mask, clip=math.nan)),
        ("dual_clip must be above 1", lambda: surrogate_loss(grid, grid, grid, mask, dual_clip=1.0)),
        ("advantages has shape", lambda: surrogate_loss(grid, grid, column, mask)),
        ("old_log_probs has shape", lambda: surrogate_loss(grid, column, grid, mask)),
        ("must be bool", lambda: surrogate_loss(grid, grid, grid, mask.float())),
        ("reduction", lambda: reduce_tokens(grid, mask, reduction="mean", total=3)),  # type: ignore[arg-type]
        ("total must be one number", lambda: reduce_tokens(grid, mask, total=torch.ones(2))),
        ("clip must be above 0", lambda: clipped_value_loss(grid, grid, grid, mask, clip=-1.0)),
        ("returns has shape", lambda: clipped_value_loss(grid, grid, torch.zeros(3), mask)),
        ("old_values has shape", lambda: clipped_value_loss(grid, column, grid, mask)),
        ("returns has shape", lambda: explained_variance(grid, column, mask)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
