"""A dual controller of your own: the multiplier moves by the same small step, up or down, whatever the size of the gap."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from safe_rlhf_v.dual import DualController


class StepDual(DualController):
    """Adds a step while the mean cost is above the budget, and subtracts it while it is below.

    YAML::

        dual:
          class_path: step_dual.StepDual
          init_args: {budget: -0.5, size: 0.05}
    """

    def __init__(self, budget: float | Sequence[float], size: float = 0.05, **options: Any) -> None:
        """Choose the options.

        Args:
            budget: d, one number per constraint.
            size: Size of a step of the multiplier.
            options: Those of :class:`~safe_rlhf_v.dual.DualController`.
        """
        super().__init__(budget, **options)
        self.size = size

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """(C,) the multipliers after this rollout, before the bounds are applied."""
        return self.lam + self.size * error.sign()
