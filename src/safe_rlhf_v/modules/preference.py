"""What reward and cost models share: score every response, learn from preferences, measure on held-out splits."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import Metric, SumMetric

from safe_rlhf_v.data_modules.contract import refuse_single_rows
from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.metrics import Collected, GroundingGap, LossMean, PairwiseAccuracy, count
from safe_rlhf_v.models.backbone import Backbone, Prepared
from safe_rlhf_v.models.heads import Head, ScalarHead
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.modules.base import pairs_seen
from safe_rlhf_v.modules.loss_module import TAKEN, LossModule
from safe_rlhf_v.modules.split_metrics import of_all_ranks
from safe_rlhf_v.objectives import PreferenceObjective
from safe_rlhf_v.objectives.base import checked_shares
from safe_rlhf_v.records.batches import ImageMode, PreferenceBatch, Prompts, to_device, without_order, without_rows
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.runs import Source

OTHER_IMAGES: tuple[ImageMode, ImageMode] = ("shuffled", "blank")


class PreferenceModule(LossModule):
    """A backbone, a head with one output, an objective, and the metrics of every evaluation split.

    A subclass says what its labels and its truth are; it logs ``{split}/{metric}``.
    """

    reads = PreferenceBatch

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        objective: Callable[[], PreferenceObjective],
        head: Callable[[Backbone], Head] = ScalarHead,
        packed: bool = True,
        images: ImageMode = "real",
        grounding: bool = True,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            backbone: Makes the vision-language model.
            objective: Makes the loss.
            head: Makes the head for a backbone.
            packed: Run both responses behind one shared prompt (the same scores, less work).
            images: Train and evaluate with the ``real`` pictures, or with ``shuffled`` or ``blank`` ones (a text-only twin).
                ``shuffled`` rolls the pictures within each batch of a device, so batch sizes of 1 are refused.
            grounding: In tests, also score with shuffled and with blank pictures and log both accuracies.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone = backbone
        self.make_head = head
        self.make_objective = objective
        self.packed = packed
        self.images = images
        self.grounding = grounding
        self._before: dict[str, Prompts] = {}

    def build(self) -> None:
        """Create backbone, head and objective."""
        self.backbone = build_component("backbone", self.make_backbone)
        self.head = build_component("head", self.make_head, self.backbone)
        self.objective = build_component("objective", self.make_objective)
        if not self.head.needs_log_probs:
            self.backbone.freeze_unused_lm_head()

    def score(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        """(B, K) float32 score of every response.

        Args:
            prompts: B prompts.
            responses: B x K texts.
        """
        return self.score_prepared(self.backbone.prepare(prompts, responses, packed=self.packed), len(responses))

    def score_prepared(self, prepared: Prepared, rows: int) -> Tensor:
        """(B, K) float32 score of every response.

        Args:
            prepared: What the backbone's ``prepare`` gave.
            rows: B.
        """
        states = self.backbone.response_states(self.move(prepared), log_probs=self.head.needs_log_probs)
        scores: Tensor = self.head(states)
        return scores.reshape(rows, -1)

    @abstractmethod
    def labels(self, batch: PreferenceBatch) -> Tensor:
        """(B,) int64 index of the response that annotators' labels want scored higher, -1 unknown."""

    @abstractmethod
    def truth(self, batch: PreferenceBatch) -> Tensor:
        """(B,) int64 index of the response that should truly score higher, -1 unknown or undecided."""

    @abstractmethod
    def make_metrics(self, responses: int) -> dict[str, Metric]:
        """Fresh metrics of one evaluation split whose records have ``responses`` responses."""

    @abstractmethod
    def update_metrics(self, metrics: dict[str, Metric], scores: Tensor, batch: PreferenceBatch) -> None:
        """Count one batch of scores with the module's own picture mode."""

    def check_data(self, data: Any) -> None:
        """See :class:`BaseModule`; raises ``ValueError`` also for batches in which no picture has another row to go to."""
        super().check_data(data)
        refuse_single_rows(data, self.images)

    def prepare(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Prepared]:
        """See :class:`LossModule`."""
        batch, prepared = self.admitted(batch)
        return batch._replace(prompts=TAKEN), prepared

    def admitted(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Prepared]:
        """The batch with its prompts, and the network's inputs; pairs that are the same to the model have no order."""

        def prepare(batch: PreferenceBatch) -> Prepared:
            prompts = batch.prompts.with_images(self.images, batch.valid)
            return self.backbone.prepare(prompts, batch.responses, packed=self.packed)

        batch, prepared = self.admit(batch, prepare)
        return without_order(batch, prepared.same.to(batch.valid.device)), prepared

    def seen(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Tensor | int]:
        """Responses that are truncated, and pairs that are the same to the model."""
        return pairs_seen(batch, inputs)

    def counts(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Tensor]:
        """Those of :meth:`loss_shares`, which follow from the labels whatever the scores."""
        scores = torch.zeros(batch.safety.shape, device=self.device)
        return {name: share.count for name, share in self.loss_shares(scores, batch).items()}

    def shares(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Share]:
        """See :class:`LossModule`."""
        return self.loss_shares(self.score_prepared(inputs, len(batch.keys)), batch)

    def loss_shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """Those of the objective; a subclass may add terms.

        Args:
            scores: (B, K).
            batch: Where the labels are; without prompts.
        """
        return checked_shares(self.objective, scores, batch)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Scores (B, K), for callbacks; metrics are logged per split."""
        return self.evaluate(batch, "validate", dataloader_idx)

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As validation; with ``grounding`` also with other pictures."""
        return self.evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """One row per record: its key and scores."""
        batch, prepared = self.admitted(batch)
        scores = self.score_prepared(prepared, len(batch.keys)).tolist()
        rows = zip(batch.keys, scores, batch.valid.tolist(), strict=True)
        return [{"key": key, "scores": row} for key, row, valid in rows if valid]

    def evaluate(self, batch: PreferenceBatch, stage: str, loader: int) -> dict[str, Tensor]:
        """Score one batch of a stage's ``loader``-th split and count it."""
        split = self.split_name(stage, loader)
        batch, prepared = self.admitted(batch)
        scores = self.score_prepared(prepared, len(batch.keys))
        shares = self.loss_shares(scores, batch) if scores.shape[1] == 2 else {}
        metrics: dict[str, Any] = self.metrics_of(split, lambda: self._fresh(stage, scores.shape[1], shares))
        self.update_metrics(metrics, scores, batch)
        for name, number in self.seen(batch, prepared).items():
            metrics[name].update(number)
        if scores.shape[1] != 2:  # single responses have no order
            return {"scores": scores.detach(), "valid": batch.valid, "same": prepared.same}
        truth = self.truth(batch)
        if shares:
            metrics["loss"].update(shares)
            metrics["decided_pairs"].update(torch.ones_like(truth), truth, batch.valid)
        for mode in OTHER_IMAGES if "blank_accuracy" in metrics else ():
            changed = self._shuffled(batch, split) if mode == "shuffled" else batch.prompts.with_images(mode)
            other, valid = self._score_changed(batch, changed)
            target = self.labels(batch) if batch.truth is None else truth
            metrics[f"{mode}_accuracy"].update(other, target, valid)
            metrics[f"{mode}_gap"].update(scores, other, target, valid)
        return {"scores": scores.detach(), "valid": batch.valid, "same": prepared.same}

    def on_test_epoch_start(self) -> None:
        """No split has begun."""
        super().on_test_epoch_start()
        self._before.clear()

    def _shuffled(self, batch: PreferenceBatch, split: str) -> Prompts:
        """Each row with the pictures of the row before it in the split, over batches and ranks; the very first with none."""
        prompts = batch.prompts
        # Of each rank; together they hold the rows that follow each other.
        last = of_all_ranks(to_device(prompts.take([-1]), torch.device("cpu")))
        rank = torch.distributed.get_rank() if len(last) > 1 else 0
        before = last[rank - 1] if rank else self._before.get(split, Prompts(((),), ((),), ("",)))
        self._before[split] = last[-1]
        return prompts.with_pictures(before.images + prompts.images[:-1], before.image_ids + prompts.image_ids[:-1])

    def _score_changed(self, batch: PreferenceBatch, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """(B, K) scores with other pictures, and (B,) bool, the rows that count: those whose pictures really are others.

        What the processor refuses with the other picture does not count either, whatever is done with bad samples: the record
        itself is good.
        """
        pairs = zip(batch.prompts.image_ids, prompts.image_ids, strict=True)
        differ = [bool(own) and bool(other) and own != other for own, other in pairs]
        changed = batch._replace(prompts=prompts, valid=batch.valid & batch.valid.new_tensor(differ))
        try:
            prepared = self.backbone.prepare(prompts, batch.responses, packed=self.packed)
        except RefusedRows as error:
            changed = without_rows(changed, set(error.problems))
            prepared = self.backbone.prepare(changed.prompts, changed.responses, packed=self.packed)
        return self.score_prepared(prepared, len(batch.keys)), changed.valid

    def _fresh(self, stage: str, responses: int, shares: dict[str, Share]) -> dict[str, Metric]:
        """Metrics of one split, with the other-picture accuracies where they are wanted."""
        other = OTHER_IMAGES if stage == "test" and self.grounding and responses == 2 else ()
        return {
            **({"loss": LossMean.of(shares), "decided_pairs": Collected(count)} if shares else {}),
            **{name: SumMetric() for name in ("truncated_responses", "equal_pairs")},
            **self.make_metrics(responses),
            **{f"{mode}_accuracy": PairwiseAccuracy() for mode in other},
            **{f"{mode}_gap": GroundingGap() for mode in other},
        }


def update_pairs(metrics: dict[str, Metric], scores: Tensor, labels: Tensor, truth: Tensor, valid: Tensor) -> None:
    """Count one batch of pairs in ``accuracy`` (by the labels), ``true_accuracy`` and ``label_ceiling`` (labels by the truth).

    Args:
        metrics: By name.
        scores: (B, 2).
        labels: (B,) int64 index of the response that labels want scored higher, -1 unknown.
        truth: (B,) int64 index of the response that should truly score higher, -1 unknown or undecided.
        valid: (B,) bool, False marks a padding row.
    """
    metrics["accuracy"].update(scores, labels, valid)
    metrics["true_accuracy"].update(scores, truth, valid)
    as_scores = (labels[:, None] == labels.new_tensor([0, 1])).float()  # (B, 2)
    metrics["label_ceiling"].update(as_scores, truth, valid & (labels >= 0))
