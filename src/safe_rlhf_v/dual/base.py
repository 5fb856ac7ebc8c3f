"""The interface of dual controllers, with their common window of costs, bounds and exact resume.

Shapes: N responses of one rollout over all ranks, C constraints, W costs kept per constraint.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.models.float32 import Float32Module


class DualController(Float32Module, ABC):
    r"""Moves lambda >= 0 so that the policy's mean cost :math:`J_C` decreases to the budget d, by one update per rollout.

    The policy maximises :math:`R - \lambda C` (divided by :math:`1 + \lambda`), the controller raises lambda while
    :math:`J_C > d`. :math:`J_C` is the mean of the last W valid costs, over all ranks, or of all costs of the last rollout where
    those are more than W. Each constraint has its own budget, window and lambda. A subclass implements :meth:`step`.

    The state consists of float32, int64 and bool buffers: a resumed run continues bit for bit, and no precision setting
    rounds lambda. Budget, bounds, rates and W are not in the checkpoint: on resume the user's settings are used.

    Attributes:
        lam: (C,) float32 buffer, the multipliers.
        budget: (C,) float32 buffer d, not saved.
        window_costs: (W, C) float32 buffer, the newest last; longer after a rollout with more than W costs.
        window_valid: (W, C) bool buffer, False where there is no cost.
        smoothed: (C,) float32 buffer, :math:`J_C` after ``smoothing``, which the rules act on.
        updates: (C,) int64 buffer, rollouts with at least one valid cost.
    """

    lam: Tensor
    budget: Tensor
    window_costs: Tensor
    window_valid: Tensor
    smoothed: Tensor
    updates: Tensor

    def __init__(
        self,
        budget: float | Sequence[float],
        initial: float = 1.0,
        minimum: float = 0.0,
        maximum: float = 10.0,
        window: int = 128,
        smoothing: float = 0.0,
        deadband: float = 0.0,
        delay: int = 0,
    ) -> None:
        """Choose the options.

        Args:
            budget: Budget d, one number per constraint, in the unit of the costs.
            initial: First value of every lambda.
            minimum: Lower bound of lambda, 0 or more.
            maximum: Upper bound of lambda.
            window: Number W of the last costs whose mean is compared with the budget; never fewer than a rollout has, because
                its last costs are those of the last ranks only.
            smoothing: Share in [0, 1) of the old value in a moving average of the windowed mean; 0 = none.
            deadband: A gap up to this size counts as 0.
            delay: Number of rollouts before lambda first moves.

        Raises:
            ValueError: If an option is outside its range.
        """
        super().__init__()
        budgets = [float(d) for d in budget] if isinstance(budget, Sequence) else [float(budget)]
        finite = bool(budgets) and all(math.isfinite(d) for d in budgets)
        check(finite, f"budget is {budget}: give one finite number per constraint, e.g. -0.5 or [-0.5, 0.0]")
        check(0 <= minimum < math.inf, f"minimum is {minimum}: lambda is never negative, give 0 or more")
        check(
            minimum <= maximum < math.inf,
            f"maximum is {maximum}: give a finite number of at least minimum, which is {minimum}",
        )
        check(
            minimum <= initial <= maximum,
            f"initial is {initial}: it must lie in [minimum, maximum] = [{minimum}, {maximum}]; change it or a bound",
        )
        check(window >= 1, f"window is {window}: give the number of costs to average, 1 or more")
        check(0 <= smoothing < 1, f"smoothing is {smoothing}: give the share of the old value, in [0, 1); 0 = none")
        check(0 <= deadband < math.inf, f"deadband is {deadband}: give a size of 0 or more")
        check(delay >= 0, f"delay is {delay}: give a number of rollouts, 0 or more")
        self.window = window
        self.minimum = minimum
        self.maximum = maximum
        self.smoothing = smoothing
        self.deadband = deadband
        self.delay = delay
        zeros = torch.zeros(len(budgets), dtype=torch.float32)  # dtypes are named: the default may be bfloat16
        self.register_buffer("lam", zeros + initial)
        self.register_buffer("budget", torch.tensor(budgets, dtype=torch.float32), persistent=False)
        self.register_buffer("window_costs", zeros.repeat(window, 1))
        self.register_buffer("window_valid", torch.zeros(window, len(budgets), dtype=torch.bool))
        self.register_buffer("smoothed", zeros.clone())
        self.register_buffer("updates", torch.zeros(len(budgets), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_take_stored_length)  # type: ignore[no-untyped-call]  # torch gives it no types

    @abstractmethod
    def step(self, error: Tensor, moves: Tensor) -> Tensor:
        """(C,) multipliers after this rollout; the caller applies the bounds.

        Args:
            error: (C,) smoothed gap, positive where the cost exceeds the budget, 0 within the deadband.
            moves: (C,) bool, False for constraints whose lambda and state must not change.
        """

    @torch.no_grad()
    def update(self, costs: Tensor, valid: Tensor) -> Tensor:
        """One dual step; every rank gets the costs of all ranks in the same order, so that all have the same lambda.

        A constraint without a valid cost in this rollout does not change.

        Args:
            costs: (N, C) costs of this rollout's responses in the unit of the budget, neither clipped nor with KL; values that
                are not valid have no effect.
            valid: (N, C) or (N,) bool.

        Returns:
            (C,) float32 copy of the multipliers.

        Raises:
            ValueError: If shapes do not fit or a valid cost is NaN or infinite.
        """
        seen = self._remember(costs, valid)
        mean = self.mean_cost
        first = self.updates == 0
        smoothed = torch.where(first, mean, self.smoothing * self.smoothed + (1 - self.smoothing) * mean)
        self.smoothed.copy_(torch.where(seen, smoothed, self.smoothed))
        moves = seen & (self.updates >= self.delay)
        lam = self.step(self.outside_deadband(self.smoothed - self.budget), moves)
        # The bounds apply to unchanged lambdas too: on resume they may be tighter than the checkpoint's.
        self.lam.copy_(torch.where(moves, lam, self.lam).clamp(self.minimum, self.maximum))
        self.updates += seen
        return self.lam.clone()

    @property
    def mean_cost(self) -> Tensor:
        """(C,) J_C, the mean of the costs in the window; NaN where there is none yet."""
        return masked_mean(self.window_costs, self.window_valid, 0).where(self.window_valid.any(0), torch.nan)

    @property
    def gap(self) -> Tensor:
        """(C,) J_C - d, positive where the cost exceeds the budget."""
        return self.mean_cost - self.budget

    def penalty(self, costs: Tensor) -> Tensor:
        """(N, C) penalty of the policy for its costs (N, C): the costs themselves, unless a rule overrides it."""
        return costs

    def outside_deadband(self, gap: Tensor) -> Tensor:
        """(C,) the gap, 0 where it is within the deadband."""
        return gap.where(gap.abs() > self.deadband, 0.0)

    def _remember(self, costs: Tensor, valid: Tensor) -> Tensor:
        """Put the valid costs into the window in place of the oldest; (C,) bool of the constraints that got any."""
        expected = (costs.shape[0] if costs.dim() else 1, len(self.lam))
        if tuple(costs.shape) != expected:
            raise ValueError(f"costs have shape {tuple(costs.shape)}, expected (responses, budgets) = {expected}")
        if tuple(valid.shape) not in {expected, expected[:1]} or valid.dtype != torch.bool:
            raise ValueError(
                f"valid is {valid.dtype} of shape {tuple(valid.shape)}, expected bool of shape {expected} or {expected[:1]}"
            )
        valid = valid if valid.dim() == 2 else valid[:, None].expand(expected)
        costs = costs.float().masked_fill(~valid, 0.0)
        if not costs.isfinite().all():
            bad = (~costs.isfinite()).sum(0).tolist()
            raise ValueError(f"{bad} valid costs (per constraint) are NaN or infinite: check the cost model's scores")
        all_costs = torch.cat([self.window_costs, costs])  # (W+N, C)
        all_valid = torch.cat([self.window_valid, valid])  # (W+N, C)
        seen = valid.any(0)
        lengths = torch.where(seen, valid.sum(0).clamp(min=self.window), self.window_valid.sum(0))  # (C,)
        length = max(self.window, int(lengths.max()))
        # A stable sort moves empty entries to the front and keeps the order of the costs: the last ones are the newest.
        newest = all_valid.int().argsort(dim=0, stable=True)[-length:]
        ages = torch.arange(len(newest), 0, -1, device=costs.device)[:, None]
        _resize(self, len(newest))
        self.window_costs.copy_(all_costs.gather(0, newest))
        self.window_valid.copy_(all_valid.gather(0, newest) & (ages <= lengths))
        return seen


def _resize(controller: DualController, length: int) -> None:
    """Give the window's buffers another length; what they hold is lost then."""
    if length != len(controller.window_costs):
        for name in ("window_costs", "window_valid"):
            buffer = getattr(controller, name)
            setattr(controller, name, buffer.new_zeros(length, buffer.shape[1]))


def _take_stored_length(controller: DualController, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Before a state is loaded: its window may have another length; the next update cuts it to W or fills it up."""
    if (stored := state.get(f"{prefix}window_costs")) is not None:
        _resize(controller, len(stored))


def check(holds: bool, message: str) -> None:
    """Check a condition on an option.

    Raises:
        ValueError: With the message, if the condition is false.
    """
    if not holds:
        raise ValueError(message)


def positive(name: str, value: float) -> float:
    """``value`` if it is above 0 and finite.

    Raises:
        ValueError: Naming the option otherwise.
    """
    check(0 < value < math.inf, f"{name} is {value}: give a finite number above 0, e.g. 0.1")
    return value
