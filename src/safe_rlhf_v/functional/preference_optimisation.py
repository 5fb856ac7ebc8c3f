r"""Direct preference optimisation on two kinds of labels: which pairs to learn from, and the losses.

Both responses of a record are compared by their log-ratios :math:`\rho = \log\pi(y|x) - \log\nu(y|x)`, policy against
reference, summed over all response tokens with the end token. :math:`\beta\rho` is the implicit reward.

B pairs. Losses are per row: reduce them with :func:`~safe_rlhf_v.functional.masked.masked_mean` and the pairs' weights.
Label tensors are those of :class:`~safe_rlhf_v.records.batches.PreferenceBatch`: -1 is unknown.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import full_precision
from safe_rlhf_v.functional.pairwise import bradley_terry


class LabelledPairs(NamedTuple):
    """The preferred response of each record, and the record's weight.

    Attributes:
        winner: (B,) int64, 0 or 1; 0 where the weight is 0.
        weight: (B,) float32, 0 or more; 0 drops the record.
    """

    winner: Tensor
    weight: Tensor

    @property
    def target(self) -> Tensor:
        """(B,) int64 index of the winner, -1 where the record is dropped."""
        return torch.where(self.weight > 0, self.winner, -1)


def helpful_pairs(more_helpful: Tensor) -> LabelledPairs:
    """The more helpful response wins.

    Args:
        more_helpful: (B,) int64.
    """
    return _pairs(more_helpful)


def safer_pairs(safer: Tensor, safety_tie: Tensor) -> LabelledPairs:
    """The safer response wins; records with equal safety ratings are dropped, there ``safer`` was a forced choice.

    Args:
        safer: (B,) int64.
        safety_tie: (B,) bool.
    """
    return _pairs(safer.masked_fill(safety_tie, -1))


def safe_helpful_pairs(more_helpful: Tensor, is_safe: Tensor) -> LabelledPairs:
    """The pairs of SafeDPO (arXiv 2505.20065): a safe response wins over an unsafe one, else the more helpful one does.

    In the paper's words: keep the helpfulness order if its winner is safe, swap it if only its loser is safe, drop the
    record if both are unsafe. Where exactly one is safe, the order does not depend on ``more_helpful``, so that label may
    be missing. Records with an unknown safety label are dropped.

    Args:
        more_helpful: (B,) int64.
        is_safe: (B, 2) int64: 1 safe, 0 unsafe.
    """
    both = (is_safe == 1).all(1)  # (B,)
    safe_one = torch.where(one_is_safe(is_safe), is_safe.argmax(1), -1)  # (B,)
    return _pairs(torch.where(both, more_helpful, safe_one))


def one_is_safe(is_safe: Tensor) -> Tensor:
    """(B,) bool: both safety labels are known and exactly one response is safe.

    Args:
        is_safe: (B, 2) int64: 1 safe, 0 unsafe.
    """
    return (is_safe == 1).any(1) & (is_safe == 0).any(1)


def order_pair(values: Tensor, winner: Tensor) -> tuple[Tensor, Tensor]:
    """The winner's and the loser's value, (B,) each.

    Args:
        values: (B, 2).
        winner: (B,) int64, 0 or 1.
    """
    index = winner[:, None]  # (B, 1)
    return values.gather(1, index).squeeze(1), values.gather(1, 1 - index).squeeze(1)


def dpo_loss(winner: Tensor, loser: Tensor, *, beta: float, label_smoothing: Tensor | float = 0.0) -> Tensor:
    r"""(B,) loss of direct preference optimisation (DPO, arXiv 2305.18290, eq. 7), float32.

    :math:`-(1-\epsilon)\log\sigma(\beta(\rho_w-\rho_l)) - \epsilon\log\sigma(-\beta(\rho_w-\rho_l))`, where
    :math:`\epsilon` > 0 is conservative DPO ("A note on DPO with noisy preferences", Mitchell, 2023): the best margin is
    then finite, :math:`\log((1-\epsilon)/\epsilon)`.

    Args:
        winner: (B,) log-ratios of the responses that should win.
        loser: (B,) log-ratios of the others.
        beta: How strongly the policy is held to the reference, above 0.
        label_smoothing: :math:`\epsilon` in [0, 0.5], the probability that a label is wrong; a number or (B,).
    """
    return bradley_terry(beta * full_precision(winner), beta * full_precision(loser), label_smoothing=label_smoothing)


def safe_dpo_loss(winner: Tensor, loser: Tensor, contrast: Tensor, *, beta: float, offset: float = 0.0) -> Tensor:
    r"""(B,) loss of SafeDPO (arXiv 2505.20065, eq. 12), float32.

    :math:`-\log\sigma(\beta(\rho_w-\rho_l) - (h_l-h_w)\Delta)` with h = 1 for unsafe responses: a safe winner must lead an
    unsafe loser by :math:`\Delta`. The offset does not change the optimum (proposition 4.4) but speeds up convergence. Pairs
    are those of :func:`safe_helpful_pairs`, so that h_l - h_w is 1 or 0.

    Args:
        winner: (B,) log-ratios of the responses that should win.
        loser: (B,) log-ratios of the others.
        contrast: (B,) bool, the winner is safe and the loser is not (:func:`one_is_safe`).
        beta: How strongly the policy is held to the reference, above 0.
        offset: :math:`\Delta`, in units of the implicit reward, 0 or more.
    """
    higher = beta * full_precision(winner)
    lower = beta * full_precision(loser)
    return bradley_terry(higher, lower, margin=offset * contrast.to(higher.dtype))


def _pairs(target: Tensor) -> LabelledPairs:
    """From (B,) index of the winner, -1 for none."""
    return LabelledPairs(target.clamp(min=0), (target >= 0).float())
