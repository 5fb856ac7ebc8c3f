"""Find every problem of a shard folder; everything that the manifest states is recomputed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from safe_rlhf_v.records import Record
from safe_rlhf_v.records.parsing import RecordError, parse_json
from safe_rlhf_v.records.user_files import FileError, read_bounded
from safe_rlhf_v.shards.contradictions import contradictions
from safe_rlhf_v.shards.images import ImageError, probe
from safe_rlhf_v.shards.index import NO_CATEGORY, UNKNOWN_CATEGORY, Member, group_hash, scan_shard
from safe_rlhf_v.shards.manifest import (
    FILE_NAME,
    MAX_BYTES,
    NEWER_HISTOGRAMS,
    Histograms,
    Manifest,
    ShardError,
    ShardInfo,
    SplitInfo,
    refuse_too_many_files,
)
from safe_rlhf_v.shards.split import ShardedSplit, file_sha256, parse_sample
from safe_rlhf_v.shards.target import OURS, SIZES


@dataclass(frozen=True)
class Finding:
    """One problem of a shard folder.

    Attributes:
        severity: ``error``: the folder is damaged or breaks the schema. ``warning``: labels contradict each other, or a file
            does not belong to the folder; such data can be used for training.
        kind: Kind of a contradiction, one of :data:`~safe_rlhf_v.shards.contradictions.KINDS`; else ``""``.
        file: Shard or other file.
        key: Key of the record, or ``""``.
        field: Field of the record, or ``""``.
        problem: What is wrong.
    """

    severity: Literal["error", "warning"]
    kind: str
    file: str
    key: str
    field: str
    problem: str

    def __str__(self) -> str:
        """The finding in one line."""
        place = f": record {self.key!r}" if self.key else ""
        place += f", field {self.field!r}" if self.field else ""
        return f"{self.file}{place}: {self.problem}" if self.file else self.problem


def check(root: str | Path, *, progress: bool = False) -> list[str]:
    """Every error of :func:`examine`, one line each; empty without errors."""
    return [str(finding) for finding in examine(root, progress=progress) if finding.severity == "error"]


def examine(root: str | Path, *, progress: bool = False) -> Iterator[Finding]:
    """Every finding, each with its file, and with shard, key and field where they are known.

    This recomputes sizes and SHA-256 of all files, the index from the tar headers and from the records, every sample's hash,
    every record against the schema and the taxonomy, every image (decoded, both hashes), counts and histograms; it checks
    that keys are unique and that no image is in two splits. Labels of a record are also compared with each other.

    Args:
        root: Shard folder.
        progress: Show a progress bar.
    """
    root = Path(root)
    try:
        manifest = Manifest.load(root)
        yield from _unlisted_files(root, manifest)
        yield from _sizes(root, manifest)
    except ShardError as error:
        yield _error("", str(error))
        return
    seen = _SeenRecords()
    with tqdm(
        total=sum(s.samples for s in manifest.splits.values()), desc="checking", disable=None if progress else True
    ) as bar:
        for name, about in manifest.splits.items():
            yield from _files(root, about)
            histograms = Histograms()
            groups = set()
            complete = True
            for shard, row, record in _records(root, manifest, name):
                bar.update()
                if isinstance(record, Finding):
                    complete = False  # the counts of the other records differ from the manifest's
                    yield record
                    continue
                histograms.add(record)
                groups.add(record.group)
                problems = [
                    *_row_problems(row, record, manifest, about),
                    *_image_problems(record),
                    *seen.problems(name, shard, record),
                ]
                yield from (_error(shard, problem, record.key, where) for where, problem in problems)
                for kind, where, problem in contradictions(record):
                    yield Finding("warning", kind, shard, record.key, where, problem)
            stated = dict(about.histograms)
            counts = histograms.counts()
            if manifest.version == 1:  # it names "none" and "unknown" differently
                stated["category"] = counts["category"]
            if manifest.version < 3:
                counts = {name: count for name, count in counts.items() if name not in NEWER_HISTOGRAMS}
            if complete and (len(groups), counts) != (about.groups, stated):
                yield _error(FILE_NAME, f"split {name!r}: its groups or histograms are not those of the records")
    yield from seen.twins()


def _error(file: str, problem: str, key: str = "", where: str = "") -> Finding:
    return Finding("error", "", file, key, where, problem)


def _unlisted_files(root: Path, manifest: Manifest) -> Iterator[Finding]:
    """Tar and index files that are not in the manifest; an error if they are named like shards of the data set."""
    listed = {name for split in manifest.splits.values() for name in split.file_names} | {FILE_NAME, SIZES}
    for path in sorted(root.iterdir()):
        if path.suffix in (".tar", ".npy", ".part") and path.name not in listed:
            severity: Literal["error", "warning"] = "error" if OURS.fullmatch(path.name) else "warning"
            yield Finding(severity, "", path.name, "", "", "not in the manifest")


def _sizes(root: Path, manifest: Manifest) -> Iterator[Finding]:
    """Problems of the list of shards for readers of plain WebDataset."""
    stated = {shard.file: shard.samples for split in manifest.splits.values() for shard in split.shards}
    try:
        if parse_json(read_bounded(root / SIZES, MAX_BYTES), "", MAX_BYTES) != stated:
            yield _error(SIZES, "states other shards or numbers of samples than the manifest")
    except (FileError, RecordError) as error:
        yield _error(SIZES, error.problem if isinstance(error, RecordError) else str(error).rpartition(": ")[2])


def _files(root: Path, split: SplitInfo) -> Iterator[Finding]:
    """Missing files and wrong hashes."""
    for file, sha256 in [*((s.file, s.sha256) for s in split.shards), (split.index["file"], split.index["sha256"])]:
        try:
            if not (root / file).is_file():
                yield _error(file, "missing")
            elif file_sha256(root / file) != sha256:
                yield _error(file, "its SHA-256 is not the one in the manifest: damaged or changed")
        except OSError as error:
            refuse_too_many_files(error)
            yield _error(file, f"cannot be read ({error.strerror})")


def _records(root: Path, manifest: Manifest, name: str) -> Iterator[tuple[str, np.void | None, Record | Finding]]:
    """Shard, row of the index if there is one, and the record or what is wrong with it.

    Records are read through the index, or through the tar headers if the index is damaged.
    """
    about = manifest.splits[name]
    try:
        split: ShardedSplit | None = ShardedSplit(root, name)
    except ShardError as error:
        split = None
        yield "", None, _error("", str(error))
    for number, shard in enumerate(about.shards):
        try:
            samples: list[list[Member]] | None = scan_shard(root / shard.file)
        except ShardError as error:
            samples = None
            yield shard.file, None, _error("", str(error))
        if split is None:
            for record in _by_headers(root / shard.file, samples or [], manifest):
                yield shard.file, None, record
        else:
            yield from _by_index(split, number, samples)
        yield from ((shard.file, None, finding) for finding in _count(shard, samples))


def _count(shard: ShardInfo, samples: list[list[Member]] | None) -> Iterator[Finding]:
    if samples is not None and len(samples) != shard.samples:
        yield _error(shard.file, f"{len(samples)} complete samples, the manifest states {shard.samples}")


def _by_index(
    split: ShardedSplit, number: int, samples: list[list[Member]] | None
) -> Iterator[tuple[str, np.void | None, Record | Finding]]:
    """Records of a shard as training reads them."""
    rows = np.flatnonzero(split.index["shard"] == number).tolist()
    for row in rows:
        try:
            yield split.files[number], split.index[row], split[row]
        except ShardError as error:
            yield split.files[number], None, _error("", str(error))
    if samples is not None:
        stated = [tuple(int(split.index[row][name]) for name in ("offset", "length", "members")) for row in rows]
        if stated != [(*_span(sample), len(sample)) for sample in samples]:
            file = split.manifest.splits[split.name].index["file"]
            yield file, None, _error(file, f"does not match the members of {split.files[number]}")


def _by_headers(path: Path, samples: list[list[Member]], manifest: Manifest) -> Iterator[Record | Finding]:
    """Records of a shard without an index."""
    try:
        with path.open("rb") as file:
            for sample in samples:
                offset, length = _span(sample)
                file.seek(offset)
                try:
                    yield parse_sample(file.read(length), len(sample), path.name, None, manifest.taxonomy)
                except ShardError as error:
                    yield _error("", str(error))
    except OSError as error:
        refuse_too_many_files(error)
        yield _error(path.name, f"cannot be read ({error.strerror})")


def _span(sample: list[Member]) -> tuple[int, int]:
    """Offset and length of a sample."""
    start = min(member.header for member in sample)
    return start, max(member.offset + member.size for member in sample) - start


def _row_problems(
    row: np.void | None, record: Record, manifest: Manifest, split: SplitInfo
) -> Iterator[tuple[str, str]]:
    """Differences between a record and the index's copies of its fields."""
    if row is None:
        return
    if (int(row["group"]), int(row["responses"])) != (group_hash(record), len(record.responses)):
        yield "", "the index states another image group or number of responses"
    numbers = {frozenset(names): number for number, names in enumerate(split.category_sets)}
    number = NO_CATEGORY if record.category == () else numbers.get(frozenset(record.category or ()), UNKNOWN_CATEGORY)
    if manifest.version > 1 and int(row["category"]) != number:
        yield "category", "the index states another"


def _image_problems(record: Record) -> Iterator[tuple[str, str]]:
    """What is wrong with a record's images."""
    for i, image in enumerate(record.images):
        try:
            probed = probe(image.data)
        except ImageError as error:
            yield f"images[{i}]", str(error)
            continue
        if hashlib.sha256(image.data).hexdigest() != image.sha256:
            yield f"images[{i}].sha256", "the bytes do not match"
        if (probed.id, probed.format, probed.width, probed.height) != (
            image.id,
            image.format,
            image.width,
            image.height,
        ):
            yield f"images[{i}]", "id, format or size do not match the picture"


@dataclass
class _SeenRecords:
    """Properties of the records so far that other records must agree with."""

    keys: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    partners: dict[str, tuple[str, str]] = field(default_factory=dict)

    def problems(self, split: str, shard: str, record: Record) -> Iterator[tuple[str, str]]:
        """Keys, images and prompts that occur elsewhere, too."""
        if record.key in self.keys:
            yield "key", f"occurs in split {self.keys[record.key]!r} too"
        self.keys[record.key] = split
        others = [self.groups.setdefault(member, split) for member in record.group_members]
        if other := next((name for name in others if name != split), ""):
            yield "", f"its {'image' if record.images else 'prompt'} occurs in split {other!r} too"
        if record.truth is not None and record.truth.twin:
            self.partners[record.key] = (shard, record.truth.twin)

    def twins(self) -> Iterator[Finding]:
        """Counterfactual partners that do not exist, or do not name each other."""
        for key, (shard, twin) in self.partners.items():
            if self.partners.get(twin, ("", ""))[1] != key:
                problem = f"{twin!r:.140} {'names another' if twin in self.keys else 'does not exist'}"
                yield Finding("warning", "twin", shard, key, "truth.twin", problem)
