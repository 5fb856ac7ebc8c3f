"""On resume, options follow the user and moments the checkpoint; every rank gets its own random states back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, StepLR

from safe_rlhf_v.data_modules.loader import ResumableLoader
from safe_rlhf_v.modules.base import BaseModule
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
    """Learns noise; notes the learning rates of every step."""

    def __init__(self, weight_decay: float = 0.1, lr: float = 0.5, **options: Any) -> None:
        super().__init__(lambda groups: torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay), **options)
        self.rates: list[list[float]] = []

    def build(self) -> None:
        self.backbone, self.head = Stub(), torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        self.log("loss", loss := (self.head(self.backbone.linear(batch)) - torch.rand(())).square().mean())
        return loss


class Ones(ResumableLoader, torch.utils.data.DataLoader[Any]):
    """Equal rows: any of them is the right one to go on with."""


def run(folder: Path, module: Tiny, steps: int, resume: Path | None = None, **options: Any) -> pl.Trainer:
    """Train to ``steps`` and save ``folder/STEPS.ckpt``."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options.setdefault("callbacks", []).append(Save(folder / f"{steps}.ckpt", steps))
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, **quiet, **options)
    trainer.fit(module, Ones(torch.ones(8, 3)), ckpt_path=resume)
    return trainer


class Save(pl.Callback):
    """Saves one checkpoint from inside the run: ranks may be processes that end with it."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


def cosine(total: int) -> Any:
    return lambda optimizer: WarmupCosine(optimizer, total_steps=total, warmup=0.0)


def test_rates_and_weight_decay_follow_the_user_and_moments_the_checkpoint(tmp_path: Path) -> None:
    first = run(tmp_path, Tiny(scheduler=cosine(4), lr_scale={"head": 2.0}), 2)
    module = Tiny(weight_decay=0.3, lr=0.1, scheduler=cosine(8), lr_scale={"head": 3.0})
    seen: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            optimizer = trainer.optimizers[0]
            seen.setdefault("decay", [group["weight_decay"] for group in optimizer.param_groups])
            seen.setdefault("moment", optimizer.state_dict()["state"][0]["exp_avg_sq"].clone())

    run(tmp_path, module, 4, tmp_path / "2.ckpt", callbacks=[Look()])
    # The new schedule of eight steps at its third step: 0.1 * (1 + cos(pi 2 / 8)) / 2 = 0.0853553
    assert module.rates[0] == pytest.approx([0.0853553, 3 * 0.0853553])
    assert module.rates[1] == pytest.approx([0.0691342, 3 * 0.0691342])
    assert seen["decay"] == [0.3, 0.3]
    assert torch.equal(seen["moment"], first.optimizers[0].state_dict()["state"][0]["exp_avg_sq"])


def test_without_a_schedule_the_rate_is_the_users(tmp_path: Path) -> None:
    run(tmp_path, Tiny(lr=0.5), 2)
    module = Tiny(lr=0.25)
    run(tmp_path, module, 3, tmp_path / "2.ckpt")
    assert module.rates == [[0.25]]


def test_a_foreign_schedule_keeps_its_point_and_takes_the_new_scale(tmp_path: Path) -> None:
    """StepLR is recursive: the rate it reached (0.5 / 10) is scaled by 0.25 / 0.5."""
    run(tmp_path, Tiny(lr=0.5, scheduler=lambda o: StepLR(o, 2)), 3)
    module = Tiny(lr=0.25, scheduler=lambda o: StepLR(o, 2))
    run(tmp_path, module, 5, tmp_path / "3.ckpt")
    assert module.rates == [pytest.approx([0.025]), pytest.approx([0.0025])]


class Counting(torch.optim.SGD):
    """Keeps numbers of its own in the group, as Prodigy (d) and schedule-free optimizers (k) do."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, lr=0.1, momentum=0.5)
        for group in self.param_groups:
            group.update(d=0.1, k=0)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group.update(d=group["d"] * 1.3, k=group["k"] + 1, lr=0.1 * group["d"])
        return super().step(closure)


def counting() -> Tiny:
    module = Tiny()
    module.optimizer_factory = Counting
    return module


OWN_NUMBERS: dict[str, Any] = {
    "one cycle": lambda: Tiny(scheduler=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=9)),
    "cyclic": lambda: Tiny(scheduler=lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True)),
    "counters": counting,
}


@pytest.mark.parametrize("kind", OWN_NUMBERS)
def test_numbers_that_schedules_and_optimizers_move_go_on(kind: str, tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    expected = run(tmp_path, OWN_NUMBERS[kind](), 7)
    pl.seed_everything(0, verbose=False)
    run(tmp_path, OWN_NUMBERS[kind](), 4)
    resumed = run(tmp_path, OWN_NUMBERS[kind](), 7, tmp_path / "4.ckpt")
    groups = [[{**g, "params": 0} for g in one.optimizers[0].param_groups] for one in (expected, resumed)]
    weights = [list(one.lightning_module.state_dict().values()) for one in (expected, resumed)]
    assert groups[0] == groups[1] and all(map(torch.equal, *weights))


def test_an_old_checkpoint_does_not_say_how_it_was_configured(tmp_path: Path) -> None:
    run(tmp_path, Tiny(lr=0.5), 2)
    checkpoint = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert checkpoint.pop("optimizer_options")[0]["weight_decay"] == 0.1
    torch.save(checkpoint, tmp_path / "2.ckpt")
    resumed = run(tmp_path, Tiny(lr=0.25, weight_decay=0.3), 3, tmp_path / "2.ckpt")
    group = resumed.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.3)


def test_what_the_user_changes_takes_effect_beside_what_a_schedule_moves(tmp_path: Path) -> None:
    def module(decay: float) -> Tiny:
        return Tiny(weight_decay=decay, scheduler=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=9))

    first = run(tmp_path, module(0.1), 4)
    moved = [group["betas"] for group in first.optimizers[0].param_groups]
    seen: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            seen.setdefault("decay", [group["weight_decay"] for group in groups])
            seen.setdefault("betas", [group["betas"] for group in groups])

    run(tmp_path, module(0.3), 6, tmp_path / "4.ckpt", callbacks=[Look()])
    assert seen == {"decay": [0.3], "betas": moved}


def test_a_plateau_schedule_watches_its_metric(tmp_path: Path) -> None:
    module = Tiny(scheduler=lambda o: ReduceLROnPlateau(o, monitor="loss", factor=0.5, patience=0, threshold=1e9))
    run(tmp_path, module, 24)  # three epochs of eight steps, none of them ever good enough
    assert module.rates == [[0.5]] * 8 + [[0.25]] * 8 + [[0.125]] * 8


def test_other_groups_are_refused_in_one_line(tmp_path: Path) -> None:
    run(tmp_path, Tiny(lr_scale={"head": 2.0}), 2)
    with pytest.raises(CheckpointError, match=r"2\.ckpt: trained other parameters or lr_scale prefixes"):
        run(tmp_path, Tiny(), 4, tmp_path / "2.ckpt")


class Drawing(Tiny):
    """Writes down what each rank draws."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with Path(f"{self.out}-{self.global_rank}").open("a") as file:
            print(float(torch.rand(())), file=file)
        return super().training_step(batch, batch_idx)

    def on_fit_start(self) -> None:
        torch.manual_seed(100 + self.global_rank)  # ranks differ; a resume must win over it


def test_each_of_two_ranks_goes_on_with_its_own_numbers(tmp_path: Path) -> None:
    def go(name: str, steps: int, resume: Path | None = None) -> list[list[str]]:
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
        out = tmp_path / name
        run(tmp_path, Drawing(str(out)), steps, resume, devices=2, strategy=strategy, use_distributed_sampler=False)
        return [Path(f"{out}-{rank}").read_text().split() for rank in (0, 1)]

    first, whole = go("first", 2), go("whole", 4)
    resumed = go("resumed", 4, tmp_path / "2.ckpt")
    assert whole[0] != whole[1]
    assert [first[rank] + resumed[rank] for rank in (0, 1)] == whole
