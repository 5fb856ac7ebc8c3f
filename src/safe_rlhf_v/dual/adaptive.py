r"""Rules that search for the multiplier: lambda rises while :math:`J_C > d` and falls while :math:`J_C < d`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.dual.base import DualController, check, positive


class LogSpaceDual(DualController):
    r"""Gradient ascent on :math:`\log\lambda`, as released with Safe RLHF (arXiv 2310.12773) and Safe RLHF-V.

    .. math:: \log\lambda \leftarrow \min(\log\lambda + \alpha \lambda (J_C - d), \log\lambda_{max})

    The step in :math:`\log\lambda` is proportional to lambda itself. At lambda 10 and rate 0.1 one update multiplies lambda
    by :math:`e^{J_C - d}`: the released initial 10 and maximum 20 act like a switch. Near 0 it is very slow: from a to b at a
    constant gap g it needs about :math:`(1/a - 1/b) / (\alpha g)` updates, 990 from 0.01 to 1 at g = 1. The defaults here start
    at 1 and are capped at 10; raise ``minimum`` if the policy may be safe for long and become harmful later.

    YAML::

        dual:
          class_path: safe_rlhf_v.dual.LogSpaceDual
          # as released with Safe RLHF-V: {budget: -0.5, rate: 0.1, initial: 10.0, maximum: 20.0, delay: 1}
          init_args: {budget: -0.5, rate: 0.1, initial: 1.0, maximum: 10.0}
    """

    def __init__(
        self, budget: float | Sequence[float], rate: float = 0.1, minimum: float = 1e-3, **options: Any
    ) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint.
            rate: Step size alpha in log-space.
            minimum: Lower bound of lambda, above 0.
            options: Further options of :class:`DualController`.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(budget, minimum=minimum, **options)
        check(minimum > 0, f"minimum is {minimum}: log-space cannot leave 0, give a small number such as 1e-3")
        self.rate = positive("rate", rate)

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        return self.lam * (self.rate * self.lam * error).exp()


class ProjectedDual(DualController):
    r"""Projected gradient ascent on lambda, the paper's eq. 8 (arXiv 2503.17682).

    .. math:: \lambda \leftarrow \mathrm{clip}(\lambda + \alpha (J_C - d), \lambda_{min}, \lambda_{max})

    Steps have the same size everywhere, so it neither jumps at a large lambda nor slows down near 0.

    YAML::

        dual:
          class_path: safe_rlhf_v.dual.ProjectedDual
          init_args: {budget: -0.5, rate: 0.1, initial: 1.0, maximum: 10.0}
    """

    def __init__(self, budget: float | Sequence[float], rate: float = 0.1, **options: Any) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint.
            rate: Step size alpha.
            options: Further options of :class:`DualController`.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(budget, **options)
        self.rate = positive("rate", rate)

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        return self.lam + self.rate * error


class PIDDual(DualController):
    r"""Control by proportion, integral and derivative of the gap (Stooke, Achiam and Abbeel 2020, arXiv 2007.03964).

    .. math::
        I &\leftarrow \mathrm{clip}(I + K_I (J_C - d), 0, \lambda_{max}) \\
        \lambda &= \mathrm{clip}(K_P (\bar J_C - d) + I + K_D \max(0, \bar J_C - \bar J_C'), \lambda_{min}, \lambda_{max})

    :math:`\bar J_C` is the smoothed mean cost, :math:`\bar J_C'` its previous value. The integral alone is
    :class:`ProjectedDual`; the other two terms act before the integral has grown and damp its oscillations. Only a rising cost
    has a derivative. The integral is bounded too, so that it does not wind up while lambda is at its maximum.

    Differences from the authors' code: the averages start at the first mean, not at 0, so the first derivative is 0; the
    derivative compares with the previous update; proportion and derivative share one smoothing factor.

    Attributes:
        accumulated: (C,) float32 buffer, the integral I; starts at ``initial``.
        previous: (C,) float32 buffer, the smoothed mean cost of the previous update.

    YAML::

        dual:
          class_path: safe_rlhf_v.dual.PIDDual
          init_args: {budget: -0.5, proportional: 1.0, integral: 0.1, derivative: 0.5}
    """

    accumulated: Tensor
    previous: Tensor

    def __init__(
        self,
        budget: float | Sequence[float],
        proportional: float = 1.0,
        integral: float = 0.1,
        derivative: float = 0.5,
        smoothing: float = 0.7,
        **options: Any,
    ) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint.
            proportional: Gain of the smoothed gap, 0 or more.
            integral: Gain of the sum of gaps; without it lambda cannot keep its value when the gap is 0.
            derivative: Gain of a rise of the smoothed mean cost, 0 or more.
            smoothing: Share in [0, 1) of the old value in a moving average of the mean, for all but the integral.
            options: Further options of :class:`DualController`.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__(budget, smoothing=smoothing, **options)
        for name, gain in (("proportional", proportional), ("derivative", derivative)):
            check(0 <= gain < math.inf, f"{name} is {gain}: give a gain of 0 or more; 0 switches the term off")
        self.proportional = proportional
        self.derivative = derivative
        self.integral = positive("integral", integral)
        self.register_buffer("accumulated", self.lam.clone())
        self.register_buffer("previous", torch.full_like(self.lam, torch.inf))  # so that the first cost is not a rise

    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """See :class:`DualController`."""
        total = self.accumulated + self.integral * self.outside_deadband(self.gap)
        self.accumulated.copy_(torch.where(moves, total, self.accumulated).clamp(0.0, self.maximum))
        rise = (self.smoothed - self.previous).clamp(min=0.0)
        self.previous.copy_(torch.where(moves, self.smoothed, self.previous))
        return self.proportional * error + self.accumulated + self.derivative * rise
