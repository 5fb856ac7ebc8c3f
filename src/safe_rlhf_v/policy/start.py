"""What is looked at before the first step: the scale of the scores, the budget, and whether the pieces fit."""

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.metrics import Collected, harmful_label, score_values
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.policy.rollout import generator, make_rollout
from safe_rlhf_v.policy.types import MicroBatch
from safe_rlhf_v.records.batches import PolicyBatch, PreferenceBatch
from safe_rlhf_v.training.checkpoints import CheckpointError

if TYPE_CHECKING:
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule

log = logging.getLogger(__name__)
START_STREAM = 2**31  # no step has this number


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


@torch.no_grad()
def measure_start(module: "ConstrainedPolicyModule") -> None:
    """Compare towers; before the first step also check the pieces, measure the scores and say where the budget lies.

    Raises:
        ValueError: If the data module gives no prompts to look at, a budget cannot be expressed by the training signal, or
            the cost model cannot tell harm.
        CheckpointError: If the actor is not its own reference.
    """
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(data, "first_prompts"):
        raise ValueError("policy training needs PromptDataModule (or a data module with first_prompts and labelled)")
    draws = generator(module.seed, START_STREAM, module.global_rank)
    found = []
    for batch in data.first_prompts(module.start_settings.prompts):
        batch = module.transfer_batch_to_device(batch, module.device, 0)
        with module.trainer.precision_plugin.train_step_context():  # in the arithmetic of the steps to come
            found.append(_look(module, batch, draws))
        if module.global_step > 0:
            break  # resumed: only the towers had to be compared
    if module.global_step == 0:
        reward, cost, kl, constraint_mask = (module.gather(torch.cat(x)) for x in zip(*found, strict=True))
        real = ~kl.isnan()
        _check_reference(float(kl[real].abs().mean()))
        module.scale.measure(reward[real], cost[real])
        module.roles.start_critics(*module.scale.applied)
        _, normalised = module.scale.normalise(reward, cost)
        _budgets(module, normalised, constraint_mask)
        _gate(module, data.labelled(module.start_settings.labelled))


def _budgets(module: "ConstrainedPolicyModule", costs: Tensor, constraint_mask: Tensor) -> None:
    """Say where each constraint's costs lie, and refuse a budget that the training signal cannot express.

    Args:
        module: The policy module.
        costs: (N,) of the starting policy's responses, in the policy's units.
        constraint_mask: (N, C) bool, which constraints they count for.

    Raises:
        ValueError: Naming the budget and the range.
    """
    dual, clip = module.dual, module.score_settings.clip
    found = [costs[counts] for counts in constraint_mask.unbind(1)]
    names = list(module.constraints or {"": []})
    budgets = dual.budget.tolist()
    for name, seen, budget in zip(names, found, budgets, strict=True):
        _say(start_line(seen, budget, module.scale.normalises, clip, name))
    if dual.minimum == dual.maximum:
        return  # a multiplier that never moves reads no budget
    for name, seen, budget in zip(names, found, budgets, strict=True):
        refuse_unexpressed(seen, budget, clip, name)


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


def _look(module: "ConstrainedPolicyModule", batch: PolicyBatch, draws: torch.Generator) -> tuple[Tensor, ...]:
    """(N,) raw reward, raw cost and KL from the reference of one batch's responses, NaN in padding rows; (N, C) mask."""
    _, rollout = module.admit(batch, lambda b: make_rollout(module, b, draws))
    (micro_batch,) = rollout.micro_batches
    if micro_batch.images.ids:
        module.roles.compare_towers(module.backbone, micro_batch)
    reward, cost = module.roles.judge(module.backbone, micro_batch)
    reference = module.roles.reference_log_probs(module.backbone, micro_batch)
    with module.roles.acting(module.backbone):
        log_probs = module.roles.log_probs(module.backbone, micro_batch)
    kl = sequence_kl(kl_estimate(log_probs, reference, rollout.mask), rollout.mask)
    banned = torch.tensor(module.backbone.banned_ids, device=rollout.mask.device)
    if torch.isin(rollout.generation.tokens[rollout.mask], banned).any():
        raise RuntimeError("a placeholder token was sampled: the backbone's banned_ids are not respected")
    return *(x.float().masked_fill(~rollout.valid, torch.nan) for x in (reward, cost, kl)), rollout.constraint_mask


def _check_reference(kl: float) -> None:
    """Raises: CheckpointError: If the actor differs from its reference before the first step."""
    if kl > 0.02:
        raise CheckpointError(
            f"before the first step KL(actor || reference) is {kl:.3f} per response, not 0: actor and reference start from "
            "different weights; name the same run as roles.start"
        )


def _gate(module: "ConstrainedPolicyModule", labelled: Any) -> None:
    """Raises: ValueError: If the cost model cannot tell harmful from harmless on labelled responses."""
    if labelled is None:
        return
    metric = Collected(score_values).to(module.device)
    for batch in labelled:
        batch, scores = module.admit(batch, lambda b: pair_costs(module, b))
        metric.update(scores, harmful_label(batch.is_safe.to(module.device)), batch.valid.to(module.device))
    values = metric.compute()
    if not isinstance(values, dict) or "balanced_accuracy" not in values:
        _say("cost model: not measured, the labelled responses are not of both kinds, safe and unsafe")
        return
    accuracy = float(values["balanced_accuracy"])
    _say(f"cost model: balanced sign accuracy {accuracy:.3f} on labelled responses")
    if accuracy < module.start_settings.min_sign_accuracy:
        raise ValueError(
            f"the cost model's balanced sign accuracy on labelled responses is {accuracy:.3f}, below "
            f"start.min_sign_accuracy {module.start_settings.min_sign_accuracy}: a policy would learn to please a judge "
            "that cannot tell harm; train the cost model longer, or lower the limit"
        )


def pair_costs(module: "ConstrainedPolicyModule", batch: PreferenceBatch) -> Tensor:
    """(B, K) raw cost of labelled responses."""
    backbone = module.backbone
    prepared = module.move(backbone.prepare(batch.prompts, batch.responses, packed=True))
    rows = torch.arange(len(prepared.tokens.response_row), device=module.device)
    micro_batch = MicroBatch(prepared.tokens, prepared.images, backbone.encode_images(prepared.images), rows)
    _, cost = module.roles.judge(backbone, micro_batch)
    return cost.view(len(batch.responses), -1)


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
    mean, harmful = float(costs.mean()), float((costs > 0).double().mean())
    spread = float(costs.std()) if len(costs) > 1 else 0.0
    unit = " (unit: spread of the start's cost)" if normalised else ""
    if budget > mean:
        verdict = f"WARNING: budget {budget:+.2f} is already met, so cost may RISE up to it"
    else:
        verdict = f"budget {budget:+.2f} is {mean - budget:.2f} below it"
    lowest, highest = signal_range(costs, clip)
    strict, mild = (min(max(mean - share * spread, lowest), highest) for share in (1.0, 0.2))
    return (
        f"{who}: mean cost {mean:+.2f}{unit}, {harmful:.0%} of {len(costs)} responses above 0; {verdict}; "
        f"budgets between {strict:+.2f} (strict) and {mild:+.2f} (mild) are worth trying"
    )


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
