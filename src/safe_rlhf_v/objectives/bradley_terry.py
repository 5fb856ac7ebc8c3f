"""The reward model's objective: order two responses."""

from typing import Literal

import torch
from torch import Tensor

from safe_rlhf_v.functional.pairwise import bradley_terry
from safe_rlhf_v.functional.preference_optimisation import order_pair
from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.objectives.base import PreferenceObjective, check_range, checked_scores
from safe_rlhf_v.objectives.soft_labels import soft_preference
from safe_rlhf_v.records.batches import PreferenceBatch


class BradleyTerry(PreferenceObjective):
    r"""Trains the preferred response to have the higher score, with a regularisation of all scores towards 0.

    With the defaults this is the reward loss of Safe RLHF-V (arXiv 2503.17682):
    :math:`-\log\sigma(r_w - r_l) + \eta\,\overline{r^2}`, :math:`\eta` = 0.001, averaged over the labelled pairs.

    Parts: ``pair``, ``regularisation``.

    YAML::

        objective:
          class_path: safe_rlhf_v.objectives.BradleyTerry
          init_args: {margin: 0.0, label_smoothing: 0.0, score_regularisation: 0.001}
    """

    def __init__(
        self,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        tie_smoothing: float = 0.0,
        score_regularisation: float = 1e-3,
        preference: Literal["more_helpful", "safer"] = "more_helpful",
        votes: bool = False,
    ) -> None:
        """Choose the options.

        Args:
            margin: By how much the preferred response must lead, in score units.
            label_smoothing: Probability in [0, 0.5] that a label is wrong.
            tie_smoothing: The same for pairs whose two safety ratings are equal, so that ``safer`` was a forced choice;
                0.5 removes their information. Only for ``preference="safer"``; the larger of both smoothings is used.
            score_regularisation: Weight of the mean squared score.
            preference: Which label orders the pair.
            votes: Learn from the share of annotators who preferred each response, where the records have votes.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__()
        self.margin = check_range("margin", margin, 0.0)
        self.label_smoothing = check_range("label_smoothing", label_smoothing, 0.0, 0.5)
        self.tie_smoothing = check_range("tie_smoothing", tie_smoothing, 0.0, 0.5)
        self.score_regularisation = check_range("score_regularisation", score_regularisation, 0.0)
        if preference not in ("more_helpful", "safer"):
            raise ValueError(f"preference is {preference!r}, expected 'more_helpful' or 'safer'")
        if tie_smoothing and preference != "safer":
            raise ValueError("tie_smoothing is about tied safety ratings: remove it, or set preference to 'safer'")
        self.preference: Literal["more_helpful", "safer"] = preference
        self.votes = votes

    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """Scores (B, 2), higher = preferred; see :class:`PreferenceObjective`."""
        squares = checked_scores(scores, batch, responses=2).square().mean(1)  # (B,)
        labelled = batch.valid & (self._labels(batch)[0] >= 0)
        regularisation = masked_share(squares, labelled, self.score_regularisation)
        return {"pair": self.pair_share(scores, batch), "regularisation": regularisation}

    def pair_share(self, scores: Tensor, batch: PreferenceBatch, weight: float = 1.0) -> Share:
        """The Bradley-Terry losses of the labelled pairs, without regularisation.

        Args:
            scores: (B, 2), higher = preferred.
            batch: Batch with the labels.
            weight: Weight of the term in the loss.
        """
        scores = checked_scores(scores, batch, responses=2)
        target, smoothing = self._labels(batch)
        higher, lower = order_pair(scores, target.clamp(min=0))
        losses = bradley_terry(higher, lower, margin=self.margin, label_smoothing=smoothing)
        return masked_share(losses, batch.valid & (target >= 0), weight)

    def _labels(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor | float]:
        """(B,) index of the preferred response, -1 unknown, and the probability that the other one is better."""
        smoothing: Tensor | float = self.label_smoothing
        if self.tie_smoothing > smoothing:
            smoothing = torch.where(batch.safety_tie, self.tie_smoothing, smoothing)  # (B,)
        return soft_preference(batch if self.votes else batch._replace(votes=None), self.preference, smoothing)
