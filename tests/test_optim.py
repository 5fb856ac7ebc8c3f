"""Learning-rate schedules against values worked out by hand."""

import math
from typing import Any

import pytest
import torch

from safe_rlhf_v.optim import OneCycle, WarmupCosine


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
