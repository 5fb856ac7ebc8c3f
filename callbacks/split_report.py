"""What every callback that looks at evaluation batches shares: notes per batch, one report per split."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from safe_rlhf_v.callbacks.pictures import Pictures, draws
from safe_rlhf_v.data_modules.contract import data_of, split_names
from safe_rlhf_v.records.batches import to_device, without_order

Stage = Literal["validate", "test"]


class SplitReport(Callback, ABC):
    """Takes notes of every evaluation batch and writes one report per split at the end of the epoch.

    A subclass writes :meth:`note` and :meth:`report`. Notes of all ranks are brought together first, unless ``gathers`` is
    False: then the report shows rank 0. Sanity checking and ``fast_dev_run`` are skipped.

    Attributes:
        needs: What the evaluation step has to return: a key, and how to write it in an error.
    """

    gathers: ClassVar[bool] = True
    needs: ClassVar[tuple[str, str]]

    def __init__(self) -> None:
        """Start without notes."""
        self._notes: dict[str, list[Any]] = {}

    @abstractmethod
    def note(self, output: Any, batch: Any, noted: int) -> list[Any]:
        """Notes of one batch, one picklable entry per whatever is counted.

        Args:
            output: What the step returned under the key in ``needs``.
            batch: The batch, its labels on the CPU.
            noted: Number of notes this rank already has of the split.
        """

    @abstractmethod
    def report(self, pictures: Pictures, split: str, notes: list[Any], trainer: Trainer) -> None:
        """Write what the notes of one split show; never called without notes."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self._notes.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take notes."""
        self._take(trainer, "validate", outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report_all(trainer, "validate")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self._notes.clear()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take notes."""
        self._take(trainer, "test", outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report_all(trainer, "test")

    def write(self, trainer: Trainer, split: str, notes: list[Any]) -> None:
        """Bring the notes of all ranks together and report them on rank 0. A collective: every rank must call it."""
        if self.gathers and trainer.world_size > 1:
            notes = _gathered(notes, trainer.world_size)
        if notes and trainer.is_global_zero:
            self.report(Pictures(trainer), split, notes, trainer)

    def _take(self, trainer: Trainer, stage: Stage, outputs: Any, batch: Any, index: int) -> None:
        if trainer.sanity_checking or not draws(trainer):
            return
        key, output_shape = self.needs
        if not isinstance(outputs, dict) or key not in outputs:
            step = "validation_step" if stage == "validate" else "test_step"
            raise ValueError(f"{type(self).__name__} needs {step} to return {output_shape}; remove the callback")
        notes = self._notes.setdefault(split_names(trainer, stage)[index], [])
        batch = on_cpu(batch)
        if "valid" in outputs:  # rows that the module could not use do not count
            batch = batch._replace(valid=outputs["valid"].cpu())
        if "same" in outputs:  # pairs that are the same to the model have no order here either
            batch = without_order(batch, outputs["same"].cpu())
        notes += self.note(outputs[key], batch, len(notes))

    def _report_all(self, trainer: Trainer, stage: Stage) -> None:
        if trainer.sanity_checking or not draws(trainer):
            return
        for split in split_names(trainer, stage):
            self.write(trainer, split, self._notes.pop(split, []))


def category_names(trainer: Trainer) -> tuple[str, ...]:
    """Names of the data's harm categories; the last stands for prompts of none, whose index is -1.

    Raises:
        ValueError: If the trainer has no data module that knows them.
    """
    data = data_of(trainer)
    if data is None or not hasattr(data, "taxonomy"):
        raise ValueError("figures by category need a data module with a taxonomy: pass the trainer one, not loaders")
    return (*data.taxonomy.categories, "(no category)")


def on_cpu(batch: Any) -> Any:
    """A batch, a named tuple, with its labels on the CPU; pictures are there already."""
    return to_device(batch, torch.device("cpu"))


def _gathered(notes: list[Any], world_size: int) -> list[Any]:
    """The notes of all ranks, in rank order; ranks may have unequal numbers."""
    everyone: list[list[Any]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, notes)
    return [note for rank in everyone for note in rank]
