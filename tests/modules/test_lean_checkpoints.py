"""With a frozen pretrained base, checkpoints hold what was trained and what came from an earlier stage, and no more."""

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_rlhf_v.models import HFVLM, ScalarHead
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.training.checkpoints import CheckpointError


class Adapted(BaseModule):
    """A tiny vision-language model with adapters and a head; its loss only has to reach them."""

    def __init__(self, model: str, projector: bool = False, r: int = 2, **options: Any) -> None:
        super().__init__(lambda groups: torch.optim.SGD(groups, lr=0.1), **options)
        self.options = {"model": model, "freeze_projector": not projector, "lora": LoraSettings(r=r)}

    def build(self) -> None:
        self.backbone = HFVLM(**self.options)
        self.head = ScalarHead(self.backbone)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.stack([(p - 0.01).square().sum() for p in self.parameters() if p.requires_grad]).sum()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        write_tiny_vlm("llava", root / str(seed), seed=seed)
    return root


def train(module: Adapted, file: Path, steps: int = 2, resume: Path | None = None) -> dict[str, Any]:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(2, 1)), ckpt_path=resume)
    trainer.save_checkpoint(file)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_adapters_and_head_are_stored_and_everything_comes_back(models: Path, tmp_path: Path) -> None:
    module = Adapted(str(models / "0"))
    stored = train(module, tmp_path / "a.ckpt")
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    buffers = {name for name, _ in module.named_buffers()}
    assert trained <= set(stored["state_dict"]) <= trained | buffers
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    assert stored["fingerprint"]["base"] == str(models / "0")
    assert same(module, Adapted.load_from_checkpoint(tmp_path / "a.ckpt"))
    resumed = Adapted(str(models / "0"))
    again = train(resumed, tmp_path / "b.ckpt", steps=3, resume=tmp_path / "a.ckpt")
    assert set(again["state_dict"]) == set(stored["state_dict"])


def test_another_base_is_refused_in_one_line(models: Path, tmp_path: Path) -> None:
    train(Adapted(str(models / "0")), tmp_path / "a.ckpt")
    for attempt in (
        lambda: Adapted(str(models / "1"), init_from=str(tmp_path)).configure_model(),
        lambda: Adapted.load_from_checkpoint(tmp_path / "a.ckpt", model=str(models / "1")),
    ):
        with pytest.raises(CheckpointError, match=r"base_tensor is \w+, here it is \w+; name the weights of that run"):
            attempt()
    with pytest.raises(CheckpointError, match=r"lora_A.* has shape \(2, 32\), expected \(3, 32\)"):
        Adapted(str(models / "0"), r=3, init_from=str(tmp_path)).configure_model()


def test_another_base_with_the_same_tower_is_refused_in_one_line(models: Path, tmp_path: Path) -> None:
    """The first frozen tensor is the tower's: only the others tell."""
    copied = shutil.copytree(models / "0", tmp_path / "copy")
    weights = load_file(copied / "model.safetensors")
    train(Adapted(str(copied)), tmp_path / "a.ckpt")
    Adapted.load_from_checkpoint(tmp_path / "a.ckpt")
    for part in ("lm_head", "projector", "layers.1.mlp"):
        other = {name: value + 0.1 * (part in name) for name, value in weights.items()}
        save_file(other, copied / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"{part}\S* of its base is another tensor than here; name the"):
            Adapted.load_from_checkpoint(tmp_path / "a.ckpt")
    old = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del old["fingerprint"]["base_tensors"]  # as older checkpoints are
    torch.save(old, tmp_path / "old.ckpt")
    Adapted.load_from_checkpoint(tmp_path / "old.ckpt")


def test_what_an_earlier_stage_trained_stays_in_the_files_of_later_ones(models: Path, tmp_path: Path) -> None:
    """Stage a trains the projector, b freezes it: its base no longer gives it back, so b and c must carry it on."""
    first = Adapted(str(models / "0"), projector=True)
    train(first, tmp_path / "a" / "x.ckpt")
    projector = {k: v.clone() for k, v in first.state_dict().items() if "projector" in k}
    assert projector
    second = Adapted(str(models / "0"), init_from=str(tmp_path / "a"))
    stored = train(second, tmp_path / "b" / "x.ckpt")
    assert all(torch.equal(stored["state_dict"][name], value) for name, value in projector.items())
    assert stored["hyper_parameters"]["init_from"] is None  # reloading does not need stage a any more
    third = Adapted(str(models / "0"), init_from=str(tmp_path / "b"))
    third.configure_model()
    assert all(torch.equal(third.state_dict()[name], value) for name, value in projector.items())
    resumed = train(Adapted(str(models / "0")), tmp_path / "c.ckpt", 3, resume=tmp_path / "b" / "x.ckpt")
    assert all(torch.equal(resumed["state_dict"][name], value) for name, value in projector.items())


def test_a_stage_that_trains_what_the_one_before_left_to_the_base(models: Path, tmp_path: Path) -> None:
    train(Adapted(str(models / "0")), tmp_path / "a.ckpt")
    module = Adapted(str(models / "0"), projector=True, init_from=str(tmp_path))
    module.configure_model()
    fresh = HFVLM(str(models / "0"))
    for name, value in fresh.named_parameters():
        if "projector" in name:
            assert torch.equal(module.get_parameter(f"backbone.{name}"), value)
