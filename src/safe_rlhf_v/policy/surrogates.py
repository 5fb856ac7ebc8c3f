"""Surrogates: the actor's loss at each sampled token, chosen by ``class_path``.

A surrogate compares the policy that is trained with the one that sampled the response. In a rollout's only update the two are the
same (``update.epochs: 1`` and no ``update.minibatch_size``): every ratio is 1, nothing is clipped, and every surrogate here has
the gradient of the plain policy gradient. They differ from the second update of a rollout on.

Shapes: N responses, R response tokens.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from safe_rlhf_v.functional.policy_losses import Reduction, clipped_surrogate, sequence_clipped_surrogate


class TokenLosses(NamedTuple):
    """What a surrogate gives.

    Attributes:
        losses: (N, R) loss of each token, to be minimised, with its graph; what stands where masked does not matter.
        statistics: (N, R) each, by name, without a graph: their means over the tokens are logged as ``policy/NAME``.
    """

    losses: Tensor
    statistics: dict[str, Tensor]


class Surrogate(ABC):
    """The actor's loss, token by token; averaging over tokens, micro-batches and ranks is the caller's work.

    A subclass writes :meth:`__call__`. Each response is seen whole, so that a loss may depend on all its tokens; responses must
    not depend on one another, since they may be in different micro-batches.

    Attributes:
        reductions: Which means (``update.reduction``) the method is defined with.
    """

    reductions: tuple[Reduction, ...] = ("token", "sequence")

    @abstractmethod
    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """Losses and statistics of some responses.

        Args:
            log_probs: (N, R) of the response tokens under the policy that is trained; the only one with a graph.
            old_log_probs: (N, R) under the policy that sampled them.
            advantages: (N, R), reward and cost combined.
            mask: (N, R) bool, left-aligned; padding responses have no real token.
        """


class PPOClip(Surrogate):
    r"""The clipped ratio of PPO (arXiv 1707.06347), token by token.

    .. math:: -\min\big(\rho A,\ \mathrm{clip}(\rho, 1 \pm \epsilon) A\big), \quad \rho = \pi / \pi_{old}

    YAML::

        surrogate: {class_path: safe_rlhf_v.policy.PPOClip, init_args: {clip: 0.2}}
    """

    def __init__(self, clip: float = 0.2, dual_clip: float | None = None) -> None:
        """Choose the limits.

        Args:
            clip: How far the ratio may be from 1 before a token's gradient ends.
            dual_clip: Largest loss of a bad token, in advantages, above 1 (arXiv 1912.09729): one bad token whose probability has
                grown many times over does not rule the step. ``None`` for no limit.

        Raises:
            ValueError: If a number is outside its range.
        """
        self.clip = _above("clip", clip, 0)
        self.dual_clip = None if dual_clip is None else _above("dual_clip", dual_clip, 1)

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """See :class:`Surrogate`."""
        clip = (self.clip, self.clip)
        return TokenLosses(
            *clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip=clip, dual_clip=self.dual_clip)
        )


class ClipHigher(Surrogate):
    r"""PPO's clipped ratio with a higher upper limit, so that unlikely good tokens can grow (DAPO, arXiv 2503.14476, eq. 8).

    .. math:: -\min\big(\rho A,\ \mathrm{clip}(\rho, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A\big)

    DAPO averages over all tokens: ``update.reduction: token``, the default.

    YAML::

        surrogate: {class_path: safe_rlhf_v.policy.ClipHigher, init_args: {low: 0.2, high: 0.28}}
    """

    def __init__(self, low: float = 0.2, high: float = 0.28) -> None:
        """Choose the limits.

        Args:
            low: How far the ratio of a bad token may fall below 1 before its gradient ends.
            high: How far the ratio of a good token may rise above 1 before its gradient ends.

        Raises:
            ValueError: If a number is outside its range.
        """
        self.low = _above("low", low, 0)
        self.high = _above("high", high, 0)

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """See :class:`Surrogate`."""
        return TokenLosses(*clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip=(self.low, self.high)))


class GSPO(Surrogate):
    r"""One ratio per response, the geometric mean of its tokens' ratios, clipped as a whole (arXiv 2507.18071, eq. 5 to 7).

    .. math:: -\min\big(s A,\ \mathrm{clip}(s, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A\big), \quad
              s = \Big(\frac{\pi(y)}{\pi_{old}(y)}\Big)^{1/|y|}

    The token form of the paper (GSPO-token, eq. 13 and 14): the value of :math:`s` with the gradient of each token, so that every
    token may have its own advantage. Where all tokens of a response have the same (``GroupRelative``) it is GSPO itself. The mean
    is over responses, each with the mean of its tokens: it needs ``update.reduction: sequence``.

    YAML::

        surrogate: {class_path: safe_rlhf_v.policy.GSPO, init_args: {low: 3.0e-4, high: 4.0e-4}}
    """

    reductions = ("sequence",)

    def __init__(self, low: float = 3e-4, high: float = 4e-4) -> None:
        """Choose the limits.

        Args:
            low: How far the ratio of a response may fall below 1; much less than for tokens, whose ratios partly cancel.
            high: How far the ratio of a response may rise above 1.

        Raises:
            ValueError: If a number is outside its range.
        """
        self.low = _above("low", low, 0)
        self.high = _above("high", high, 0)

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """See :class:`Surrogate`."""
        clip = (self.low, self.high)
        return TokenLosses(*sequence_clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip=clip))


def _above(name: str, value: float, bound: float) -> float:
    """``value``. Raises: ValueError: If it is not finite, or not above the bound."""
    if not bound < value < math.inf:
        raise ValueError(f"surrogate.{name} is {value}, it must be above {bound}")
    return value
