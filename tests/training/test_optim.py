"""Learning-rate schedules against values worked out by hand."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.training.optim import OneCycle, WarmupCosine, run_length


def rates(schedule: Any, steps: int, *peaks: float, **options: Any) -> list[list[float]]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = schedule(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_warmup_cosine_by_hand() -> None:
    """Ten steps, two of warm-up: 1/2, 2/2, then (1 + cos(pi k / 8)) / 2 for k = 0, 1, ..."""
    found = [rate for (rate,) in rates(WarmupCosine, 13, 2.0, total_steps=10, warmup=0.2)]
    root = math.sqrt(2)
    cosines = [1, math.sqrt(2 + root) / 2, root / 2, math.sqrt(2 - root) / 2, 0]
    cosines += [-c for c in cosines[3::-1]]
    assert found == pytest.approx([1.0, 2.0, *(1 + c for c in cosines), 0.0, 0.0], abs=1e-12)


def test_final_is_the_floor_and_every_group_keeps_its_peak() -> None:
    found = rates(WarmupCosine, 8, 1.0, 0.25, total_steps=4, warmup=0.0, final=0.2)
    assert [slow / fast for fast, slow in found] == pytest.approx([0.25] * 8)
    assert [fast for fast, _ in found] == pytest.approx(
        [1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), *[0.2] * 4]
    )


def test_final_one_is_constant_after_the_warmup() -> None:
    assert [r for (r,) in rates(WarmupCosine, 5, 3.0, total_steps=4, warmup=0.5, final=1.0)] == pytest.approx(
        [1.5, 3, 3, 3, 3]
    )


def test_one_cycle_by_hand() -> None:
    """Eight steps, half of them up: from 1/4 to the peak and down to a tenth of 1/4."""
    found = [rate for (rate,) in rates(OneCycle, 10, 1.0, total_steps=8, warmup=0.5, start=4.0, end=10.0)]
    assert found[0] == pytest.approx(0.25)
    assert found[2] == pytest.approx((0.25 + 1) / 2)  # half-way up
    assert found[4] == pytest.approx(1.0)
    assert found[6] == pytest.approx((1 + 0.025) / 2)  # half-way down
    assert found[8:] == pytest.approx([0.025, 0.025])
    assert found[:5] == sorted(found[:5])
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_tiny_schedules_stay_within_zero_and_peak(total: int, warmup: float) -> None:
    for (rate,) in rates(WarmupCosine, total + 2, 1.0, total_steps=total, warmup=warmup):
        assert 0 <= rate <= 1


def test_a_restored_schedule_goes_on() -> None:
    whole = rates(WarmupCosine, 9, 1.0, total_steps=10, warmup=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first = WarmupCosine(optimizer, 10, 0.3)
    for _ in range(4):
        optimizer.step()
        first.step()
    second = WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10, 0.3)
    second.load_state_dict(first.state_dict())
    assert second.get_lr() == pytest.approx(whole[4])


@pytest.mark.parametrize(
    "options", [{"total_steps": 0}, {"total_steps": 5, "warmup": 1.0}, {"total_steps": 5, "warmup": -0.1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"total_steps must be|warmup is a share"):
        rates(WarmupCosine, 1, 1.0, **options)


def test_the_length_of_a_run_is_taken_later_and_only_if_none_was_given() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupCosine(optimizer, warmup=0.5)
    schedule.set_length(4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)  # the first of two steps of warm-up
    schedule.set_length(400)
    assert schedule.total_steps == 4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    lost = OneCycle(optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match="OneCycle: total_steps is null"):
        lost.step()


LENGTHS: list[tuple[dict[str, Any], int]] = [
    ({"max_epochs": 3}, 3 * 5),
    ({"max_epochs": 3, "accumulate_grad_batches": 2}, 3 * 3),  # the last window of an epoch is a short one
    ({"max_epochs": 3, "limit_train_batches": 4}, 3 * 4),
    ({"max_steps": 7}, 7),
    ({"max_epochs": 3, "max_steps": 7}, 7),
    ({"max_epochs": 1, "max_steps": 7}, 5),
]


@pytest.mark.parametrize(("options", "length"), LENGTHS)
def test_a_schedule_without_a_length_ends_with_the_run(options: dict[str, Any], length: int, tmp_path: Path) -> None:
    """Ten rows in batches of two; the last rate of a cosine to zero would be reached one step after the end."""
    seen: list[float] = []

    class Module(BaseModule):
        def build(self) -> None:
            self.backbone = torch.nn.Linear(2, 1)

        def configure_model(self) -> None:
            self.build()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self.backbone(batch).square().mean()

    schedule = lambda optimizer: WarmupCosine(optimizer, warmup=0.0)  # noqa: E731
    module = Module(lambda groups: torch.optim.SGD(groups, lr=1.0), schedule)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(10, 2), batch_size=2))
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert (trainer.global_step, scheduler.total_steps) == (length, length)
    assert seen[-1] == pytest.approx((1 + math.cos(math.pi * (length - 1) / length)) / 2)
    assert trainer.callback_metrics["train/lr"] == pytest.approx(seen[-1])


def test_a_run_without_an_end_needs_a_length(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no fixed length; set trainer\.max_steps"):
        run_length(trainer)


@pytest.mark.parametrize(
    "config", sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_no_shipped_schedule_has_a_typed_length(config: Path) -> None:
    model = (yaml.safe_load(config.read_text()) or {}).get("model")
    options = (
        model.get("init_args") if isinstance(model, dict) else None
    )  # elsewhere it is the name of a pretrained model
    schedule = (options or {}).get("scheduler") or {}
    assert (schedule.get("init_args") or {}).get("total_steps") is None
