"""Runs as somebody else could send them: a copy of a run whose newest checkpoint was changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.training.checkpoints import AtomicCheckpointIO, find_checkpoint


def copy_run(run: Path, to: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """A copy with one checkpoint, changed by ``change``."""
    content = torch.load(find_checkpoint(run), weights_only=True)
    if change is not None:
        change(content)
    AtomicCheckpointIO().save_checkpoint(content, to / "version_0" / "checkpoints" / "step=2.ckpt")
    for extra in ("calibration.json",):
        if (run / extra).is_file():
            shutil.copy(run / extra, to / extra)
    return to


def with_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of the stored configuration."""

    def apply(content: dict[str, Any]) -> None:
        config = yaml.safe_load(content["config_yaml"])
        change(config)
        content["config_yaml"] = yaml.safe_dump(config)

    return apply


def elsewhere(content: dict[str, Any]) -> None:
    """Every path it was trained with is gone."""

    def move(config: dict[str, Any]) -> None:
        config["model"]["init_args"]["backbone"]["init_args"]["tokenizer"] = "data/gone/tokenizer"
        config["data"]["init_args"]["path"] = "data/gone"
        config["trainer"]["logger"]["init_args"]["save_dir"] = "/gone"

    with_config(move)(content)


def at(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a configuration: the value at a dotted place."""

    def change(config: dict[str, Any]) -> None:
        *inner, last = place.split(".")
        for key in inner:
            config = config.setdefault(key, {})
        config[last] = value

    return change


def call(path: str, /, **options: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": options}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses."""
    try:
        status: Any = entry.main(args)
    except SystemExit as exit:
        status = exit.code
    assert status == 2, capsys.readouterr()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "Seed set"))]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
