"""Learning from a rollout: one network's graph at a time, and the optimizer's steps.

Every critic, PTX and the actor run forward and backward one after the other, micro-batch by micro-batch; gradients add up to
those of the joint loss, and no more than one micro-batch of one network is held for a backward pass. If a rollout is learned from
once, a critic's training pass also gives the values that the advantages need.

Shapes: N responses, n responses of one micro-batch, R response tokens.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from safe_rlhf_v.functional.policy import kl_estimate
from safe_rlhf_v.functional.policy_losses import clipped_surrogate, clipped_value_loss, reduce_tokens, reduction_count
from safe_rlhf_v.functional.shares import divided
from safe_rlhf_v.models.sharding import full_tensor
from safe_rlhf_v.modules.base import demonstrations_seen
from safe_rlhf_v.objectives.base import described
from safe_rlhf_v.policy.advantages import Signals
from safe_rlhf_v.policy.rollout import of_rows
from safe_rlhf_v.policy.types import MicroBatch, Rollout, Scores, Values, assemble
from safe_rlhf_v.records.batches import SupervisedBatch

if TYPE_CHECKING:
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule


class Learned(NamedTuple):
    """What the updates of one rollout showed.

    Attributes:
        losses: Scalars by name, each one entry per update.
        gradient_norms: Norm of each role's gradient before clipping, by role, one entry per update.
        values: What the critics expected when the rollout was made; ``None`` without critics.
        returns: What they should have expected; ``None`` without critics.
        seen: Numbers of this rank's demonstrations to be logged, by name.
    """

    losses: dict[str, list[Tensor]]
    gradient_norms: dict[str, list[Tensor]]
    values: Values | None
    returns: Values | None
    seen: dict[str, Tensor | int]


class PolicyUpdate:
    """All optimizer steps of one rollout; they count as one step of the trainer."""

    def __init__(
        self,
        module: "ConstrainedPolicyModule",
        rollout: Rollout,
        scores: Scores,
        signals: Signals,
        lam: Tensor,
        demonstrations: SupervisedBatch | None,
    ) -> None:
        """
        Args:
            module: The policy module.
            rollout: What was sampled.
            scores: For the divergence from the reference.
            signals: What it earned.
            lam: (N, 1) multiplier of each response's constraint.
            demonstrations: what is learned beside (PTX).
        """
        self.module, self.settings = module, module.update_settings
        self.rollout, self.scores, self.signals, self.lam = rollout, scores, signals, lam
        self.demonstrations = demonstrations if self.settings.ptx_weight else None
        self.steps = self.settings.epochs * len(rollout.minibatches)
        self.optimizer: Any = module.optimizers()
        self.losses: dict[str, list[Tensor]] = {}
        self.norms: dict[str, list[Tensor]] = {}
        self.seen: dict[str, Tensor | int] = {}

    def __call__(self) -> Learned:
        """Learn, and say what was seen."""
        module, minibatches = self.module, self.rollout.minibatches
        has_critics, once = module.advantages.critics, self.steps == 1
        values = None
        self.optimizer.zero_grad()  # whatever an interrupted step left
        if has_critics:
            values = self._learn_values(0, minibatches[0], None) if once else self._values()
        advantages = self._advantages(values)  # (N, R)
        for i in range(self.steps):
            micro_batches = minibatches[i % len(minibatches)]
            if has_critics and not once:
                self._learn_values(i, micro_batches, values)
            if self.demonstrations is not None:
                self._learn_demonstrations(i, self.demonstrations)
            self._learn_policy(i, micro_batches, advantages)
            self._step(i)
        return Learned(self.losses, self.norms, values, self._returns(values), self.seen)

    def _advantages(self, values: Values | None) -> Tensor:
        """(N, R) from the estimator. Raises: ValueError: If its shape is another: it would be spread over the tokens."""
        found = self.module.advantages(self.signals, values, self.lam, self.module.total)
        expected = tuple(self.signals.mask.shape)
        if not isinstance(found, Tensor) or tuple(found.shape) != expected:
            name = type(self.module.advantages).__name__
            raise ValueError(
                f"advantages {name}: must return one number per response token, shape (N, R) = {expected}; it returned "
                f"{described(found)}"
            )
        return found

    # --- critics ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _values(self) -> Values:
        """(N, R) of both critics."""
        roles, micro_batches, width = self.module.roles, self.rollout.micro_batches, self.rollout.mask.shape[1]
        found = [
            [roles.value(self.module.backbone, micro_batch, name) for micro_batch in micro_batches]
            for name in Values._fields
        ]
        return Values(*(assemble(micro_batches, pieces, width) for pieces in found))

    def _learn_values(self, step: int, micro_batches: tuple[MicroBatch, ...], old: Values | None) -> Values:
        """Gradients of both critics' losses, and (N, R) values of the micro-batches' responses.

        Args:
            step: Number of the update.
            micro_batches: What is learned from.
            old: (N, R) values at the time of the rollout; ``None`` if that is now.
        """
        module, count, found = self.module, self._count(micro_batches), []
        for name in Values._fields:
            pieces = []
            for micro_batch in micro_batches:
                mask = of_rows(micro_batch, self.rollout.mask)
                values = module.roles.value(module.backbone, micro_batch, name)  # (n, r)
                pieces.append(values.detach())
                before = pieces[-1] if old is None else of_rows(micro_batch, getattr(old, name))
                signal = of_rows(micro_batch, getattr(self.signals, name))
                loss = clipped_value_loss(
                    values,
                    before,
                    module.advantages.returns(signal, before, mask),
                    mask,
                    clip=self.settings.value_clip,
                    reduction=self.settings.reduction,
                    total=count,
                )
                self._note(step, f"{name}_value", loss)
                self._backward(self.settings.value_weight * loss)
            found.append(assemble(micro_batches, pieces, self.rollout.mask.shape[1]))
        return Values(*found)

    def _returns(self, values: Values | None) -> Values | None:
        if values is None:
            return None
        pairs = [(getattr(self.signals, name), getattr(values, name)) for name in Values._fields]
        return Values(*(self.module.advantages.returns(*pair, self.rollout.mask) for pair in pairs))

    # --- actor ------------------------------------------------------------------------------------------------------

    def _learn_policy(self, step: int, micro_batches: tuple[MicroBatch, ...], advantages: Tensor) -> None:
        """Gradients of the actor's loss; the last of them are those that ranks exchange."""
        count = self._count(micro_batches)
        tokens = self._over_ranks(
            torch.stack([of_rows(micro_batch, self.rollout.mask).sum() for micro_batch in micro_batches]).sum().double()
        )
        for j, micro_batch in enumerate(micro_batches):
            self._backward(
                self._policy_loss(step, micro_batch, advantages, count, tokens), last=j == len(micro_batches) - 1
            )

    def _policy_loss(
        self, step: int, micro_batch: MicroBatch, advantages: Tensor, count: Tensor, tokens: Tensor
    ) -> Tensor:
        """One micro-batch's share of the whole minibatch's loss."""
        module, settings, mask = self.module, self.settings, of_rows(micro_batch, self.rollout.mask)
        with module.roles.acting(module.backbone):
            log_probs = module.roles.log_probs(module.backbone, micro_batch)  # (n, r)
        # In the only update of a rollout the ratio is 1 by definition; comparing two precisions would only add noise.
        old = log_probs.detach() if self.steps == 1 else of_rows(micro_batch, self.rollout.generation.log_probs)
        loss, statistics = clipped_surrogate(
            log_probs,
            old,
            of_rows(micro_batch, advantages),
            mask,
            clip=settings.clip,
            dual_clip=settings.dual_clip,
            reduction=settings.reduction,
            total=count,
        )
        self._note(step, "policy", loss)
        self._note(step, "clip_fraction", divided(statistics["clip_fraction"] * mask.sum(), tokens))
        if module.kl.where == "loss":
            reference = of_rows(micro_batch, self.scores.reference)
            kl = kl_estimate(log_probs, reference, mask, estimator=module.kl.loss_estimator)
            divergence = reduce_tokens(kl, mask, reduction=settings.reduction, total=count)
            self._note(step, "kl", divergence)
            loss = loss + module.kl.coefficient * divergence
        return loss

    def _learn_demonstrations(self, step: int, demonstrations: SupervisedBatch) -> None:
        """Gradients of the demonstrations' loss."""
        inputs, mask = self.module.demonstration_inputs(demonstrations)
        self.seen = demonstrations_seen(demonstrations, inputs, mask)
        with self.module.roles.acting(self.module.backbone):
            share = self.module.likelihood_share(inputs, mask)
        loss = divided(share.total, self._over_ranks(share.count))
        self._note(step, "ptx", loss)
        self._backward(self.settings.ptx_weight * loss)

    # --- what they share --------------------------------------------------------------------------------------------

    def _count(self, micro_batches: tuple[MicroBatch, ...]) -> Tensor:
        """What the minibatch's losses are divided by, over all ranks."""
        rows = torch.cat([micro_batch.rows for micro_batch in micro_batches])
        return self._over_ranks(reduction_count(self.rollout.mask[rows], self.settings.reduction).double())

    def _over_ranks(self, count: Tensor) -> Tensor:
        """The ranks' mean count: DDP averages their gradients, so what is divided by it becomes the mean over all ranks."""
        return self.module.total(count) / self.module.trainer.world_size

    def _backward(self, loss: Tensor, *, last: bool = False) -> None:
        """Add a loss's gradients. Ranks exchange them in the last backward pass of a step."""
        if last and isinstance(self.module.trainer.model, DistributedDataParallel):
            loss = loss + self._touch()
        with nullcontext() if last else self._alone():
            self.module.manual_backward(loss)

    def _touch(self) -> Tensor:
        """A zero that depends on what learned earlier in this step: DDP exchanges what a backward pass reaches."""
        roles = self.module.roles.trained(self.module.backbone)
        earlier = [p for role in roles.values() for p in role if p.grad is not None]
        return torch.stack([0.0 * p.flatten()[0].float() for p in earlier]).sum() if earlier else torch.zeros(())

    def _alone(self) -> AbstractContextManager[Any]:
        strategy = self.module.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _note(self, step: int, name: str, value: Tensor) -> None:
        """Write a loss down; the shares of one step's micro-batches are added up."""
        entries, value = self.losses.setdefault(name, []), value.detach()
        if len(entries) == step:
            entries.append(value)
        else:
            entries[-1] = entries[-1] + value

    def _step(self, number: int) -> None:
        """Clip each role's gradient, step, and forget the gradients."""
        module = self.module
        if module.global_step == 0 and number == 0:
            _every_tensor_learns(module)
        for role, parameters in module.roles.trained(module.backbone).items():
            limit = self.settings.max_grad_norm or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            self.norms.setdefault(role, []).append(full_tensor(norm.detach()))
        with counted_once(self.optimizer, last=number == self.steps - 1):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if number == self.steps - 1:
            schedulers: Any = module.lr_schedulers() or []
            for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                scheduler.step()


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
