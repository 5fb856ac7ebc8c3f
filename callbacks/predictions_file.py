"""Predictions as a JSON-lines file, in the data's order."""

import heapq
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class PredictionsFile(Callback):
    """Writes one line per record: its split and what ``predict_step`` returned for it. The file appears when it is whole.

    Every rank writes a part beside it; at the end they become one file whose order does not depend on the ranks. ``predict``
    adds this callback by itself, with the run's folder, where the configuration has none.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.PredictionsFile
            init_args: {path: runs/reward/predictions.jsonl}
    """

    def __init__(self, path: str) -> None:
        """
        Args:
            path: File to write.
        """
        self.path = Path(path)

    def part(self, rank: int) -> Path:
        """The file of one rank."""
        return self.path.with_name(f"{self.path.name}.part-{rank}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part(trainer.global_rank).unlink(missing_ok=True)  # never follows a link: the folder may be a stranger's
        self.file = self.part(trainer.global_rank).open("x")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append one batch's rows.

        Raises:
            TypeError: If ``predict_step`` did not return a list of dicts.
        """
        if not isinstance(outputs, list) or not all(isinstance(row, dict) for row in outputs):
            raise TypeError(f"{type(pl_module).__name__}.predict_step must return a list of dicts, one per record")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        named = hasattr(data, "evaluation_splits")
        split = {"split": data.evaluation_splits("test")[dataloader_idx]} if named else {}
        lines = [json.dumps({**split, **row}, ensure_ascii=False) for row in outputs]
        self.file.write(json.dumps([dataloader_idx, batch_idx, trainer.global_rank, lines]) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts."""
        self.file.close()
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        parts = [self.part(rank) for rank in range(trainer.world_size)]
        files = [part.open() for part in parts]
        whole = self.path.with_name(f"{self.path.name}.part")
        whole.unlink(missing_ok=True)
        with whole.open("x") as target:
            for *_, lines in heapq.merge(*(map(json.loads, file) for file in files)):
                target.writelines(f"{line}\n" for line in lines)
        whole.replace(self.path)
        for part, file in zip(parts, files, strict=True):
            file.close()
            part.unlink()
        print(f"predictions: {self.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no open file behind."""
        if hasattr(self, "file"):
            self.file.close()
