"""What a training command refuses before anything is built: it costs a second instead of the minutes until it matters."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v.checkpoints import CheckpointError, read_stage
from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.shards import Manifest

ROLES = ("start", "reward", "cost")
"""Options of a policy's roles that name runs."""

_SPLITS = {
    "fit": ("train_split", "validation_splits"),
    "validate": ("validation_splits",),
    "test": ("test_splits",),
    "predict": ("test_splits",),
}


def preflight(command: str, config: Any) -> None:
    """Check a resolved configuration.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: Its section of the configuration, with ``trainer``, ``model`` and ``data``.

    Raises:
        ValueError: With what was given and the mend.
    """
    check_precision(config.trainer)
    model = config.model.get("init_args", {})
    roles = (model.get("roles") or {}).get("init_args", {})
    runs = {name: model.get(name) for name in ("init_from", "reference")} | {role: roles.get(role) for role in ROLES}
    for name, path in runs.items():
        if isinstance(path, str):
            try:
                read_stage(path)
            except CheckpointError as error:
                raise CheckpointError(f"{name} {error}") from None
    if config.get("data") is not None:
        check_data(command, config.data)


def check_precision(trainer: Any) -> None:
    """Float16 needs a GPU.

    Raises:
        ValueError: If there is none.
    """
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and str(trainer.precision) in ("16", "16-mixed", "16-true"):
        raise ValueError(f"trainer.precision {trainer.precision} needs a GPU; on a CPU use 32-true or bf16-mixed")


def check_data(command: str, data: Any) -> None:
    """Shard folder and splits exist; data modules of others are not looked into.

    Raises:
        ValueError: Naming what is missing.
    """
    module, _, name = data.class_path.rpartition(".")
    if not issubclass(getattr(import_module(module), name), ShardDataModule):
        return
    options = data.init_args
    path = Path(options.path)
    if not (path / "manifest.json").is_file():
        raise ValueError(
            f"data.path {path}: no shard folder; 'python -m safe_rlhf_v shards --help' tells how to write one"
        )
    known = Manifest.load(path).splits
    for option in _SPLITS[command]:
        wanted = options[option]
        for split in (wanted,) if isinstance(wanted, str) else wanted:
            if split not in known:
                raise ValueError(f"data.{option} names {split!r}, but {path} has only {', '.join(known)}")
