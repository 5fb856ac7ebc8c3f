"""What the self-tests of a run's backbones found is kept in its folder."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from safe_rlhf_v.callbacks import RunKeeper
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.tiny import write_tiny_vlm


class Two(LightningModule):
    """Two backbones, one of them untested, and something to train."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.backbone = HFVLM(str(folder), local_files_only=True)
        self.untested = HFVLM(str(folder), local_files_only=True, self_test=False)
        self.head = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.head(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), 0.1)


def test_reports_are_kept(tmp_path: Path) -> None:
    folder = write_tiny_vlm("qwen3_5", tmp_path / "model")
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path / "run", callbacks=[RunKeeper()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Two(folder), DataLoader(torch.ones(2, 1), num_workers=0))  # type: ignore[arg-type]
    (file,) = (tmp_path / "run").rglob("family_check.json")
    reports = json.loads(file.read_text())
    assert list(reports) == ["backbone"]
    assert reports["backbone"]["family"] == "qwen3_5"
    assert reports["backbone"]["packs"] is False
    assert reports["backbone"]["switched"][0].startswith("rows are not packed")
