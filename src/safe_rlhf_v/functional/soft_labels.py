r"""Votes as soft labels: a loss expected over what the annotators said, instead of the loss of their majority's label.

With the share :math:`q_y` of the votes for each possible label y, and scores s:

.. math:: \sum_y q_y\, \ell(s, y)

Where :math:`\ell` is a negative log-likelihood, this is the cross-entropy against the votes: for classes and levels as in
Peterson et al., "Human uncertainty makes classification more robust" (ICCV 2019); for pairs as in Christiano et al. (arXiv
1706.03741, section 2.2.3), where a tie is half a vote for either. Unanimous votes give the loss of the label. Shares are NaN
where nobody voted.
"""

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision


def has_votes(shares: Tensor) -> Tensor:
    """(...) bool: somebody voted.

    Args:
        shares: (..., K) share of the votes for each label.
    """
    return ~shares.isnan().any(-1)


def expected_loss(losses: Tensor, shares: Tensor) -> Tensor:
    """(...) float32 mean of the losses over the votes; 0, with its graph, without votes.

    Args:
        losses: (..., K) loss of each possible label, finite.
        shares: (..., K) share of the votes for each label.
    """
    return (full_precision(losses) * shares.nan_to_num()).sum(-1)


def soft_order(label: Tensor, share: Tensor, label_smoothing: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    r"""The preferred response of each pair, and how probable it is that the other one is better.

    The latter is a ``label_smoothing`` with which :func:`~safe_rlhf_v.functional.pairwise.bradley_terry` is the cross-entropy
    against the votes: of a vote that is wrong with probability :math:`\epsilon`, and a share q of votes for the other
    response, it is :math:`\epsilon + (1 - 2\epsilon) q`.

    Args:
        label: (B,) int64 index 0 or 1, -1 unknown.
        share: (B,) share of the votes for response 1, a tie counting half.
        label_smoothing: :math:`\epsilon` in [0, 0.5]; a number or (B,).

    Returns:
        (B,) int64 index: the label, or without it the majority's choice (0 if they are divided equally), -1 with neither;
        and (B,) float32, :math:`\epsilon` without votes.
    """
    known = ~share.isnan()  # (B,)
    index = torch.where(known & (label < 0), (share > 0.5).long(), label)
    other = torch.where(index == 1, 1 - share, share).nan_to_num()  # q
    return index, label_smoothing + (1 - 2 * label_smoothing) * other
