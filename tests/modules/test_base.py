"""What every training module inherits: parameter groups, plain checkpoints, strict loading, random states, late transfer."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.records.batches import Prompts, SupervisedBatch
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.optim import WarmupCosine


class Stub(torch.nn.Module):
    """The least that a fingerprint needs."""

    base = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0}, special_tokens_map={})


class Tiny(BaseModule):
    """A backbone, a head, and options plain and not plain."""

    def __init__(self, backbone: Any = Stub, width: int = 1, nested: Any = None, **options: Any) -> None:
        super().__init__(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5), **options)
        self.factory, self.width = backbone, width

    def build(self) -> None:
        self.backbone, self.head = self.factory(), torch.nn.Linear(4, self.width)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        noise = torch.rand(()) + np.random.normal() + random.gauss(0, 1)
        return (self.head(self.backbone.linear(batch)) * noise).square().mean()


def rows(steps: int = 2) -> Any:
    return torch.utils.data.DataLoader(torch.ones(steps, 3))


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    options = {"max_epochs": 1, **options}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


@pytest.fixture(autouse=True)
def _quiet(recwarn: Any) -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    module = Tiny(width=2, nested={"a": [1, "b"], "c": None}, lr_scale={"head": 3.0})
    run = trainer(tmp_path)
    run.fit(module, rows())
    run.save_checkpoint(tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def built(**options: Any) -> Tiny:
    module = Tiny(**options)
    module.configure_model()
    return module


def test_learning_rates_go_by_the_longest_prefix() -> None:
    module = built(lr_scale={"head": 3.0, "backbone": 0.1, "head.bias": 7.0})
    groups = module.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: rate[id(parameter)] for name, parameter in module.named_parameters()}
    assert found == pytest.approx(
        {"backbone.linear.weight": 0.05, "backbone.linear.bias": 0.05, "head.weight": 1.5, "head.bias": 3.5}
    )


def test_without_scales_there_is_one_group_of_trainable_parameters() -> None:
    module = built()
    module.backbone.requires_grad_(False)
    found = module.configure_optimizers()
    (group,) = found["optimizer"].param_groups
    assert [p.shape for p in group["params"]] == [(1, 4), (1,)]
    assert "lr_scheduler" not in found


def test_an_unknown_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr_scale: no .*'tail'"):
        built(lr_scale={"head": 2.0, "tail": 3.0}).configure_optimizers()


def test_the_schedule_moves_every_step_and_keeps_the_scales(tmp_path: Path) -> None:
    module = Tiny(scheduler=lambda o: WarmupCosine(o, total_steps=4, warmup=0.5), lr_scale={"head": 2.0})
    run = trainer(tmp_path)
    run.fit(module, rows(1))  # after one of the two warm-up steps the peak is reached
    assert sorted(group["lr"] for group in run.optimizers[0].param_groups) == pytest.approx([0.5, 1.0])
    module = Tiny(scheduler=lambda o: WarmupCosine(o, total_steps=4, warmup=0.0), lr_scale={"head": 2.0})
    run = trainer(tmp_path)
    run.fit(module, rows(2))
    assert sorted(group["lr"] for group in run.optimizers[0].param_groups) == pytest.approx([0.25, 0.5])


def test_networks_are_built_once_and_late() -> None:
    module = Tiny()
    assert not list(module.parameters())
    module.configure_model()
    first = module.backbone
    module.configure_model()
    assert module.backbone is first


def test_a_checkpoint_is_plain_and_keeps_plain_options_only(saved: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    options = checkpoint["hyper_parameters"]
    assert options["width"] == 2
    assert options["nested"] == {"a": [1, "b"], "c": None}
    assert options["lr_scale"] == {"head": 3.0}
    assert not {"optimizer", "backbone"} & set(options)
    loaded = Tiny.load_from_checkpoint(saved, weights_only=True)
    assert torch.equal(loaded.head.weight, checkpoint["state_dict"]["head.weight"])


def test_a_missing_trainable_tensor_is_refused(saved: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["state_dict"]["head.bias"]
    torch.save(checkpoint, saved)
    with pytest.raises(CheckpointError, match=r"lacks head\.bias"):
        Tiny.load_from_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"x\.ckpt: lacks head\.bias"):
        trainer(tmp_path, max_epochs=2).fit(Tiny(width=2, lr_scale={"head": 3.0}), rows(), ckpt_path=saved)


def test_a_surplus_tensor_and_a_foreign_checkpoint_are_refused(saved: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    torch.save({**checkpoint, "state_dict": {**checkpoint["state_dict"], "tail.weight": torch.ones(1)}}, saved)
    with pytest.raises(CheckpointError, match=r"tail\.weight"):
        Tiny.load_from_checkpoint(saved)
    del checkpoint["fingerprint"]
    torch.save(checkpoint, saved)
    with pytest.raises(CheckpointError, match="no checkpoint of this library"):
        Tiny.load_from_checkpoint(saved)


def draw() -> tuple[float, ...]:
    return (float(torch.rand(())), float(np.random.normal()), random.random(), random.gauss(0, 1))


class Drawing(Tiny):
    """Notes what the generators give at the start of training."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.drawn = draw()


class Spare(Tiny):
    """One more draw."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            draw()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("spare", [False, True])
def test_random_states_go_on_where_they_stood(tmp_path: Path, spare: bool) -> None:
    """Normal numbers are drawn in pairs: with ``spare`` a second half waits in the generator when it is saved."""
    pl.seed_everything(1, verbose=False)
    run = trainer(tmp_path)
    run.fit(Spare() if spare else Tiny(), rows(2))  # two steps: an even number of normal draws
    expected = draw()
    run.save_checkpoint(tmp_path / "x.ckpt")  # what is drawn after the last step does not count
    pl.seed_everything(2, verbose=False)
    other = Drawing()
    trainer(tmp_path, max_epochs=2).fit(other, rows(2), ckpt_path=tmp_path / "x.ckpt")
    assert other.drawn == expected


class Evaluated(Drawing):
    """Can be evaluated."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.backbone.linear(batch)

    test_step = predict_step = validation_step


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "load"])
def test_a_checkpoint_that_was_only_evaluated_seeds_no_later_training(saved: Path, tmp_path: Path, stage: str) -> None:
    def drawn(module: Evaluated) -> Any:
        module.configure_model()
        pl.seed_everything(5, verbose=False)
        trainer(tmp_path).fit(module, rows())
        return module.drawn

    options: dict[str, Any] = {"width": 2, "lr_scale": {"head": 3.0}}
    if stage == "load":
        module = Evaluated.load_from_checkpoint(saved)
    else:
        module = Evaluated(**options)
        getattr(trainer(tmp_path), stage)(module, rows(), ckpt_path=saved)
    assert drawn(module) == drawn(Evaluated(**options))


def test_another_number_of_ranks_starts_fresh_noise_and_says_so(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    states = {name: value.repeat(2, 1) for name, value in checkpoint["random_states"].items()}
    torch.save({**checkpoint, "random_states": states}, saved)
    pl.seed_everything(3, verbose=False)
    module = Drawing(width=2, lr_scale={"head": 3.0})
    trainer(tmp_path, max_epochs=2).fit(module, rows(), ckpt_path=saved)
    assert "2 ranks, now there are 1" in caplog.text
    torch.set_rng_state(states["torch"][0].clone())
    assert module.drawn[0] != float(torch.rand(()))


def test_labels_move_and_prompts_stay() -> None:
    image = torch.zeros(2, 2, 3, dtype=torch.uint8)
    prompts = Prompts(((image,),), (("id",),), ("what?",))
    batch = SupervisedBatch(prompts, ("a",), {"object": torch.tensor([1])}, torch.tensor([True]), ("k",))
    module = Tiny()
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, SupervisedBatch)
    assert moved.prompts is prompts
    assert (moved.responses, moved.keys) == (("a",), ("k",))
    assert moved.valid.device.type == moved.attributes["object"].device.type == "meta"
    assert module.transfer_batch_to_device(torch.ones(1), torch.device("meta"), 0).device.type == "meta"


def test_move_walks_through_nested_tuples() -> None:
    module = Tiny()
    prepared = Prompts(((torch.ones(1),),), (("id",),), ("q",))
    moved = module.to("meta").move({"a": prepared, "b": 3})
    assert isinstance(moved["a"], Prompts)
    assert moved["a"].images[0][0].device.type == module.device.type == "meta"
    assert moved["a"].questions == ("q",)
    assert moved["b"] == 3
