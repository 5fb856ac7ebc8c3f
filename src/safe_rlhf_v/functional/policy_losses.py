"""Losses of actor and critics over sampled responses, and what to watch while they fall.

Shapes and masks are those of :mod:`~safe_rlhf_v.functional.policy`. Losses are to be minimised. Two ways to average: over all
real tokens (``token``), or over responses, each with the mean of its own tokens (``sequence``, as released), so that long
responses do not outweigh short ones. ``total`` replaces the number divided by: with the count of the whole batch, the losses
of micro-batches and ranks sum to the loss of the whole, whatever their lengths.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision, masked_mean, masked_sum
from safe_rlhf_v.functional.policy import check_shapes

Reduction = Literal["token", "sequence"]

MAX_LOG_RATIO = (
    20.0  # exp overflows float32 at 88, and an infinite ratio makes NaN gradients even where it is clipped away
)


def reduction_count(mask: Tensor, reduction: Reduction) -> Tensor:
    """How many tokens or responses a loss is averaged over; sum it over micro-batches and ranks to get ``total``.

    Args:
        mask: (N, R) bool.
        reduction: Tokens, or rows with at least one real token.
    """
    if reduction == "token":
        return mask.sum()
    if reduction == "sequence":
        return mask.any(1).sum()
    raise ValueError(f"reduction must be 'token' or 'sequence', got {reduction!r}")


def reduce_tokens(
    values: Tensor, mask: Tensor, *, reduction: Reduction = "token", total: Tensor | float | None = None
) -> Tensor:
    """Scalar mean of per-token values; 0, still connected to the graph, if nothing is real.

    Args:
        values: (N, R).
        mask: (N, R) bool.
        reduction: See the module's text.
        total: Number to divide by instead of :func:`reduction_count`.
    """
    check_shapes(mask, values=values)
    count = reduction_count(mask, reduction)
    if total is not None:
        count = torch.as_tensor(total, device=values.device)
        if count.numel() != 1:
            raise ValueError(f"total must be one number, got shape {tuple(count.shape)}")
        count = count.reshape(())
    summed = masked_sum(values, mask) if reduction == "token" else masked_mean(values, mask, 1).sum()
    return summed / torch.where(count > 0, count, 1)


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""PPO's loss of each token (arXiv 1707.06347) and statistics; only ``log_probs`` gets a gradient.

    .. math:: -\min\big(\rho A,\ \mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A\big), \quad \rho = \pi / \pi_{old}

    With a higher upper limit this is DAPO's clip-higher (arXiv 2503.14476, eq. 8). With ``dual_clip`` c the minimum is not let
    below c A where A < 0 (arXiv 1912.09729): one bad token whose probability has grown many times over then no longer rules the
    step. Ratios are cut off at e^20.

    Args:
        log_probs: (N, R) of the response tokens, under the policy being trained.
        old_log_probs: (N, R) under the policy that sampled them.
        advantages: (N, R).
        mask: (N, R) bool.
        clip: :math:`\epsilon_{low}` and :math:`\epsilon_{high}`, above 0.
        dual_clip: c, above 1.

    Returns:
        (N, R) losses, 0 where masked, to be averaged by :func:`reduce_tokens`; and (N, R) statistics without a graph:
        ``clip_fraction``, 1 where the clipped term is the smaller one, so that the gradient is 0, and with ``dual_clip`` also
        ``dual_clip_fraction``.
    """
    check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    log_ratio = (full_precision(log_probs) - full_precision(old_log_probs.detach())).masked_fill(~mask, 0.0)
    return _clipped(log_ratio, advantages, mask, clip, dual_clip)


def sequence_clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: tuple[float, float] = (3e-4, 4e-4),
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""As :func:`clipped_surrogate`, with one ratio for all tokens of a response (GSPO-token, arXiv 2507.18071, eq. 13 and 14).

    .. math:: s_t = \mathrm{sg}\Big[\Big(\frac{\pi(y)}{\pi_{old}(y)}\Big)^{1/|y|}\Big] \cdot
              \frac{\pi(y_t)}{\mathrm{sg}[\pi(y_t)]}

    where sg stops the gradient: all tokens have the geometric mean of their ratios, and each its own gradient. With equal
    advantages within a response, the mean over its tokens is GSPO's objective, value and gradient (eq. 5 and 10).

    Args:
        log_probs: (N, R) of the response tokens, under the policy being trained.
        old_log_probs: (N, R) under the policy that sampled them.
        advantages: (N, R).
        mask: (N, R) bool.
        clip: :math:`\epsilon_{low}` and :math:`\epsilon_{high}`, above 0; the paper's are 3e-4 and 4e-4.

    Returns:
        See :func:`clipped_surrogate`.
    """
    check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    new = full_precision(log_probs).masked_fill(~mask, 0.0)
    log_ratio = (new.detach() - full_precision(old_log_probs.detach())).masked_fill(~mask, 0.0)
    mean = masked_mean(log_ratio, mask, 1)[:, None]  # (N, 1)
    return _clipped((mean + (new - new.detach())).masked_fill(~mask, 0.0), advantages, mask, clip, None)


def _clipped(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip: tuple[float, float], dual_clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """See :func:`clipped_surrogate`; (N, R) log-ratios are 0 where masked."""
    low, high = clip
    if not (low > 0 and high > 0):
        raise ValueError(f"clip must be above 0, got {clip}")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1 (None to switch it off), got {dual_clip}")
    advantages = full_precision(advantages.detach()).masked_fill(~mask, 0.0)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()  # (N, R)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - low, 1 + high) * advantages
    objective = torch.minimum(plain, clipped)
    statistics = {"clip_fraction": (clipped < plain).to(objective.dtype)}
    if dual_clip is not None:
        floor = dual_clip * advantages
        floored = (advantages < 0) & (objective < floor)
        objective = torch.where(floored, floor, objective)
        statistics["dual_clip_fraction"] = floored.to(objective.dtype)
    return -objective, statistics


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None = 5.0,
    reduction: Reduction = "token",
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Scalar loss of a critic; only ``values`` gets a gradient.

    .. math:: \tfrac12 \max\big((V - R)^2,\ (V_{old} + \mathrm{clip}(V - V_{old}, \pm\epsilon) - R)^2\big)

    A value that has already moved by more than :math:`\epsilon` towards its return since the rollout gets no further gradient.

    Args:
        values: (N, R) of the critic being trained.
        old_values: (N, R) of the critic at the time of the rollout.
        returns: (N, R) targets.
        mask: (N, R) bool.
        clip: :math:`\epsilon`, above 0, in the unit of the values; None for the plain squared error.
        reduction: See the module's text.
        total: See the module's text.
    """
    check_shapes(mask, values=values, old_values=old_values, returns=returns)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0 (None for no clipping), got {clip}")
    values = full_precision(values).masked_fill(~mask, 0.0)
    returns = full_precision(returns.detach()).masked_fill(~mask, 0.0)
    errors = (values - returns).square()  # (N, R)
    if clip is not None:
        old_values = full_precision(old_values.detach()).masked_fill(~mask, 0.0)
        limited = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (limited - returns).square())
    return reduce_tokens(0.5 * errors, mask, reduction=reduction, total=total)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """Scalar 1 - Var(R - V) / Var(R) over the real tokens, without a graph; 0 where the returns do not vary.

    1 is a perfect critic, 0 one that is no better than a constant, below 0 a worse one.

    Args:
        values: (N, R).
        returns: (N, R).
        mask: (N, R) bool.
        total: Sums a tensor over ranks, to measure their tokens together; called twice on every rank.
    """
    check_shapes(mask, values=values, returns=returns)
    wide = returns.detach().double()  # the variance of equal float32 numbers is exactly 0 only in float64
    both = torch.stack([wide, wide - values.detach().double()]).masked_fill(~mask, 0.0)  # (2, N, R)
    *sums, count = total(torch.stack([*both.sum((1, 2)), mask.sum().double()]))
    means = torch.stack(sums) / count.clamp(min=1)  # (2,)
    deviations = (both - means[:, None, None]).masked_fill(~mask, 0.0)
    variance, missed = total(deviations.square().sum((1, 2)))
    explained = torch.where(variance > 0, 1 - missed / torch.where(variance > 0, variance, 1.0), 0.0)
    return explained.to(full_precision(returns).dtype)
