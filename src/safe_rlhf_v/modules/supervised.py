"""Supervised training: imitate demonstrated responses. The warm start of every later stage."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.metrics import LossMean
from safe_rlhf_v.models.backbone import Backbone, Prepared
from safe_rlhf_v.modules.base import demonstrations_seen
from safe_rlhf_v.modules.loss_module import TAKEN, LossModule
from safe_rlhf_v.records.batches import SupervisedBatch
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.runs import Source


class SupervisedModule(LossModule):
    """Token-mean negative log-likelihood of the responses given image and question; prompts are not trained on.

    YAML::

        model:
          class_path: safe_rlhf_v.modules.SupervisedModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.0e-5}}
    """

    trains = "policy"
    reads = SupervisedBatch

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            backbone: Makes the vision-language model.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone = backbone

    def build(self) -> None:
        """Create the backbone."""
        self.backbone = build_component("backbone", self.make_backbone)

    def prepare(self, batch: SupervisedBatch) -> tuple[SupervisedBatch, tuple[Prepared, Tensor]]:
        """See :class:`LossModule`."""
        return batch._replace(prompts=TAKEN), self.demonstration_inputs(batch)

    def seen(self, batch: SupervisedBatch, inputs: tuple[Prepared, Tensor]) -> dict[str, Tensor | int]:
        """Responses that are truncated, and records without one."""
        return demonstrations_seen(batch, *inputs)

    def counts(self, batch: SupervisedBatch, inputs: tuple[Prepared, Tensor]) -> dict[str, Tensor]:
        """Tokens."""
        return {"loss": inputs[1].sum().float()}

    def shares(self, batch: SupervisedBatch, inputs: tuple[Prepared, Tensor]) -> dict[str, Share]:
        """Over the batch's response tokens."""
        return {"loss": self.likelihood_share(*inputs)}

    def validation_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Token-mean negative log-likelihood of the held-out responses."""
        self._evaluate(batch, "validate", dataloader_idx)

    def test_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, logged as ``test/loss``."""
        self._evaluate(batch, "test", dataloader_idx)

    def _evaluate(self, batch: SupervisedBatch, stage: str, loader: int) -> None:
        metrics = self.metrics_of(self.split_name(stage, loader), lambda: {"loss": LossMean({"loss": 1.0})})
        metrics["loss"].update(self.shares(*self.prepare(batch)))

    def predict_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Summed log-probability of each demonstrated response."""
        prepared, mask = self.demonstration_inputs(batch)
        log_probs = self.backbone.response_states(self.move(prepared), log_probs=True).log_probs
        assert log_probs is not None
        totals = (log_probs * mask).sum(1).tolist()
        rows = zip(batch.keys, totals, mask.any(1).tolist(), strict=True)
        return [{"key": key, "log_prob": total} for key, total, valid in rows if valid]
