"""What ``moderate`` reads: shards, a JSON-lines file, or a folder of pictures; broken entries stay entries."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safe_rlhf_v.guard.reading import Input
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.manifest import ShardError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Entry(NamedTuple):
    """One thing to judge.

    Attributes:
        key: What names it in the output.
        input: Its parts; ``None`` if it could not be read.
        problem: Why not, or "".
    """

    key: str
    input: Input | None
    problem: str = ""


class Entries(Protocol):
    """A sequence of entries in a fixed order."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, number: int, /) -> Entry:
        """One of them; never raises for a broken one."""


class ShardEntries:
    """Every response of every record of one split; records without responses are prompts."""

    def __init__(self, root: Path, split: str) -> None:
        """Args:
        root: Shard folder.
        split: Its split.
        """
        self.split = ShardedSplit(root, split)
        counts = self.split.index["responses"].tolist()
        self.rows = [(row, k) for row, n in enumerate(counts) for k in (range(n) if n else [None])]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        row, k = self.rows[number]
        try:
            record = self.split[row]
            images = [image.data for image in record.images] or None
            text = None if k is None else record.responses[k].text
            return Entry(record.key if k is None else f"{record.key}/{k}", Input(images, record.question, text))
        except (ShardError, ValueError, IndexError) as error:
            return Entry(f"row {row}", None, str(error))


class JsonlEntries:
    """Lines ``{"key": ..., "image": PATH, "question": ..., "response": ...}``, all but one part optional.

    Paths are relative to the file's folder and may not leave it.
    """

    def __init__(self, path: Path) -> None:
        """Args:
        path: The file.
        """
        self.folder = path.parent.resolve()
        self.lines = path.read_bytes().splitlines()

    def __len__(self) -> int:
        """How many."""
        return len(self.lines)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        key = f"line {number + 1}"
        try:
            row = json.loads(self.lines[number].decode(), object_pairs_hook=_unique)
            if not isinstance(row, dict):
                return Entry(key, None, "not a JSON object")
            key = str(row.get("key", key))[:128]
            unknown = sorted(set(row) - {"key", "image", "question", "response"})
            wrong = [
                name for name in ("image", "question", "response") if not isinstance(row.get(name), (str, type(None)))
            ]
            if unknown or wrong:
                return Entry(key, None, f"unknown fields {unknown}" if unknown else f"field {wrong[0]!r} is not text")
            return Entry(key, Input(self._inside(row.get("image")), row.get("question"), row.get("response")))
        except (ValueError, RecursionError, OSError) as error:
            return Entry(key, None, f"{type(error).__name__}: {error}")

    def _inside(self, name: str | None) -> Path | None:
        """Raises: ValueError: If a path leaves the folder."""
        if name is None:
            return None
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"image {name!r} lies outside {self.folder}")
        return path


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises: ValueError: If a name stands twice: another reader might take the other value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands twice")
    return found


class FolderEntries:
    """Every JPEG, PNG and WebP of a folder, by name: pictures alone."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: The folder.
        """
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
        self.folder = folder

    def __len__(self) -> int:
        """How many."""
        return len(self.files)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        file = self.files[number]
        return Entry(str(file.relative_to(self.folder)), Input(file))


def open_entries(path: Path, split: str | None) -> Entries:
    """The entries of whatever ``path`` is.

    Raises:
        ValueError: If it is none of the three, empty, or a shard folder without the split's name.
    """
    entries: Any
    if (path / "manifest.json").is_file():
        known = list(Manifest.load(path).splits)
        if split not in known:
            raise ValueError(f"{path} is a shard folder: choose one of its splits with --split {{{','.join(known)}}}")
        entries = ShardEntries(path, split)
    elif path.is_dir():
        entries = FolderEntries(path)
    elif path.is_file():
        entries = JsonlEntries(path)
    else:
        raise ValueError(f"{path}: no such file or folder")
    if not len(entries):
        raise ValueError(f"{path}: nothing to moderate in it")
    return entries  # type: ignore[no-any-return]


def batches(entries: Entries, size: int, start: int) -> Iterator[Sequence[Entry]]:
    """Batches of fixed membership from entry ``start``, a multiple of ``size``, on."""
    for first in range(start, len(entries), size):
        yield [entries[number] for number in range(first, min(first + size, len(entries)))]
