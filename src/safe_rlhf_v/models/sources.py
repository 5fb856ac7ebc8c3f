"""Where tokenizers and processors come from: a folder, a hub name, or a checkpoint that carries their files.

A checkpoint keeps the files that its backbone was built from (:class:`Kept`), so a run works wherever it is moved. They
are formats that are read and never run: JSON, chat templates (rendered in a sandbox), plain text and SentencePiece models.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

CHECKPOINT_SUFFIX = ".ckpt"
KEPT = "kept"
"""Key of a checkpoint under which :class:`Kept` stands."""

_FILE = re.compile(r"(additional_chat_templates/)?\w[\w.-]*\.(json|jinja|txt|model)")
_MOST_BYTES = 256 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Kept(NamedTuple):
    """What a checkpoint holds so that its backbone can be built again without the files it was first built from.

    Attributes:
        options: Constructor arguments that replace those of the configuration (a config instead of a model's name).
        files: By constructor argument (``tokenizer``, ``processor``) the files that it named: name to content.
    """

    options: dict[str, Any]
    files: dict[str, dict[str, bytes]]


def files_of(save: Callable[[Path], Any]) -> dict[str, bytes]:
    """What a ``save_pretrained`` writes.

    Args:
        save: Called with an empty folder.
    """
    with TemporaryDirectory() as folder:
        save(Path(folder))
        found = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in sorted(found.items()) if _FILE.fullmatch(name)}


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers config as plain data, with ``model_type``."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return {"model_type": config.model_type, **found}


@contextmanager
def opened(source: str, option: str) -> Iterator[str]:
    """A source as transformers takes it; the files of a checkpoint stand in a temporary folder meanwhile.

    Args:
        source: Folder, hub name or checkpoint.
        option: Which files of a checkpoint: ``tokenizer`` or ``processor``.

    Raises:
        ValueError: If a checkpoint does not hold them.
    """
    if not source.endswith(CHECKPOINT_SUFFIX):
        yield source
        return
    kept = torch.load(source, map_location="cpu", weights_only=True, mmap=True).get(KEPT)
    files = kept.get("files", {}).get(option) if isinstance(kept, dict) else None
    if not isinstance(files, dict) or not all(isinstance(part, bytes) for part in files.values()):
        raise ValueError(f"{source}: carries no {option}; name its folder")
    if sum(map(len, files.values())) > _MOST_BYTES:
        raise ValueError(f"{source}: its {option} is larger than {_MOST_BYTES >> 20} MiB")
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            if not isinstance(name, str) or not _FILE.fullmatch(name):
                raise ValueError(f"{source}: its {option} has a file {str(name)[:60]!r}, which no {option} has")
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield folder


def load_tokenizer(source: str, **hub: Any) -> Any:
    """A Hugging Face tokenizer; remote code is never run.

    Args:
        source: Folder, hub name, or a checkpoint of this library, which carries its tokenizer.
        hub: ``revision`` and ``local_files_only``.

    Raises:
        ValueError: If there is none, in one line.
    """
    from transformers import AutoTokenizer

    check_source("tokenizer", source)
    with opened(source, "tokenizer") as place:
        return loaded("tokenizer", source, AutoTokenizer.from_pretrained, place, **hub)


def loaded(option: str, source: str, load: Callable[..., Any], place: str, **options: Any) -> Any:
    """What ``load(place)`` gives.

    Args:
        option: Name of the setting, for the message.
        source: As the user wrote it, likewise.
        load: A ``from_pretrained``.
        place: Folder or hub name.
        options: Passed on; a folder is never looked up on the hub.

    Raises:
        ValueError: With the first line of the reason, where there are often hundreds.
    """
    if Path(place).is_dir():
        options["local_files_only"] = True
    try:
        return load(place, trust_remote_code=False, **options)
    except Exception as error:  # readers of broken files raise whatever they meet
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    if Path(place).is_dir():
        raise ValueError(f"{option} {source}: cannot be read ({reason})")
    raise ValueError(
        f"{option} {source}: no folder here, and it could not be fetched from the hub ({reason}); correct the name, or "
        "download it first and name its folder"
    )


def check_source(option: str, source: str) -> None:
    """Refuse a folder that is missing or has nothing to offer, before anything is built; hub names pass.

    Args:
        option: ``tokenizer``, ``processor``, ``model``, ...
        source: Its value.

    Raises:
        ValueError: Naming the option and the mend.
    """
    path = Path(source)
    if path.is_dir():
        if option == "tokenizer" and not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(
                f"{option} {source}: the folder holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})"
            )
        if option in ("model", "config") and not (path / "config.json").is_file():
            raise ValueError(f"{option} {source}: the folder holds no config.json, so it is no Hugging Face model")
        return
    if path.is_file() and source.endswith(CHECKPOINT_SUFFIX) and option in ("tokenizer", "processor"):
        return
    if path.exists():
        raise ValueError(f"{option} {source}: not a folder")
    local = source.startswith((".", "~", "/")) or source.count("/") > 1 or source.endswith(CHECKPOINT_SUFFIX)
    if local or ("/" in source and Path(path.parts[0]).is_dir()):
        raise ValueError(f"{option} {source}: no such folder")
