"""The curves of one policy iteration."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from safe_rlhf_v.dual import DualController
from safe_rlhf_v.functional.masked import masked_sum
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.functional.policy_losses import explained_variance
from safe_rlhf_v.policy.rollout import Rollout, Scores
from safe_rlhf_v.policy.update import Learned
from safe_rlhf_v.scoring.rows import REFUSALS


def iteration_curves(
    rollout: Rollout,
    scores: Scores,
    learned: Learned,
    total: Callable[[Tensor], Tensor],
    ranks: int,
    seconds: float | None,
) -> dict[str, float]:
    """Means over the responses of all ranks, brought together by sums; scores are not clipped.

    Args:
        rollout: What was sampled.
        scores: What it earned.
        learned: What the updates showed.
        total: Sums a tensor over all ranks.
        ranks: How many there are.
        seconds: Since the iteration before; ``None`` in the first one.
    """
    means = _means(rollout, scores)
    sums = torch.stack([torch.stack([value, count]) for value, count in means.values()])  # (names, 2)
    values, counts = total(sums).unbind(1)
    curves = dict(zip(means, (values / counts.clamp(min=1)).tolist(), strict=True))
    losses = _losses(learned)
    shares = total(torch.stack([torch.stack(entries).mean().double() for entries in losses.values()]))
    curves |= dict(zip(losses, (shares / ranks).tolist(), strict=True))  # as DDP averages gradients
    if learned.values is not None and learned.returns is not None:
        constrained = rollout.mask & rollout.constraint_mask.any(1)[:, None]
        for name, mask in (("reward", rollout.mask), ("cost", constrained)):
            pair = getattr(learned.values, name), getattr(learned.returns, name)
            curves[f"critic/{name}_explained_variance"] = float(explained_variance(*pair, mask, total))
    if seconds is not None:
        curves["rollout/tokens_per_second"] = float(values[list(means).index("rollout/length")]) / seconds
    return curves


def constraint_curves(dual: DualController, before: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Multiplier, budget, windowed cost and gap of every constraint.

    Args:
        dual: After its step.
        before: (C,) the multipliers before it.
        names: Of the C constraints; "" where there is only one, on all prompts.
    """
    curves: dict[str, float] = {}
    for i, name in enumerate(names):
        suffix = f"_{name}" if name else ""
        curves[f"constraint/lambda{suffix}"] = float(dual.lam[i])
        curves[f"constraint/budget{suffix}"] = float(dual.budget[i])
        curves[f"constraint/windowed_cost{suffix}"] = float(dual.mean_cost[i])
        curves[f"constraint/gap{suffix}"] = float(dual.gap[i])
        curves[f"constraint/lambda_step{suffix}"] = float(dual.lam[i] - before[i])
    return curves


def _means(rollout: Rollout, scores: Scores) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, count), float64, of what is averaged over responses or tokens."""
    mask = rollout.mask
    valid = rollout.valid
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
    means = {name: (masked_sum(x.double(), valid), count) for name, x in responses.items()}
    tokens = mask.sum().double()
    means["policy/kl_per_token"] = (kl.double().sum(), tokens)
    if (engine := rollout.generation.engine_log_probs) is not None:
        own = rollout.generation.log_probs
        means["rollout/engine_difference"] = (masked_sum((own.double() - engine.double()).abs(), mask), tokens)
        means["rollout/engine_kl"] = (kl_estimate(engine, own, mask, estimator="k3").double().sum(), tokens)
    means["policy/entropy"] = (-masked_sum(rollout.generation.log_probs.double(), mask), tokens)
    return means


def _losses(learned: Learned) -> dict[str, list[Tensor]]:
    """Losses, statistics of the surrogate and gradient norms under the names of the curves."""
    names = {
        "policy": "policy/loss",
        "kl": "policy/kl_loss",
        "ptx": "policy/ptx_loss",
        "reward_value": "critic/reward_loss",
        "cost_value": "critic/cost_loss",
    }
    curves = {names.get(name, f"policy/{name}"): entries for name, entries in learned.losses.items()}
    for role, entries in learned.gradient_norms.items():
        name = "policy/gradient_norm" if role == "actor" else f"critic/{role.removesuffix('_critic')}_gradient_norm"
        curves[name] = entries
    return curves
