"""Offline training of a policy on dual preferences: DPO on either label, SACPO in two runs, SafeDPO."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import Metric, SumMetric

from safe_rlhf_v.functional.pairwise import preferred
from safe_rlhf_v.functional.preference_optimisation import helpful_pairs, safer_pairs
from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.metrics import Collected, LossMean, PairwiseAccuracy, count
from safe_rlhf_v.models.backbone import Backbone, Prepared
from safe_rlhf_v.models.dropout import switch_off_dropout
from safe_rlhf_v.models.frozen_copy import FrozenCopy, frozen_names
from safe_rlhf_v.modules.base import demonstrations_seen, pairs_seen
from safe_rlhf_v.modules.loss_module import TAKEN, LossModule
from safe_rlhf_v.objectives.base import checked_shares
from safe_rlhf_v.objectives.preference_optimisation import DirectObjective
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, without_order
from safe_rlhf_v.training.checkpoints import load_stage
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.runs import Source, say, stage_of


class Inputs(NamedTuple):
    """What a training step reads, prepared on the CPU.

    Attributes:
        pairs: B pairs of responses with their prompts.
        demonstrations: Demonstrations (PTX) and the (M, R) bool mask of their response tokens; ``None`` without PTX.
        demonstration_numbers: Numbers of these to be logged, by name.
    """

    pairs: Prepared
    demonstrations: tuple[Prepared, Tensor] | None
    demonstration_numbers: dict[str, Tensor | int]


class PreferenceOptimisationModule(LossModule):
    """Trains the backbone itself on labelled pairs, held to a frozen reference; no reward model, no rollouts.

    Dropout is off in policy and reference, as in TRL: the loss compares the two.

    The reference is the policy as it starts (``init_from``), or the backbone of another run. It travels in the checkpoint,
    except for tensors it shares with the policy (:class:`FrozenCopy`), so a resumed run needs no other folder, and later
    stages take the policy from ``init_from`` as from any stage.

    Scores are implicit rewards, beta x (log-probability under policy - under reference), summed over all tokens of a
    response and its end token. Metrics are accuracies of their order: ``accuracy`` by the labels the objective learns
    from, ``true_accuracy`` by what these would be without annotation noise, ``helpful_accuracy`` and ``safe_accuracy`` by
    either label (pairs of equal safety left out), and both against the truth.

    YAML::

        model:
          class_path: safe_rlhf_v.modules.PreferenceOptimisationModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            objective: {class_path: safe_rlhf_v.objectives.SafeDPO}
            init_from: runs/llava_1_5_7b/supervised
    """

    trains = "policy"
    in_progress_bar = ("loss", "accuracy")

    reads = PreferenceBatch

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        objective: Callable[[], DirectObjective],
        reference: Source | None = None,
        packed: bool = True,
        ptx_weight: float = 0.0,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            backbone: Makes the vision-language model.
            objective: Makes the loss.
            reference: Run folder or checkpoint whose backbone is the reference, in Python also a trained module; ``None`` for the
                policy's own start.
            packed: Run both responses behind one shared prompt (the same log-probabilities, less work).
            ptx_weight: Of the loss on demonstrations (PTX), which hold the policy to what it could say; they come from
                :class:`~safe_rlhf_v.data_modules.PTXPreferenceDataModule`.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone = backbone
        self.make_objective = objective
        self.sources["reference"] = reference
        self.packed = packed
        self.ptx_weight = ptx_weight

    def build(self) -> None:
        """Create policy and objective, and a reference that is not the policy's start before the start is loaded."""
        self.backbone = build_component("backbone", self.make_backbone)
        switch_off_dropout(self.backbone)  # in the reference, a copy, too: their difference is not to be noise
        self.objective = build_component("objective", self.make_objective)
        if self.sources["reference"]:
            self.reference = FrozenCopy(self.backbone, shared=())

    def assemble(self) -> None:
        """Build the networks; start from ``init_from`` and ``reference``.

        Raises:
            CheckpointError: If ``init_from`` or ``reference`` does not fit.
        """
        source = self.sources["reference"]
        stage = stage_of(source, "reference", ("policy",)) if source else None  # before anything is built
        super().assemble()
        if stage is None:
            self.reference = FrozenCopy(self.backbone)
            return
        load_stage(stage, self.reference.network, self._fingerprint)
        say(f"reference: {stage['file']} (step {stage.get('global_step', 0)})")
        base_gives = {name.removeprefix("backbone.") for name in self._rebuilt - set(stage["state_dict"])}
        self.reference.follow(frozen_names(self.backbone) - base_gives, self.backbone)  # the base is needed once

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every stage; a reloaded module finds its reference in the file."""
        super().on_save_checkpoint(checkpoint)
        if "reference" in checkpoint.get("hyper_parameters", {}):
            checkpoint["hyper_parameters"]["reference"] = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As every stage; the reference shares with the policy what it shared when the file was written."""
        prefix = "reference.network."
        stored = {name.removeprefix(prefix) for name in checkpoint.get("state_dict", {}) if name.startswith(prefix)}
        if stored:
            self.reference.follow(stored, self.backbone)
        super().on_load_checkpoint(checkpoint)

    def log_ratios(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        """(B, K) float32 log-probability of every response under the policy minus that under the reference.

        Args:
            prompts: B prompts.
            responses: B x K texts.
        """
        return self.prepared_log_ratios(self.backbone.prepare(prompts, responses, packed=self.packed), len(responses))

    def prepared_log_ratios(self, prepared: Prepared, rows: int) -> Tensor:
        """As :meth:`log_ratios`.

        Args:
            prepared: What the backbone's ``prepare`` gave.
            rows: B.
        """
        prepared = self.move(prepared)
        policy = self.backbone.response_states(prepared, log_probs=True).log_probs  # (N, R), 0 where masked
        with torch.no_grad():
            reference = self.reference.network.response_states(prepared, log_probs=True).log_probs
        assert policy is not None and reference is not None
        return (policy - reference).sum(1).view(rows, -1)  # token by token: sums of long responses are large

    def prepare(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Inputs]:
        """See :class:`LossModule`.

        Raises:
            ValueError: If there is no PTX demonstration, or no weight for what there is.
        """
        self._check_ptx(batch.demonstrations is not None)
        batch, pairs = self.admitted(batch)
        demonstrations = None if batch.demonstrations is None else self.demonstration_inputs(batch.demonstrations)
        numbers = (
            demonstrations_seen(batch.demonstrations, *demonstrations)
            if batch.demonstrations and demonstrations
            else {}
        )
        return batch._replace(prompts=TAKEN, demonstrations=None), Inputs(pairs, demonstrations, numbers)

    def check_data(self, data: Any) -> None:
        """As every module; also needs demonstrations and a weight."""
        super().check_data(data)
        training = self._trainer is not None and self.trainer.state.fn == "fit"
        if training and hasattr(type(data), "gives"):
            self._check_ptx(getattr(data, "demonstrations", None) is not None)

    def _check_ptx(self, demonstrations: bool) -> None:
        """Raises: ValueError: If there is no PTX demonstration, or no weight for what there is."""
        if demonstrations == (self.ptx_weight > 0):
            return
        raise ValueError(
            f"ptx_weight is {self.ptx_weight}, and the data have {'their' if demonstrations else 'no'} "
            "demonstrations: for PTX set both, with PTXPreferenceDataModule"
        )

    def admitted(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Prepared]:
        """The batch with its prompts, and the inputs of its pairs; those that are the same to the model have no order."""
        batch, pairs = self.admit(batch, lambda b: self.backbone.prepare(b.prompts, b.responses, packed=self.packed))
        same = pairs.same.to(batch.valid.device)
        # Safety labels of single responses order a pair, too.
        safety = batch.safety.masked_fill(same[:, None], UNKNOWN_LEVEL)
        is_safe = batch.is_safe.masked_fill(same[:, None], -1)
        return without_order(batch, same)._replace(safety=safety, is_safe=is_safe), pairs

    def seen(self, batch: PreferenceBatch, inputs: Inputs) -> dict[str, Tensor | int]:
        """Responses that are truncated, pairs that are the same to the model, and the same of demonstrations."""
        return {**pairs_seen(batch, inputs.pairs), **inputs.demonstration_numbers}

    def counts(self, batch: PreferenceBatch, inputs: Inputs) -> dict[str, Tensor]:
        """Those of the objective, which follow from the labels whatever the log-ratios; tokens of PTX."""
        ratios = torch.zeros(batch.safety.shape, device=self.device)
        counts = {name: share.count for name, share in checked_shares(self.objective, ratios, batch).items()}
        return (
            counts if inputs.demonstrations is None else {**counts, "ptx_loss": inputs.demonstrations[1].sum().float()}
        )

    def shares(self, batch: PreferenceBatch, inputs: Inputs) -> dict[str, Share]:
        """Those of the objective, and PTX."""
        shares = checked_shares(self.objective, self.prepared_log_ratios(inputs.pairs, len(batch.keys)), batch)
        if inputs.demonstrations is None:
            return shares
        return {**shares, "ptx_loss": self.likelihood_share(*inputs.demonstrations, self.ptx_weight)}

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Implicit rewards (B, 2) as ``scores``, for callbacks; metrics are logged per split."""
        return self.evaluate(batch, "validate", dataloader_idx)

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As validation."""
        return self.evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """One row per record: its key and the implicit reward of each response."""
        batch, pairs = self.admitted(batch)
        rewards = (self.objective.beta * self.prepared_log_ratios(pairs, len(batch.keys))).tolist()
        rows = zip(batch.keys, rewards, batch.valid.tolist(), strict=True)
        return [{"key": key, "rewards": row} for key, row, valid in rows if valid]

    def evaluate(self, batch: PreferenceBatch, stage: str, loader: int) -> dict[str, Tensor]:
        """Score one batch of a stage's ``loader``-th split and count it."""
        split = self.split_name(stage, loader)
        batch, pairs = self.admitted(batch)
        ratios = self.prepared_log_ratios(pairs, len(batch.keys))
        shares = checked_shares(self.objective, ratios, batch)
        metrics: dict[str, Any] = self.metrics_of(split, lambda: self.make_metrics(shares))
        by_labels = self.objective.pairs(batch._replace(votes=None))
        targets = {"accuracy": by_labels.target, **either_order(batch)}
        exact = with_true_labels(batch)
        targets |= {f"true_{name}": target for name, target in either_order(exact).items()}
        targets["true_accuracy"] = self.objective.pairs(exact).target
        for name, target in targets.items():
            metrics[name].update(ratios, target, batch.valid)
        for name in ("loss", "margin"):
            metrics[name].update(shares)
        for name, number in pairs_seen(batch, pairs).items():
            metrics[name].update(number)
        decided = targets["true_accuracy"]
        metrics["decided_pairs"].update(torch.ones_like(decided), decided, batch.valid)
        return {"scores": (self.objective.beta * ratios).detach(), "valid": batch.valid, "same": pairs.same}

    def make_metrics(self, shares: dict[str, Share]) -> dict[str, Metric]:
        """Fresh metrics of one evaluation split whose loss is made of such shares."""
        names = ("accuracy", "helpful_accuracy", "safe_accuracy")
        accuracies = {f"{truth}{name}": PairwiseAccuracy() for truth in ("", "true_") for name in names}
        means = {"loss": LossMean.of(shares), "margin": LossMean({"margin": 1.0})}
        sums = {name: SumMetric() for name in ("truncated_responses", "equal_pairs")}
        return {**means, "decided_pairs": Collected(count), **sums, **accuracies}


def either_order(batch: PreferenceBatch) -> dict[str, Tensor]:
    """(B,) index of the more helpful and of the safer response, -1 unknown or tied, by the metric's name."""
    return {
        "helpful_accuracy": helpful_pairs(batch.more_helpful).target,
        "safe_accuracy": safer_pairs(batch.safer, batch.safety_tie).target,
    }


def with_true_labels(batch: PreferenceBatch) -> PreferenceBatch:
    """The batch as annotators without noise would have labelled it; all unknown where there is no truth.

    Args:
        batch: B records with two responses.
    """
    level = batch.true_safety
    known = batch.true_safety != UNKNOWN_LEVEL  # (B, 2)
    return batch._replace(
        more_helpful=preferred(batch.true_helpfulness, ~batch.true_helpfulness.isnan()),
        safer=preferred(level, known),
        safety_tie=known.all(1) & (level[:, 0] == level[:, 1]),
        safety=level,
        is_safe=(level >= 0).long().masked_fill(~known, -1),
        votes=None,
    )
