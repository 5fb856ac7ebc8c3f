"""The manifest: contents of a shard folder. It is written last, so its presence means that the folder is complete."""

import errno
import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safe_rlhf_v.records import Record
from safe_rlhf_v.records.parsing import Fields, RecordError, parse_json
from safe_rlhf_v.records.taxonomy import LEVEL_NAMES, Taxonomy
from safe_rlhf_v.records.user_files import FileError, read_bounded

FORMAT = "safe_rlhf_v.shards"
VERSION = 3
READS = (1, 2, 3)
"""Versions that are read. In version 1 a record's ``category`` was one name or ``null``, which meant "no category" in the
embedded world and "none or unknown" in other data; version 2 distinguishes the two (``[]`` and ``null``). Version 3 has
conversations and votes (see :data:`~safe_rlhf_v.records.record.READS`), and more histograms."""
NEWER_HISTOGRAMS = ("prompt_safety", "turns")
"""Histograms that only version 3 has."""
FILE_NAME = "manifest.json"
MAX_BYTES = 100_000_000
TESTING_ONLY = "testing only"
"""``origin["use"]`` of a benchmark: training on it would make its figures worthless, and some licences forbid it."""
WORLD_ORIGIN = "embedded world (synthetic)"
"""``origin["dataset"]`` of the embedded world and of data derived from it."""


class ShardError(ValueError):
    """A shard folder, shard or sample is damaged or missing; the message names it."""


class OpenFilesError(ValueError):
    """This process may open no more files; no ``ShardError``, because it says nothing about the data."""


def refuse_too_many_files(error: OSError) -> None:
    """Look whether an error is about the limit of open files and not about the file that was to be opened.

    Raises:
        OpenFilesError: If so.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise OpenFilesError(f"{error.filename}: too many open files; raise the limit, as 'ulimit -n 4096'") from None


@dataclass(frozen=True)
class ShardInfo:
    """One tar file.

    Attributes:
        file: File name.
        samples: Number of samples.
        bytes: Size in bytes.
        sha256: SHA-256 (hex) of the file.
    """

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One split: its shards, its index file with SHA-256, and statistics of its records.

    Attributes:
        samples: Number of records.
        groups: Number of distinct image groups.
        shards: Tar files in order.
        index: ``{"file": ..., "sha256": ...}``.
        histograms: Counts per category, source, safety level, ...: ``{"category": {"(none)": 12, ...}, ...}``.
        category_sets: The sets of categories that occur, to which the index's ``category`` refers.
    """

    samples: int
    groups: int
    shards: tuple[ShardInfo, ...]
    index: dict[str, str]
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    category_sets: tuple[tuple[str, ...], ...] = ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the tar files and the index file."""
        return (*(shard.file for shard in self.shards), self.index["file"])


@dataclass(frozen=True)
class Manifest:
    """A data set of shards.

    Attributes:
        name: Data set name.
        licence: SPDX identifier or text.
        taxonomy: Harm categories of the records.
        level_names: Names of the safety levels.
        harm_boundary: Levels below it are harmful.
        origin: Origin of the data, free form.
        splits: Splits by name.
        version: Version of the file format.
        digest: SHA-256 (hex) of the manifest file.
    """

    name: str
    licence: str
    taxonomy: Taxonomy
    level_names: dict[int, str]
    origin: dict[str, str]
    splits: dict[str, SplitInfo]
    harm_boundary: int = 0
    version: int = VERSION
    digest: str = ""

    @property
    def null_is_harmless(self) -> bool:
        """Whether a ``category`` of ``null`` means that the prompt has none, as in old files of the embedded world."""
        return self.version == 1 and self.origin.get("dataset") == WORLD_ORIGIN

    def check_training(self, root: str | Path) -> None:
        """Check that the data set may be trained on.

        Args:
            root: Its folder, for the message.

        Raises:
            ShardError: If it is for testing only.
        """
        if self.origin.get("use") == TESTING_ONLY:
            raise ShardError(
                f"{root}: {self.name!r:.140} is for testing only; train on other data, and name this by test_splits"
            )

    @classmethod
    def load(cls, root: str | Path) -> "Manifest":
        """Read ``root/manifest.json``.

        Raises:
            ShardError: If it is missing, unreadable or of another version, has a missing, unknown or wrongly typed field, or
                names a file outside the folder.
        """
        path = Path(root) / FILE_NAME
        try:
            path.stat()
            raw = read_bounded(path, MAX_BYTES)
            fields = Fields(parse_json(raw, str(path), MAX_BYTES), str(path))
            file_format = fields.take("format", str)
            version = fields.take("version", int)
            if file_format != FORMAT or version not in READS:
                *others, last = map(str, READS)
                reads = f"{FORMAT!r} {', '.join(others)} and {last}"
                raise ShardError(f"{path}: format {file_format!r:.80} version {version}; this reads {reads}")
            return _manifest(fields, version, hashlib.sha256(raw).hexdigest())
        except (FileNotFoundError, NotADirectoryError):
            raise ShardError(f"{path}: no manifest (is this a shard folder, and was it written to the end?)") from None
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}") from None
        except FileError as error:
            raise ShardError(str(error)) from None
        except RecordError as error:
            raise ShardError(f"{path}, field {error.field!r:.140}: {error.problem}") from None

    def to_json(self) -> bytes:
        """Canonical JSON, byte-reproducible."""
        body: dict[str, Any] = asdict(self)
        del body["digest"]
        head = {"format": FORMAT, **body}
        return (json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _manifest(fields: Fields, version: int, digest: str) -> Manifest:
    """A manifest from its JSON, which must hold every field with the right type, and no other field."""
    taxonomy = fields.inner("taxonomy")
    levels = fields.inner("level_names")
    splits = fields.inner("splits")
    space = Taxonomy(taxonomy.take("name", str), tuple(taxonomy.strings("categories")))
    if problem := space.problem():
        raise RecordError(fields.key, "taxonomy.categories", problem)
    manifest = Manifest(
        name=fields.take("name", str),
        licence=fields.take("licence", str),
        taxonomy=space,
        level_names={_level(levels, name): levels.take(name, str) for name in list(levels.body)},
        origin=_strings(fields.inner("origin")),
        splits={name: _split(splits.inner(name), version, space) for name in list(splits.body)},
        harm_boundary=fields.take("harm_boundary", int),
        version=version,
        digest=digest,
    )
    taxonomy.done()
    fields.done()
    if set(manifest.level_names) != set(LEVEL_NAMES) or manifest.harm_boundary != 0:
        where = "harm_boundary" if manifest.harm_boundary else "level_names"
        raise RecordError(fields.key, where, "defines another safety scale; this version reads -3..3, harmful below 0")
    files = [name for split in manifest.splits.values() for name in split.file_names]
    for name in files:
        if not name.isprintable() or name in ("", ".", "..") or Path(name).name != name:
            raise RecordError(fields.key, "splits", f"{name!r:.140} lies outside the shard folder")
        if len(name.encode(errors="replace")) > 255:
            raise RecordError(fields.key, "splits", f"{name!r:.140} is too long for a file's name")
    if len(set(files)) < len(files):
        duplicate = next(name for name in files if files.count(name) > 1)
        raise RecordError(fields.key, "splits", f"{duplicate!r:.140} occurs twice")
    try:
        manifest.to_json()
    except UnicodeEncodeError:
        raise RecordError(fields.key, "", "a name in it holds a lone surrogate") from None
    return manifest


def _split(fields: Fields, version: int, taxonomy: Taxonomy) -> SplitInfo:
    shards = tuple(_shard(Fields(body, fields.key, where)) for where, body in fields.items("shards"))
    index = fields.inner("index")
    histograms = fields.inner("histograms")
    split = SplitInfo(
        samples=fields.count("samples"),
        groups=fields.count("groups"),
        shards=shards,
        index={"file": index.take("file", str), "sha256": _sha256(index)},
        histograms={name: _counts(histograms.inner(name)) for name in list(histograms.body)},
        category_sets=_category_sets(fields, version, taxonomy),
    )
    index.done()
    fields.done()
    return split


def _category_sets(fields: Fields, version: int, taxonomy: Taxonomy) -> tuple[tuple[str, ...], ...]:
    """Sets of categories; in version 1 the index named single ones."""
    if version == 1:
        return tuple((name,) for name in taxonomy.categories)
    sets = []
    for where, names in fields.items("category_sets"):
        valid = isinstance(names, list) and names and all(name in taxonomy.categories for name in names)
        if not valid or len(set(names)) < len(names):
            raise RecordError(fields.key, where, f"{names!r:.140} is not a list of the taxonomy's categories")
        sets.append(tuple(names))
    return tuple(sets)


def _shard(fields: Fields) -> ShardInfo:
    shard = ShardInfo(fields.take("file", str), fields.count("samples"), fields.count("bytes"), _sha256(fields))
    fields.done()
    return shard


def _sha256(fields: Fields) -> str:
    value = str(fields.take("sha256", str))
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise RecordError(fields.key, fields.path("sha256"), "must be 64 hexadecimal digits")
    return value


def _counts(fields: Fields) -> dict[str, int]:
    return {name: fields.count(name) for name in list(fields.body)}


def _strings(fields: Fields) -> dict[str, str]:
    return {name: fields.take(name, str) for name in list(fields.body)}


def _level(fields: Fields, name: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,3}", name):
        raise RecordError(fields.key, fields.path(name), "is not a level")
    return int(name)


def new_manifest(
    name: str, licence: str, taxonomy: Taxonomy, origin: dict[str, str], splits: dict[str, SplitInfo]
) -> Manifest:
    """A manifest with the seven-level safety scale."""
    return Manifest(name, licence, taxonomy, dict(LEVEL_NAMES), dict(origin), splits)


class Histograms:
    """Counts of a split's labels: categories, severity, number of turns and responses, safety levels and sources."""

    def __init__(self) -> None:
        """Start with empty counts."""
        names = ("category", "image_severity", "prompt_safety", "responses", "safety", "source", "turns")
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, record: Record) -> None:
        """Count the labels of one record."""
        self._counts["category"].update(("(unknown)",) if record.category is None else record.category or ("(none)",))
        self._counts["image_severity"][str(record.image_severity)] += 1
        self._counts["prompt_safety"][str(record.prompt_safety)] += 1
        self._counts["turns"][str(len(record.turns))] += 1
        self._counts["responses"][str(len(record.responses))] += 1
        for response in record.responses:
            self._counts["safety"][str(response.safety)] += 1
            self._counts["source"][response.source or "unknown"] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """The counts as the manifest stores them."""
        return {name: dict(sorted(counts.items())) for name, counts in self._counts.items()}
