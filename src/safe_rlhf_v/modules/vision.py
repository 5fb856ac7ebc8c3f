"""Attribute pretraining of a tower built from scratch: the stage before supervised training in the quickstart."""

from collections.abc import Callable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.metrics import Collected, mean
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.types import ImageInputs
from safe_rlhf_v.modules.loss_module import TAKEN, LossModule
from safe_rlhf_v.records.batches import Prompts, SupervisedBatch
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.runs import Source


class VisionModule(LossModule):
    """Cross-entropy on what the pictures show, read from the image tokens, so that a tiny tower sees before it speaks.

    A pretrained tower does not need it; a resampler behind it does (``train_tower: false``). Attribute i of ``attributes`` is
    read from image token i + 1 (token 0 stays free), the last attribute from the last token (the summary of a slot resampler).

    YAML::

        model:
          class_path: safe_rlhf_v.modules.VisionModule
          init_args:
            attributes: {object: 16, colour: 6, context: 8, count: 2, severity: 4}
            backbone: configs/quickstart/backbone.yaml
    """

    trains = "tower"
    reads = SupervisedBatch

    def __init__(
        self,
        backbone: Callable[[], ClipDecoder],
        attributes: dict[str, int],
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
        train_tower: bool = True,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            backbone: Makes the backbone; what is trained of it does not depend on its ``freeze_tower``.
            attributes: Attribute name (as in ``Truth.attributes``) to its number of classes; as many as image tokens - 1.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
            train_tower: Train tower and resampler; ``false`` trains the resampler alone, on a tower that is trained already.
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        self.make_backbone = backbone
        self.attributes = attributes
        self.train_tower = train_tower

    def build(self) -> None:
        """Create backbone and one linear classifier per attribute; only tower, resampler and classifiers train.

        Raises:
            ValueError: If attributes and image tokens do not match, or nothing is left to train.
        """
        self.backbone = build_component("backbone", self.make_backbone)
        tokens, width = self.backbone.image_shape
        if len(self.attributes) != tokens - 1:
            raise ValueError(
                f"{len(self.attributes)} attributes need {len(self.attributes) + 1} image tokens, not {tokens}"
            )
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, n) for name, n in self.attributes.items()})
        self.backbone.train_only_vision(self.train_tower)

    def prepare(self, batch: SupervisedBatch) -> tuple[SupervisedBatch, ImageInputs]:
        """See :class:`LossModule`. A row's first picture counts; rows without one (padding) do not run."""
        rows = [row for row, pictures in enumerate(batch.prompts.images) if pictures]
        prompts = Prompts(
            images=tuple(batch.prompts.images[row][:1] for row in rows),
            image_ids=tuple(batch.prompts.image_ids[row][:1] for row in rows),
            questions=("",) * len(rows),  # not read here
        )
        _, images = self.backbone.checked_prompts(prompts)
        labels = {name: self.labels(batch, name)[rows] for name in self.attributes}
        return batch._replace(prompts=TAKEN, attributes=labels), images

    def labels(self, batch: SupervisedBatch, name: str) -> Tensor:
        """(B,) int64 class of an attribute, -1 in rows that do not count; the batch may know nothing of it."""
        known = batch.attributes.get(name, torch.full_like(batch.valid, -1, dtype=torch.long))
        return known.masked_fill(~batch.valid, -1)

    def logits(self, images: ImageInputs) -> dict[str, Tensor]:
        """Attribute name to (M, classes) logits of M pictures."""
        encoded = self.backbone.encode(self.move(images)).tokens
        tokens = torch.stack(encoded) if encoded else torch.zeros(0, *self.backbone.image_shape, device=self.device)
        return {name: head(tokens[:, i]) for i, (name, head) in enumerate(self.classifiers.items(), start=1)}

    def counts(self, batch: SupervisedBatch, inputs: ImageInputs) -> dict[str, Tensor]:
        """Pictures of which each attribute is known."""
        return {name: (labels >= 0).sum().float() for name, labels in batch.attributes.items()}

    def shares(self, batch: SupervisedBatch, inputs: ImageInputs) -> dict[str, Share]:
        """The attributes' cross-entropies."""
        shares = {}
        for name, logits in self.logits(inputs).items():
            labels = batch.attributes[name]
            losses = cross_entropy(logits, labels, ignore_index=-1, reduction="none")
            shares[name] = masked_share(losses, labels >= 0)
        return shares

    def validation_step(self, batch: SupervisedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accuracy of every attribute, over the pictures of which it is known."""
        labelled, images = self.prepare(batch)
        split = self.split_name("validate", dataloader_idx)
        metrics = self.metrics_of(split, lambda: {name: Collected(mean) for name in self.attributes})
        for name, logits in self.logits(images).items():
            labels = labelled.attributes[name]
            metrics[name].update(logits.argmax(1) == labels, labels, torch.ones_like(labels, dtype=torch.bool))
