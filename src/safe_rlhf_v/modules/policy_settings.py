"""Plain-data settings of constrained policy training."""

from dataclasses import dataclass
from typing import Literal

from safe_rlhf_v.functional.policy import Estimator
from safe_rlhf_v.functional.policy_losses import Reduction


@dataclass(frozen=True)
class KLPenalty:
    """What keeps the policy near its start.

    Attributes:
        coefficient: beta, per token.
        where: ``split``: half is taken from the reward and half added to the cost, so that the combined advantage sees
            beta / 2 for every multiplier (the formula of Safe RLHF, arXiv 2310.12773); ``both``: the whole in each (as
            released); ``reward``: in the reward only, where a growing multiplier drowns it; ``loss``: a term of the loss
            (always k3, whose gradient is right), the only one without token signals.
        estimator: Of the shaped penalty: ``k1`` as released, or ``k3``.
    """

    coefficient: float = 0.05
    where: Literal["split", "both", "reward", "loss"] = "split"
    estimator: Estimator = "k1"

    def __post_init__(self) -> None:
        """Raises: ValueError: If the coefficient is negative."""
        if not self.coefficient >= 0:
            raise ValueError(f"kl.coefficient is {self.coefficient}, it must be 0 or more")

    @property
    def weights(self) -> tuple[float, float]:
        """What the divergence is multiplied by in the reward's and in the cost's token signals."""
        half = self.coefficient / 2
        shares = {"split": (half, half), "both": (2 * half, 2 * half), "reward": (2 * half, 0.0), "loss": (0.0, 0.0)}
        reward, cost = shares[self.where]
        return -reward, cost


@dataclass(frozen=True)
class ScoreSettings:
    """From what reward and cost models say to what the policy is trained on.

    Attributes:
        normalise: Use (reward - mean) / sd and cost / sd, with mean and sd of the starting policy's answers. Costs are not
            centred: their sign is the verdict. Budgets are then in units of that sd.
        clip: Limit of the absolute scores; ``None`` for no limit.
        unfinished_penalty: Taken from the reward of a response that was cut off.
        signal_clip: Limit of the absolute per-token signals (50 as released); ``None`` for no limit.
    """

    normalise: bool = True
    clip: float | None = 5.0
    unfinished_penalty: float = 2.0
    signal_clip: float | None = 50.0


@dataclass(frozen=True)
class UpdateSettings:
    """How a rollout is learned from (PPO, arXiv 1707.06347).

    Attributes:
        epochs: Passes over a rollout.
        minibatch_size: Prompts per optimizer step and device; ``None`` for all.
        micro_batch_size: Prompts per forward and backward pass and device, for memory; ``None`` for all of a minibatch.
            Neighbours in length go together, and the gradient is that of the whole minibatch.
        clip: Of the probability ratio.
        dual_clip: Lower bound of the surrogate for bad tokens, in advantages (arXiv 1912.09729).
        value_clip: Of the change of a value; ``None`` for none.
        value_weight: Of each critic's loss; critics share no weights with the actor, so it only scales gradients.
        reduction: ``token``: mean over all tokens; ``sequence``: over responses, each with the mean of its tokens (as
            released).
        ptx_weight: Of the rehearsed demonstrations' loss.
        max_grad_norm: Largest norm of each role's gradient; ``None`` for no limit.
    """

    epochs: int = 1
    minibatch_size: int | None = None
    micro_batch_size: int | None = None
    clip: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 5.0
    value_weight: float = 1.0
    reduction: Reduction = "token"
    ptx_weight: float = 0.5
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        """Raises: ValueError: If a count is not positive."""
        for name in ("epochs", "minibatch_size", "micro_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"update.{name} is {value}, it must be at least 1")


@dataclass(frozen=True)
class StartSettings:
    """What is looked at before the first step.

    Attributes:
        prompts: Training prompts the starting policy answers: mean and sd of its scores, and where its cost lies.
        labelled: Labelled responses on which the cost model is checked (needs the data's ``labelled_split``).
        min_sign_accuracy: Refuse a cost model whose balanced sign accuracy on them is lower.
    """

    prompts: int = 256
    labelled: int = 500
    min_sign_accuracy: float = 0.6
