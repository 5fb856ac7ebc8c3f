"""Accuracies over pairs of responses."""

import torch
from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.pairwise import pair_correct


class PairwiseAccuracy(Metric):
    """Share of pairs in which the target response scores strictly higher; ``None`` without a decided pair.

    Equal scores count as wrong, so a constant model has accuracy 0, in whichever order the responses stand.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor, valid: Tensor) -> None:
        """Count one batch.

        Args:
            scores: (B, 2).
            target: (B,) int64 index of the response that should score higher, -1 unknown or undecided (left out).
            valid: (B,) bool, False = padding row.
        """
        counted = valid & (target >= 0)
        self.correct += (pair_correct(scores, target) & counted).sum()
        self.total += counted.sum()

    def compute(self) -> Tensor | None:
        """() accuracy."""
        return self.correct / self.total if self.total else None


class GroundingGap(Metric):
    """Pair accuracy with the real pictures minus pair accuracy with shuffled or blank ones.

    About 0 means the scores do not depend on what the picture shows.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    gain: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Start with nothing counted."""
        super().__init__()
        self.add_state("gain", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, ungrounded: Tensor, target: Tensor, valid: Tensor) -> None:
        """Count one batch.

        Args:
            scores: (B, 2) with the real pictures.
            ungrounded: (B, 2) of the same responses with other pictures (``Prompts.with_images``).
            target: (B,) int64 index of the response that should score higher, -1 unknown or undecided (left out).
            valid: (B,) bool, False = padding row.
        """
        counted = valid & (target >= 0)
        difference = pair_correct(scores, target).long() - pair_correct(ungrounded, target).long()
        self.gain += (difference * counted).sum()
        self.total += counted.sum()

    def compute(self) -> Tensor | None:
        """() difference in -1..1; ``None`` without a decided pair."""
        return self.gain / self.total if self.total else None
