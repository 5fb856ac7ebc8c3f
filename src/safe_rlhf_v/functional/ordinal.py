r"""The cumulative link model of ordered levels (McCullagh, J. R. Stat. Soc. B 42, 1980).

One latent number f (higher = higher level) and ordered thresholds:
:math:`P(\text{level} > k) = \sigma(f - \theta_k)`, k = 0..K-2. Levels are class indices 0..K-1 here.
For a cost model f = -cost, and the threshold between the harmful and the harmless levels is fixed at 0: then
P(harmful) = sigma(cost), and the sign of the cost stays the verdict.

Shapes: K levels, ``...`` any batch shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision

MIN_GAP = 0.05
"""Smallest distance of neighbouring thresholds, so that no level's probability vanishes in float32."""


def thresholds_from_gaps(free_gaps: Tensor, anchor: int) -> Tensor:
    """(K-1,) strictly increasing thresholds with ``thresholds[anchor] == 0``, for any real parameters.

    Args:
        free_gaps: (K-2,) free parameters; neighbours are softplus(free) + :data:`MIN_GAP` apart.
        anchor: Which threshold is 0.
    """
    steps = F.softplus(full_precision(free_gaps)) + MIN_GAP  # (K-2,)
    above = steps[anchor:].cumsum(0)
    below = -steps[:anchor].flip(0).cumsum(0).flip(0)
    return torch.cat([below, steps.new_zeros(1), above])


def gaps_from_thresholds(thresholds: Tensor) -> Tensor:
    """(K-2,) free parameters for which :func:`thresholds_from_gaps` gives these thresholds (up to a shift).

    Raises:
        ValueError: If neighbours are not more than :data:`MIN_GAP` apart.
    """
    excess = full_precision(thresholds).diff() - MIN_GAP
    if not bool((excess > 0).all()):
        raise ValueError(f"thresholds must increase by more than {MIN_GAP}, got {thresholds.tolist()}")
    return excess + torch.log(-torch.expm1(-excess))  # inverse of softplus


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 without cancellation (Maechler, "Accurately computing ``log(1 - exp(-|a|))``", 2012)."""
    small = x < math.log(2)
    near = torch.log(-torch.expm1(-torch.where(small, x, 1.0)))
    return torch.where(small, near, torch.log1p(-torch.exp(-torch.where(small, 1.0, x))))


def level_log_probs(latent: Tensor, thresholds: Tensor, log_scale: Tensor | None = None) -> Tensor:
    r"""(..., K) log-probability of each level.

    A middle level's probability is :math:`\sigma(u) - \sigma(l)` with u = f - theta_{k-1} > l = f - theta_k. Its
    logarithm is computed as :math:`\log\sigma(u) + \log\sigma(-l) + \log(1 - e^{l-u})`, which has no cancellation, and l - u
    does not depend on f.

    Args:
        latent: (...) float.
        thresholds: (K-1,) strictly increasing.
        log_scale: (...) s of the heteroscedastic model P(level > k) = sigmoid((f - theta_k) e^{-s}): how spread out the
            levels of this row are (McCullagh, 1980, section 6.1). One positive scale for all k keeps the order.
    """
    gaps = thresholds.diff()  # (K-2,)
    logits = full_precision(latent)[..., None] - thresholds  # (..., K-1), decreasing
    if log_scale is not None:
        sharpness = torch.exp(-full_precision(log_scale))[..., None]  # (..., 1)
        logits = logits * sharpness
        gaps = gaps * sharpness
    above = F.logsigmoid(logits)
    below = F.logsigmoid(-logits)
    middle = above[..., :-1] + below[..., 1:] + log1mexp(gaps)  # (..., K-2)
    return torch.cat([below[..., :1], middle, above[..., -1:]], dim=-1)


def corn_log_probs(logits: Tensor) -> Tensor:
    r"""(..., K) log-probability of each level from K-1 conditional questions (CORN, arXiv 2111.08851).

    :math:`\sigma(z_k) = P(\text{level} > k \mid \text{level} > k-1)`; the chain rule gives every level. Its negative
    log-likelihood is CORN's loss up to the constant the loss is divided by: each level enters exactly the questions whose
    condition it meets.

    Args:
        logits: (..., K-1) float.
    """
    logits = full_precision(logits)
    reached = F.logsigmoid(logits).cumsum(-1)  # (..., K-1) log P(level > k)
    start = torch.zeros_like(reached[..., :1])
    stay = torch.cat([F.logsigmoid(-logits), start], dim=-1)  # the top level has nothing above it
    return torch.cat([start, reached], dim=-1) + stay


def correct_prior(log_probs: Tensor, prior: Tensor) -> Tensor:
    """(..., K) log-probabilities for equally frequent levels in training (Saerens et al., Neural Comput. 14, 2002).

    For decisions that should not neglect rare levels; the predicted probabilities themselves are not changed.

    Args:
        log_probs: (..., K).
        prior: (K,) positive frequencies of the levels in training.
    """
    return torch.log_softmax(full_precision(log_probs) - full_precision(prior).log(), dim=-1)


def median_level(log_probs: Tensor) -> Tensor:
    """(...) int64 median of the predictive distribution: the decision with the least expected absolute error.

    Args:
        log_probs: (..., K).
    """
    return (log_probs.exp().cumsum(-1)[..., :-1] < 0.5).sum(-1)


def ordinal_loss(latent: Tensor, thresholds: Tensor, levels: Tensor) -> Tensor:
    """(...) negative log-likelihood of the levels.

    Args:
        latent: (...) float.
        thresholds: (K-1,) strictly increasing.
        levels: (...) int64 in 0..K-1.
    """
    return -level_log_probs(latent, thresholds).gather(-1, levels[..., None]).squeeze(-1)


def expected_level(log_probs: Tensor, lowest: int = 0) -> Tensor:
    """(...) mean level of (..., K) log-probabilities, the first level being ``lowest``."""
    levels = torch.arange(log_probs.shape[-1], device=log_probs.device) + lowest
    return (log_probs.exp() * levels).sum(-1)
