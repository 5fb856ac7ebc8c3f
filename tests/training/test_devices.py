"""Where networks run: one rule for every command and for a guard in Python."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from safe_rlhf_v import calibrate, evaluate, filter, generate, moderate
from safe_rlhf_v.guard import Guard
from safe_rlhf_v.guard.moderation import load_module
from safe_rlhf_v.training.devices import find_device


@pytest.mark.parametrize("gpus", [0, 2])
def test_devices(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_device("auto") == torch.device("cuda" if gpus else "cpu")
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:x", "cuda:-1", "cuda:", "cpu:0", "", "cuda0", "meta"):
        with pytest.raises(ValueError, match=f"^device '{name}': no device; give auto, cpu, cuda, or cuda:N"):
            find_device(name)
    if gpus:
        assert find_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(
            ValueError, match=r"device 'cuda:2': there are 2 GPUs, cuda:0 to cuda:1; use another device"
        ):
            find_device("cuda:2")
    else:
        with pytest.raises(ValueError, match=r"device 'cuda': there is no GPU that torch can use; use another device"):
            find_device("cuda")


@pytest.mark.parametrize(
    "function",
    [calibrate, evaluate, filter, generate, moderate, Guard.from_pretrained, load_module],
    ids=lambda function: function.__qualname__,
)
def test_without_a_device_a_gpu_is_taken_if_there_is_one(function: Any) -> None:
    assert inspect.signature(function).parameters["device"].default == "auto"


def test_a_guard_refuses_a_device_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'gpu': no device"):
        Guard.from_pretrained(tmp_path / "nothing", device="gpu")
