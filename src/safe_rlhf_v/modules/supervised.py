"""Supervised training: imitate demonstrated responses. The warm start of every later stage."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric

from safe_rlhf_v.batches import SupervisedBatch
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.modules.base import BaseModule


class SupervisedModule(BaseModule):
    """Token-mean negative log-likelihood of the responses given image and question; prompts are not trained on.

    YAML::

        model:
          class_path: safe_rlhf_v.modules.SupervisedModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.0e-5}}
    """

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Args:
        backbone: Makes the vision-language model.
        optimizer: See :class:`BaseModule`.
        scheduler: See :class:`BaseModule`.
        init_from: See :class:`BaseModule`.
        lr_scale: See :class:`BaseModule`.
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone = backbone
        self.token_loss = MeanMetric()

    def build(self) -> None:
        """Create the backbone."""
        self.backbone = self.make_backbone()

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        """Mean over the batch's response tokens."""
        log_probs, mask = self.log_likelihood(batch)
        loss = -(log_probs * mask).sum() / mask.sum().clamp(min=1)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Token-mean negative log-likelihood of the held-out responses."""
        log_probs, mask = self.log_likelihood(batch)
        self.token_loss.update(-log_probs[mask])
        self.log(
            "validation/loss", self.token_loss, on_epoch=True, prog_bar=True, batch_size=1, add_dataloader_idx=False
        )

    def test_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, logged as ``test/loss``."""
        log_probs, mask = self.log_likelihood(batch)
        self.token_loss.update(-log_probs[mask])
        self.log("test/loss", self.token_loss, on_epoch=True, batch_size=1, add_dataloader_idx=False)

    def predict_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Summed log-probability of each demonstrated response."""
        log_probs, mask = self.log_likelihood(batch)
        totals = (log_probs * mask).sum(1).tolist()
        rows = zip(batch.keys, totals, batch.valid.tolist(), strict=True)
        return [{"key": key, "log_prob": total} for key, total, valid in rows if valid]
