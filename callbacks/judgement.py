"""Whether a module's scores agree with the labels."""

import torch
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import ScoreKind
from safe_rlhf_v.functional.pairwise import UNDECIDED, pair_correct, preferred
from safe_rlhf_v.functional.pointwise import sign_correct
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch


def judge(scores: Tensor, batch: PreferenceBatch, kind: ScoreKind, *, truth: bool) -> tuple[Tensor, Tensor]:
    """Whether each row is judged right: pairs by their order, single responses by the sign of their cost.

    Args:
        scores: (B, K), K = 1 or 2.
        batch: Where the labels are.
        kind: What the scores are.
        truth: Compare with the noise-free values instead of the annotations.

    Returns:
        (B,) bool right, and (B,) bool whether the row can be judged at all.
    """
    known = batch.true_safety != UNKNOWN_LEVEL
    if scores.shape[1] == 2:
        target = _higher(batch, kind, known) if truth else annotated_higher(batch, kind)
        return pair_correct(scores, target), batch.valid & (target >= 0)
    is_safe = torch.where(known, (batch.true_safety >= 0).long(), -1) if truth else batch.is_safe  # (B, K)
    decided = batch.valid & (is_safe >= 0).all(1)
    return sign_correct(scores, is_safe).all(1), decided & (kind == "cost")


def annotated_higher(batch: PreferenceBatch, kind: ScoreKind) -> Tensor:
    """(B,) index of the response that should score higher by the annotations, -1 unknown."""
    return batch.more_helpful if kind == "reward" else _other(batch.safer)


def _higher(batch: PreferenceBatch, kind: ScoreKind, known: Tensor) -> Tensor:
    """(B,) index of the response that truly scores higher, -1 if equal or unknown."""
    if kind == "reward":
        return preferred(batch.true_helpfulness, ~batch.true_helpfulness.isnan())
    return _other(preferred(batch.true_safety, known))


def _other(index: Tensor) -> Tensor:
    """(B,) the other response's index, -1 stays."""
    return torch.where(index >= 0, 1 - index, UNDECIDED)
