"""A method of one's own, in one's own package: a reward model whose preferences must be won by a margin.

Nothing of safe_rlhf_v is touched; YAML names the class::

    export PYTHONPATH=examples/downstream
    python -m safe_rlhf_v fit --config configs/quickstart/reward.yaml --model margin_reward.MarginRewardModule
"""

from typing import Any

from torch import Tensor

from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.modules import RewardModule
from safe_rlhf_v.records.batches import PreferenceBatch


class MarginRewardModule(RewardModule):
    """Adds ``hinge`` times the mean shortfall of the preferred response's lead below ``margin``."""

    def __init__(self, *args: Any, margin: float = 1.0, hinge: float = 0.5, **kwargs: Any) -> None:
        """
        Args:
            args: See :class:`RewardModule`.
            margin: Lead the preferred response should have.
            hinge: Weight of the shortfall.
            kwargs: See :class:`RewardModule`.
        """
        super().__init__(*args, **kwargs)
        self.margin, self.hinge = margin, hinge

    def loss_shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """The reward model's terms and one more, over the labelled pairs; scores are (B, 2)."""
        sign = (1 - 2 * batch.more_helpful).masked_fill(batch.more_helpful < 0, 0)  # (B,)
        shortfall = (self.margin - (scores[:, 0] - scores[:, 1]) * sign).clamp(min=0)
        counted = batch.valid & (sign != 0)
        return {**super().loss_shares(scores, batch), "shortfall": masked_share(shortfall, counted, self.hinge)}
