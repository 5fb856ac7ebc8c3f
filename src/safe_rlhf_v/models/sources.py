"""Where tokenizers and processors come from: a folder, a hub name, or a checkpoint that carries their files.

A checkpoint stores the files that its backbone was built from (:class:`StoredSources`), so that a run can be moved. Their
formats are read and never executed: JSON, chat templates (rendered in a sandbox), plain text and SentencePiece models.
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
GGUF_SUFFIX = ".gguf"
CLASSIFIES = "ForSequenceClassification"
"""Ends the name of a class that scores texts."""

SOURCES_KEY = "sources"
"""Key of :class:`StoredSources` in a checkpoint."""

_FILE = re.compile(r"(additional_chat_templates/)?\w[\w.-]*\.(json|jinja|txt|model)")
_MAX_BYTES = 256 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class StoredSources(NamedTuple):
    """What a checkpoint stores so that its backbone can be rebuilt without the files that it was built from.

    Attributes:
        options: Constructor arguments that replace those of the configuration (a config instead of a model's name).
        files: For each constructor argument that names files (``tokenizer``, ``processor``): file name to content.
    """

    options: dict[str, Any]
    files: dict[str, dict[str, bytes]]


def saved_files(save: Callable[[Path], Any]) -> dict[str, bytes]:
    """Name and content of the files that a ``save_pretrained`` writes.

    Args:
        save: Called with an empty folder.
    """
    with TemporaryDirectory() as folder:
        save(Path(folder))
        paths = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in sorted(paths.items()) if _FILE.fullmatch(name)}


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers config as plain data, with ``model_type``."""
    options: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return {"model_type": config.model_type, **options}


@contextmanager
def open_source(source: str, option: str) -> Iterator[str]:
    """A context with a source as transformers takes it: the files of a checkpoint are put into a temporary folder.

    Args:
        source: Folder, hub name or checkpoint.
        option: Which files of a checkpoint: ``tokenizer`` or ``processor``.

    Raises:
        ValueError: If a checkpoint does not hold them.
    """
    if not source.endswith(CHECKPOINT_SUFFIX):
        yield source
        return
    stored = torch.load(source, map_location="cpu", weights_only=True, mmap=True).get(SOURCES_KEY)
    files = stored.get("files", {}).get(option) if isinstance(stored, dict) else None
    if not isinstance(files, dict) or not all(isinstance(content, bytes) for content in files.values()):
        raise ValueError(f"{source}: holds no {option}; name its folder")
    if sum(map(len, files.values())) > _MAX_BYTES:
        raise ValueError(f"{source}: its {option} is larger than {_MAX_BYTES >> 20} MiB")
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            if not isinstance(name, str) or not _FILE.fullmatch(name):
                raise ValueError(f"{source}: its {option} has a file {str(name)[:60]!r}, which no {option} has")
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield folder


def load_tokenizer(source: str, **hub: Any) -> Any:
    """Load a Hugging Face tokenizer; remote code is never run.

    Args:
        source: Folder, hub name, GGUF file, or a checkpoint of this library, which holds its tokenizer.
        hub: ``revision`` and ``local_files_only``.

    Raises:
        ValueError: If there is none, in one line.
    """
    from transformers import AutoTokenizer

    check_source("tokenizer", source)
    if source.endswith(GGUF_SUFFIX):
        file = Path(source)
        return load_or_refuse(
            "tokenizer", source, AutoTokenizer.from_pretrained, str(file.parent), gguf_file=file.name, **hub
        )
    with open_source(source, "tokenizer") as place:
        return load_or_refuse("tokenizer", source, AutoTokenizer.from_pretrained, place, **hub)


def load_or_refuse(option: str, source: str, load: Callable[..., Any], place: str, **options: Any) -> Any:
    """``load(place)``, with any failure as one line that names the setting.

    Args:
        option: Name of the setting, for the message.
        source: Value of the setting as the user wrote it, for the message.
        load: A ``from_pretrained``.
        place: Folder or hub name.
        options: Passed on; a folder is never looked up on the hub.

    Raises:
        ValueError: With the first line of the reason, of which there are often hundreds.
    """
    if Path(place).is_dir():
        options["local_files_only"] = True
    try:
        return load(place, trust_remote_code=False, **options)
    except Exception as error:  # broken files can raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    if Path(place).is_dir():
        raise ValueError(f"{option} {source}: cannot be read ({reason})")
    raise ValueError(
        f"{option} {source}: no such folder, and it could not be downloaded from the hub ({reason}); correct the name, or "
        "download it first and name its folder"
    )


def load_weights(option: str, source: str, load: Callable[..., Any], **options: Any) -> Any:
    """A network by :func:`load_or_refuse`, with all of its weights from the source.

    Transformers gives random numbers to what a source lacks, with a warning only; another seed is then another model. A
    classifier (``*ForSequenceClassification``, as exports of reward and cost models are) has no LM head by its nature: its
    network can be used, and its LM head is one that refuses to run.

    Args:
        option: Name of the setting, for the message.
        source: Folder or hub name.
        load: A ``from_pretrained`` of a network.
        options: Passed on.

    Raises:
        ValueError: If it cannot be read, or a weight is missing or has another shape, naming three.
    """
    network, report = load_or_refuse(option, source, load, source, output_loading_info=True, **options)
    mismatched = [name if isinstance(name, str) else name[0] for name in report["mismatched_keys"]]
    # Buffers follow from the config: only parameters would be random.
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    names = sorted({*(parameters & set(report["missing_keys"])), *mismatched})
    if any(CLASSIFIES in str(name) for name in getattr(network.config, "architectures", None) or ()):
        names = _without_lm_head(network, names, f"{option} {source}")
    if names:
        more = f" (+{len(names) - 3})" if len(names) > 3 else ""
        raise ValueError(
            f"{option} {source}: holds no weights for {', '.join(names[:3])}{more} of {type(network).__name__}, which would "
            "be random; name a folder with all of them"
        )
    return network


class _NoLMHead(torch.nn.Module):
    """Stands where a network has no LM head."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"{self.source}: is a classifier without an LM head, and gives no probabilities of tokens")


def _without_lm_head(network: Any, names: list[str], source: str) -> list[str]:
    """The names that are not the LM head's; a head that lacks its weights is replaced."""
    head = network.get_output_embeddings()
    prefixes = [f"{name}." for name, module in network.named_modules() if module is head and head is not None]
    others = [name for name in names if not name.startswith(tuple(prefixes))]
    if len(others) < len(names):
        network.set_output_embeddings(_NoLMHead(source))
    return others


def check_source(option: str, source: str) -> None:
    """Refuse a folder or GGUF file that is missing or lacks what it should hold, before anything is built; hub names pass.

    Args:
        option: ``tokenizer``, ``processor``, ``model``, ...
        source: Value of the option.

    Raises:
        ValueError: Naming the option and what is wrong.
    """
    path = Path(source)
    if option == "tokenizer" and source.endswith(GGUF_SUFFIX):
        if not path.is_file():
            raise ValueError(f"{option} {source}: no such file")
        return
    if path.is_dir():
        if option == "tokenizer" and not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(
                f"{option} {source}: the folder holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})"
            )
        if option in ("model", "config") and not (path / "config.json").is_file():
            raise ValueError(f"{option} {source}: the folder holds no config.json, so it is not a Hugging Face model")
        return
    files = {"tokenizer": (CHECKPOINT_SUFFIX, GGUF_SUFFIX), "processor": (CHECKPOINT_SUFFIX,)}
    if path.is_file() and source.endswith(files.get(option, ())):
        return
    if path.exists():
        raise ValueError(f"{option} {source}: not a folder")
    local = source.startswith((".", "~", "/")) or source.count("/") > 1 or source.endswith(CHECKPOINT_SUFFIX)
    if local or ("/" in source and Path(path.parts[0]).is_dir()):
        raise ValueError(f"{option} {source}: no such folder")


def in_hub_cache(name: str) -> bool:
    """Whether a hub model (``OWNER/NAME``, ``OWNER/NAME@REVISION``) was downloaded to this machine before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        place, _, revision = name.partition("@")
        return isinstance(try_to_load_from_cache(place, "config.json", revision=revision or None), str)
    except (HFValidationError, ValueError, OSError):
        return False
