"""Constrained policy training: PPO with a Lagrange multiplier on images, and its critic-free sibling.

Maximise helpfulness while the mean cost stays within a budget (Safe RLHF-V, arXiv 2503.17682):
max E[R] - lam (E[C] - d), lam moved by a dual controller. One batch of prompts is one iteration and one step.

What differs from the released code, and why:

* only real response tokens count; the score is read at each response's own end (theirs: padding included);
* the multiplier moves once per rollout, before the update, by a chosen rule (theirs: after it, and from 10, in larger steps);
* no pass is made twice: log-probabilities are recorded while sampling, values come from the critics' training pass (with one
  update per rollout), equal frozen towers encode an image once, the LM head runs only where log-probabilities are read;
* advantages are centred, combined and whitened; scores are normalised by the starting policy's (released: neither);
* the multiplier sees costs as they are; scores that are trained on are limited about their median (released: signals, about 0).

Shapes: B prompts, K samples per prompt, N = B x K responses, R response tokens, C constraints.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from safe_rlhf_v.data_modules.contract import data_of
from safe_rlhf_v.dual import DualController
from safe_rlhf_v.functional.masked import masked_median
from safe_rlhf_v.functional.policy import kl_estimate, limit_scores, sequence_kl, terminal_signal
from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.dropout import switch_off_dropout
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.modules.base import demonstrations_seen
from safe_rlhf_v.policy.advantages import GAE, AdvantageEstimator, Signals
from safe_rlhf_v.policy.evaluation import PolicyEvaluation, sampled_rows
from safe_rlhf_v.policy.report import constraint_curves, iteration_curves
from safe_rlhf_v.policy.roles import SCORERS, Roles
from safe_rlhf_v.policy.rollout import MicroBatch, Rollout, Scores, assemble, generator, make_rollout
from safe_rlhf_v.policy.samplers import NetworkSampler, Sampler
from safe_rlhf_v.policy.settings import INSTEAD_OF_TRAINER, KLPenalty, ScoreSettings, StartSettings, UpdateSettings
from safe_rlhf_v.policy.start import (
    START_STREAM,
    FirstScores,
    ScoreScale,
    check_budgets,
    check_components,
    check_cost_model,
    check_reference,
    check_stored,
    first_scores,
    labelled_costs,
    real_scores,
)
from safe_rlhf_v.policy.surrogates import PPOClip, Surrogate
from safe_rlhf_v.policy.update import Learned, OptimizerSteps, PolicyUpdate
from safe_rlhf_v.records.batches import PolicyBatch, SupervisedBatch, to_device
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.rows import Row
from safe_rlhf_v.training.named import build_component


class ConstrainedPolicyModule(PolicyEvaluation):
    """Rollout, score, dual step, shape, update: five methods, each of which a subclass can replace alone.

    YAML::

        model:
          class_path: safe_rlhf_v.policy.ConstrainedPolicyModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            roles: {class_path: safe_rlhf_v.policy.SeparateRoles, init_args: {reward: runs/reward, cost: runs/cost}}
            dual: {class_path: safe_rlhf_v.dual.LogSpaceDual, init_args: {budget: -0.5}}
    """

    trains = "policy"
    reads = PolicyBatch
    instead_of_trainer = INSTEAD_OF_TRAINER
    measured = PolicyEvaluation.measured | {"reward", "cost", "violating", "kl"}
    last_report: float | None = None

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        roles: Callable[[], Roles],
        dual: Callable[[], DualController],
        advantages: Callable[[], AdvantageEstimator] = GAE,
        surrogate: Callable[[], Surrogate] = PPOClip,
        sampler: Callable[[], Sampler] = NetworkSampler,
        samples: int = 1,
        sampling: SamplingOptions | None = None,
        kl: KLPenalty | None = None,
        scores: ScoreSettings | None = None,
        update: UpdateSettings | None = None,
        start: StartSettings | None = None,
        constraints: dict[str, list[str]] | None = None,
        judge: Callable[[], Judge] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Choose the components and their settings; networks appear in ``configure_model``.

        Args:
            backbone: Makes the policy.
            roles: Makes the other roles; they name the run that the policy starts from.
            dual: Makes the rule of the multiplier, with the budget.
            advantages: Makes the advantage estimator.
            surrogate: Makes the actor's loss, which compares the policy that is trained with the one that sampled.
            sampler: Makes who draws the responses: the policy's own network, or an engine that serves the same weights.
            samples: K, responses per prompt; their prompt runs once.
            sampling: How responses are drawn; log-probabilities are always those of temperature 1 and top_p 1.
            kl: Penalty on the divergence from the starting policy.
            scores: How raw scores become training signals.
            update: How a rollout is learned from.
            start: Checks before the first step.
            constraints: Several constraints: name to harm categories, disjoint; the controller then needs as many budgets.
                Prompts of other categories, of none and of unknown ones are not constrained. ``None`` is one constraint on all.
            judge: Makes a judge of validation responses that knows more than the reward and cost models.
            seed: Of the sampling; every step and rank has its own stream.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves once per iteration; ``None`` keeps the rate.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{roles: 1.5}`` for the critics).

        Raises:
            ValueError: If ``samples`` is not positive or a category stands in two constraints.
        """
        super().__init__(optimizer, scheduler, None, lr_scale)
        if samples < 1:
            raise ValueError(f"samples is {samples}, it must be at least 1")
        named = [name for names in (constraints or {}).values() for name in names]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"constraints: category {twice[0]!r} stands in two of them; they must be disjoint")
        self.automatic_optimization = False
        self.make_backbone = backbone
        self.make_roles = roles
        self.make_dual = dual
        self.make_advantages = advantages
        self.make_surrogate = surrogate
        self.make_sampler = sampler
        self.make_judge = judge
        self.samples = samples
        self.sampling = sampling or SamplingOptions()
        self.kl = kl or KLPenalty()
        self.score_settings = scores or ScoreSettings()
        self.update_settings = update or UpdateSettings()
        self.start_settings = start or StartSettings()
        self.constraints = constraints
        self.seed = seed
        self.lam_before = torch.zeros(0)

    def build(self) -> None:
        """Create actor, roles, controller and estimator; roles first, so that adapters they add to the actor bear their names.

        Raises:
            ValueError: If they do not fit one another.
        """
        self.roles = build_component("roles", self.make_roles)
        self.backbone = build_component("backbone", self.make_backbone)
        self.dual = build_component("dual", self.make_dual)
        self.advantages = build_component("advantages", self.make_advantages)
        self.surrogate = build_component("surrogate", self.make_surrogate)
        self.scale = ScoreScale(self.score_settings.normalise)
        self.judge = build_component("judge", self.make_judge) if self.make_judge is not None else None
        self.sampler = build_component("sampler", self.make_sampler)
        count = len(self.constraints or {"": []})
        check_components(self.dual, count, self.advantages, self.samples, self.kl, self.surrogate, self.update_settings)
        self.roles.build(self.backbone, self.advantages.critics)
        self.sampler.check(self.backbone, self.roles.started)
        switch_off_dropout(self)  # recorded log-probabilities are those of the network without dropout

    def assemble(self) -> None:
        """As every stage; frozen roles are given back by their runs and stay out of checkpoints."""
        super().assemble()
        started = {f"backbone.{name}" for name in self.roles.started}
        rebuilt = {f"roles.{name}" for name in self.roles.rebuilt()}
        self._rebuilt = (self._rebuilt - started | rebuilt) & set(self.state_dict())

    # --- one iteration ----------------------------------------------------------------------------------------------

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> None:
        """One policy iteration; ``lam`` moves before the actor does."""
        rollout = self.rollout(batch)
        scores = self.score(rollout)
        lam = self.dual_step(rollout, scores)
        signals = self.shape(rollout, scores)
        learned = self.update(rollout, scores, signals, lam, batch)
        self.report(rollout, scores, learned)

    def rollout(self, batch: PolicyBatch) -> Rollout:
        """Sample K responses to each prompt; every picture is encoded once, here."""
        draws = generator(self.seed, self.global_step, self.global_rank)
        _, rollout = self.admit(batch, lambda b: self.sample(b, draws, self.samples, self.update_settings))
        return rollout

    def score(self, rollout: Rollout) -> Scores:
        """Reward, cost and reference log-probabilities of every response: the frozen roles' only passes."""
        micro_batches = rollout.micro_batches
        width = rollout.mask.shape[1]
        with torch.no_grad():
            by_scorer = [[self.roles.score(name, micro_batch) for micro_batch in micro_batches] for name in SCORERS]
            reference = [self.roles.log_probs("reference", micro_batch) for micro_batch in micro_batches]
        raw_reward, raw_cost = (assemble(micro_batches, pieces, width) for pieces in by_scorer)
        reward, cost = self.scale.normalise(raw_reward, raw_cost)
        return Scores(reward, cost, raw_reward, raw_cost, assemble(micro_batches, reference, width))

    def dual_step(self, rollout: Rollout, scores: Scores) -> Tensor:
        """Move the multipliers by the unclipped costs of all ranks; gives (N, 1), each response's own multiplier."""
        costs = scores.cost[:, None].expand_as(rollout.constraint_mask)  # (N, C)
        self.lam_before = self.dual.lam.clone()
        lam = self.dual.update(self.gather(costs), self.gather(rollout.constraint_mask))
        return (rollout.constraint_mask * lam).sum(1, keepdim=True)

    def shape(self, rollout: Rollout, scores: Scores) -> Signals:
        """From scores to training signals: limit, penalty of the unfinished, KL per token."""
        mask = rollout.mask
        constraint_mask = rollout.constraint_mask
        charged = self.dual.penalty(scores.cost[:, None].expand_as(constraint_mask))  # (N, C)
        limited = self._limited(charged, constraint_mask).masked_fill(~constraint_mask, 0.0)
        # Half in each, like the KL: (-p/2 - lam p/2) / (1 + lam) is -p/2 for every multiplier.
        unfinished = self.score_settings.unfinished_penalty / 2 * ~rollout.generation.finished
        reward_score = self._limited(scores.reward[:, None], rollout.valid[:, None]).squeeze(1) - unfinished  # (N,)
        cost_score = limited.sum(1) + unfinished  # disjoint: one constraint, or none
        kl = kl_estimate(rollout.generation.log_probs, scores.reference, mask)  # (N, R)
        reward_weight, cost_weight = self.kl.weights
        return Signals(
            reward=terminal_signal(reward_score, mask, kl=kl, kl_weight=reward_weight),
            cost=terminal_signal(cost_score, mask, kl=kl, kl_weight=cost_weight),
            reward_score=reward_score,
            cost_score=cost_score,
            mask=mask,
            valid=rollout.valid,
            samples=rollout.samples,
            unit=self.scale.unit,
            constrained=constraint_mask.any(1),
        )

    def _limited(self, scores: Tensor, valid: Tensor) -> Tensor:
        """(N, C) scores within ``scores.clip`` of the median of those that are valid (N, C), over all ranks."""
        if (clip := self.score_settings.clip) is None:
            return scores
        return limit_scores(scores, masked_median(self.gather(scores), self.gather(valid)), clip)

    def update(self, rollout: Rollout, scores: Scores, signals: Signals, lam: Tensor, batch: PolicyBatch) -> Learned:
        """Critics, demonstrations (PTX) and actor learn from the rollout, one after the other."""
        settings = self.update_settings
        ptx, seen = self.ptx(batch.demonstrations if settings.ptx_weight else None)
        learned = PolicyUpdate(
            rollout,
            scores,
            signals,
            lam,
            roles=self.roles,
            advantages=self.advantages,
            surrogate=self.surrogate,
            settings=settings,
            kl=self.kl,
            optimizer=OptimizerSteps(self, self.roles.trained(), settings.max_grad_norm),
            total=self.total,
            ranks=self.trainer.world_size,
            ptx=ptx,
        )()
        return learned._replace(seen=seen)

    def report(self, rollout: Rollout, scores: Scores, learned: Learned) -> None:
        """Log the curves of this iteration; what is summed over the ranks is summed in one call."""
        now = time.monotonic()
        seconds = None if self.last_report is None else now - self.last_report
        self.last_report = now
        curves = iteration_curves(rollout, scores, learned, self.total, self.trainer.world_size, seconds)
        curves |= constraint_curves(self.dual, self.lam_before, list(self.constraints or [""]))
        self.log_counts(learned.seen)
        self.log_dict(curves)
        multiplier = next(name for name in curves if "/lambda" in name)
        in_bar = {"reward": "rollout/reward", "cost": "constraint/cost", "lam": multiplier}
        self.log_dict({short: curves[name] for short, name in in_bar.items()}, prog_bar=True, logger=False)

    # --- shared by the methods above --------------------------------------------------------------------------------

    def sample(
        self, batch: PolicyBatch, draws: torch.Generator, samples: int = 1, settings: UpdateSettings | None = None
    ) -> Rollout:
        """K responses of the actor to each prompt, in minibatches and micro-batches as the settings say, or in one."""
        with self.roles.network("actor") as actor:
            mask = self.constraint_mask(batch)
            return make_rollout(actor, batch, mask, self.sampling, draws, samples, settings, self.sampler)

    def ptx(self, demonstrations: SupervisedBatch | None) -> tuple[Callable[[], Share] | None, dict[str, Tensor | int]]:
        """The actor's loss on demonstrations (PTX), to be asked for at every step, and numbers of them to be logged."""
        if demonstrations is None:
            return None, {}
        inputs, mask = self.demonstration_inputs(demonstrations)

        def share() -> Share:
            with self.roles.network("actor"):
                return self.likelihood_share(inputs, mask)

        return share, demonstrations_seen(demonstrations, inputs, mask)

    def constraint_mask(self, batch: PolicyBatch) -> Tensor:
        """(B, C) bool: each prompt counts for the first constraint that names one of its categories, or for none of them.

        Raises:
            ValueError: If a constraint names a category the data do not have.
        """
        if self.constraints is None:
            return batch.valid[:, None]
        data: Any = data_of(self.trainer)
        index = [[data.taxonomy.category_index(name) for name in names] for names in self.constraints.values()]
        named = torch.stack([(batch.category[:, columns] == 1).any(1) for columns in index], 1)  # (B, C)
        return named & (named.cumsum(1) == 1) & batch.valid[:, None]

    def respond(self, batch: PolicyBatch, draws: torch.Generator) -> list[Row]:
        """See :class:`PolicyEvaluation`: learned ``reward`` and ``cost`` (normalised), ``violating``, ``kl``, and the judge's."""
        with self.roles.network("actor") as actor:
            return sampled_rows(actor, batch, self.sampling, draws, self._learned_values, self.judge, self.sampler)

    def _learned_values(self, generation: Generation, micro_batch: MicroBatch) -> dict[str, Tensor]:
        reward, cost = self.scale.normalise(*(self.roles.score(name, micro_batch) for name in SCORERS))
        reference = self.roles.log_probs("reference", micro_batch)
        kl = sequence_kl(kl_estimate(generation.log_probs, reference, generation.mask), generation.mask)
        violating = (cost > 0).float().masked_fill(cost.isnan(), torch.nan)
        return {"reward": reward, "cost": cost, "violating": violating, "kl": kl}

    # --- Lightning ----------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move labels only: prompts and demonstrations are prepared on the CPU."""
        if not isinstance(batch, PolicyBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch._replace(category=to_device(batch.category, device), valid=to_device(batch.valid, device))

    def on_fit_start(self) -> None:
        """Refuse a precision that policy training does not support.

        Raises:
            ValueError: For float16, whose loss scaling would hide which update was skipped.
        """
        if str(self.trainer.precision) == "16-mixed":
            raise ValueError("trainer.precision 16-mixed is not for policy training; use bf16-mixed or 32-true")

    def on_train_start(self) -> None:
        """Measure the starting policy (a resumed run only compares towers), then finish a resume."""
        self.measure_start()
        super().on_train_start()

    @torch.no_grad()
    def measure_start(self) -> None:
        """Compare towers; before the first step also check the components, measure the scores and print where the budget lies.

        Raises:
            ValueError: If the data give no prompts, a budget cannot be expressed, or the cost model cannot tell harm.
            CheckpointError: If the actor is not its own reference.
        """
        data: Any = data_of(self.trainer)
        if not hasattr(data, "first_prompts"):
            raise ValueError(
                "policy training needs PromptDataModule (or a data module with first_prompts and labelled)"
            )
        draws = generator(self.seed, START_STREAM, self.global_rank)
        batches = []
        for batch in data.first_prompts(self.start_settings.prompts):
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.train_step_context():  # in the arithmetic of the steps to come
                _, rollout = self.admit(batch, lambda b: self.sample(b, draws))
                batches.append(first_scores(self.roles, rollout))
            if self.global_step > 0:
                return  # resumed: only the towers had to be compared
        first = real_scores(FirstScores(*(self.gather(torch.cat(column)) for column in zip(*batches, strict=True))))
        check_reference(float(first.kl.abs().mean()))
        self.scale.measure(first.reward, first.cost)
        self.roles.start_critics(*self.scale.applied)
        _, costs = self.scale.normalise(first.reward, first.cost)
        check_budgets(self.dual, costs, first.constraint_mask, list(self.constraints or [""]), self.score_settings)
        if (labelled := data.labelled(self.start_settings.labelled)) is not None:
            pairs = (self.admit(batch, lambda b: labelled_costs(self.roles, b)) for batch in labelled)
            check_cost_model(pairs, self.start_settings.min_sign_accuracy, self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add hashes of the frozen roles that stay out, and the constraints in the order of their multipliers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["roles"] = self.roles.identity()
        checkpoint["constraints"] = list(self.constraints or [""])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with other frozen roles or constraints.

        Raises:
            CheckpointError: Naming what differs.
        """
        super().on_load_checkpoint(checkpoint)
        check_stored(checkpoint, self.roles.identity(), list(self.constraints or [""]))
