"""Learning-rate schedules that can be named in YAML."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up from 0 to the optimizer's rate, then a half cosine down to ``final`` times it.

    YAML::

        scheduler:
          class_path: safe_rlhf_v.optim.WarmupCosine
          init_args: {total_steps: 300, warmup: 0.1}
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.03, final: float = 0.0, last_epoch: int = -1
    ) -> None:
        """Args:
        optimizer: Its ``lr`` is the peak, per parameter group.
        total_steps: Optimizer steps until ``final`` is reached.
        warmup: Share of the steps spent warming up, in [0, 1).
        final: Last rate as a share of the peak.
        last_epoch: See PyTorch.

        Raises:
            ValueError: If an option is outside its range.
        """
        if total_steps < 1 or not 0 <= warmup < 1:
            raise ValueError(f"total_steps {total_steps} must be positive and warmup {warmup} in [0, 1)")
        self.total_steps, self.warmup_steps, self.final = total_steps, round(warmup * total_steps), final
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Rates of the parameter groups for the coming step."""
        step = self.last_epoch
        if step < self.warmup_steps:
            scale = (step + 1) / self.warmup_steps
        else:
            progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
            scale = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return [base * scale for base in self.base_lrs]
