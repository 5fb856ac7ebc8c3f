"""Predictions as a JSON-lines file, in the data's order."""

import heapq
import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from safe_rlhf_v.data_modules.contract import data_of, split_names
from safe_rlhf_v.records.user_files import create, json_text, whole_file


class PredictionsFile(BasePredictionWriter):
    """Writes one line per record: its split and what ``predict_step`` returned for it. The file appears when it is complete.

    A number that is NaN, as a judge's is where it does not apply, or infinite stands there as null.

    Every rank writes a part beside it; at the end they become one file whose order does not depend on the ranks. ``predict``
    adds this callback by itself, with the run's folder, where the configuration has none.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.PredictionsFile
            init_args: {path: runs/reward/predictions.jsonl}
    """

    def __init__(self, path: str) -> None:
        """Keep the name of the file.

        Args:
            path: File to write.
        """
        super().__init__("batch")
        self.path = Path(path)

    def part(self, rank: int) -> Path:
        """The file of one rank."""
        return self.path.with_name(f"{self.path.name}.part-{rank}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part."""
        # Our rows carry their keys, so nobody needs the row numbers that Lightning cannot read off our loaders.
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = create(self.part(trainer.global_rank), self.path)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append one batch's rows.

        Raises:
            TypeError: If ``predict_step`` did not return a list of dicts.
        """
        if not isinstance(prediction, list) or not all(isinstance(row, dict) for row in prediction):
            raise TypeError(f"{type(pl_module).__name__}.predict_step must return a list of dicts, one per record")
        named = hasattr(data_of(trainer), "evaluation_splits")
        split = {"split": split_names(trainer, "predict")[dataloader_idx]} if named else {}
        lines = [json_text({**split, **row}) for row in prediction]
        self.file.write((json.dumps([dataloader_idx, batch_idx, trainer.global_rank, lines]) + "\n").encode())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts; each rank holds the lock of its own until they are one file."""
        self.file.flush()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            parts = [self.part(rank) for rank in range(trainer.world_size)]
            with ExitStack() as files, whole_file(self.path) as target:
                rows = [map(json.loads, files.enter_context(part.open())) for part in parts]
                for *_, lines in heapq.merge(*rows):
                    target.writelines(f"{line}\n".encode() for line in lines)
            for part in parts:
                part.unlink()
            print(f"predictions: {self.path}")
        trainer.strategy.barrier("predictions")
        self.file.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no open file behind."""
        if hasattr(self, "file"):
            self.file.close()
