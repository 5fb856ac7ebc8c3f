"""Checkpoints: written whole or not at all, found again after a crash, and handed from stage to stage.

A stage's checkpoint carries a fingerprint of its backbone (base, tokenizer), so that the next stage can refuse one that does
not fit before anything expensive happens.
"""

import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the target, syncs and renames it: a kill leaves the old file or the new one.

    YAML::

        trainer:
          plugins:
            - class_path: safe_rlhf_v.checkpoints.AtomicCheckpointIO
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part-{os.getpid()}")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file a user means: the file itself, or the newest whole ``*.ckpt`` below a folder.

    Raises:
        ValueError: If there is none, naming the damaged ones passed over.
    """
    root = Path(path)
    if root.is_file():
        if not zipfile.is_zipfile(root):
            raise ValueError(f"{root}: not a whole checkpoint (cut off while it was written?)")
        return root
    files = sorted((f for f in root.rglob("*.ckpt") if f.is_file()), key=lambda f: f.stat().st_mtime, reverse=True)
    for i, file in enumerate(files):
        if zipfile.is_zipfile(file):
            for damaged in files[:i]:
                log.warning("passed over %s: not a whole checkpoint", damaged)
            return file
    damaged = f" (damaged: {', '.join(f.name for f in files)})" if files else ""
    raise ValueError(f"{root}: no readable checkpoint{damaged}; train that stage first, or name a .ckpt file")


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of vocabulary and special tokens: equal means the same ids for the same text."""
    about = {"vocabulary": tokenizer.get_vocab(), "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()}}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def fingerprint(module: "nn.Module") -> dict[str, str]:
    """What a backbone's weights mean: its class, its tokenizer and the shapes of its tensors."""
    backbone: Any = module.backbone
    shapes = {name: list(value.shape) for name, value in sorted(backbone.state_dict().items())}
    return {
        "backbone": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
        "tokenizer": tokenizer_hash(backbone.tokenizer),
        "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def read_stage(path: str) -> dict[str, Any]:
    """The checkpoint of an earlier stage, read without unpickling anything.

    Raises:
        ValueError: If there is none, or it is no checkpoint of this library.
    """
    file = find_checkpoint(path)
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if "fingerprint" not in checkpoint:
        raise ValueError(f"{file}: carries no fingerprint; init_from takes checkpoints of this library")
    checkpoint["file"] = str(file)
    return checkpoint


def load_stage(stage: dict[str, Any], module: "nn.Module") -> None:
    """Copy an earlier stage's backbone (and nothing else) into ``module.backbone``.

    Raises:
        ValueError: If class, tokenizer or tensors differ, naming the first difference.
    """
    backbone: Any = module.backbone
    old, new = stage["fingerprint"], fingerprint(module)
    for name, hint in (("backbone", "name the same backbone"), ("tokenizer", "name the tokenizer of that stage")):
        if old[name] != new[name]:
            raise ValueError(f"{stage['file']}: its {name} is {old[name]:.60}, this one {new[name]:.60}; {hint}")
    weights = {k.removeprefix("backbone."): v for k, v in stage["state_dict"].items() if k.startswith("backbone.")}
    own = backbone.state_dict()
    for name, value in own.items():
        if name not in weights:
            raise ValueError(f"{stage['file']}: lacks backbone tensor {name!r}; give this stage the same backbone section")
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            raise ValueError(f"{stage['file']}: backbone tensor {name!r} has shape {shapes}")
    if extra := sorted(set(weights) - set(own)):
        raise ValueError(f"{stage['file']}: has backbone tensor {extra[0]!r} (+{len(extra) - 1}) that this backbone lacks")
    backbone.load_state_dict(weights)
