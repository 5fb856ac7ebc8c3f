"""Checks before the first step: the scale of the scores, the budgets, and whether the components fit one another."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.dual import DualController
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.metrics import Collected, harmful_label, score_values
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.policy.advantages import AdvantageEstimator
from safe_rlhf_v.policy.roles import Roles
from safe_rlhf_v.policy.rollout import MicroBatch, Rollout, Texts
from safe_rlhf_v.policy.settings import KLPenalty, ScoreSettings, UpdateSettings
from safe_rlhf_v.policy.surrogates import Surrogate
from safe_rlhf_v.records.batches import PreferenceBatch, to_device
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.runs import say

START_STREAM = 2**31
"""Number of the random stream of the starting policy's first responses; no step has this number."""


class ScoreScale(Float32Module):
    """Mean and spread of the starting policy's scores; in the checkpoint, so that a resumed run keeps its units.

    Attributes:
        normalises: Whether scores are given in these units, or left as they are.
        mean: (2,) float32, of the reward; 0 for the cost: its sign is the verdict.
        spread: (2,) float32, of reward and cost.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, normalises: bool = True) -> None:
        """Start as the identity.

        Args:
            normalises: Subtract the mean and divide by the spread.
        """
        super().__init__()
        self.normalises = normalises
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(2, dtype=torch.float32))

    def measure(self, rewards: Tensor, costs: Tensor) -> None:
        """Take the scale from (n,) scores each; a spread of 0, or of rounding errors only, is left at 1."""
        self.mean[0] = rewards.double().mean()
        for i, scores in enumerate((rewards.double(), costs.double())):
            spread = scores.std() if len(scores) > 1 else torch.zeros(())
            self.spread[i] = spread if spread > 1e-5 * scores.abs().max() else 1.0

    @property
    def applied(self) -> tuple[Tensor, Tensor]:
        """(2,) what is subtracted from reward and cost, and (2,) what they are divided by."""
        if self.normalises:
            return self.mean, self.spread
        return torch.zeros_like(self.mean), torch.ones_like(self.spread)

    @property
    def unit(self) -> tuple[float, float]:
        """Spread of the starting policy's reward and cost in the unit of :meth:`normalise`'s results."""
        reward, cost = (self.spread / self.applied[1]).tolist()
        return reward, cost

    def normalise(self, reward: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Scores in the policy's units: those of the starting policy's spread, or as they are."""
        mean, spread = self.applied
        return (reward - mean[0]) / spread[0], (cost - mean[1]) / spread[1]


class FirstScores(NamedTuple):
    """Scores of the starting policy's responses by the frozen roles.

    Attributes:
        reward: (N,) as the reward model gives it.
        cost: (N,) as the cost model gives it.
        kl: (N,) from the reference.
        constraint_mask: (N, C) bool, which constraints a response counts for.
        valid: (N,) bool, False marks a padding row.
    """

    reward: Tensor
    cost: Tensor
    kl: Tensor
    constraint_mask: Tensor
    valid: Tensor


@torch.no_grad()
def first_scores(roles: Roles, rollout: Rollout) -> FirstScores:
    """Score one rollout of the starting policy, and compare the roles' towers on it.

    Args:
        roles: All of them.
        rollout: Of one micro-batch.

    Raises:
        RuntimeError: If a token was sampled that must never be.
    """
    (micro_batch,) = rollout.micro_batches
    if micro_batch.images.ids:
        roles.compare_towers(micro_batch)
    reward, cost = (roles.score(name, micro_batch) for name in ("reward", "cost"))
    reference, log_probs = (roles.log_probs(role, micro_batch) for role in ("reference", "actor"))
    kl = sequence_kl(kl_estimate(log_probs, reference, rollout.mask), rollout.mask)
    banned = torch.tensor(roles.actor.banned_ids, device=rollout.mask.device)
    if torch.isin(rollout.generation.tokens[rollout.mask], banned).any():
        raise RuntimeError("a placeholder token was sampled: the backbone's banned_ids are not respected")
    return FirstScores(reward.float(), cost.float(), kl.float(), rollout.constraint_mask, rollout.valid)


def real_scores(scores: FirstScores) -> FirstScores:
    """The scores without padding rows.

    Args:
        scores: Of all ranks.

    Raises:
        ValueError: If there is no other row, or one whose score is no finite number: nothing could be measured by it.
    """
    real = FirstScores(*(column[scores.valid] for column in scores))
    if not len(real.valid):
        raise ValueError(
            "before the first step: the model can take none of the first prompts; see the log for the reason"
        )
    for name in ("reward", "cost", "kl"):
        if broken := int((~getattr(real, name).isfinite()).sum()):
            raise ValueError(
                f"before the first step the {name} of {broken} of {len(real.valid)} responses is NaN or infinite: check the "
                f"{'actor and its reference' if name == 'kl' else f'{name} model'}"
            )
    return real


def check_stored(checkpoint: Mapping[str, Any], roles: Mapping[str, Any], constraints: Sequence[str]) -> None:
    """Refuse a checkpoint of other frozen roles, or one whose multipliers belong to other constraints.

    Args:
        checkpoint: What is loaded; an old one may not say what its constraints were.
        roles: Hashes of the roles now.
        constraints: Their names now, in order.

    Raises:
        CheckpointError: Naming what differs.
    """
    for role, stored in checkpoint["roles"].items():
        if roles.get(role) != stored:
            raise CheckpointError(
                f"the checkpoint was trained with another {role} model; name the run it was made with (in Python, give the "
                "module it was made with)"
            )
    names = checkpoint.get("constraints", list(constraints))
    if names != list(constraints):
        raise CheckpointError(
            f"the checkpoint has multipliers of the constraints {', '.join(names)}, in this order, and now there are "
            f"{', '.join(constraints)}: give them the same names in the same order"
        )


def check_components(
    dual: DualController,
    constraints: int,
    advantages: AdvantageEstimator,
    samples: int,
    kl: KLPenalty,
    surrogate: Surrogate,
    update: UpdateSettings,
) -> None:
    """Refuse components that do not fit one another.

    Args:
        dual: The controller.
        constraints: C.
        advantages: The estimator.
        samples: Responses per prompt.
        kl: The penalty.
        surrogate: The actor's loss.
        update: How a rollout is learned from.

    Raises:
        ValueError: Naming the option to change.
    """
    if len(dual.lam) != constraints:
        raise ValueError(f"dual has {len(dual.lam)} budgets, but there are {constraints} constraints")
    if not advantages.token_signals and kl.where != "loss":
        raise ValueError(
            f"kl.where is {kl.where!r}, but {type(advantages).__name__} reads no token signals: set it to 'loss'"
        )
    if samples < advantages.least_samples:
        raise ValueError(
            f"samples is {samples}, but {type(advantages).__name__} compares the responses to a prompt: set it to "
            f"{advantages.least_samples} or more"
        )
    if update.reduction not in surrogate.reductions:
        raise ValueError(
            f"update.reduction is {update.reduction!r}, but {type(surrogate).__name__} is defined with another mean: set it to "
            f"{' or '.join(map(repr, surrogate.reductions))}"
        )


def check_reference(kl: float) -> None:
    """Refuse an actor that is not its own reference.

    Args:
        kl: Mean size of the divergence per response, before the first step.

    Raises:
        CheckpointError: If it is not 0.
    """
    if not kl <= 0.02:
        raise CheckpointError(
            f"before the first step KL(actor || reference) is {kl:.3f} per response, not 0: actor and reference start from "
            "different weights; name the same run as roles.start"
        )


def check_budgets(
    dual: DualController,
    costs: Tensor,
    constraint_mask: Tensor,
    names: Sequence[str],
    settings: ScoreSettings,
) -> None:
    """Print where each constraint's costs lie, and refuse a budget that the training signal cannot express.

    Args:
        dual: Has the budgets.
        costs: (N,) of the starting policy's responses, in the policy's units.
        constraint_mask: (N, C) bool, which constraints they count for.
        names: Of the C constraints.
        settings: How scores become the training signal.

    Raises:
        ValueError: Naming the budget and the range.
    """
    by_constraint = [costs[counts] for counts in constraint_mask.unbind(1)]
    budgets = dual.budget.tolist()
    for name, own, budget in zip(names, by_constraint, budgets, strict=True):
        say(start_line(own, budget, settings.normalise, settings.clip, name))
    if dual.minimum == dual.maximum:
        return  # a multiplier that never moves reads no budget
    for name, own, budget in zip(names, by_constraint, budgets, strict=True):
        refuse_unexpressed(own, budget, settings.clip, name)


def refuse_unexpressed(costs: Tensor, budget: float, clip: float | None, name: str = "") -> None:
    """Refuse a budget among costs that the training signal makes equal.

    Args:
        costs: (n,) of the starting policy's responses, in the policy's units.
        budget: d.
        clip: How far the signal reaches from their median; ``None`` for no limit.
        name: Of the constraint.

    Raises:
        ValueError: Naming the budget and the range.
    """
    if clip is None or not len(costs):
        return
    low, high = signal_range(costs, clip)
    if not low <= budget <= high:
        raise ValueError(
            f"dual.budget {budget:+.2f}{f' of {name}' if name else ''}: with scores.clip {clip:g} the cost's training signal "
            f"reaches from {low:+.2f} to {high:+.2f} at the start, and beyond all responses look alike; choose a budget in "
            "between or a larger scores.clip"
        )


def signal_range(costs: Tensor, clip: float | None) -> tuple[float, float]:
    """Least and largest training signal of the starting policy's costs (n,)."""
    centre = float(costs.double().quantile(0.5))
    return (centre - clip, centre + clip) if clip is not None else (-math.inf, math.inf)


def start_line(costs: Tensor, budget: float, normalised: bool, clip: float | None = None, name: str = "") -> str:
    """One line: where the starting policy's cost lies, and what that means for the budget.

    Args:
        costs: (n,) of the starting policy's responses that the constraint counts, in the policy's units.
        budget: d.
        normalised: Whether the unit is the spread of the starting policy's cost.
        clip: How far the training signal reaches from their median.
        name: Of the constraint, if there are several.
    """
    who = f"starting policy, {name}" if name else "starting policy"
    if not len(costs):
        return f"{who}: none of the responses looked at falls under this constraint, so its budget {budget:+.2f} was not checked"
    mean = float(costs.mean())
    harmful = float((costs > 0).double().mean())
    spread = float(costs.std()) if len(costs) > 1 else 0.0
    unit = " (unit: spread of the start's cost)" if normalised else ""
    if budget > mean:
        verdict = f"WARNING: budget {budget:+.2f} is above it, so cost may RISE up to there"
    else:
        verdict = f"budget {budget:+.2f} is {mean - budget:.2f} below it"
    lowest, highest = signal_range(costs, clip)
    strict, mild = (min(max(mean - share * spread, lowest), highest) for share in (1.0, 0.2))
    return (
        f"{who}: mean cost {mean:+.2f}{unit}, {harmful:.0%} of {len(costs)} responses above 0; {verdict}; "
        f"budgets between {strict:+.2f} (strict) and {mild:+.2f} (mild) are worth trying"
    )


def labelled_costs(roles: Roles, batch: PreferenceBatch) -> Tensor:
    """(B, K) cost of labelled responses, as the cost model gives it.

    Args:
        roles: Whose cost model is checked.
        batch: B rows of K responses.
    """
    actor = roles.actor
    device = next(actor.parameters()).device
    prepared = to_device(actor.prepare(batch.prompts, batch.responses, packed=True), device)
    rows = torch.arange(len(prepared.tokens.response_row), device=device)
    texts = Texts(batch.prompts, batch.responses)
    micro_batch = MicroBatch(prepared.tokens, prepared.images, actor.encode_images(prepared.images), rows, texts)
    return roles.score("cost", micro_batch).view(len(batch.responses), -1)


def check_cost_model(labelled: Iterable[tuple[PreferenceBatch, Tensor]], minimum: float, device: torch.device) -> None:
    """Print how well the cost model tells harmful from harmless, and refuse one that cannot.

    Args:
        labelled: Batches with the (B, K) costs of their responses.
        minimum: Least balanced sign accuracy.
        device: Of the costs.

    Raises:
        ValueError: If it is below the minimum.
    """
    metric = Collected(score_values).to(device)
    for batch, costs in labelled:
        metric.update(costs, harmful_label(batch.is_safe.to(device)), batch.valid.to(device))
    values = metric.compute()
    if not isinstance(values, dict) or "balanced_accuracy" not in values:
        say("cost model: not measured, the labelled responses are not of both kinds, safe and unsafe")
        return
    accuracy = float(values["balanced_accuracy"])
    say(f"cost model: balanced sign accuracy {accuracy:.3f} on labelled responses")
    if not accuracy >= minimum:
        raise ValueError(
            f"the cost model's balanced sign accuracy on labelled responses is {accuracy:.3f}, not at least "
            f"start.min_sign_accuracy {minimum}: a policy would learn to please a judge "
            "that cannot tell harm; train the cost model longer, or lower the limit"
        )
