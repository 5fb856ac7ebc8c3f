"""Learning from a rollout: one network's graph at a time, and the optimizer's steps.

Every critic, the demonstrations (PTX) and the actor run forward and backward one after the other, micro-batch by micro-batch;
gradients add up to those of the joint loss, and no more than one micro-batch of one network is held for a backward pass. If a
rollout is learned from once, a critic's training pass also gives the values that the advantages need.

Shapes: N responses, n responses of one micro-batch, R response tokens, r those of a micro-batch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from safe_rlhf_v.functional.masked import masked_sum
from safe_rlhf_v.functional.policy import importance_weights, kl_estimate
from safe_rlhf_v.functional.policy_losses import clipped_value_loss, reduce_tokens, reduction_count
from safe_rlhf_v.functional.shares import Share, divided
from safe_rlhf_v.models.sharding import full_tensor
from safe_rlhf_v.objectives.base import described
from safe_rlhf_v.policy.advantages import AdvantageEstimator, Signals
from safe_rlhf_v.policy.roles import Roles
from safe_rlhf_v.policy.rollout import MicroBatch, Rollout, Scores, Values, assemble, of_rows
from safe_rlhf_v.policy.settings import KLPenalty, UpdateSettings
from safe_rlhf_v.policy.surrogates import Surrogate, TokenLosses


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
    seen: Mapping[str, Tensor | int] = MappingProxyType({})


class OptimizerSteps:
    """Lightning's side of an update: backward passes, what ranks exchange, clipping, and steps that count as one.

    Attributes:
        gradient_norms: See :class:`Learned`.
    """

    def __init__(self, module: LightningModule, trained: dict[str, list[nn.Parameter]], limit: float | None) -> None:
        """Prepare the steps of one rollout, and clear gradients that an interrupted step left.

        Args:
            module: Under manual optimisation, with one optimizer.
            trained: Parameters of each role.
            limit: Largest norm of each role's gradient; ``None`` for no limit.
        """
        self.module = module
        self.trained = trained
        self.limit = limit
        optimizer: Any = module.optimizers()
        self.optimizer = optimizer
        self.gradient_norms: dict[str, list[Tensor]] = {}
        self.first = module.global_step == 0
        self.optimizer.zero_grad()

    def add_gradients(self, loss: Tensor, *, last: bool = False) -> None:
        """Add a loss's gradients. Ranks exchange them in the last backward pass of a step."""
        if last and isinstance(self.module.trainer.model, DistributedDataParallel):
            loss = loss + self._touch()
        with nullcontext() if last else self._alone():
            self.module.manual_backward(loss)

    def step(self, *, last: bool) -> None:
        """Clip each role's gradient, step, and forget the gradients.

        Args:
            last: Whether this is the rollout's last step, which the trainer and the schedule count.

        Raises:
            RuntimeError: If, in the first step of all, some trainable tensor got no gradient: it would silently never learn.
        """
        if self.first:
            self.first = False
            _every_tensor_learns(self.module)
        for role, parameters in self.trained.items():
            norm = nn.utils.clip_grad_norm_(parameters, self.limit or float("inf"))
            self.gradient_norms.setdefault(role, []).append(full_tensor(norm.detach()))
        with counted_once(self.optimizer, last=last):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if last:
            schedulers: Any = self.module.lr_schedulers() or []
            for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                scheduler.step()

    def _touch(self) -> Tensor:
        """A zero that depends on what learned earlier in this step: DDP exchanges what a backward pass reaches."""
        earlier = [p for parameters in self.trained.values() for p in parameters if p.grad is not None]
        return torch.stack([0.0 * p.flatten()[0].float() for p in earlier]).sum() if earlier else torch.zeros(())

    def _alone(self) -> AbstractContextManager[Any]:
        strategy = self.module.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


class PolicyUpdate:
    """All optimizer steps of one rollout; they count as one step of the trainer."""

    def __init__(
        self,
        rollout: Rollout,
        scores: Scores,
        signals: Signals,
        lam: Tensor,
        *,
        roles: Roles,
        advantages: AdvantageEstimator,
        surrogate: Surrogate,
        settings: UpdateSettings,
        kl: KLPenalty,
        optimizer: OptimizerSteps,
        total: Callable[[Tensor], Tensor],
        ranks: int = 1,
        ptx: Callable[[], Share] | None = None,
    ) -> None:
        """Collect what the update needs.

        Args:
            rollout: What was sampled.
            scores: For the divergence from the reference.
            signals: What it earned.
            lam: (N, 1) multiplier of each response's constraint.
            roles: The actor and the critics.
            advantages: The estimator.
            surrogate: The actor's loss.
            settings: How the rollout is learned from.
            kl: The divergence in the loss, if it belongs there.
            optimizer: Takes the gradients and makes the steps.
            total: Sums a tensor over all ranks.
            ranks: How many there are.
            ptx: Loss of the demonstrations that are learned meanwhile, with its graph; asked once per step. ``None`` without.
        """
        self.rollout = rollout
        self.scores = scores
        self.signals = signals
        self.lam = lam
        self.roles = roles
        self.advantages = advantages
        self.surrogate = surrogate
        self.settings = settings
        self.kl = kl
        self.optimizer = optimizer
        self.total = total
        self.ranks = ranks
        self.ptx = ptx
        self.steps = settings.epochs * len(rollout.minibatches)
        self.losses: dict[str, list[Tensor]] = {}

    def __call__(self) -> Learned:
        """Make all steps; returns losses, gradient norms and values, for the logs."""
        minibatches = self.rollout.minibatches
        has_critics = self.advantages.critics
        once = self.steps == 1
        values = None
        if has_critics:
            values = self._learn_values(0, minibatches[0], None) if once else self._values()
        advantages = self._advantages(values)  # (N, R)
        for i in range(self.steps):
            micro_batches = minibatches[i % len(minibatches)]
            if has_critics and not once:
                self._learn_values(i, micro_batches, values)
            if self.ptx is not None:
                self._learn_demonstrations(i, self.ptx())
            self._learn_policy(i, micro_batches, advantages)
            self.optimizer.step(last=i == self.steps - 1)
        return Learned(self.losses, self.optimizer.gradient_norms, values, self._returns(values))

    def _advantages(self, values: Values | None) -> Tensor:
        """(N, R) from the estimator. Raises: ValueError: If its shape is another: it would be spread over the tokens."""
        advantages = self.advantages(self.signals, values, self.lam, self.total)
        expected = tuple(self.signals.mask.shape)
        if not isinstance(advantages, Tensor) or tuple(advantages.shape) != expected:
            raise ValueError(
                f"advantages {type(self.advantages).__name__}: must return one number per response token, shape (N, R) = "
                f"{expected}; it returned {described(advantages)}"
            )
        return advantages

    # --- critics ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _values(self) -> Values:
        """(N, R) of both critics."""
        micro_batches = self.rollout.micro_batches
        width = self.rollout.mask.shape[1]
        pieces = [[self.roles.value(name, micro_batch) for micro_batch in micro_batches] for name in Values._fields]
        return Values(*(assemble(micro_batches, of_critic, width) for of_critic in pieces))

    def _learn_values(self, step: int, micro_batches: tuple[MicroBatch, ...], old: Values | None) -> Values:
        """Gradients of both critics' losses, and (N, R) values of the micro-batches' responses.

        Args:
            step: Number of the update.
            micro_batches: What is learned from.
            old: (N, R) values at the time of the rollout; ``None`` if that is now.
        """
        assembled = []
        for name, counted in zip(Values._fields, (self.rollout.mask, self.signals.cost_mask), strict=True):
            count = self._count(micro_batches, counted)
            pieces = []
            for micro_batch in micro_batches:
                mask = of_rows(micro_batch, self.rollout.mask)
                values = self.roles.value(name, micro_batch)  # (n, r)
                pieces.append(values.detach())
                before = pieces[-1] if old is None else of_rows(micro_batch, getattr(old, name))
                signal = of_rows(micro_batch, getattr(self.signals, name))
                loss = clipped_value_loss(
                    values,
                    before,
                    self.advantages.returns(signal, before, mask),
                    of_rows(micro_batch, counted),
                    clip=self.settings.value_clip,
                    reduction=self.settings.reduction,
                    total=count,
                )
                self._note(step, f"{name}_value", loss)
                self.optimizer.add_gradients(self.settings.value_weight * loss)
            assembled.append(assemble(micro_batches, pieces, self.rollout.mask.shape[1]))
        return Values(*assembled)

    def _returns(self, values: Values | None) -> Values | None:
        if values is None:
            return None
        pairs = [(getattr(self.signals, name), getattr(values, name)) for name in Values._fields]
        return Values(*(self.advantages.returns(*pair, self.rollout.mask) for pair in pairs))

    # --- actor ------------------------------------------------------------------------------------------------------

    def _learn_demonstrations(self, step: int, share: Share) -> None:
        """Gradients of the demonstrations' loss (PTX)."""
        loss = divided(share.total, self._over_ranks(share.count))
        self._note(step, "ptx", loss)
        self.optimizer.add_gradients(self.settings.ptx_weight * loss)

    def _learn_policy(self, step: int, micro_batches: tuple[MicroBatch, ...], advantages: Tensor) -> None:
        """Gradients of the actor's loss; the last of them are those that ranks exchange."""
        count = self._count(micro_batches, self.rollout.mask)
        rows = torch.cat([micro_batch.rows for micro_batch in micro_batches])
        tokens = self._over_ranks(self.rollout.mask[rows].sum().double())
        for j, micro_batch in enumerate(micro_batches):
            loss = self._policy_loss(step, micro_batch, advantages, count, tokens)
            self.optimizer.add_gradients(loss, last=j == len(micro_batches) - 1)

    def _policy_loss(
        self, step: int, micro_batch: MicroBatch, advantages: Tensor, count: Tensor, tokens: Tensor
    ) -> Tensor:
        """One micro-batch's share of the whole minibatch's loss."""
        mask = of_rows(micro_batch, self.rollout.mask)
        reduction = self.settings.reduction
        log_probs = self.roles.log_probs("actor", micro_batch)  # (n, r)
        # In the only update of a rollout the ratio is 1 by definition; comparing two precisions would only add noise.
        old = log_probs.detach() if self.steps == 1 else of_rows(micro_batch, self.rollout.generation.log_probs)
        surrogate = self._weighted(
            self._token_losses(log_probs, old, of_rows(micro_batch, advantages), mask), micro_batch, mask
        )
        loss = reduce_tokens(surrogate.losses, mask, reduction=reduction, total=count)
        self._note(step, "policy", loss)
        for name, values in surrogate.statistics.items():
            self._note(step, name, divided(masked_sum(values.double(), mask), tokens))
        if self.kl.where == "loss":
            reference = of_rows(micro_batch, self.scores.reference)
            kl = kl_estimate(log_probs, reference, mask, estimator=self.kl.loss_estimator)
            divergence = reduce_tokens(kl, mask, reduction=reduction, total=count)
            self._note(step, "kl", divergence)
            loss = loss + self.kl.coefficient * divergence
        return loss

    def _weighted(self, surrogate: TokenLosses, micro_batch: MicroBatch, mask: Tensor) -> TokenLosses:
        """The losses with importance weights, where another program sampled the responses."""
        generation = self.rollout.generation
        cap = self.settings.importance_cap
        if generation.engine_log_probs is None or cap is None:
            return surrogate
        own, engine = (of_rows(micro_batch, x) for x in (generation.log_probs, generation.engine_log_probs))
        weights, truncated = importance_weights(own, engine, mask, cap)
        return TokenLosses(surrogate.losses * weights, {**surrogate.statistics, "truncated_weights": truncated.float()})

    def _token_losses(self, log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """From the surrogate. Raises: ValueError: If it gives anything but one loss per token."""
        result: Any = self.surrogate(log_probs, old, advantages, mask)
        losses = result.losses if isinstance(result, TokenLosses) else result
        if not isinstance(result, TokenLosses) or not isinstance(losses, Tensor) or losses.shape != mask.shape:
            raise ValueError(
                f"surrogate {type(self.surrogate).__name__}: must return TokenLosses with one loss per response token, shape "
                f"{tuple(mask.shape)}; it returned {described(losses)}"
            )
        return result

    # --- shared by critics and actor ---------------------------------------------------------------------------------

    def _count(self, micro_batches: tuple[MicroBatch, ...], mask: Tensor) -> Tensor:
        """What the minibatch's losses over the tokens in a mask (N, R) are divided by, over all ranks."""
        rows = torch.cat([micro_batch.rows for micro_batch in micro_batches])
        return self._over_ranks(reduction_count(mask[rows], self.settings.reduction).double())

    def _over_ranks(self, count: Tensor) -> Tensor:
        """The ranks' mean count: DDP averages their gradients, so what is divided by it becomes the mean over all ranks."""
        return self.total(count) / self.ranks

    def _note(self, step: int, name: str, value: Tensor) -> None:
        """Write a loss down; the shares of one step's micro-batches are added up."""
        entries = self.losses.setdefault(name, [])
        value = value.detach()
        if len(entries) == step:
            entries.append(value)
        else:
            entries[-1] = entries[-1] + value


@contextmanager
def counted_once(optimizer: Any, *, last: bool) -> Iterator[None]:
    """Let the trainer count the last optimizer step of a rollout only: one rollout is one step, everywhere."""
    if last:
        yield
        return
    before = optimizer._on_before_step
    after = optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = lambda: None
    try:
        yield
    finally:
        optimizer._on_before_step = before
        optimizer._on_after_step = after


def _every_tensor_learns(module: nn.Module) -> None:
    """Raises: RuntimeError: If some trainable tensor got no gradient: it would silently never learn."""
    silent = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if silent:
        raise RuntimeError(
            f"no gradient reaches {', '.join(silent[:3])}"
            + (f" (+{len(silent) - 3})" if len(silent) > 3 else "")
            + ": freeze what the policy does not use, or mend the roles"
        )
