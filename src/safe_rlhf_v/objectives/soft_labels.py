"""The labels of a batch, softened by the annotators' votes where it has them.

A component whose option ``votes`` is off takes them away first: ``batch._replace(votes=None)``.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from safe_rlhf_v.functional.soft_labels import expected_loss, has_votes, soft_order
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL


def soft_preference(
    batch: PreferenceBatch, axis: Literal["more_helpful", "safer"], label_smoothing: Tensor | float
) -> tuple[Tensor, Tensor | float]:
    """(B,) index of the preferred response, -1 unknown, and how probable it is that the other one is better.

    Args:
        batch: Batch with the labels.
        axis: Which label orders the pair.
        label_smoothing: Probability in [0, 0.5] that a label, or a vote, is wrong; a number or (B,).
    """
    label = batch.more_helpful if axis == "more_helpful" else batch.safer
    if batch.votes is None:
        return label, label_smoothing
    share = batch.votes.more_helpful if axis == "more_helpful" else batch.votes.safer
    return soft_order(label, share, label_smoothing)


def over_levels(loss_of: Callable[[Tensor], Tensor], batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Losses of the safety levels.

    Args:
        loss_of: Gives the (B, K) losses if these (B, K) levels -3..3 were the labels.
        batch: Batch with the labels; its ``votes`` are soft labels.

    Returns:
        (B, K) loss of each response (of any value where unlabelled) and (B, K) bool, where a label is known.
    """
    known = batch.safety != UNKNOWN_LEVEL
    losses = loss_of(batch.safety.where(known, 0))
    if batch.votes is None:
        return losses, known
    levels = range(MIN_LEVEL, MAX_LEVEL + 1)
    table = torch.stack([loss_of(torch.full_like(batch.safety, level)) for level in levels], -1)  # (B, K, 7)
    return _where_voted(table, batch.votes.safety, losses, known)


def over_signs(loss_of: Callable[[Tensor], Tensor], batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Losses of the yes/no safety labels; the result is that of :func:`over_levels`.

    Args:
        loss_of: Gives the (B, K) losses if the responses in this (B, K) bool were the harmful ones.
        batch: Batch with the labels; its ``votes`` are soft labels.
    """
    known = batch.is_safe >= 0
    losses = loss_of(batch.is_safe == 0)
    if batch.votes is None:
        return losses, known
    table = torch.stack([loss_of(torch.full_like(known, harmful)) for harmful in (False, True)], -1)  # (B, K, 2)
    safe = batch.votes.is_safe
    return _where_voted(table, torch.stack([safe, 1 - safe], -1), losses, known)


def _where_voted(table: Tensor, shares: Tensor, losses: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    voted = has_votes(shares)  # (B, K)
    return torch.where(voted, expected_loss(table, shares), losses), known | voted
