"""Losses and counts over pairs of responses.

B pairs. Per-row results: reduce them with :func:`~safe_rlhf_v.functional.masked.masked_mean` over the rows that count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision

UNDECIDED = -1


def bradley_terry(
    higher: Tensor, lower: Tensor, *, margin: Tensor | float = 0.0, label_smoothing: Tensor | float = 0.0
) -> Tensor:
    r"""(B,) negative log-likelihood that the labelled order holds, float32.

    With difference :math:`\Delta` = higher - lower, margin m and probability :math:`\epsilon` that the label is wrong:

    .. math:: -(1-\epsilon)\log\sigma(\Delta - m) - \epsilon\log\sigma(-\Delta - m)

    m = 0 and :math:`\epsilon` = 0 is the model of Bradley & Terry (Biometrika 39, 1952) as used by Safe RLHF
    (arXiv 2310.12773) and Safe RLHF-V (arXiv 2503.17682); the margin is that of Llama 2 (arXiv 2307.09288, eq. 2).
    At :math:`\epsilon` = 1/2 both orders have the same loss: the label carries no information.

    Args:
        higher: (B,) scores of the responses that should score higher.
        lower: (B,) scores of the others.
        margin: By how much; a number or (B,).
        label_smoothing: :math:`\epsilon` in [0, 1]; a number or (B,).
    """
    difference = full_precision(higher) - full_precision(lower)  # (B,)
    agree = F.logsigmoid(difference - margin)
    flipped = F.logsigmoid(-difference - margin)
    return -(1 - label_smoothing) * agree - label_smoothing * flipped


def preferred(values: Tensor, known: Tensor) -> Tensor:
    """Which of two responses has the larger value, :data:`UNDECIDED` for equal or unknown ones.

    Args:
        values: (B, 2) ratings or true values.
        known: (B, 2) bool; a row counts if both are known (NaN is never known).

    Returns:
        (B,) int64, 0, 1 or -1.
    """
    first, second = values.unbind(1)
    decided = known.all(1) & ((first > second) | (first < second))
    return torch.where(decided, (second > first).long(), UNDECIDED)


def pair_correct(scores: Tensor, target: Tensor) -> Tensor:
    """(B,) bool: the target response scores strictly higher; equal scores count as wrong.

    Args:
        scores: (B, 2).
        target: (B,) int64 index of the response that should score higher; -1 gives False (leave those rows out).
    """
    first, second = scores.unbind(1)
    return torch.where(target == 0, first > second, (target == 1) & (second > first))
