"""Rules that do not search for a multiplier of the mean cost: a constant, a switch, and a penalty per response."""

import math
from collections.abc import Sequence

from torch import Tensor

from safe_rlhf_v.dual.base import DualController, check, positive
from safe_rlhf_v.functional.masked import masked_mean


class FixedDual(DualController):
    """A constant lambda: the fixed-penalty baseline; the mean cost is still computed, so that the gap can be logged.

    A weight below the problem's optimal multiplier violates the budget; one above it reduces the cost below the budget.

    YAML::

        dual: {class_path: safe_rlhf_v.dual.FixedDual, init_args: {budget: -0.5, weight: 1.0}}
    """

    def __init__(self, budget: float | Sequence[float], weight: float = 1.0, window: int = 128) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint; only for the logged gap.
            weight: Value of every lambda; 0 trains on the reward alone.
            window: Number of the last costs in the mean.

        Raises:
            ValueError: If an option is outside its range.
        """
        check(0 <= weight < math.inf, f"weight is {weight}: lambda is never negative, give 0 or more")
        super().__init__(budget, initial=weight, minimum=weight, maximum=weight, window=window)

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        return self.lam


class ExactPenalty(DualController):
    r"""A switch: :math:`\lambda = w` while :math:`J_C > d`, else 0 (P3O, arXiv 2205.11814).

    That is the gradient of the exact penalty :math:`w \max(0, J_C - d)`, decided once per rollout instead of in every
    minibatch. Exact means: with w at or above the optimal multiplier the mean cost oscillates around the budget; with a
    smaller w it converges above the budget. A short window switches quickly.

    YAML::

        dual: {class_path: safe_rlhf_v.dual.ExactPenalty, init_args: {budget: -0.5, weight: 5.0, window: 64}}
    """

    def __init__(
        self, budget: float | Sequence[float], weight: float = 5.0, window: int = 64, smoothing: float = 0.0
    ) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint.
            weight: Value of lambda while the mean cost is above the budget; lambda is 0 before the first cost.
            window: Number of the last costs in the mean.
            smoothing: Share in [0, 1) of the old value in a moving average of the mean.

        Raises:
            ValueError: If an option is outside its range.
        """
        check(0 <= weight < math.inf, f"weight is {weight}: lambda is never negative, give 0 or more")
        super().__init__(budget, initial=0.0, maximum=weight, window=window, smoothing=smoothing)

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        return self.maximum * (error > 0)


class RectifiedDual(DualController):
    r"""Penalises each response for its own excess over the budget, after RePO (arXiv 2410.19933).

    .. math::
        \text{charge} &= \max(c - d, 0) \\
        \lambda &\leftarrow \mathrm{clip}((1 - \delta) \lambda + \alpha\,\overline{\max(c - d, 0)}, 0, \lambda_{max})

    A constraint on the mean cost lets very safe responses compensate for harmful ones ("safety compensation"). With rectified
    costs a safe response gains nothing, and the policy is penalised (:meth:`penalty`) only for responses above the budget. The
    mean in the update is over the window. From the paper comes the rectified cost in the min-max problem; its division of a
    batch into safe and unsafe responses is not part of a controller.

    The mean excess is never negative. Without ``decay`` lambda can only grow, and reaches its maximum unless every response
    stays within the budget; then ``maximum`` is the setting that matters. With ``decay``, a constant mean excess e leads to
    :math:`\lambda = \alpha e / \delta`.

    YAML::

        dual:
          class_path: safe_rlhf_v.dual.RectifiedDual
          init_args: {budget: 0.0, rate: 0.1, decay: 0.01, maximum: 5.0}
    """

    def __init__(
        self,
        budget: float | Sequence[float],
        rate: float = 0.1,
        decay: float = 0.0,
        initial: float = 1.0,
        maximum: float = 10.0,
        window: int = 128,
        delay: int = 0,
    ) -> None:
        """Choose the options.

        Args:
            budget: Budget d, the maximum cost of one response, one number per constraint; costs above 0 mean harm.
            rate: Step size alpha.
            decay: Share delta in [0, 1) of lambda that is subtracted at each update.
            initial: First value of every lambda.
            maximum: Upper bound of lambda.
            window: Number of the last costs in the mean excess.
            delay: Number of rollouts before lambda first moves.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(budget, initial=initial, maximum=maximum, window=window, delay=delay)
        check(0 <= decay < 1, f"decay is {decay}: give the share of lambda to forget, in [0, 1); 0 = never")
        self.rate = positive("rate", rate)
        self.decay = decay

    @property
    def mean_excess(self) -> Tensor:
        """(C,) mean excess of the costs in the window over the budget; 0 where there is no cost yet."""
        return masked_mean(self.penalty(self.window_costs), self.window_valid, 0)

    def penalty(self, costs: Tensor) -> Tensor:
        """(N, C) float32 excess of costs (N, C) over the budget, 0 for those within it."""
        return (costs.float() - self.budget).clamp(min=0.0)

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        return (1 - self.decay) * self.lam + self.rate * self.mean_excess
