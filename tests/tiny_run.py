"""Training runs one after another, each in a process of its own: ``python tiny_run.py '[{"root": ..., ...}, ...]'``.

Options: root (shards), out (folder), epochs, every (steps between checkpoints), kill_at (step after which the process kills
itself), resume (checkpoint or folder), devices, workers, batch, estimate (read ``estimated_stepping_batches``).
Writes the keys seen and the final weights to ``out``, and prints how each process ended (minus the signal's number).
"""

import json
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.training.checkpoints import AtomicCheckpointIO, find_checkpoint


class Stub(torch.nn.Module):
    """The least that a fingerprint needs."""

    base = None  # no pretrained model: every tensor goes into the checkpoint

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0}, special_tokens_map={"pad": "<pad>"})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x))


class Tiny(BaseModule):
    """Its loss needs the batch, dropout, and NumPy and Python noise: nothing may be lost."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(optimizer=lambda groups: torch.optim.Adam(groups, lr=0.05))
        self.options = options

    def build(self) -> None:
        self.backbone, self.head = Stub(), torch.nn.Linear(4, 1)

    def configure_optimizers(self) -> dict[str, Any]:
        if self.options.get("estimate"):
            assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        note(self, "train", batch)
        pixels = torch.stack([row[0].float().mean((0, 1)) / 255 for row in batch.prompts.images])
        torch.rand(self.global_rank)  # random states differ from rank to rank
        noise = float(np.random.normal()) + random.gauss(0, 1)
        return (self.head(self.backbone(pixels)).squeeze(-1) - batch.more_helpful - 0.1 * noise).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        note(self, "validation", batch)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.options.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)


def note(module: Tiny, kind: str, batch: Any) -> None:
    """Write down the real keys of a batch, at once: a killed process keeps nothing."""
    if module.trainer.sanity_checking:
        return
    keys = [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]
    with (Path(module.options["out"]) / f"{kind}-{module.global_rank}.jsonl").open("a") as file:
        print(json.dumps(keys), file=file)


def main(options: dict[str, Any]) -> None:
    """Train."""
    warnings.simplefilter("ignore")
    pl.seed_everything(7, verbose=False)
    out, devices = Path(options["out"]), options.get("devices", 1)
    out.mkdir(exist_ok=True)
    every = options.get("every", 1)
    checkpoints = ModelCheckpoint(dirpath=out, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(process_group_backend="gloo", start_method="fork") if devices > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=options["epochs"],
        num_sanity_val_steps=1,
        plugins=[AtomicCheckpointIO()],
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Tiny(options)
    data = PreferenceDataModule(
        options["root"], batch_size=options.get("batch", 2), num_workers=options.get("workers", 0)
    )
    resume = str(find_checkpoint(options["resume"])) if "resume" in options else None
    trainer.fit(module, data, ckpt_path=resume)
    if trainer.is_global_zero:
        torch.save({"weights": module.state_dict(), "step": trainer.global_step}, out / "final.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    ends = []
    for run in json.loads(sys.argv[1]):
        child = os.fork()  # a fork spares the imports
        if child == 0:
            main(run)
            sys.exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(ends))
