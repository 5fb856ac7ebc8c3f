"""A loss of your own, in a package of your own: the preferred response must lead by a margin.

Nothing of safe_rlhf_v is touched; the class is named by its path::

    export PYTHONPATH=examples/downstream
    python -m safe_rlhf_v fit --config configs/quickstart/reward.yaml \
        --model.init_args.objective hinge_objective.HingeBradleyTerry --trainer.logger.init_args.name hinge
"""

from typing import Any

from torch import Tensor

from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.objectives import BradleyTerry
from safe_rlhf_v.records.batches import PreferenceBatch


class HingeBradleyTerry(BradleyTerry):
    """Bradley-Terry plus a weighted mean of what the preferred response's lead falls short of a margin.

    YAML::

        objective:
          class_path: hinge_objective.HingeBradleyTerry
          init_args: {lead: 1.0, hinge: 0.5}
    """

    def __init__(self, lead: float = 1.0, hinge: float = 0.5, **options: Any) -> None:
        """Choose the options.

        Args:
            lead: By how much the preferred response should lead, in score units.
            hinge: Weight of the shortfall in the loss.
            options: Those of :class:`~safe_rlhf_v.objectives.BradleyTerry`.
        """
        super().__init__(**options)
        self.lead = lead
        self.hinge = hinge

    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """The terms of Bradley-Terry and one more over the same pairs; scores are (B, 2)."""
        preferred = batch.more_helpful.clamp(min=0)[:, None]  # (B, 1)
        lead = scores.gather(1, preferred) - scores.gather(1, 1 - preferred)  # (B, 1)
        shortfall = (self.lead - lead.squeeze(1)).clamp(min=0)  # (B,)
        labelled = batch.valid & (batch.more_helpful >= 0)
        return {**super().shares(scores, batch), "shortfall": masked_share(shortfall, labelled, self.hinge)}
