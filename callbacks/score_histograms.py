"""Distributions of scores, one per kind of response."""

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback
from safe_rlhf_v.callbacks.figures import histogram_figure
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.records.batches import PreferenceBatch


class ScoreHistograms(EvaluationCallback):
    """How far apart the scores of better and worse responses lie, as one figure per split, and histograms in TensorBoard.

    Rewards: the more and the less helpful response of each labelled pair. Costs: unsafe and safe responses; a good cost
    model has them on either side of 0. Tags: ``2_scores/{split}`` (figure), ``{split}/scores/unsafe``, ...

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.ScoreHistograms
    """

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[tuple[int, float]]:
        """(group, score) of every labelled response."""
        group = _helpfulness_rank(batch, scores.shape[1]) if self.kind == "reward" else batch.is_safe  # (B, K)
        counted = (group >= 0) & batch.valid[:, None] & scores.isfinite()
        return list(zip(group[counted].tolist(), scores[counted].tolist(), strict=True))

    def report(self, pictures: Pictures, split: str, notes: list[tuple[int, float]], trainer: Trainer) -> None:
        """Histograms and figure."""
        groups = ("more helpful", "less helpful") if self.kind == "reward" else ("unsafe", "safe")
        values = [np.array([score for group, score in notes if group == i]) for i in (0, 1)]
        for name, scores in zip(groups, values, strict=True):
            pictures.histogram(f"{split}/scores/{name.replace(' ', '_')}", scores)
        series = dict(zip(groups, values, strict=True))
        title = f"{split}: {self.kind} of {' and '.join(groups)} responses"
        pictures.image(f"2_scores/{split}", histogram_figure(title, self.kind, series))


def _helpfulness_rank(batch: PreferenceBatch, responses: int) -> Tensor:
    """(B, K) 0 for the more helpful response, 1 for the other, -1 unknown (also for single responses)."""
    rank = (batch.more_helpful[:, None] != batch.more_helpful.new_tensor(range(responses))).long()
    return rank.masked_fill((batch.more_helpful < 0)[:, None], -1)
