"""A loss over a whole split, whatever the batches."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.shares import Share


class LossMean(Metric):
    """The weighted sum of a loss's terms, each the mean over all it counted (:mod:`safe_rlhf_v.functional.shares`)."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Start with nothing counted.

        Args:
            weights: Of each term, by name.
        """
        super().__init__()
        self.weights = dict(weights)
        for name in ("totals", "counts"):
            self.add_state(name, torch.zeros(len(self.weights), dtype=torch.float64), dist_reduce_fx="sum")

    @classmethod
    def of(cls, shares: Mapping[str, Share]) -> "LossMean":
        """The loss that such shares make."""
        return cls({name: share.weight for name, share in shares.items() if share.weight})

    def update(self, shares: Mapping[str, Share]) -> None:
        """Count one batch.

        Args:
            shares: Of the terms, by name; others are left out.
        """
        for i, name in enumerate(self.weights):
            self.totals[i] += shares[name].total.detach()
            self.counts[i] += shares[name].count

    def compute(self) -> Tensor | None:
        """() float32 loss; a term that counted nothing adds 0; ``None`` if none counted anything."""
        if not (self.counts > 0).any():
            return None
        means = self.totals / torch.where(self.counts > 0, self.counts, 1.0)
        return (means * self.totals.new_tensor(list(self.weights.values()))).sum().float()
