"""Entries that ``moderate`` reads from shards, a JSON-lines file, or a folder of pictures, including broken ones."""

import hashlib
import json
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from safe_rlhf_v.guard.inputs import Input
from safe_rlhf_v.records.conversation import parse_turns
from safe_rlhf_v.records.parsing import Fields, RecordError
from safe_rlhf_v.records.user_files import FileError, open_regular, read_bounded
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.images import MAX_BYTES
from safe_rlhf_v.shards.manifest import ShardError

READABLE = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp")
UNREADABLE = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".ico")
"""Suffixes of other picture formats, which cannot be judged; such files are reported and not skipped."""
MAX_LINE = 1_000_000
"""Maximum bytes of a line; the longest texts that a guard reads need half of it."""
_TEXTS = ("question", "response", "system")
_MARK = b"\xef\xbb\xbf"


class Entry(NamedTuple):
    """One input of the command.

    Attributes:
        key: What names it in the output.
        input: Its parts, pictures as encoded bytes; ``None`` if it could not be read.
        problem: Why not, or "".
    """

    key: str
    input: Input | None
    problem: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that its verdict depends on but the guard."""
        content = hashlib.sha256()
        images, question, response, system, history = self.input or Input()
        if system or history:
            content.update(json.dumps(["conversation", system, *history]).encode())
        several = images if isinstance(images, (list, tuple)) else [images]
        for part in (self.key, self.problem, question, response, *several):
            body = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            content.update(b"-" if body is None else f"{len(body)}:".encode() + body)
        return content.hexdigest()


class Entries(Protocol):
    """A sequence of entries in a fixed order."""

    def __len__(self) -> int:
        """Number of entries."""

    def __getitem__(self, number: int, /) -> Entry:
        """The entry with this number; a broken one does not raise."""


class ShardEntries:
    """Every response of every record of one split; records without responses are prompts."""

    def __init__(self, root: Path, split: str) -> None:
        """Open a split.

        Args:
            root: Shard folder.
            split: Name of the split.
        """
        self.split = ShardedSplit(root, split)
        self._counts = self.split.index["responses"].tolist()
        self.rows = [(row, k) for row, n in enumerate(self._counts) for k in (range(n) if n else [None])]

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        row, k = self.rows[number]
        try:
            record = self.split[row]
            if len(record.responses) != self._counts[row]:  # the others would have no verdict, and nobody would know
                stated = f"{self._counts[row]}, the record holds {len(record.responses)}"
                return Entry(f"row {row}", None, f"the index states another number of responses: {stated}")
            text = None if k is None else record.responses[k].text
            key = record.key if k is None else f"{record.key}/{k}"
            return Entry(key, Input.of(record, text))
        except (ShardError, ValueError, IndexError) as error:
            return Entry(f"row {row}", None, str(error))


class JsonlEntries:
    """Lines ``{"key": ..., "image": PATH, "question": ..., "response": ...}``, all but one part optional.

    A conversation has ``"system"`` and ``"history"`` as records have them, and several pictures in a list. Paths are relative to
    the file's folder and must be inside it. Blank lines and a byte-order mark are skipped. The file is never held in memory.
    """

    def __init__(self, path: Path) -> None:
        """Find the lines of the file.

        Args:
            path: The file.

        Raises:
            FileError: If it is not a regular file.
        """
        self.folder = path.parent.resolve()
        self._file = open_regular(path)
        weakref.finalize(self, self._file.close)  # when nobody reads entries any more
        self._numbers = array("Q")
        self._starts = array("Q")
        self._lengths = array("Q")
        mark = len(_MARK) if self._file.read(len(_MARK)) == _MARK else 0
        self._file.seek(mark)
        start = mark
        for number, (length, blank) in enumerate(_line_lengths(self._file), start=1):
            if not blank:
                self._numbers.append(number)
                self._starts.append(start)
                self._lengths.append(length)
            start += length

    def __len__(self) -> int:
        """How many."""
        return len(self._numbers)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        key = f"line {self._numbers[number]}"
        try:
            if (length := self._lengths[number]) > MAX_LINE:
                return Entry(key, None, f"a line of {length} bytes, the limit is {MAX_LINE}")
            self._file.seek(self._starts[number])
            row = json.loads(self._file.read(length).decode(), object_pairs_hook=_unique)
            if not isinstance(row, dict):
                return Entry(key, None, "not a JSON object")
            key = key if row.get("key") is None else str(row["key"])[:128]
            unknown = sorted(set(row) - {"key", "image", *_TEXTS, "history"})
            wrong = [name for name in _TEXTS if not isinstance(row.get(name), (str, type(None)))]
            if unknown or wrong:
                return Entry(key, None, f"unknown fields {unknown}" if unknown else f"field {wrong[0]!r} is not text")
            history = () if row.get("history") is None else parse_turns(Fields(row, key), "history")
            question, response, system = (row.get(name) for name in _TEXTS)
            return Entry(key, Input(self._pictures(row.get("image")), question, response, system or "", history))
        except RecordError as error:
            return Entry(key, None, f"field {error.field!r} {error.problem}")
        except FileError as error:
            return Entry(key, None, str(error))
        except (ValueError, RecursionError, RuntimeError, OSError) as error:
            return Entry(key, None, f"{type(error).__name__}: {error}")

    def _pictures(self, names: Any) -> bytes | list[bytes] | None:
        """Bytes of the pictures of a line: of one, of several, or ``None``."""
        if names is None:
            return None
        return [self._picture(name) for name in names] if isinstance(names, list) else self._picture(names)

    def _picture(self, name: Any) -> bytes:
        """Bytes of a picture.

        Raises:
            ValueError: If the path is no text, or is outside the folder.
            FileError: If the file cannot be read.
        """
        if not isinstance(name, str):
            raise ValueError(f"field 'image' holds {name!r:.80}, which is no text")
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder):
            raise ValueError(f"image {name!r} lies outside {self.folder}")
        return read_bounded(path, MAX_BYTES)


def _line_lengths(file: BinaryIO) -> Iterator[tuple[int, bool]]:
    """Bytes of each line, its end included, and whether it is blank; read in pieces, as a line may be as long as the file."""
    length = 0
    blank = True
    while piece := file.readline(MAX_LINE):
        length += len(piece)
        blank = blank and not piece.strip()
        if piece.endswith(b"\n"):
            yield length, blank
            length = 0
            blank = True
    if length:
        yield length, blank


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises: ValueError: If a name stands twice: another reader might take the other value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field occurs twice")
    return fields


class FolderEntries:
    """Every picture of a folder and its subfolders, by name: pictures alone.

    A subfolder that is a link or cannot be read is an entry with an error, so that nothing is passed over unseen.
    """

    def __init__(self, folder: Path) -> None:
        """Find the pictures.

        Args:
            folder: The folder.
        """
        self.folder = folder
        self._problems: dict[Path, str] = {}
        pictures: list[Path] = []
        for place, subfolders, names in os.walk(folder, onerror=self._unreadable):
            links = [path for name in subfolders if (path := Path(place, name)).is_symlink()]
            self._problems |= dict.fromkeys(links, "a link to a folder, which is not followed; name it itself")
            pictures += [Path(place, name) for name in names if name.lower().endswith((*READABLE, *UNREADABLE))]
        self.files = sorted({*pictures, *self._problems})

    def _unreadable(self, error: OSError) -> None:
        self._problems[Path(str(error.filename))] = f"a folder that cannot be read: {error.strerror}"

    def __len__(self) -> int:
        """How many."""
        return len(self.files)

    def __getitem__(self, number: int) -> Entry:
        """See :class:`Entries`."""
        file = self.files[number]
        key = str(file.relative_to(self.folder))
        if problem := self._problems.get(file):
            return Entry(key, None, problem)
        try:
            return Entry(key, Input(read_bounded(file, MAX_BYTES)))
        except FileError as error:
            return Entry(key, None, str(error))


def open_entries(path: Path, split: str | None) -> Entries:
    """The entries of whatever ``path`` is.

    Raises:
        FileError: If it is a file that cannot be read.
        ValueError: If there is nothing in it, or it is a shard folder without the split's name.
    """
    entries: ShardEntries | FolderEntries | JsonlEntries
    if (path / "manifest.json").is_file():
        known = list(Manifest.load(path).splits)
        if split not in known:
            raise ValueError(f"{path} is a shard folder: choose one of its splits with --split {{{','.join(known)}}}")
        entries = ShardEntries(path, split)
    elif split is not None:
        raise ValueError(f"--split {split}: {path} is not a shard folder and has no splits; leave --split out")
    elif path.is_dir():
        entries = FolderEntries(path)
    else:
        entries = JsonlEntries(path)
    if not len(entries):
        raise ValueError(f"{path}: nothing to moderate in it")
    return entries


def batches(entries: Entries, size: int, start: int) -> Iterator[Sequence[Entry]]:
    """Batches of consecutive entries from entry ``start`` on, a multiple of ``size``, so that a resumed run has the same ones."""
    for first in range(start, len(entries), size):
        yield [entries[number] for number in range(first, min(first + size, len(entries)))]
