"""From scores to advantages: divergence, token signals, advantage estimates, and their combination under a constraint.

N responses of R tokens. Masks are (N, R) bool, True = real token; the real tokens of a row stand next to each other (left-aligned
in a rollout). Rows without a real token and rows of one token are allowed, and what stands at a masked position never matters.
Reward up = more helpful, cost up = more harmful; both go through the same functions. After Safe RLHF (arXiv 2310.12773) and
Safe RLHF-V (arXiv 2503.17682); the losses are in :mod:`~safe_rlhf_v.functional.policy_losses`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision, last_valid_index, masked_mean, masked_sum, masked_var

Estimator = Literal["k1", "k2", "k3"]


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless the mask is bool and every named tensor has its shape: broadcasting would hide a mistake."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool (True = real), got {mask.dtype}")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the mask {tuple(mask.shape)}: they must be equal"
            )


def kl_estimate(log_probs: Tensor, reference: Tensor, mask: Tensor, *, estimator: Estimator = "k1") -> Tensor:
    r"""(N, R) estimate of KL(policy || reference) at each sampled token, 0 where masked; differentiable in ``log_probs``.

    With :math:`d = \log\pi - \log\nu`: k1 is :math:`d`, k2 is :math:`d^2 / 2`, k3 is :math:`e^{-d} - 1 + d` (Schulman,
    "Approximating KL divergence", 2020). As numbers, k1 and k3 have the divergence as their mean over tokens sampled from
    the policy, k2 only nearly; k3 is never negative and varies less than k1. A good estimate need not have a good gradient.
    With :math:`s = \nabla\log\pi`, whose mean is 0, and means over tokens sampled from the policy:

    ======  ==================================================  ==========================================
    \        as a charge: :math:`E[k\,s]`                       as a loss: :math:`E[\nabla k]`
    ======  ==================================================  ==========================================
    k1      :math:`E[d\,s] = \nabla KL(\pi\|\nu)`               :math:`E[s] = 0`
    k2      neither                                             :math:`E[d\,s] = \nabla KL(\pi\|\nu)`
    k3      :math:`\nabla KL(\pi\|\nu) - \nabla KL(\nu\|\pi)`    :math:`E[(1 - e^{-d})\,s] = \nabla KL(\nu\|\pi)`
    ======  ==================================================  ==========================================

    A charge is what a score is reduced by: the policy gradient multiplies it with :math:`s` and does not differentiate it. Near
    the reference the two divergences have the same gradient, so that k3 as a charge has almost none. As a loss k3 (GRPO, arXiv
    2402.03300) is the forward divergence.

    Args:
        log_probs: (N, R) log-probabilities of the response tokens under the policy.
        reference: (N, R) the same under the reference.
        mask: (N, R) bool.
        estimator: ``k1`` for token signals and logs, ``k2`` or ``k3`` for a term of the loss.
    """
    check_shapes(mask, log_probs=log_probs, reference=reference)
    d = (full_precision(log_probs) - full_precision(reference)).masked_fill(~mask, 0.0)  # (N, R)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def importance_weights(log_probs: Tensor, engine: Tensor, mask: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    r"""(N, R) weights of tokens that another program sampled, and (N, R) bool where they are truncated; 1 and False where masked.

    .. math:: w = \min\big(e^{\log\pi - \log\mu},\ C\big)

    :math:`\pi` is the policy at the time of the rollout, as its own network computes it, and :math:`\mu` the same policy as the
    program computes it (other kernels, another precision). :math:`E_\mu[\frac{\pi}{\mu} f] = E_\pi[f]`; the cap, a truncated
    importance weight (Ionides, "Truncated Importance Sampling", J. Comput. Graph. Stat. 17, 2008), bounds its variance for
    a small bias. Per token and in front of the clipped surrogate as in Yao et al., "Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training" (2025).

    Args:
        log_probs: (N, R) log-probabilities under the policy's own network.
        engine: (N, R) the same as the program gave them.
        mask: (N, R) bool.
        cap: C, above 0.
    """
    check_shapes(mask, log_probs=log_probs, engine=engine)
    if not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    difference = (full_precision(log_probs) - full_precision(engine)).detach().masked_fill(~mask, 0.0)
    limit = math.log(cap)
    truncated = (difference > limit) & mask
    return difference.clamp(max=limit).exp().masked_fill(~mask, 1.0).masked_fill(truncated, cap), truncated


def sequence_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """(N,) divergence of each whole response: the sum of its tokens, 0 for an empty row.

    Args:
        kl: (N, R) per-token estimates.
        mask: (N, R) bool.
    """
    check_shapes(mask, kl=kl)
    return masked_sum(kl, mask, 1)


def limit_scores(scores: Tensor, centre: Tensor, limit: float) -> Tensor:
    """Scores no further than ``limit`` from ``centre``; those nearer stay as they are, bit for bit.

    A fixed centre would make every score equal once a policy has moved far enough from it. About the median of the scores
    themselves some always differ, wherever they lie, unless all are equal; and one wild score does not move it.

    Args:
        scores: (N, ...).
        centre: (...) or scalar, see :func:`~safe_rlhf_v.functional.masked.masked_median`.
        limit: Above 0, in the unit of the scores.
    """
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    scores = full_precision(scores)
    centre = full_precision(centre)
    return scores.clamp(centre - limit, centre + limit)


def terminal_signal(scores: Tensor, mask: Tensor, *, kl: Tensor | None = None, kl_weight: float = 0.0) -> Tensor:
    r"""(N, R) signal per token: :math:`w k_t + [t = T] s`, T the last real token; 0 where masked.

    The reward takes :math:`w = -\beta`, the cost :math:`w = +\beta`: :func:`combine_advantages` then sees the penalty
    :math:`\beta` exactly once, for every multiplier. The released code also limits this signal to 50 about 0; here the scores
    are limited before (:func:`limit_scores`), about their own centre.

    Args:
        scores: (N,) reward or cost of each response.
        mask: (N, R) bool.
        kl: (N, R) divergence per token.
        kl_weight: w.
    """
    check_shapes(mask, **({} if kl is None else {"kl": kl}))
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected one per response: ({len(mask)},)")
    if kl is None and kl_weight != 0:
        raise ValueError(f"kl_weight is {kl_weight}, but no kl was given")
    positions = torch.arange(mask.shape[1], device=mask.device)  # (R,)
    last = mask & (positions == last_valid_index(mask)[:, None])  # (N, R)
    signal = torch.where(last, full_precision(scores)[:, None], 0.0)
    if kl is not None:
        signal = signal + kl_weight * full_precision(kl).masked_fill(~mask, 0.0)
    return signal


def generalised_advantage(
    signal: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Advantages and returns, each (N, R), 0 where masked, without a graph (GAE, arXiv 1506.02438).

    .. math:: A_t = \sum_{l \ge 0} (\gamma\lambda)^l \delta_{t+l}, \quad
              \delta_t = s_t + \gamma V_{t+1} - V_t, \quad V_{T+1} = 0, \quad R_t = A_t + V_t

    The sum ends at each row's own last real token, so a response has the same advantages beside a longer one as alone.

    Args:
        signal: (N, R) from :func:`terminal_signal`.
        values: (N, R) the critic's values.
        mask: (N, R) bool.
        gamma: Discount in [0, 1].
        lam: 1 gives Monte Carlo returns minus values, 0 the one-step errors.
    """
    check_shapes(mask, signal=signal, values=values)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    values = full_precision(values.detach()).masked_fill(~mask, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)  # V_{t+1}
    deltas = (full_precision(signal.detach()) + gamma * following - values).masked_fill(~mask, 0.0)  # (N, R)
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))  # (N,)
    for t in reversed(range(mask.shape[1])):
        running = torch.add(deltas[:, t], running, alpha=gamma * lam)
        advantages[:, t] = running
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


def group_advantage(
    scores: Tensor, samples: int, valid: Tensor, *, divide: bool, eps: float = 0.1, floor: float = 0.0
) -> Tensor:
    """(N,) score minus the mean of its prompt's group, 0 for invalid rows, without a graph.

    Divided by the group's spread this is GRPO (arXiv 2402.03300). Without it (Dr. GRPO, arXiv 2503.20783) prompts whose
    responses differ little count little, and costs keep the unit that the multiplier was found in.

    Args:
        scores: (N,) reward or cost, prompt by prompt: ``samples`` consecutive rows response the same prompt.
        samples: Responses per prompt, at least 2.
        valid: (N,) bool; other rows are left out of the mean and the spread.
        divide: Divide by the group's population standard deviation + ``eps``.
        eps: The smaller, the more a group of nearly equal scores is blown up; GRPO's implementations take 1e-4.
        floor: A smaller standard deviation counts as this one, in the unit of the scores.
    """
    check_shapes(valid, scores=scores)
    if scores.dim() != 1:
        raise ValueError(f"scores must be (N,), got shape {tuple(scores.shape)}")
    if samples < 2:
        raise ValueError(f"samples must be at least 2 (a single response has no group to compare with), got {samples}")
    if len(scores) % samples:
        raise ValueError(f"{len(scores)} scores cannot be cut into groups of {samples} samples")
    if divide and not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    groups = full_precision(scores.detach()).reshape(len(scores) // samples, samples)  # (prompts, samples)
    real = valid.reshape(groups.shape)
    centred = groups - masked_mean(groups, real, 1)[:, None]
    if divide:
        spread = masked_var(groups, real, 1, unbiased=False).sqrt().clamp(min=floor)
        centred = centred / (spread + eps)[:, None]
    return centred.masked_fill(~real, 0.0).reshape(scores.shape)


def combine_advantages(reward: Tensor, cost: Tensor, lam: Tensor | float) -> Tensor:
    r"""(N, R) :math:`(A^r - \lambda A^c) / (1 + \lambda)`, float32.

    The division keeps the step size bounded: 0 is pure reward, a large multiplier pure descent of the cost.

    Args:
        reward: (N, R) advantages of the reward.
        cost: (N, R) advantages of the cost.
        lam: The multiplier, not negative: one number, or (N, 1) for one per response.
    """
    if reward.shape != cost.shape or reward.dim() != 2:
        raise ValueError(f"reward and cost must both be (N, R), got {tuple(reward.shape)} and {tuple(cost.shape)}")
    reward = full_precision(reward)
    cost = full_precision(cost)
    lam = torch.as_tensor(lam, dtype=reward.dtype, device=reward.device)
    if lam.shape not in [(), (1,), (len(reward), 1)]:
        raise ValueError(f"lam must be one number or ({len(reward)}, 1), got shape {tuple(lam.shape)}")
    if not bool((lam >= 0).all()):
        raise ValueError(f"lam must not be negative or NaN, got {lam.flatten().tolist()}")
    return reward / (1 + lam) - cost * (lam / (1 + lam))


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """(3,) float64 (count, sum, sum of squares) of the real values: those of batches and ranks are added up.

    Args:
        values: Any shape.
        mask: Same shape, bool.
    """
    check_shapes(mask, values=values)
    real = values.detach().double().masked_fill(~mask, 0.0)
    return torch.stack([mask.sum().double(), real.sum(), real.square().sum()])


def mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation, float64 scalars; 0 where too few values were counted.

    Args:
        moments: (3,) a sum of :func:`moments`.
    """
    if moments.shape != (3,):
        raise ValueError(f"moments must be (count, sum, sum of squares), got shape {tuple(moments.shape)}")
    count, total, squares = moments.double().unbind()
    mean = total / count.clamp(min=1)
    variance = (squares - total * mean) / (count - 1).clamp(min=1)
    return mean, variance.clamp(min=0).sqrt()  # rounding can make it negative


def standardise(values: Tensor, mask: Tensor, mean: Tensor, std: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """Values minus the mean, divided by the standard deviation if one is given; 0 where masked.

    Centring without dividing keeps the unit of the values, which for costs is the unit of the multiplier. Without a floor the
    division makes as much of rounding errors as of real differences: equal scores would come out as plus and minus 1.

    Args:
        values: Any shape.
        mask: Same shape, bool.
        mean: Scalar, see :func:`mean_and_std`.
        std: Scalar.
        floor: A smaller ``std`` counts as this one, 0 or more; in the unit of the values.
    """
    check_shapes(mask, values=values)
    if mean.dim() or (std is not None and std.dim()):
        raise ValueError("mean and std must be scalars")
    if not floor >= 0:
        raise ValueError(f"floor must be 0 or more, got {floor}")
    values = full_precision(values)
    centred = values - mean.to(values.dtype)
    if std is not None:
        spread = std.to(values.dtype).clamp(min=floor)
        centred = centred / torch.where(spread > 0, spread, 1.0)
    return centred.masked_fill(~mask, 0.0)
