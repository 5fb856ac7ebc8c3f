"""What is looked at before the first step: the scale of the scores, the budget, and whether the pieces fit."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from safe_rlhf_v.batches import PolicyBatch, PreferenceBatch
from safe_rlhf_v.checkpoints import CheckpointError
from safe_rlhf_v.float32 import Float32Module
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.metrics import BalancedSignAccuracy
from safe_rlhf_v.modules.policy_rollout import generator, make_rollout
from safe_rlhf_v.rollouts import Part

if TYPE_CHECKING:
    from safe_rlhf_v.modules.policy import ConstrainedPolicyModule

log = logging.getLogger(__name__)
START_STREAM = 2**31  # no step has this number


class ScoreScale(Float32Module):
    """Mean and spread of the starting policy's scores; in the checkpoint, so that a resumed run keeps its units.

    Attributes:
        mean: (2,) float32, subtracted from reward and cost (0 for the cost: its sign is the verdict).
        spread: (2,) float32, what they are divided by.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        """Start as the identity."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(2, dtype=torch.float32))

    def measure(self, rewards: Tensor, costs: Tensor) -> None:
        """Take the scale from (n,) scores each; a spread of 0 is left at 1."""
        self.mean[0] = rewards.double().mean()
        for i, scores in enumerate((rewards, costs)):
            spread = scores.double().std()
            self.spread[i] = spread if len(scores) > 1 and spread > 0 else 1.0

    def normalise(self, reward: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Scores in units of the starting policy's spread."""
        return (reward - self.mean[0]) / self.spread[0], (cost - self.mean[1]) / self.spread[1]


@torch.no_grad()
def measure_start(module: "ConstrainedPolicyModule") -> None:
    """Compare towers; before the first step also check the pieces, measure the scores and say where the budget lies.

    Raises:
        ValueError: If the data module gives no prompts to look at, or the cost model cannot tell harm.
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
        reward, cost, kl = (module.gather(torch.cat(x)) for x in zip(*found, strict=True))
        real = ~kl.isnan()
        _check_reference(float(kl[real].abs().mean()))
        if module.score_settings.normalise:
            module.scale.measure(reward[real], cost[real])
        module.roles.start_critics(module.scale.mean, module.scale.spread)
        _gate(module, data.labelled(module.start_settings.labelled))
        _, normalised = module.scale.normalise(reward[real], cost[real])
        _say(start_line(normalised, module.dual.budget, module.score_settings.normalise))


def _look(module: "ConstrainedPolicyModule", batch: PolicyBatch, draws: torch.Generator) -> tuple[Tensor, ...]:
    """(N,) raw reward, raw cost and KL from the reference of one batch's answers; NaN in padding rows."""
    _, rollout = module.admit(batch, lambda b: make_rollout(module, b, draws))
    (part,) = rollout.parts
    if part.images.ids:
        module.roles.compare_towers(module.backbone, part)
    reward, cost = module.roles.judge(module.backbone, part)
    reference = module.roles.reference_log_probs(module.backbone, part)
    with module.roles.acting(module.backbone):
        log_probs = module.roles.log_probs(module.backbone, part)
    kl = sequence_kl(kl_estimate(log_probs, reference, rollout.mask), rollout.mask)
    banned = torch.tensor(module.backbone.banned_ids, device=rollout.mask.device)
    if torch.isin(rollout.generation.tokens[rollout.mask], banned).any():
        raise RuntimeError("a placeholder token was sampled: the backbone's banned_ids are not respected")
    return tuple(x.float().masked_fill(~rollout.valid, torch.nan) for x in (reward, cost, kl))


def _check_reference(kl: float) -> None:
    """Raises: CheckpointError: If the actor differs from its reference before the first step."""
    if kl > 0.02:
        raise CheckpointError(
            f"before the first step KL(actor || reference) is {kl:.3f} per answer, not 0: actor and reference start from "
            "different weights; name the same run as roles.start"
        )


def _gate(module: "ConstrainedPolicyModule", labelled: Any) -> None:
    """Raises: ValueError: If the cost model cannot tell harmful from harmless on labelled responses."""
    if labelled is None:
        return
    metric = BalancedSignAccuracy().to(module.device)
    for batch in labelled:
        batch, scores = module.admit(batch, lambda b: pair_costs(module, b))
        metric.update(scores, batch.is_safe.to(module.device), batch.valid.to(module.device))
    accuracy = float(metric.compute())
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
    part = Part(prepared.tokens, prepared.images, backbone.encode_images(prepared.images), rows)
    _, cost = module.roles.judge(backbone, part)
    return cost.view(len(batch.responses), -1)


def start_line(costs: Tensor, budget: Tensor, normalised: bool) -> str:
    """One line: where the starting policy's cost lies, and what that means for the budget.

    Args:
        costs: (n,) of the starting policy's answers, in the policy's units.
        budget: (C,).
        normalised: Whether the unit is the spread of the starting policy's cost.
    """
    mean, harmful = float(costs.mean()), float((costs > 0).double().mean())
    spread = float(costs.std()) if len(costs) > 1 else 0.0
    unit = " (unit: its own spread)" if normalised else ""
    budgets = ", ".join(f"{d:+.2f}" for d in budget.tolist())
    if bool((budget > mean).any()):
        verdict = f"WARNING: budget {budgets} is already met, so cost may RISE up to it"
    else:
        verdict = f"budget {budgets} is {mean - float(budget.max()):.2f} below it"
    low, high = mean - 1.0 * spread, mean - 0.2 * spread
    return (
        f"starting policy: mean cost {mean:+.2f}{unit}, {harmful:.0%} of {len(costs)} answers above 0; {verdict}; "
        f"budgets between {low:+.2f} (strict) and {high:+.2f} (mild) are worth trying"
    )


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
