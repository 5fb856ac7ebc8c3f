"""The configuration inside a checkpoint, read as untrusted input.

It is parsed as plain YAML of bounded size. Before anything is imported, every class that it names, at any depth, must be on a
list: components of this library, optimizers and schedulers, layers of torch, and packages that the user trusts by name. Paths
in it must be below the working directory, and never on the hub. The threat model: ``docs/security.md``.
"""

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_v.records.unique_yaml import UniqueKeyLoader
from safe_rlhf_v.training.checkpoints import CheckpointError

_MAX_CHARACTERS = 1 << 20
_MAX_NODES = 50_000
_MAX_DEPTH = 40
_HOMES = (  # packages of this library whose classes are components
    "safe_rlhf_v.data_modules",
    "safe_rlhf_v.dual",
    "safe_rlhf_v.models",
    "safe_rlhf_v.modules",
    "safe_rlhf_v.objectives",
    "safe_rlhf_v.policy",
    "safe_rlhf_v.scoring",
    "safe_rlhf_v.training.WarmupCosine",
    "safe_rlhf_v.training.optim",
    "safe_rlhf_v.world",
)
_FOREIGN = (  # packages of others, and base classes that their classes must have
    ("torch.optim", ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")),
    ("torch.nn", ("torch.nn.Module",)),
)
_NAMED = ("lightning.pytorch.cli.ReduceLROnPlateau", "transformers.Adafactor", "transformers.optimization.Adafactor")
_CODE_KEYS = ("trust_remote_code", "auto_map")
_FETCHING_KEYS = ("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "pretrained", "timm_model_pretrained")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_SCHEME = re.compile(r"\S*://|(hf[-_]hub|local[-_]dir|file):")


def read_stored(stage: dict[str, Any]) -> dict[str, Any]:
    """The configuration inside a checkpoint, as plain data; nothing that it names is imported.

    Args:
        stage: Content of a checkpoint.

    Raises:
        CheckpointError: If there is none, or it is not the configuration of a run of this library.
    """
    file = stage["file"]
    text = stage.get("config_yaml")
    if not isinstance(text, str):
        raise CheckpointError(
            f"{file}: holds no configuration, as runs of a plain Trainer do; train it by 'python -m safe_rlhf_v fit', or in "
            "Python load it with its class's load_from_checkpoint and give the module in place of the run"
        )
    if len(text) > _MAX_CHARACTERS:
        raise CheckpointError(f"{file}: its configuration has {len(text)} characters, more than any real one")
    try:
        content = yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its configuration is not plain YAML ({_first_line(error)})") from None
    _check_bounds(file, content)
    section = content.get("model") if isinstance(content, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("class_path"), str):
        raise CheckpointError(f"{file}: its configuration names no model class; it is not a run of this library")
    if not isinstance(section.setdefault("init_args", {}), dict):
        raise CheckpointError(f"{file}: model.init_args of its configuration is not a mapping; use another checkpoint")
    config: dict[str, Any] = content
    return config


def stored_options(stage: dict[str, Any], name: str) -> dict[str, Any]:
    """Options of one section of a stored configuration, which are untrusted.

    Args:
        stage: Content of a checkpoint.
        name: ``model`` or ``data``.

    Raises:
        CheckpointError: See :func:`read_stored`.
    """
    section = read_stored(stage).get(name)
    options = section.get("init_args") if isinstance(section, dict) else None
    return dict(options) if isinstance(options, dict) else {}


def check_stored(file: str, section: dict[str, Any], name: str, trust: Sequence[str] = ()) -> None:
    """Refuse a section of a stored configuration that could import code or read files of others.

    Args:
        file: The checkpoint, for the message.
        section: The section.
        name: ``model`` or ``data``.
        trust: Packages whose classes may be imported.

    Raises:
        CheckpointError: Naming the first such entry.
    """
    for place, key, value in _leaves(section, name):
        if key.endswith("class_path"):
            if not isinstance(value, str) or not is_listed(value, trust):
                raise CheckpointError(_not_listed(file, place, value))
        elif isinstance(value, str):
            _check_text(file, place, key, value, trust)
        elif key in (*_CODE_KEYS, *_FETCHING_KEYS) and value:
            raise CheckpointError(f"{file}: its configuration sets {place}, which a stored configuration may not set")


def set_aside(section: dict[str, Any], name: str, named: Mapping[str, str]) -> list[tuple[dict[str, Any], str, str]]:
    """Remove values from a section that the user replaces.

    Args:
        section: The section; the removed values become null.
        name: ``model`` or ``data``.
        named: The user's values, by dotted path.

    Returns:
        (dict, key, user's value) of each, to be set after the rest has been checked.
    """
    replacements: list[tuple[dict[str, Any], str, str]] = []
    for place, value in named.items():
        first, *rest = place.split(".")
        if first != name or not rest:
            continue
        *middle, last = rest
        inner: Any = section
        for key in middle:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get(last), str):
            inner[last] = None
            replacements.append((inner, last, value))
    return replacements


def _check_text(file: str, place: str, key: str, value: str, trust: Sequence[str]) -> None:
    if key in (*_CODE_KEYS, *_FETCHING_KEYS) or (key.endswith("implementation") and "/" in value):
        raise CheckpointError(
            f"{file}: its configuration sets {place} to {value[:60]!r}, which a stored configuration may not set"
        )
    if _DOTTED.fullmatch(value) and is_importable(value) and not is_listed(value, trust):
        raise CheckpointError(_not_listed(file, place, value))
    if leads_out(value):
        raise CheckpointError(
            f"{file}: its configuration names {value[:100]!r} as {place}, which is not below the working directory; "
            f"name another: --{place} PATH"
        )


def _not_listed(file: str, place: str, value: Any) -> str:
    package = str(value).partition(".")[0]
    hint = f"; if you trust the package, add --trust {package}" if package.isidentifier() else ""
    if package == "safe_rlhf_v":
        hint = "; if an earlier version wrote the run, train it again with this one"
    return f"{file}: its configuration names {str(value)[:100]!r} as {place}, which is not imported from a run folder{hint}"


def leads_out(value: str) -> bool:
    """Whether a text is an address, an absolute path or one that contains "..": stored configurations may not use them."""
    if _SCHEME.match(value):
        return True
    if any(char.isspace() for char in value) and not os.path.exists(value):  # noqa: PTH110  false for an invalid path
        return False  # prose or a template
    return value.startswith(("~", os.sep)) or Path(value).is_absolute() or ".." in Path(value).parts


def is_listed(path: str, trust: Sequence[str] = ()) -> bool:
    """Whether a dotted name is a class that a stored configuration may name; only listed packages are imported to decide.

    Args:
        path: ``package.module.Class``.
        trust: Packages all of whose names are listed.
    """
    if not _DOTTED.fullmatch(path):
        return False
    if _inside(path, trust) or path in _NAMED:
        return True
    if _inside(path, _HOMES) or re.fullmatch(r"safe_rlhf_v\.\w+", path):  # short names of the same classes
        cls = _find(path)
        return inspect.isclass(cls) and _inside(cls.__module__, _HOMES)
    for home, names in _FOREIGN:
        if _inside(path, (home,)):
            cls = _find(path)
            bases = tuple(base for base in map(_find, names) if inspect.isclass(base))
            return inspect.isclass(cls) and issubclass(cls, bases) and _inside(cls.__module__, (home,))
    return False


def is_importable(path: str) -> bool:
    """Whether the first part of a dotted name is a module that could be imported, without importing it."""
    try:
        return find_spec(path.partition(".")[0]) is not None
    except (ValueError, ImportError):  # a module without a specification exists
        return True


def find_class(path: str) -> Any:
    """Import a listed dotted name.

    Raises:
        ValueError: If it does not exist.
    """
    if (cls := _find(path)) is None:
        raise ValueError(f"there is no {path}; is its package installed, in the version that wrote the run?")
    return cls


def _find(path: str) -> Any:
    home, _, name = path.rpartition(".")
    try:
        return getattr(import_module(home), name, None)
    except ImportError:
        return None


def _inside(path: str, packages: Iterable[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def _leaves(value: Any, place: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted path, last key, leaf) of every leaf; a text that is itself a YAML structure is parsed, as parsers do."""
    if isinstance(value, dict):
        for name, item in value.items():
            last = str(name).rpartition(".")[2]
            if last in _CODE_KEYS and isinstance(item, (dict, list)):
                yield f"{place}.{name}", last, True
            yield from _leaves(item, f"{place}.{name}", last)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{place}.{i}", key)
    else:
        yield place, key, value
        if isinstance(value, str) and any(char in value for char in "{[:-"):
            inner = _structure(value)
            if inner is not None:
                yield from _leaves(inner, place, key)


def _structure(text: str) -> Any:
    try:
        inner = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(inner, (dict, list)):
        return None
    _check_bounds("", inner, plain=False)
    return inner


def _check_bounds(file: str, content: Any, plain: bool = True) -> None:
    """Refuse data that are deeper or larger than any real configuration or, with ``plain``, not plain data.

    Raises:
        CheckpointError: Naming the violation.
    """
    level = [content]
    nodes = 0
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if plain and not all(isinstance(key, str) and not key.startswith("__") for key in value):
                    raise CheckpointError(f"{file}: its configuration has keys that no configuration has")
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif plain and value is not None and not isinstance(value, (bool, int, float, str)):
                raise CheckpointError(f"{file}: its configuration has a {type(value).__name__}, which none has")
            if (nodes := nodes + 1) > _MAX_NODES or len(below) > _MAX_NODES:
                raise CheckpointError(f"{file}: its configuration is larger than any real one")
        if not below:
            return
        level = below
    raise CheckpointError(f"{file}: its configuration is nested deeper than any real one")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
