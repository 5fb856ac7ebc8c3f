"""Where a model comes from: what it started from, and which reward and cost models it was trained against.

A model is known by *marks*: its place, and the hash of its weights, which a copy of it shares.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from safe_rlhf_v.records.user_files import digest, read_bounded
from safe_rlhf_v.shards.split import file_sha256
from safe_rlhf_v.training.checkpoints import CheckpointError, find_checkpoint, read_stage
from safe_rlhf_v.training.models import ADAPTER_FILE, CONFIG_FILE, EXPORT_FILE, is_hub_name, is_model
from safe_rlhf_v.training.stored_config import stored_options

STARTS = ("init_from", "start", "backbone")
"""Options that name what a model started from; a backbone's class names its base."""
SCORERS = ("reward", "cost")
SOURCES = ("run", "model", "function", "folder")
"""Options of a scorer's class that say which model it is."""
_ABOUT = (".md", ".py", ".pyc")
"""Files of a model's folder that do not decide what it computes: what is written about it, and its loader."""
_NAMES = (
    (CONFIG_FILE, "model_type"),
    (CONFIG_FILE, "_name_or_path"),
    (ADAPTER_FILE, "base_model_name_or_path"),
    (EXPORT_FILE, "base"),
)
"""Files of a model's folder, and the keys under which they name it or its base."""
_MAX_SETTINGS = 10_000_000


def run_content(run: str) -> str:
    """Short hash of the weights that a run or a model's folder would give; ``""`` for a name on the hub, and for nothing at all.

    Of a run the checksums in its newest checkpoint count, of a model's folder all its bytes.

    Args:
        run: Run folder or checkpoint, or a model's folder or hub name.
    """
    try:
        with zipfile.ZipFile(find_checkpoint(run)) as checkpoint:
            return digest([[entry.filename, entry.CRC] for entry in checkpoint.infolist()])
    except (CheckpointError, OSError, zipfile.BadZipFile):  # what is wrong with it is said where it is loaded
        return _folder_content(Path(run)) if is_model(run) and Path(run).is_dir() else ""


def content_on(run: str, base: str | None = None) -> str:
    """:func:`run_content`, joined with that of the base under it where one is named: for the run, or by an adapter of peft.

    Args:
        run: Run folder or checkpoint, or a model's folder or hub name.
        base: Folder or hub name of the base that takes the place of the run's own.
    """
    content = run_content(run)
    named = base or _settings(Path(run, ADAPTER_FILE)).get("base_model_name_or_path")
    below = run_content(named) if isinstance(named, str) else ""
    return digest([content, below]) if below else content


def marks(model: str) -> set[str]:
    """By what a run or a model is known.

    Args:
        model: Run folder or checkpoint, or a model's folder, hub name or import path.
    """
    own = {run_content(model), str(_exported(model).get("weights") or "")} - {""}
    return {f"run:{Path(model).resolve()}", *(f"weights:{content}" for content in own)}


def own_marks(model: str) -> set[str]:
    """Marks of a model and of all that it started from."""
    return {mark for place in (model, *_started_from(model)) for mark in marks(place)}


def trained_against(model: str) -> set[str]:
    """Marks of the reward and cost models that a policy, or one that it started from, was trained against.

    Args:
        model: Run folder or checkpoint, or a model's folder.
    """
    against: set[str] = set()
    for place in (model, *_started_from(model)):
        stored = _exported(place).get("trained_against")
        against |= (
            {f"weights:{content}" for content in stored if isinstance(content, str)}
            if isinstance(stored, list)
            else set()
        )
        against |= {
            mark for named in named_models(place, *SCORERS) for one in _places(named, place) for mark in marks(one)
        }
    return against


def trained_on(model: str) -> set[tuple[str, str]]:
    """What a model, or one that it started from, was trained on: digests of the data sets' manifests, and splits.

    Args:
        model: Run folder or checkpoint, or an exported folder; of other models nothing is known.
    """
    seen: set[tuple[str, str]] = set()
    for place in (model, *_started_from(model)):
        stored = _exported(place).get("trained_on")
        for pair in stored if isinstance(stored, list) else _streams(place):
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair):
                seen.add((pair[0], pair[1]))
    return seen


def _streams(run: str) -> Iterator[list[Any]]:
    """Manifest and split of what the data module of a run read; nothing of anything else."""
    try:
        states = [] if is_model(run) else [*read_stage(run).values()]
    except CheckpointError:
        return
    for state in states:
        stream = state.get("stream") if isinstance(state, dict) else None
        if isinstance(stream, dict):
            yield from ([stream.get("manifest"), stream.get(split)] for split in ("train_split", "demonstrations"))


def model_names(model: str) -> set[str]:
    """How a model and all that it started from are called: names on the hub, and what model folders say of themselves.

    Args:
        model: Run folder or checkpoint, or a model's folder or hub name.
    """
    names: set[str] = set()
    for place in (model, *_started_from(model)):
        names |= {place} if is_hub_name(place) else set()
        for file, key in _NAMES:
            value = _settings(Path(place, file)).get(key)
            names |= {Path(value).name} if isinstance(value, str) else set()  # folders on the way to it say nothing
    return names


def exported_lineage(run: str) -> dict[str, Any]:
    """What an exported folder keeps of this: hashes of weights, no folders of this machine.

    Args:
        run: The run that is exported.
    """
    against = sorted(mark.removeprefix("weights:") for mark in trained_against(run) if mark.startswith("weights:"))
    return {"weights": run_content(run), "trained_against": against, "trained_on": sorted(map(list, trained_on(run)))}


def named_models(run: str, *options: str) -> list[str]:
    """Models that stand in the configuration of a run, as options of its module or of its roles; [] of anything else.

    Args:
        run: Run folder or checkpoint.
        options: Names of the options.
    """
    if is_model(run):
        return []
    try:
        module = stored_options(read_stage(run), "model")
    except CheckpointError:
        return []
    roles = module.get("roles")
    inner = roles.get("init_args") if isinstance(roles, dict) else None
    values = [part.get(name) for name in options for part in (module, inner) if isinstance(part, dict)]
    return [name for value in values for name in _names(value)]


def _names(value: Any) -> Iterator[str]:
    """A model by its name, or by the options of its class."""
    options = value.get("init_args") if isinstance(value, dict) else None
    names = map(options.get, SOURCES) if isinstance(options, dict) else [value]
    yield from (name for name in names if isinstance(name, str) and name.isprintable() and 0 < len(name) < 1000)


def _started_from(model: str) -> list[str]:
    """Every place that a model, or what it started from, may have started from."""
    earlier: list[str] = []
    waiting = [model]
    while waiting:
        run = waiting.pop()
        new = [place for named in named_models(run, *STARTS) for place in _places(named, run)]
        new = [place for place in dict.fromkeys(new) if place not in (*earlier, model)]
        earlier += new
        waiting += new
    return earlier


def _places(named: str, run: str) -> list[str]:
    """Where a model that a run names may lie: seen from here, and from the folders above the run that names it.

    A run stores the paths that it was given, which hold in the folder that it was trained in.
    """
    above = [str(folder / named) for folder in Path(run).resolve().parents if (folder / named).exists()]
    return [named, *above[:1]]


def _exported(model: str) -> dict[str, Any]:
    """Settings of an exported folder; {} of anything else."""
    return _settings(Path(model, EXPORT_FILE))


def _settings(file: Path) -> dict[str, Any]:
    """Content of a JSON file; {} of anything else."""
    try:
        content = json.loads(read_bounded(file, _MAX_SETTINGS)) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}  # what is wrong with it is said where it is loaded
    return content if isinstance(content, dict) else {}


def _folder_content(folder: Path) -> str:
    """Hash of all files below a folder, hidden ones left out; links to folders are not followed."""
    files: list[Path] = []
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".") and not name.endswith(_ABOUT)]
    named = {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}
    return digest(
        [[name, _file_hash(file, file.stat().st_size, file.stat().st_mtime_ns)] for name, file in sorted(named.items())]
    )


@lru_cache(maxsize=256)
def _file_hash(file: Path, size: int, changed: int) -> str:
    """Hash of a file's bytes; read once as long as its size and time of change stay."""
    return file_sha256(file)
