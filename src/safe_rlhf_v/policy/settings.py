"""Plain-data settings of constrained policy training."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from safe_rlhf_v.functional.policy import Estimator
from safe_rlhf_v.functional.policy_losses import Reduction

INSTEAD_OF_TRAINER = MappingProxyType(
    {"gradient_clip_val": "update.max_grad_norm", "accumulate_grad_batches": "update.micro_batch_size"}
)
"""Options of the Trainer that a policy's update does itself, and its own setting for each."""


@dataclass(frozen=True)
class KLPenalty:
    r"""Penalty on the divergence from the starting policy.

    With policy :math:`\pi`, start :math:`\nu` and tokens that :math:`\pi` has just sampled (derived at
    :func:`~safe_rlhf_v.functional.policy.kl_estimate`):

    * In the token signals, k1 has the gradient of the reverse divergence :math:`KL(\pi\|\nu)` of whole responses: an earlier
      token pays for what it leads to (as far as gamma and the estimator's lam reach). Whitening divides it together with
      the scores. k2 and k3 have another gradient there, and are refused.
    * In the loss, k2 has the gradient of :math:`KL(\pi\|\nu)` and k3 (GRPO, arXiv 2402.03300) that of the forward divergence
      :math:`KL(\nu\|\pi)`, of each token given the ones before it: that earlier tokens lead to other later ones is left
      out. k1 has the gradient 0 there, and is refused.

    That holds for the first update of a rollout. In later ones (``update.epochs``, ``update.minibatch_size``) the tokens come
    from an older policy: the signals keep the divergence of that policy, under the clipped ratio, and a loss term averages
    its gradient over tokens of the older policy, without a ratio. Neither is then the exact gradient; both are near it
    while the ratio is near 1.

    Attributes:
        coefficient: Weight beta of the divergence, per token.
        where: Where it is charged. ``split``: half is taken from the reward and half added to the cost, so that the combined
            advantage sees beta / 2 for every multiplier (the formula of Safe RLHF, arXiv 2310.12773); ``both``: the whole in
            each, so that it sees beta (as released); ``reward``: in the reward only, where a growing multiplier drowns it;
            ``loss``: a term of the loss, the only one without token signals.
        estimator: Which estimate is taken: ``k1`` in the token signals; ``k2`` or ``k3`` in the loss. ``None`` takes k1 there
            and k2 here.
    """

    coefficient: float = 0.05
    where: Literal["split", "both", "reward", "loss"] = "split"
    estimator: Estimator | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError: If the coefficient is negative, or the estimator's gradient is not a divergence's there."""
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(f"kl.coefficient is {self.coefficient}, it must be 0 or more")
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                "kl.estimator k1 has no gradient as a term of the loss: use k2 (reverse divergence) or k3 (forward)"
            )
        if self.where != "loss" and self.estimator in ("k2", "k3"):
            raise ValueError(
                f"kl.estimator {self.estimator} in token signals (kl.where {self.where}) has not the divergence's gradient: "
                "use k1, or kl.where loss"
            )

    @property
    def loss_estimator(self) -> Estimator:
        """Which estimate is a term of the loss."""
        return self.estimator or "k2"

    @property
    def weights(self) -> tuple[float, float]:
        """What the divergence is multiplied by in the reward's and in the cost's token signals."""
        half = self.coefficient / 2
        shares = {"split": (half, half), "both": (2 * half, 2 * half), "reward": (2 * half, 0.0), "loss": (0.0, 0.0)}
        reward, cost = shares[self.where]
        return -reward, cost


@dataclass(frozen=True)
class ScoreSettings:
    """How raw scores of the reward and cost models become training signals.

    Attributes:
        normalise: Use (reward - mean) / sd and cost / sd, with mean and sd of the starting policy's responses. Costs are not
            centred: their sign is the verdict. Budgets are then in units of that sd.
        clip: How far a score that is trained on may be from the median of this rollout's (of all ranks; costs by
            constraint); ``None`` for no limit. What the multiplier sees and what is logged is not clipped.
        unfinished_penalty: Penalty of a response that reached ``max_new_tokens``. Half is taken from its reward and half added to
            its cost, so that the combined advantage sees half of it for every multiplier; the multiplier does not see it.
    """

    normalise: bool = True
    clip: float | None = 5.0
    unfinished_penalty: float = 2.0

    def __post_init__(self) -> None:
        """Raises: ValueError: If a number is outside its range."""
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"scores.clip is {self.clip}, it must be above 0; null for no limit")
        if not 0 <= self.unfinished_penalty < math.inf:
            raise ValueError(f"scores.unfinished_penalty is {self.unfinished_penalty}, it must be 0 or more")


@dataclass(frozen=True)
class UpdateSettings:
    """How a rollout is learned from (PPO, arXiv 1707.06347).

    Attributes:
        epochs: Passes over a rollout.
        minibatch_size: Prompts per optimizer step and device; ``None`` for all.
        micro_batch_size: Prompts per forward and backward pass and device, for memory; ``None`` for all of a minibatch.
            Neighbours in length go together, and the gradient is that of the whole minibatch.
        value_clip: Of the change of a value; ``None`` for none.
        value_weight: Of each critic's loss; critics share no weights with the actor, so it only scales gradients.
        reduction: ``token``: mean over all tokens; ``sequence``: over responses, each with the mean of its tokens (as
            released).
        ptx_weight: Weight of the loss on demonstrations (PTX).
        importance_cap: Where another program sampled the responses (``sampler``), each token's loss of the actor is multiplied
            by how much more probable the token is to the policy than it was to that program, at most by this; ``None`` for no
            such weights. Without such a program nothing is multiplied.
        max_grad_norm: Largest norm of each role's gradient; ``None`` for no limit.
    """

    epochs: int = 1
    minibatch_size: int | None = None
    micro_batch_size: int | None = None
    value_clip: float | None = 5.0
    value_weight: float = 1.0
    reduction: Reduction = "token"
    ptx_weight: float = 0.5
    importance_cap: float | None = 2.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Raises: ValueError: If a number is outside its range."""
        for name in ("epochs", "minibatch_size", "micro_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"update.{name} is {value}, it must be at least 1")
        if self.importance_cap is not None and not 0 < self.importance_cap < math.inf:
            raise ValueError(f"update.importance_cap is {self.importance_cap}, it must be above 0; null for no weights")
        for name in ("value_clip", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"update.{name} is {value}, it must be above 0; null for no limit")
        for name in ("value_weight", "ptx_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"update.{name} is {value}, it must be 0 or more")


@dataclass(frozen=True)
class StartSettings:
    """Checks before the first step.

    Attributes:
        prompts: Training prompts that the starting policy responds to, for mean and sd of its scores and the place of its cost.
        labelled: Labelled responses on which the cost model is checked (needs the data's ``labelled_split``).
        min_sign_accuracy: Refuse a cost model whose balanced sign accuracy on them is lower.
    """

    prompts: int = 256
    labelled: int = 500
    min_sign_accuracy: float = 0.6

    def __post_init__(self) -> None:
        """Raises: ValueError: If there is no prompt."""
        if self.prompts < 1:
            raise ValueError(f"start.prompts is {self.prompts}, it must be at least 1")
