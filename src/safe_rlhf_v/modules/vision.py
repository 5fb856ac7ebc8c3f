"""Attribute pretraining of a tower built from scratch: the stage before supervised training in the quickstart."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torchmetrics import MeanMetric

from safe_rlhf_v.batches import SupervisedBatch
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.modules.base import BaseModule


class VisionModule(BaseModule):
    """Cross-entropy on what the pictures show, read from the image tokens, so that a tiny tower sees before it speaks.

    Pretrained towers do not need it. Attribute i of ``attributes`` is read from image token i + 1 (token 0 stays free), the
    last attribute from the last token (the summary of a slot resampler).

    YAML::

        model:
          class_path: safe_rlhf_v.modules.VisionModule
          init_args:
            attributes: {object: 16, colour: 6, context: 8, count: 2, severity: 4}
            backbone: configs/quickstart/backbone.yaml
    """

    def __init__(
        self,
        backbone: Callable[[], ClipDecoder],
        attributes: dict[str, int],
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Args:
        backbone: Makes the backbone; its tower is trained whatever ``freeze_tower`` says.
        attributes: Attribute name (as in ``Truth.attributes``) to its number of classes; as many as image tokens - 1.
        optimizer: See :class:`BaseModule`.
        scheduler: See :class:`BaseModule`.
        init_from: See :class:`BaseModule`.
        lr_scale: See :class:`BaseModule`.
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone, self.attributes = backbone, attributes
        self.accuracy = nn.ModuleDict({name: MeanMetric() for name in attributes})

    def build(self) -> None:
        """Create backbone and one linear classifier per attribute; only tower, resampler and classifiers train.

        Raises:
            ValueError: If attributes and image tokens do not match.
        """
        self.backbone = self.make_backbone()
        tokens, width = self.backbone.image_shape
        if len(self.attributes) != tokens - 1:
            raise ValueError(
                f"{len(self.attributes)} attributes need {len(self.attributes) + 1} image tokens, not {tokens}"
            )
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, n) for name, n in self.attributes.items()})
        self.backbone.train_only_tower()

    def logits(self, batch: SupervisedBatch) -> dict[str, Tensor]:
        """Attribute name to (B, classes) logits."""
        _, images = self.move(self.backbone.prepare_prompts(batch.prompts))
        tokens = torch.stack(self.backbone.encode(images).tokens)  # (B, P, D_image)
        return {name: head(tokens[:, i]) for i, (name, head) in enumerate(self.classifiers.items(), start=1)}

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        """Sum of the attributes' cross-entropies."""
        losses = [cross_entropy(x, batch.attributes[name], ignore_index=-1) for name, x in self.logits(batch).items()]
        loss = torch.stack(losses).sum()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy of every attribute."""
        keep = batch.valid.tolist()
        rows = [i for i, valid in enumerate(keep) if valid]
        prompts = batch.prompts._replace(
            images=tuple(batch.prompts.images[i] for i in rows),
            image_ids=tuple(batch.prompts.image_ids[i] for i in rows),
            questions=tuple(batch.prompts.questions[i] for i in rows),
        )
        for name, logits in self.logits(batch._replace(prompts=prompts)).items():
            metric: Any = self.accuracy[name]
            metric.update((logits.argmax(1) == batch.attributes[name][rows]).float())
            self.log(f"validation/{name}", metric, on_epoch=True, batch_size=1, add_dataloader_idx=False)
