"""Configuration files of every command are looked at before they are used: plain YAML, no key twice, sections in it."""

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_v.records.unique_yaml import DuplicateKeyError, check_unique

_YAML = (".yaml", ".yml", ".json")
_MOST_INCLUDES = 1000
_MOST_NODES = 100_000
_MOST_BYTES = 1_000_000
"""A larger file that a configuration names is data."""


def check_stray(args: Sequence[str]) -> None:
    """Refuse a configuration file that is given without its option.

    Args:
        args: Command line behind the command.

    Raises:
        ValueError: Naming the file.
    """
    if stray := [word for word in args[:1] if not word.startswith("-")]:
        raise ValueError(f"{stray[0]}: is no option; a configuration is named by --config {stray[0]}")


def check_files(
    args: Sequence[str], sections: str = "the options of a command", data: Collection[str] = ()
) -> set[str]:
    """Refuse configuration that is not YAML, or has a key or section twice, in files and in the command line itself.

    Args:
        args: Command line.
        sections: What stands in a configuration, for the message.
        data: Options that name files of data, which may be JSON of any size.

    Returns:
        The top-level keys of all ``--config``.

    Raises:
        ValueError: Naming file, line and key.
    """
    pending: list[tuple[Path, bool]] = []
    keys: set[str] = set()
    for option, value in options_of(args):
        config = option in ("--config", "-c")
        if config and not value.strip():
            raise ValueError(f"{option}: needs a value, as in --config run.yaml")
        if os.path.isfile(value):  # noqa: PTH113  false for what is no path
            if config or (value.endswith(_YAML) and option not in data):
                pending.append((Path(value), config))
        elif "{" in value or "\n" in value:
            node = _compose(option, value)
            keys |= _keys(node) if config else set()
        elif config or (value.endswith((".yaml", ".yml")) and " " not in value):  # .json may be a file to write
            what = "is a folder; name a file in it" if Path(value).is_dir() else "does not exist"
            raise ValueError(f"{option} {value}: {what}")
    seen: set[Path] = set()
    while pending and len(seen) < _MOST_INCLUDES:
        file, config = pending.pop()
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
        node = _compose(str(file), text)
        if config:
            _check_sections(file, node, sections)
            keys |= _keys(node)
        included = [file.parent / name for name in _scalars(node) if name.endswith(_YAML)]
        pending += [(path, False) for path in included if path.is_file() and path.stat().st_size <= _MOST_BYTES]
    return keys


def _check_sections(file: Path, node: Any, sections: str) -> None:
    """A file of settings has sections. Raises: ValueError: If it has none."""
    if not isinstance(node, yaml.MappingNode):
        holds = (
            "is empty" if node is None else f"holds {'a list' if isinstance(node, yaml.SequenceNode) else 'a value'}"
        )
        raise ValueError(f"{file}: {holds}, not {sections}")


def _keys(node: Any) -> set[str]:
    """Top-level keys of a document."""
    return {str(key.value) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()


def _compose(name: str, text: str) -> Any:
    """The nodes of a YAML text. Raises: ValueError: If it is none, or has a key twice."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        check_unique(node)
        _check_plain(node)
    except DuplicateKeyError as error:
        raise ValueError(f"{name}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{name}: not YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"{name}: not YAML: {str(error).splitlines()[0] if str(error) else 'nested too deep'}"
        ) from None
    return node


def _check_plain(node: Any) -> None:
    """Raises: yaml.MarkedYAMLError: If nodes are no plain data, or are more than any configuration has where aliases are read."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {node.tag!r:.80} is no plain data", problem_mark=node.start_mark
            )
        sizes[id(node)] = 1  # an alias of a node within itself
        below = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            below = itertools.chain(*node.value)
        sizes[id(node)] = 1 + sum(map(size, below))
        return sizes[id(node)]

    if node is not None and size(node) > _MOST_NODES:
        raise yaml.MarkedYAMLError(problem="more entries than any configuration has", problem_mark=node.start_mark)


def _scalars(node: Any) -> Iterator[str]:
    stack = [node]
    seen = set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield str(node.value)
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value
        elif isinstance(node, yaml.MappingNode):
            stack += [value for _, value in node.value]


def options_of(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of every ``--option=value`` and ``--option value``."""
    for word, after in itertools.zip_longest(args, args[1:]):
        if word.startswith("-"):
            option, joined, value = word.partition("=")
            yield option, value if joined else (after or "")


def values(args: Sequence[str], option: str) -> list[str]:
    """Values of an option, in order."""
    return [value for name, value in options_of(args) if name == option]
