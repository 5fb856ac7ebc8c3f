"""The base of callbacks that look at evaluation batches."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from safe_rlhf_v.batches import PreferenceBatch
from safe_rlhf_v.callbacks.tensorboard import Board, has_board

ScoreKind = Literal["reward", "cost"]
"""What the module's scores are: a reward (up = more helpful) or a cost (up = more harmful, above 0 = harmful)."""

Stage = Literal["validate", "test"]


class EvaluationCallback(Callback, ABC):
    """Takes notes of every evaluation batch and writes one report per split at the end of the epoch.

    A subclass writes :meth:`observe` and :meth:`report`. Notes of all ranks are brought together first, unless
    ``gathers`` is False: then the report shows rank 0. Sanity checking is skipped, and so is everything without a
    TensorBoard logger.
    """

    gathers: ClassVar[bool] = True

    def __init__(self, scores: ScoreKind | None = None) -> None:
        """Start without notes.

        Args:
            scores: What the module's scores are; known for this project's reward and cost modules.

        Raises:
            ValueError: If it is neither ``reward`` nor ``cost``.
        """
        if scores not in (None, "reward", "cost"):
            raise ValueError(f"{type(self).__name__}: scores is {scores!r}, expected 'reward' or 'cost'")
        self._kind = scores
        self._notes: dict[str, list[Any]] = {}

    @property
    def kind(self) -> ScoreKind:
        """What the scores are."""
        assert self._kind is not None, "set at construction or in setup"
        return self._kind

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what the module's scores are, unless it was said.

        Raises:
            ValueError: If the module is neither a reward nor a cost module of this project.
        """
        if self._kind is None:
            from safe_rlhf_v.modules import CostModule, RewardModule

            if not isinstance(pl_module, (CostModule, RewardModule)):
                module, name = type(pl_module).__name__, type(self).__name__
                raise ValueError(f"{name}: set scores to 'reward' or 'cost', {module} does not say which it gives")
            self._kind = "cost" if isinstance(pl_module, CostModule) else "reward"

    @abstractmethod
    def observe(self, scores: Tensor, batch: PreferenceBatch, taken: int) -> list[Any]:
        """Notes of one batch, one picklable entry per whatever is counted.

        Args:
            scores: (B, K) float32 on the CPU.
            batch: Its labels on the CPU.
            taken: Number of notes this rank already has of the split.
        """

    @abstractmethod
    def report(self, board: Board, split: str, notes: list[Any], trainer: Trainer) -> None:
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

    def _take(self, trainer: Trainer, stage: Stage, outputs: Any, batch: PreferenceBatch, index: int) -> None:
        if trainer.sanity_checking or not has_board(trainer):
            return
        if not isinstance(outputs, dict) or "scores" not in outputs:
            step = "validation_step" if stage == "validate" else "test_step"
            raise ValueError(f"{type(self).__name__} needs {step} to return {{'scores': (B, K)}}; remove the callback")
        notes = self._notes.setdefault(_splits(trainer, stage)[index], [])
        labels: dict[str, Any] = {name: x.cpu() for name, x in batch._asdict().items() if isinstance(x, Tensor)}
        notes += self.observe(outputs["scores"].detach().float().cpu(), batch._replace(**labels), len(notes))

    def _report_all(self, trainer: Trainer, stage: Stage) -> None:
        if trainer.sanity_checking or not has_board(trainer):
            return
        for split in _splits(trainer, stage):
            notes = self._notes.pop(split, [])
            if self.gathers and trainer.world_size > 1:
                notes = _gathered(notes, trainer.world_size)
            if notes and trainer.is_global_zero:
                self.report(Board(trainer), split, notes, trainer)


def _splits(trainer: Trainer, stage: Stage) -> tuple[str, ...]:
    """Names of the evaluated splits, in loader order."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is None:
        raise ValueError("callbacks name splits by the datamodule: pass the trainer a datamodule, not loaders")
    splits: tuple[str, ...] = datamodule.evaluation_splits(stage)
    return splits


def _gathered(notes: list[Any], world_size: int) -> list[Any]:
    """The notes of all ranks, in rank order; ranks may have unequal numbers."""
    everyone: list[list[Any]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, notes)
    return [note for rank in everyone for note in rank]
