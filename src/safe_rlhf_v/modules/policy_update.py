"""Learning from a rollout: joint backward passes of actor, critics and rehearsal, and the optimizer's steps.

Shapes: n responses of one part, R response tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.batches import SupervisedBatch
from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.functional.policy import kl_estimate
from safe_rlhf_v.functional.policy_losses import clipped_surrogate, clipped_value_loss, reduce_tokens, reduction_count
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.modules.policy_rollout import of_rows
from safe_rlhf_v.rollouts import Part, Rollout, Scores, Targets, Values

if TYPE_CHECKING:
    from safe_rlhf_v.modules.policy import ConstrainedPolicyModule


class Learned(NamedTuple):
    """What the updates of one rollout showed.

    Attributes:
        losses: Scalars by name, each one entry per update.
        gradient_norms: Norm of each role's gradient before clipping, by role, one entry per update.
    """

    losses: dict[str, list[Tensor]]
    gradient_norms: dict[str, list[Tensor]]


def update(
    module: "ConstrainedPolicyModule",
    rollout: Rollout,
    scores: Scores,
    targets: Targets,
    values: Values | None,
    demonstrations: SupervisedBatch | None,
) -> Learned:
    """All optimizer steps of one rollout; they count as one step of the trainer.

    Args:
        module: The policy module.
        rollout: What was sampled.
        scores: For the divergence from the reference.
        targets: Advantages and returns.
        values: The critics' values; with their graph if the rollout is learned from in a single pass.
        demonstrations: What is rehearsed meanwhile.
    """
    settings = module.update_settings
    learned = Learned({}, {})
    optimizer: Any = module.optimizers()
    number = settings.epochs * len(rollout.minibatches)
    for i in range(number):
        parts = rollout.minibatches[i % len(rollout.minibatches)]
        optimizer.zero_grad()
        _backward(module, rollout, scores, targets, values, parts, demonstrations, learned, alone=number == 1)
        if module.global_step == 0 and i == 0:
            _every_tensor_learns(module)
        for role, parameters in module.roles.trained(module.backbone).items():
            limit = settings.max_grad_norm or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            learned.gradient_norms.setdefault(role, []).append(norm.detach())
        with counted_once(optimizer, last=i == number - 1):
            optimizer.step()
    schedulers: Any = module.lr_schedulers()
    for scheduler in [schedulers] if schedulers is not None and not isinstance(schedulers, list) else schedulers or []:
        scheduler.step()
    return learned


def _backward(
    module: "ConstrainedPolicyModule",
    rollout: Rollout,
    scores: Scores,
    targets: Targets,
    values: Values | None,
    parts: tuple[Part, ...],
    demonstrations: SupervisedBatch | None,
    learned: Learned,
    *,
    alone: bool,
) -> None:
    """Gradients of one minibatch, part by part: exactly those of the whole, over all ranks."""
    rows = torch.cat([part.rows for part in parts])
    world = module.trainer.world_size  # DDP averages over ranks: dividing by a rank's mean share gives the global mean
    count = module.total(reduction_count(rollout.mask[rows], module.update_settings.reduction).double()) / world
    for j, part in enumerate(parts):
        losses = part_losses(module, rollout, scores, targets, values, part, count, alone=alone)
        if demonstrations is not None and module.update_settings.ptx_weight and j == len(parts) - 1:
            losses["rehearsal"] = rehearsal_loss(module, demonstrations)
        weights = {"kl": module.kl.coefficient, "rehearsal": module.update_settings.ptx_weight}
        weights |= dict.fromkeys(("reward_value", "cost_value"), module.update_settings.value_weight)
        loss = torch.stack([weights.get(n, 1.0) * value for n, value in losses.items() if value.requires_grad]).sum()
        module.manual_backward(loss)
        for name, value in losses.items():
            entries = learned.losses.setdefault(name, [])
            if j == 0 or name == "rehearsal":
                entries.append(value.detach())
            elif name != "clip_fraction":
                entries[-1] = entries[-1] + value.detach()


def part_losses(
    module: "ConstrainedPolicyModule",
    rollout: Rollout,
    scores: Scores,
    targets: Targets,
    values: Values | None,
    part: Part,
    count: Tensor,
    *,
    alone: bool,
) -> dict[str, Tensor]:
    """Losses of one part, each a share of the whole minibatch's, and statistics without a graph."""
    settings, mask = module.update_settings, of_rows(part, rollout.mask)
    with module.roles.acting(module.backbone):
        log_probs = module.roles.log_probs(module.backbone, part)  # (n, R)
    # In the only update of a rollout the ratio is 1 by definition; comparing two precisions would only add noise.
    old = log_probs.detach() if alone else of_rows(part, rollout.generation.log_probs)
    surrogate, statistics = clipped_surrogate(
        log_probs,
        old,
        of_rows(part, targets.advantages),
        mask,
        clip=settings.clip,
        dual_clip=settings.dual_clip,
        reduction=settings.reduction,
        total=count,
    )
    losses = {"policy": surrogate, "clip_fraction": statistics["clip_fraction"]}
    if module.kl.where == "loss":
        k3 = kl_estimate(log_probs, of_rows(part, scores.reference), mask, estimator="k3")
        losses["kl"] = reduce_tokens(k3, mask, reduction=settings.reduction, total=count)
    if targets.returns is not None and targets.values is not None:
        in_one_pass = values is not None and values.reward.requires_grad
        now = _rows_of(part, values) if values and in_one_pass else module.roles.values(module.backbone, part)
        for name in Values._fields:
            losses[f"{name}_value"] = clipped_value_loss(
                getattr(now, name),
                of_rows(part, getattr(targets.values, name)),
                of_rows(part, getattr(targets.returns, name)),
                mask,
                clip=settings.value_clip,
                reduction=settings.reduction,
                total=count,
            )
    return losses


def _rows_of(part: Part, values: Values) -> Values:
    return Values(of_rows(part, values.reward), of_rows(part, values.cost))


def rehearsal_loss(module: "ConstrainedPolicyModule", demonstrations: SupervisedBatch) -> Tensor:
    """PTX: token-mean negative log-likelihood of demonstrations (InstructGPT, arXiv 2203.02155)."""
    with module.roles.acting(module.backbone):
        backbone: Backbone = module.backbone
        prepared = module.move(backbone.prepare(demonstrations.prompts, [(text,) for text in demonstrations.responses]))
        states = backbone.response_states(prepared, log_probs=True)
    assert states.log_probs is not None
    return -masked_mean(states.log_probs, states.mask & module.move(demonstrations.valid)[:, None])


@contextmanager
def counted_once(optimizer: Any, *, last: bool) -> Iterator[None]:
    """Let the trainer count the last optimizer step of a rollout only: one rollout is one step, everywhere."""
    if last:
        yield
        return
    before, after = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = lambda: None
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = before, after


def _every_tensor_learns(module: "ConstrainedPolicyModule") -> None:
    """Raises: RuntimeError: If some trainable tensor got no gradient: it would silently never learn."""
    silent = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if silent:
        raise RuntimeError(
            f"no gradient reaches {', '.join(silent[:3])}"
            + (f" (+{len(silent) - 3})" if len(silent) > 3 else "")
            + ": freeze what the policy does not use, or mend the roles"
        )
