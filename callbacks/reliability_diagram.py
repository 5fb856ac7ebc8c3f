"""Stated against observed harm."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback
from safe_rlhf_v.callbacks.figures import reliability_figure
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.functional.calibration import reliability_bins
from safe_rlhf_v.records.batches import PreferenceBatch


class ReliabilityDiagram(EvaluationCallback):
    """P(harmful) = sigmoid(cost) against the share of responses labelled unsafe, per bin, with counts and ECE.

    Points on the diagonal mean that a stated 30 % comes true in 30 % of the cases; below it the cost model warns too often.
    For cost models. Tag: ``3_reliability/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.ReliabilityDiagram
            init_args: {bins: 10}
    """

    def __init__(self, bins: int = 10) -> None:
        """Choose the resolution.

        Args:
            bins: Number of equal-width bins.
        """
        super().__init__("cost")
        self.bins = bins

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[tuple[float, bool]]:
        """(cost, unsafe) of every labelled response."""
        known = (batch.is_safe >= 0) & batch.valid[:, None] & ~scores.isnan()
        return list(zip(scores[known].tolist(), (batch.is_safe[known] == 0).tolist(), strict=True))

    def report(self, pictures: Pictures, split: str, notes: list[tuple[float, bool]], trainer: Trainer) -> None:
        """One figure."""
        costs, unsafe = (torch.tensor(column) for column in zip(*notes, strict=True))
        table = reliability_bins(torch.sigmoid(costs), unsafe, torch.ones_like(unsafe), self.bins)
        pictures.image(f"3_reliability/{split}", reliability_figure(split, table))
