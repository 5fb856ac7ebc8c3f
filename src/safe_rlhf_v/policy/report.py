"""The curves of one policy iteration."""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import masked_sum
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.functional.policy_losses import explained_variance
from safe_rlhf_v.policy.types import Rollout, Scores
from safe_rlhf_v.policy.update import Learned
from safe_rlhf_v.scoring.rows import REFUSALS

if TYPE_CHECKING:
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule


def iteration_report(module: "ConstrainedPolicyModule", rollout: Rollout, scores: Scores, learned: Learned) -> None:
    """Log one iteration: means over the responses of all ranks, brought together by one sum; scores are not clipped.

    Args:
        module: Whose logger to use.
        rollout: What was sampled.
        scores: What it earned.
        learned: What the updates showed.
    """
    means = _means(module, rollout, scores)
    names = list(means)
    sums = torch.stack([torch.stack([total, count]) for total, count in means.values()])  # (names, 2)
    totals = module.total(sums).unbind(1)
    values = dict(zip(names, (totals[0] / totals[1].clamp(min=1)).tolist(), strict=True))
    losses = _losses(learned)
    shares = module.total(torch.stack([torch.stack(entries).mean().double() for entries in losses.values()]))
    values |= dict(zip(losses, (shares / module.trainer.world_size).tolist(), strict=True))  # as DDP averages gradients
    module.log_counts(learned.seen)
    if learned.values is not None and learned.returns is not None:
        for name in ("reward", "cost"):
            explained = explained_variance(getattr(learned.values, name), getattr(learned.returns, name), rollout.mask)
            values[f"critic/{name}_explained_variance"] = float(explained)
    values |= _constraint(module)
    now = time.monotonic()
    if module.last_report is not None:
        values["rollout/tokens_per_second"] = float(totals[0][names.index("rollout/length")]) / (
            now - module.last_report
        )
    module.last_report = now
    module.log_dict(values)
    shown = {"reward": "rollout/reward", "cost": "constraint/cost", "lam": next(n for n in values if "/lambda" in n)}
    module.log_dict({short: values[name] for short, name in shown.items()}, prog_bar=True, logger=False)


def _means(module: "ConstrainedPolicyModule", rollout: Rollout, scores: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count), float64, of what is averaged over responses or tokens."""
    mask, valid = rollout.mask, rollout.valid
    kl = kl_estimate(rollout.generation.log_probs, scores.reference, mask)  # (N, R)
    refused = [bool(REFUSALS.search(text)) for text in rollout.generation.text]
    responses = {
        "rollout/reward": scores.reward,
        "rollout/raw_reward": scores.raw_reward,
        "rollout/raw_cost": scores.raw_cost,
        "rollout/length": mask.sum(1),
        "rollout/unfinished": ~rollout.generation.finished,
        "rollout/refusals": torch.tensor(refused, device=mask.device),
        "constraint/cost": scores.cost,
        "constraint/violating": scores.cost > 0,
        "policy/kl": sequence_kl(kl, mask),
    }
    count = valid.sum().double()
    found = {name: (masked_sum(x.double(), valid), count) for name, x in responses.items()}
    tokens = mask.sum().double()
    found["policy/kl_per_token"] = (kl.double().sum(), tokens)
    found["policy/entropy"] = (-masked_sum(rollout.generation.log_probs.double(), mask), tokens)
    return found


def _losses(learned: Learned) -> dict[str, list[Tensor]]:
    """Losses and gradient norms under the names of the curves."""
    curves = {
        "policy": "policy/loss",
        "kl": "policy/kl_loss",
        "clip_fraction": "policy/clip_fraction",
        "ptx": "policy/ptx_loss",
        "reward_value": "critic/reward_loss",
        "cost_value": "critic/cost_loss",
    }
    found = {curves[name]: entries for name, entries in learned.losses.items()}
    for role, entries in learned.gradient_norms.items():
        home = "policy/gradient_norm" if role == "actor" else f"critic/{role.removesuffix('_critic')}_gradient_norm"
        found[home] = entries
    return found


def _constraint(module: "ConstrainedPolicyModule") -> dict[str, float]:
    """Multiplier, budget, windowed cost and gap of every constraint."""
    dual = module.dual
    found: dict[str, float] = {}
    names = [""] if module.constraints is None else [f"_{name}" for name in module.constraints]
    for i, suffix in enumerate(names):
        found[f"constraint/lambda{suffix}"] = float(dual.lam[i])
        found[f"constraint/budget{suffix}"] = float(dual.budget[i])
        found[f"constraint/windowed_cost{suffix}"] = float(dual.mean_cost[i])
        found[f"constraint/gap{suffix}"] = float(dual.gap[i])
        found[f"constraint/lambda_step{suffix}"] = float(dual.lam[i] - module.lam_before[i])
    return found
