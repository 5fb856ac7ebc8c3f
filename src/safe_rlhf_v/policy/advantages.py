"""Advantage estimators: what each token of a rollout is worth, reward and cost kept apart and then combined.

Shapes: N responses, R response tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from safe_rlhf_v.functional.policy import (
    combine_advantages,
    generalised_advantage,
    group_advantage,
    mean_and_std,
    moments,
    standardise,
)
from safe_rlhf_v.policy.rollout import Values


class Signals(NamedTuple):
    """What a rollout earned.

    Attributes:
        reward: (N, R) float32 per-token signal: KL penalty, and the score at the last token; 0 where masked.
        cost: (N, R) float32, likewise.
        reward_score: (N,) float32, the score alone, as it is trained on: limited, with the penalty of unfinished responses.
        cost_score: (N,) float32, likewise.
        mask: (N, R) bool.
        valid: (N,) bool.
        samples: Responses per prompt.
        unit: Spread of the starting policy's reward and cost in the unit of these scores: (1, 1) if they are normalised by it.
        constrained: (N,) bool, the responses that a constraint binds; ``None`` for all.
    """

    reward: Tensor
    cost: Tensor
    reward_score: Tensor
    cost_score: Tensor
    mask: Tensor
    valid: Tensor
    samples: int
    unit: tuple[float, float] = (1.0, 1.0)
    constrained: Tensor | None = None

    @property
    def cost_mask(self) -> Tensor:
        """(N, R) bool, the tokens whose cost is measured: that of a response without a constraint is 0 whatever it says."""
        return self.mask if self.constrained is None else self.mask & self.constrained[:, None]


class AdvantageEstimator(ABC):
    """Turns signals into advantages.

    Attributes:
        critics: Whether it needs the critics' values.
        token_signals: Whether it reads the per-token signals, so that a KL penalty can be put into them.
        least_samples: Least number of responses per prompt.
    """

    least_samples: int = 1
    critics: bool
    token_signals: bool

    @abstractmethod
    def __call__(
        self, signals: Signals, values: Values | None, lam: Tensor, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(N, R) float32 advantages, reward and cost combined, 0 where masked.

        Args:
            signals: What the rollout earned.
            values: What the critics expected.
            lam: (N, 1) multiplier of each response's constraint.
            total: Sums a tensor over all ranks.
        """

    def returns(self, signal: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(n, R) what a critic should have expected, row by row; only for estimators with critics.

        Args:
            signal: (n, R) per-token signal of reward or cost.
            values: (n, R) what the critic did expect.
            mask: (n, R) bool.

        Raises:
            NotImplementedError: If the estimator has no critics.
        """
        raise NotImplementedError(f"{type(self).__name__} has no critics")


class GAE(AdvantageEstimator):
    """Reward and cost critics, generalised advantage estimation for each (arXiv 1506.02438), then (A_r - lam A_c)/(1 + lam).

    Centring each advantage and whitening the combination are over all tokens of all ranks. Whitening the micro-batches instead
    would change the unit of the multiplier. As released (arXiv 2503.17682): ``centre`` and ``whiten`` off. Where all
    advantages are equal but for rounding, ``floor`` keeps whitening from turning the rounding into advantages of 1.

    YAML::

        advantages: {class_path: safe_rlhf_v.policy.GAE, init_args: {gamma: 1.0, lam: 0.95}}
    """

    critics = True
    token_signals = True

    def __init__(
        self, gamma: float = 1.0, lam: float = 0.95, centre: bool = True, whiten: bool = True, floor: float = 0.01
    ) -> None:
        """Choose the discounts, and what is standardised.

        Args:
            gamma: Discount per token.
            lam: 1 trusts the sampled outcome, 0 the critic.
            centre: Subtract the mean of reward and of cost advantages.
            whiten: Scale the combined advantage to mean 0 and variance 1.
            floor: Smallest standard deviation that is divided by, in spreads of the starting policy's scores.

        Raises:
            ValueError: If ``floor`` is negative.
        """
        self.gamma = gamma
        self.lam = lam
        self.centre = centre
        self.whiten = whiten
        self.floor = checked_floor(floor)

    def __call__(
        self, signals: Signals, values: Values | None, lam: Tensor, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """See :class:`AdvantageEstimator`."""
        assert values is not None, "critics are there because this estimator asks for them"
        mask = signals.mask
        pairs = ((signals.reward, values.reward), (signals.cost, values.cost))
        reward, cost = (self._estimate(signal, value, mask)[0] for signal, value in pairs)
        if self.centre:
            counted = ((reward, mask), (cost, signals.cost_mask))
            reward, cost = (standardise(a, mask, mean_and_std(total(moments(a, of)))[0]) for a, of in counted)
        combined = combine_advantages(reward, cost, lam)
        if self.whiten:
            # The smaller unit: whatever the multiplier, no real difference is below the floor.
            floor = self.floor * min(signals.unit)
            combined = standardise(combined, mask, *mean_and_std(total(moments(combined, mask))), floor)
        return combined

    def returns(self, signal: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """See :class:`AdvantageEstimator`."""
        return self._estimate(signal, values, mask)[1]

    def _estimate(self, signal: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return generalised_advantage(signal, values, mask, gamma=self.gamma, lam=self.lam)


class GroupRelative(AdvantageEstimator):
    """Critic-free: each response against the other samples of its prompt, reward and cost apart, then combined.

    Constrained GRPO (arXiv 2602.05863). Dividing by the group's spread (arXiv 2402.03300) removes the size of the cost, and
    the multiplier must climb to make up for it; undivided (arXiv 2503.20783) costs keep their unit. The KL penalty is a
    term of the loss. Where all responses are equally good but for rounding, ``floor`` keeps divisions from turning the
    rounding into advantages of 1.

    YAML::

        advantages: {class_path: safe_rlhf_v.policy.GroupRelative, init_args: {divide: false}}
        # GRPO's own division: {divide: true, eps: 1.0e-4, whiten: false}
    """

    critics = False
    token_signals = False
    least_samples = 2

    def __init__(self, divide: bool = False, whiten: bool = True, eps: float = 0.1, floor: float = 0.01) -> None:
        """Choose what is divided and standardised.

        Args:
            divide: Divide by the group's standard deviation + ``eps``.
            whiten: Scale the combined advantage of all responses to variance 1.
            eps: In the unit of the scores; GRPO's implementations take 1e-4, with which nearly equal responses count as much
                as different ones.
            floor: Smallest standard deviation that is divided by, of a group or of all, in spreads of the starting policy's
                scores.

        Raises:
            ValueError: If ``eps`` is not positive or ``floor`` is negative.
        """
        if not eps > 0:
            raise ValueError(f"advantages.eps is {eps}, it must be above 0; GRPO's implementations take 1e-4")
        self.divide = divide
        self.whiten = whiten
        self.eps = eps
        self.floor = checked_floor(floor)

    def __call__(
        self, signals: Signals, values: Values | None, lam: Tensor, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """See :class:`AdvantageEstimator`."""
        reward, cost = (
            group_advantage(
                scores,
                signals.samples,
                signals.valid,
                divide=self.divide,
                eps=self.eps,
                floor=self.floor * unit,
            )
            for scores, unit in zip((signals.reward_score, signals.cost_score), signals.unit, strict=True)
        )
        combined = combine_advantages(reward[:, None], cost[:, None], lam)  # (N, 1)
        if self.whiten:
            valid = signals.valid[:, None]
            floor = self.floor * (1.0 if self.divide else min(signals.unit))  # divided advantages have no unit
            combined = standardise(combined, valid, *mean_and_std(total(moments(combined, valid))), floor)
        return combined * signals.mask


def checked_floor(floor: float) -> float:
    """``floor``.

    Raises:
        ValueError: If it is negative or infinite.
    """
    if not 0 <= floor < math.inf:
        raise ValueError(f"advantages.floor is {floor}, it must be 0 or more")
    return floor
