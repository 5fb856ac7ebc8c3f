"""A method of one's own, in one's own package: a reward model whose preferences must be won by a margin.

Nothing of safe_rlhf_v is touched; YAML names the class::

    python -m safe_rlhf_v fit --config configs/quickstart/reward.yaml --model margin_reward.MarginRewardModule
"""

from typing import Any

from torch import Tensor

from safe_rlhf_v.batches import PreferenceBatch
from safe_rlhf_v.modules import RewardModule


class MarginRewardModule(RewardModule):
    """Adds ``hinge`` times the mean shortfall of the preferred response's lead below ``margin``."""

    def __init__(self, *args: Any, margin: float = 1.0, hinge: float = 0.5, **kwargs: Any) -> None:
        """Args:
        args: See :class:`RewardModule`.
        margin: Lead the preferred response should have.
        hinge: Weight of the shortfall.
        kwargs: See :class:`RewardModule`.
        """
        super().__init__(*args, **kwargs)
        self.margin, self.hinge = margin, hinge

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The reward model's loss plus the margin term."""
        loss = super().training_step(batch, batch_idx)
        scores = self.score(batch.prompts, batch.responses)  # (B, 2)
        sign = (1 - 2 * batch.more_helpful).masked_fill(batch.more_helpful < 0, 0)  # (B,)
        lead = (scores[:, 0] - scores[:, 1]) * sign
        counted = batch.valid & (sign != 0)
        shortfall = ((self.margin - lead).clamp(min=0) * counted).sum() / counted.sum().clamp(min=1)
        self.log("train/shortfall", shortfall.detach())
        return loss + self.hinge * shortfall
