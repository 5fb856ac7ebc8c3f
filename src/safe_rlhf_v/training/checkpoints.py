"""Checkpoints: written completely or not at all, found after a crash, and passed from stage to stage.

Beside Lightning's content, a checkpoint holds the resolved configuration as text (``config_yaml``) and a fingerprint of its
backbone. Frozen tensors that the backbone's pretrained base contains are omitted; ``rebuilt`` names them, and the base is
recognised by their digests. The checksums are those of the zip file that ``torch.save`` writes (a CRC-32 of every member),
so a single copied file can be verified.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from safe_rlhf_v import __version__
from safe_rlhf_v.functional.finite import non_finite_names
from safe_rlhf_v.models.adapters import adapter_of
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.quantization import storage_of
from safe_rlhf_v.training.base_tensors import base_digests, other_tensor, rebuilt_names, tensor_hash

log = logging.getLogger(__name__)

_PART = "safe_rlhf_v-part"
"""Suffix of a file that is being written: ``NAME.PID.safe_rlhf_v-part``."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit; the message says what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file beside the target, syncs and renames it: after a kill, the old file or the new one is there.

    Files are verified before they are loaded, and only checkpoints in folders that this object has written to are removed.
    The command line adds this plugin; in Python::

        Trainer(plugins=[AtomicCheckpointIO()])
    """

    def __init__(self) -> None:
        """Start without folders."""
        self._folders: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, and remove unfinished files of killed processes from its folder.

        Raises:
            CheckpointError: If the disk is full; earlier checkpoints are not changed.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent)
        part = target.with_name(f"{target.name}.{os.getpid()}.{_PART}")
        try:
            with part.open("wb") as file:
                with suppress(OSError):  # a file system without locks; then unfinished files are not removed either
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                part.replace(target)
            self._folders.add(target.parent.resolve())
        except (OSError, RuntimeError) as error:
            if not _disk_is_full(error):
                raise
            raise CheckpointError(
                f"{target}: not written, the disk is full; free some space or choose another folder, then resume: "
                "earlier checkpoints are not changed"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove an old checkpoint, if this object has written to its folder.

        ``ModelCheckpoint`` reads the path from the checkpoint that a run is resumed from, and an untrusted one may name any
        file, folder or address.
        """
        file = Path(path)
        folder = file.parent.resolve()
        # Lightning's temporary file, by which forked processes return their weights.
        temporary = file.name == ".temp.ckpt" and folder.parent == Path(tempfile.gettempdir()).resolve()
        if file.suffix != ".ckpt" or not (temporary or folder in self._folders) or file.is_dir():
            log.warning("%s: not removed, it is not a checkpoint of this run", path)
            return
        file.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; raises :class:`CheckpointError` if it is damaged."""
        verify(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk; torch wraps the system's error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def clear_leftovers(folder: Path, below: bool = False) -> None:
    """Remove unfinished checkpoint files of killed processes; a file that is being written is locked and stays.

    Args:
        folder: Folder of the files.
        below: Also search subfolders, because a resumed run writes into a new one.
    """
    pattern = f"*.{_PART}"
    for path in list(folder.rglob(pattern) if below else folder.glob(pattern)):
        if not re.fullmatch(rf".+\.\d+\.{_PART}", path.name) or path.is_symlink() or not path.is_file():
            continue
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is complete, in less than a millisecond: the directory of a zip file is at its end."""
    if path.is_dir():  # sharded: rank 0 writes this file last
        return (path / "meta.pt").is_file()
    try:
        return path.is_file() and zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the directory is so damaged that Python's test fails
        return False


def verify(path: Path) -> None:
    """Compare every byte of a checkpoint with its checksums, once per process and file (about 1 s per GB).

    Raises:
        CheckpointError: If it is missing, cut off or damaged.
    """
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path}: a link to {path.readlink()}, which is missing; name the folder {path.parent}")
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; name the folder to use its newest complete one")
    if problem := _damage(*_identity(path)):
        raise CheckpointError(f"{path}: {problem}; name the folder to use its newest complete one")


def _identity(path: Path) -> tuple[str, int, int]:
    """Path, time of the last change and size: different after a file has changed."""
    status = path.stat()
    return str(path.resolve()), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _damage(path: str, _changed: int, _size: int) -> str:
    """What is wrong with a checkpoint's bytes, or ""."""
    if not is_complete(Path(path)):
        return "not a complete checkpoint (cut off while it was written?)"
    if Path(path).is_dir():
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        return f"damaged at {member!r}" if member is not None else ""
    except Exception as error:  # a damaged directory can raise anything
        return f"damaged ({error})"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a user names: the file itself, or the newest complete ``*.ckpt`` below a run's folder.

    The newest is the one with the most optimizer steps, as stored in the file: copying a folder changes the times of its
    files. Damaged files, dangling links and links out of the folder are skipped with a warning.

    Raises:
        CheckpointError: If there is none, naming the damaged ones.
    """
    if not str(path).strip():
        raise CheckpointError("the name of the run's folder is empty (an unset variable?)")
    root = Path(path)
    if root.is_file() or root.suffix == ".ckpt":
        verify(root)
        return root
    files = checkpoints_below(root)
    complete = {file: steps for file in files if (steps := steps_of(file, root)) is not None}
    skipped = sorted(set(files) - set(complete))
    while complete:
        newest = max(complete, key=lambda file: (complete[file], not file.is_symlink(), natural_order(file)))
        if not _damage(*_identity(newest)):
            break
        skipped.append(newest)
        del complete[newest]
    for file in skipped:
        log.warning("skipped %s: not a complete checkpoint of this folder", file)
    if complete:
        return newest
    names = f" (not complete: {', '.join(file.name for file in skipped)})" if skipped else ""
    raise CheckpointError(f"{root}: no readable checkpoint{names}; train that stage first, or name a .ckpt file")


def steps_of(file: Path, root: Path) -> int | None:
    """Number of optimizer steps of a checkpoint below ``root``; ``None`` if it cannot be used or is elsewhere."""
    if not is_complete(file) or not file.resolve().is_relative_to(root.resolve()):
        return None
    header = file / "meta.pt" if file.is_dir() else file
    return _stored_steps(*_identity(header)) if header.exists() else None


@lru_cache(maxsize=256)
def _stored_steps(path: str, _changed: int, _size: int) -> int | None:
    """Number of optimizer steps that a file says; ``None`` if it cannot be read. Asked often, and slow to find out."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("global_step", 0))
    except Exception:  # an untrusted file can raise anything
        return None


def natural_order(file: Path) -> list[Any]:
    """A sort key of a path in which ``version_10`` comes after ``version_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(file))]


def checkpoints_below(folder: Path) -> list[Path]:
    """Every ``*.ckpt`` below a folder, damaged ones and dangling links included."""
    return [path for path in folder.rglob("*.ckpt") if path.is_symlink() or path.is_file() or path.is_dir()]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything stored in it; tensors are memory-mapped.

    Args:
        path: Checkpoint or run folder.

    Raises:
        CheckpointError: If there is none, it is sharded, damaged, or holds more than plain data and tensors.
    """
    file = find_checkpoint(path)
    if file.is_dir():
        raise CheckpointError(f"{file}: is sharded; save one file with 'save_distributed_checkpoint: false' instead")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{file}: not a checkpoint of plain data and tensors ({type(error).__name__}); nothing in it was executed"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a checkpoint of this library, it holds a {type(content).__name__}")
    content["file"] = str(file)
    return content


def refuse_non_finite(weights: dict[str, Tensor], file: str) -> None:
    """Refuse NaN and infinite weights.

    Args:
        weights: Weights by name.
        file: File that holds them, for the message.

    Raises:
        CheckpointError: If any is NaN or infinite, naming the first three.
    """
    if names := non_finite_names(weights):
        more = f" (+{len(names) - 3})" if len(names) > 3 else ""
        raise CheckpointError(
            f"{file}: NaN or infinite weights in {', '.join(names[:3])}{more}; name an earlier checkpoint, or train again"
        )


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of vocabulary and special tokens: equal hashes mean the same ids for the same text."""
    content = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint(backbone: Backbone) -> dict[str, str]:
    """Identity of a newly built backbone, as plain text.

    Returns:
        ``version`` of this package; ``backbone``, the class; ``tokenizer``, its hash; ``base``, the pretrained model
        that contains every frozen tensor, ``base_tensor``, the hash of the first of them, and ``base_tensors``, digests of
        all of them ("" without a base);
        ``lora``, rank and scale of its adapters, and how the weights below them are stored ("" without adapters).
    """
    lora = getattr(backbone, "lora", None)
    frozen = [value for value in backbone.parameters() if not value.requires_grad]
    has_base = backbone.base is not None and frozen
    storage = storage_of(backbone)
    return {
        "version": __version__,
        "backbone": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
        "tokenizer": tokenizer_hash(backbone.tokenizer),
        "base": str(backbone.base) if has_base else "",
        "base_tensor": tensor_hash(frozen[0]) if has_base else "",
        "base_tensors": base_digests(backbone) if has_base else "",
        "lora": f"r {lora.r}, alpha {lora.alpha:g}{f', on {storage}' if storage else ''}" if lora is not None else "",
    }


def compare_fingerprints(file: str, old: dict[str, str], new: dict[str, str], rebuilt: Collection[str]) -> None:
    """Refuse a checkpoint whose backbone is another one.

    Args:
        file: Name of the checkpoint, for the message.
        old: Fingerprint of the checkpoint.
        new: Fingerprint of the newly built backbone.
        rebuilt: Names of the backbone's tensors that the checkpoint omits, which must be those of an equal base.

    Raises:
        CheckpointError: Naming the first difference.
    """
    hints = {"backbone": "name the same backbone class", "tokenizer": "name the tokenizer of that run"}
    if rebuilt:
        hints["base_tensor"] = f"name the weights of that run, {old['base']}"
    for name, hint in hints.items():
        if old[name] != new[name]:
            raise CheckpointError(f"{file}: its {name} is {old[name]:.60}, here it is {new[name]:.60}; {hint}")
    if name := other_tensor(old.get("base_tensors"), new.get("base_tensors"), sorted(rebuilt)):
        raise CheckpointError(f"{file}: {name} of its base is another tensor than here; {hints['base_tensor']}")


def read_stage(path: str) -> dict[str, Any]:
    """Read the checkpoint of an earlier stage; no network is built.

    Raises:
        CheckpointError: If there is none, it is not a checkpoint of this library, or its weights are not finite.
    """
    stage = read_checkpoint(path)
    if "fingerprint" not in stage:
        raise CheckpointError(f"{stage['file']}: holds no fingerprint; init_from takes checkpoints of this library")
    return checked_stage(stage)


def checked_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage itself. Raises: CheckpointError: If a weight of its networks is NaN or infinite."""
    networks = ("backbone.", "head.")  # not the buffers of a policy's controller, which may hold infinity
    refuse_non_finite({k: v for k, v in stage["state_dict"].items() if k.startswith(networks)}, stage["file"])
    return stage


def load_stage(stage: dict[str, Any], backbone: Backbone, now: dict[str, str]) -> None:
    """Copy an earlier stage's backbone (and nothing else) into ``backbone``.

    Args:
        stage: Result of :func:`read_stage`; of a model without adapters (``plain``) the tensors get the backbone's names.
        backbone: A newly built backbone.
        now: Fingerprint of ``backbone``.

    Raises:
        CheckpointError: If class, tokenizer, base or tensors differ, naming the first difference.
    """
    file = stage["file"]
    if stage.get("plain"):
        now = {**now, "backbone": stage["fingerprint"]["backbone"]}  # names and shapes of tensors tell
        stage["state_dict"] = _under_adapters(stage["state_dict"], backbone)
    rebuilt = rebuilt_names(stage["rebuilt"])
    compare_fingerprints(file, stage["fingerprint"], now, rebuilt)
    weights = {k.removeprefix("backbone."): v for k, v in stage["state_dict"].items() if k.startswith("backbone.")}
    own = backbone.state_dict()
    compare_names(file, set(own), set(weights), rebuilt)
    for name, value in weights.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[name].shape)}"
            raise CheckpointError(f"{file}: backbone tensor {name!r} has shape {shapes}")
    backbone.load_state_dict(weights, strict=False)


def _under_adapters(weights: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Tensors of a model without adapters under the names that they have below a backbone's, which stay as they are."""
    named = {name: f"backbone.{name.replace('.base_layer.', '.')}" for name in backbone.state_dict()}
    own = {f"backbone.{name}": value for name, value in backbone.state_dict().items() if adapter_of(name) is not None}
    there = {f"backbone.{name}": weights[plain] for name, plain in named.items() if plain in weights}
    return {**{name: value for name, value in weights.items() if name not in named.values()}, **there, **own}


def compare_names(file: str, own: set[str], stored: set[str], rebuilt: set[str]) -> None:
    """Refuse a checkpoint with missing or additional tensors.

    Raises:
        CheckpointError: Naming the first three.
    """
    for what, names in (("lacks", own - stored - rebuilt), ("has, but this model lacks,", (stored | rebuilt) - own)):
        if names:
            more = f" (+{len(names) - 3})" if len(names) > 3 else ""
            raise CheckpointError(
                f"{file}: {what} {', '.join(sorted(names)[:3])}{more}; give backbone and head the settings of that run"
            )
