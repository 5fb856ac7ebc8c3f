"""The reward model's objective: order two responses."""

from typing import Literal

import torch
from torch import Tensor

from safe_rlhf_v.batches import PreferenceBatch
from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.functional.pairwise import bradley_terry
from safe_rlhf_v.objectives.base import PreferenceObjective, check_range, checked_scores


class BradleyTerry(PreferenceObjective):
    r"""The preferred response should have the higher score, plus a pull of all scores towards 0.

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
    ) -> None:
        """Choose the options.

        Args:
            margin: By how much the preferred response must lead, in score units.
            label_smoothing: Probability in [0, 0.5] that a label is wrong.
            tie_smoothing: The same for pairs whose two safety ratings are equal, so that ``safer`` was a forced choice;
                0.5 makes them say nothing. Only for ``preference="safer"``; the larger of both smoothings holds.
            score_regularisation: Weight of the mean squared score.
            preference: Which label orders the pair.

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
        self.preference = preference

    def forward(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Scores (B, 2), higher = preferred; see :class:`PreferenceObjective`."""
        pair = self.pair_loss(scores, batch)
        squares = checked_scores(scores, batch, responses=2).square().mean(1)  # (B,)
        regularisation = masked_mean(squares, self._labels(batch)[1])
        loss = pair + self.score_regularisation * regularisation
        return {"loss": loss, "pair": pair.detach(), "regularisation": regularisation.detach()}

    def pair_loss(self, scores: Tensor, batch: PreferenceBatch) -> Tensor:
        """() mean Bradley-Terry loss of the labelled pairs, without regularisation.

        Args:
            scores: (B, 2), higher = preferred.
            batch: Where the labels are.
        """
        scores = checked_scores(scores, batch, responses=2)
        target, labelled = self._labels(batch)
        index = target.clamp(min=0)[:, None]  # (B, 1)
        higher, lower = scores.gather(1, index).squeeze(1), scores.gather(1, 1 - index).squeeze(1)
        smoothing: Tensor | float = self.label_smoothing
        if self.tie_smoothing > smoothing:
            smoothing = torch.where(batch.safety_tie, self.tie_smoothing, smoothing)  # (B,)
        return masked_mean(bradley_terry(higher, lower, margin=self.margin, label_smoothing=smoothing), labelled)

    def _labels(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """(B,) index of the preferred response and (B,) bool whether the row counts."""
        target = batch.more_helpful if self.preference == "more_helpful" else batch.safer
        return target, batch.valid & (target >= 0)
