"""Checkpoints: written whole or not at all, found again after a crash, and handed from stage to stage.

Beside what Lightning stores, a checkpoint carries the resolved configuration as text (``config_yaml``) and a fingerprint
of its backbone. Frozen tensors that the backbone's pretrained base gives back are left out; ``rebuilt`` names them, and
the base is recognised by one tensor's hash.
"""

import hashlib
import json
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from safe_rlhf_v import __version__
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.sharding import whole

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit; the message says what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the target, syncs and renames it: a kill leaves the old file or the new one.

    The command line plugs it in by itself; in Python::

        Trainer(plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, and remove what an earlier kill left of it."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{target.name}.part-*"):
            leftover.unlink(missing_ok=True)
        part = target.with_name(f"{target.name}.part-{os.getpid()}")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: any cut is seen, in under a millisecond (a zip's directory sits at its end)."""
    if path.is_dir():  # sharded: rank 0 writes this file last
        return (path / "meta.pt").is_file()
    return path.is_file() and zipfile.is_zipfile(path)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint a user means: the file itself, or the newest whole ``*.ckpt`` below a run's folder.

    Newest is the one with the most optimizer steps, as the file itself says: copying a folder changes the times of its
    files. Ones that are damaged, links to nothing and links that lead out of the folder are passed over with a warning.

    Raises:
        CheckpointError: If there is none, naming the damaged ones.
    """
    root = Path(path)
    if root.is_file() or root.suffix == ".ckpt":
        if is_whole(root):
            return root
        if root.is_symlink() and not root.exists():
            raise CheckpointError(f"{root}: a link to {root.readlink()}, which is gone; name the folder {root.parent}")
        state = "not a whole checkpoint (cut off while it was written?)" if root.exists() else "no such checkpoint"
        raise CheckpointError(f"{root}: {state}; a folder's name finds its newest whole one")
    found = checkpoints_below(root)
    whole = {file: steps for file in found if (steps := steps_of(file, root)) is not None}
    for damaged in sorted(set(found) - set(whole)):
        log.warning("passed over %s: not a whole checkpoint of this folder", damaged)
    if whole:
        return max(whole, key=lambda file: (whole[file], not file.is_symlink(), natural_order(file)))
    passed = f" (not whole: {', '.join(p.name for p in found)})" if found else ""
    raise CheckpointError(f"{root}: no readable checkpoint{passed}; train that stage first, or name a .ckpt file")


def steps_of(file: Path, root: Path) -> int | None:
    """Optimizer steps that a checkpoint below ``root`` has done; ``None`` if it cannot be used, or lies elsewhere."""
    if not is_whole(file) or not file.resolve().is_relative_to(root.resolve()):
        return None
    header = file / "meta.pt" if file.is_dir() else file
    try:
        return int(torch.load(header, map_location="cpu", weights_only=True, mmap=True).get("global_step", 0))
    except (RuntimeError, ValueError, AttributeError, TypeError, OSError, pickle.UnpicklingError):
        return None


def natural_order(file: Path) -> list[Any]:
    """A sort key of a path in which ``version_10`` comes after ``version_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(file))]


def checkpoints_below(folder: Path) -> list[Path]:
    """Every ``*.ckpt`` below a folder, damaged ones and dangling links included."""
    return [path for path in folder.rglob("*.ckpt") if path.is_symlink() or path.is_file() or path.is_dir()]


def read_checkpoint(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running anything stored in it; tensors are mapped, not copied.

    Args:
        path: File, or run folder.
        verify: Also compare every byte with the file's check sums (0.25 s per 240 MB).

    Raises:
        CheckpointError: If there is none, it is sharded, or ``verify`` finds damage.
    """
    file = find_checkpoint(path)
    if file.is_dir():
        raise CheckpointError(f"{file}: is sharded; save one file with 'save_distributed_checkpoint: false' instead")
    if verify:
        with zipfile.ZipFile(file) as archive:
            if (member := archive.testzip()) is not None:
                raise CheckpointError(f"{file}: damaged at {member!r}; use an older checkpoint")
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    content["file"] = str(file)
    return content


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of vocabulary and special tokens: equal means the same ids for the same text."""
    about = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's bytes; of a sharded one every rank has to ask."""
    data = whole(tensor).detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def fingerprint(backbone: Backbone) -> dict[str, str]:
    """What a freshly built backbone's weights mean, as plain text.

    Returns:
        ``version`` of this package; ``backbone``, the class; ``tokenizer``, its hash; ``base``, the pretrained model
        that gives back every frozen tensor, and ``base_tensor``, the hash of the first of them ("" without a base);
        ``lora``, rank and scale of its adapters ("" without).
    """
    lora = getattr(backbone, "lora", None)
    frozen = [value for value in backbone.parameters() if not value.requires_grad]
    known = backbone.base is not None and frozen
    return {
        "version": __version__,
        "backbone": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
        "tokenizer": tokenizer_hash(backbone.tokenizer),
        "base": str(backbone.base) if known else "",
        "base_tensor": tensor_hash(frozen[0]) if known else "",
        "lora": f"r {lora.r}, alpha {lora.alpha:g}" if lora is not None else "",
    }


def compare_fingerprints(file: str, old: dict[str, str], new: dict[str, str], *, base: bool) -> None:
    """Refuse a checkpoint whose backbone means something else.

    Args:
        file: Its name, for the message.
        old: Its fingerprint.
        new: The fingerprint of the backbone built now.
        base: Whether the checkpoint leaves out tensors of the base, so that the bases must be equal too.

    Raises:
        CheckpointError: Naming the first difference.
    """
    hints = {"backbone": "name the same backbone class", "tokenizer": "name the tokenizer of that run"}
    if base:
        hints["base_tensor"] = f"name the weights of that run, {old['base']}"
    for name, hint in hints.items():
        if old[name] != new[name]:
            raise CheckpointError(f"{file}: its {name} is {old[name]:.60}, here it is {new[name]:.60}; {hint}")


def read_stage(path: str) -> dict[str, Any]:
    """The checkpoint of an earlier stage; nothing is built yet.

    Raises:
        CheckpointError: If there is none, or it is no checkpoint of this library.
    """
    if (Path(path) / "config.json").is_file():
        raise CheckpointError(f"{path}: an exported model; name it as the backbone's model instead of in init_from")
    stage = read_checkpoint(path)
    if "fingerprint" not in stage:
        raise CheckpointError(f"{stage['file']}: carries no fingerprint; init_from takes checkpoints of this library")
    return stage


def load_stage(stage: dict[str, Any], backbone: Backbone, now: dict[str, str]) -> None:
    """Copy an earlier stage's backbone (and nothing else) into ``backbone``.

    Args:
        stage: What :func:`read_stage` gave.
        backbone: Freshly built.
        now: Its fingerprint.

    Raises:
        CheckpointError: If class, tokenizer, base or tensors differ, naming the first difference.
    """
    file = stage["file"]
    rebuilt = {name.removeprefix("backbone.") for name in stage["rebuilt"] if name.startswith("backbone.")}
    compare_fingerprints(file, stage["fingerprint"], now, base=bool(rebuilt))
    weights = {k.removeprefix("backbone."): v for k, v in stage["state_dict"].items() if k.startswith("backbone.")}
    own = backbone.state_dict()
    compare_names(file, set(own), set(weights), rebuilt)
    for name, value in weights.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[name].shape)}"
            raise CheckpointError(f"{file}: backbone tensor {name!r} has shape {shapes}")
    backbone.load_state_dict(weights, strict=False)


def compare_names(file: str, own: set[str], stored: set[str], rebuilt: set[str]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one too many.

    Raises:
        CheckpointError: Naming the first three.
    """
    for what, names in (("lacks", own - stored - rebuilt), ("has, but this model lacks,", (stored | rebuilt) - own)):
        if names:
            more = f" (+{len(names) - 3})" if len(names) > 3 else ""
            raise CheckpointError(
                f"{file}: {what} {', '.join(sorted(names)[:3])}{more}; give backbone and head the settings of that run"
            )
