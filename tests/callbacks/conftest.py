"""A tiny trained module, a data module with named splits, and a reader of what reached TensorBoard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, TrueValues
from safe_rlhf_v.records.taxonomy import Taxonomy

TAXONOMY = Taxonomy("toy", ("fire_safety", "chemicals"))


def make_batch(rows: int, responses: int = 2, first: int = 0) -> PreferenceBatch:
    """Rows whose labels follow from their number; the last row of five or more is padding."""
    number = torch.arange(first, first + rows)
    safety = torch.stack([(number + 3 * k) % 7 - 3 for k in range(responses)], 1)  # (B, K)
    better = number % 2 if responses == 2 else torch.full((rows,), -1)
    return PreferenceBatch(
        prompts=Prompts(
            images=tuple((torch.full((6 + i % 3, 8, 3), 20 * i % 255, dtype=torch.uint8),) for i in range(rows)),
            image_ids=tuple((f"i{i}",) for i in range(rows)),
            questions=tuple(f"What should I do with item {i}?" for i in range(rows)),
        ),
        responses=tuple(tuple(f"Response {k} to row {i}." for k in range(responses)) for i in range(rows)),
        more_helpful=better,
        safer=safety.argmax(1) if responses == 2 else better,
        safety_tie=torch.zeros(rows, dtype=torch.bool),
        safety=safety,
        is_safe=(safety >= 0).long(),
        category=torch.stack([number % 3 == 1, number % 3 == 2], 1).long(),
        valid=torch.arange(rows) < max(rows - 1, 4),
        keys=tuple(f"k{n}" for n in number.tolist()),
        truth=TrueValues(safety.float(), safety, tuple(("misuse", "refusal")[:responses] for _ in range(rows))),
    )


def unlabelled(batch: PreferenceBatch) -> PreferenceBatch:
    """The same rows with every label unknown."""
    return batch._replace(
        more_helpful=torch.full_like(batch.more_helpful, -1),
        safer=torch.full_like(batch.safer, -1),
        is_safe=torch.full_like(batch.is_safe, -1),
        safety=torch.full_like(batch.safety, UNKNOWN_LEVEL),
        truth=None,
    )


class Batches(Dataset[PreferenceBatch]):
    """Ready batches."""

    def __init__(self, batches: list[PreferenceBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PreferenceBatch:
        return self.batches[index]


class ToyData(LightningDataModule):
    """Splits of ready batches; with several ranks each takes every other batch."""

    taxonomy = TAXONOMY

    def __init__(self, splits: dict[str, list[PreferenceBatch]]) -> None:
        super().__init__()
        self.splits = splits

    def evaluation_splits(self, stage: str) -> tuple[str, ...]:
        assert stage in ("validate", "test")
        return tuple(self.splits)

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        return DataLoader(Batches([make_batch(4), make_batch(4)]), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[PreferenceBatch]]:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return [DataLoader(Batches(batches[rank::world]), batch_size=None) for batches in self.splits.values()]

    test_dataloader = val_dataloader


class ToyModule(LightningModule):
    """Scores are known: minus the safety level over two, so that every cost has the right sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        return self.weight.square()

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"scores": -batch.true_safety.float() / 2}

    def on_validation_epoch_end(self) -> None:
        self.log("validation/curve", 1.0, sync_dist=True)

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"scores": -batch.true_safety.float() / 2}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def toy() -> Any:
    """The pieces, for tests that combine them in their own way."""

    class Toy:
        batch, unlabelled, data, module = make_batch, unlabelled, ToyData, ToyModule

    return Toy


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Builds a quiet CPU trainer that logs to TensorBoard below ``tmp_path``."""

    def build(callbacks: list[Callback], **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "logger": TensorBoardLogger(tmp_path, name="board", version=""),
            "default_root_dir": tmp_path,
            "max_epochs": 2,
            "log_every_n_steps": 1,
        }
        quiet: dict[str, Any] = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        return Trainer(accelerator="cpu", callbacks=callbacks, **(quiet | defaults | options))

    return build


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Callable[[], EventAccumulator]]:
    """Reads everything that reached TensorBoard."""

    def read() -> EventAccumulator:
        events = EventAccumulator(str(tmp_path / "board"), {"scalars": 0, "images": 0, "histograms": 0})
        return events.Reload()

    yield read
