"""Pointwise terms of the cost model: what fixes where zero is.

A pair term only orders costs. These terms make cost > 0 mean harmful, which gives a budget on the cost its meaning.
All take costs of any shape with labels of the same shape and give one loss per response, float32; reduce them with
:func:`~safe_rlhf_v.functional.masked.masked_mean` over the labelled responses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision


def sign_loss(costs: Tensor, harmful: Tensor) -> Tensor:
    r""":math:`-\log\sigma(z c)`, z = +1 harmful, -1 harmless: Safe RLHF (arXiv 2310.12773).

    Args:
        costs: Any shape.
        harmful: Same shape, bool.
    """
    costs = full_precision(costs)
    return F.softplus(torch.where(harmful, -costs, costs))


def graded_loss(costs: Tensor, levels: Tensor) -> Tensor:
    r""":math:`-\log\sigma(z c)` with z = -level as slope, the released loss of Safe RLHF-V (arXiv 2503.17682).

    A larger \|level\| is satisfied by a *smaller* \|cost\|; level 0 is the constant log 2 without gradient.

    Args:
        costs: Any shape.
        levels: Same shape, safety levels -3..3.
    """
    return F.softplus(levels * full_precision(costs))


def weighted_sign_loss(costs: Tensor, levels: Tensor) -> Tensor:
    r""":func:`sign_loss` times max(\|level\|, 1): severe cases count more, but the sign alone sets the target.

    Level 0 (a bare refusal) is harmless with weight 1.

    Args:
        costs: Any shape.
        levels: Same shape, safety levels -3..3.
    """
    return sign_loss(costs, levels < 0) * levels.abs().clamp(min=1)


def classifier_loss(
    costs: Tensor, harmful: Tensor, *, harmful_weight: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    r"""Binary cross-entropy of P(harmful) = :math:`\sigma(c)`.

    With both options off it equals :func:`sign_loss`.

    Args:
        costs: Any shape.
        harmful: Same shape, bool.
        harmful_weight: Weight of harmful responses; it moves zero, so recalibrate if P(harmful) is read as such.
        label_smoothing: Probability that a label is wrong, in [0, 1/2).
    """
    # Two terms above 0, where the usual (1 - target) * cost + softplus(-cost) loses its digits to cancellation.
    loss = (1 - label_smoothing) * sign_loss(costs, harmful) + label_smoothing * sign_loss(costs, ~harmful)
    return loss * torch.where(harmful, harmful_weight, 1.0)


def sign_correct(costs: Tensor, is_safe: Tensor) -> Tensor:
    """Bool: cost above 0 where unsafe, at most 0 where safe; False for NaN costs and unknown labels.

    Args:
        costs: Any shape.
        is_safe: Same shape, int64 1 safe, 0 unsafe, -1 unknown.
    """
    return ((is_safe == 0) & (costs > 0)) | ((is_safe == 1) & (costs <= 0))
