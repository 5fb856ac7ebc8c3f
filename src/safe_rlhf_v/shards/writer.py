"""Write records to shards: plain WebDataset tar files, an index per split, and the manifest last."""

import hashlib
import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from safe_rlhf_v.records import Record, RecordError
from safe_rlhf_v.records.parsing import check_text
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards.index import (
    INDEX_DTYPE,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_NAME_BYTES,
    NO_CATEGORY,
    UNKNOWN_CATEGORY,
    group_hash,
    sample_digest,
    scan_shard,
)
from safe_rlhf_v.shards.manifest import Histograms, ShardError, ShardInfo, SplitInfo, new_manifest
from safe_rlhf_v.shards.target import SIZES, SPLIT_NAME, Target


def encoded(record: Record, taxonomy: Taxonomy) -> bytes:
    """The JSON of a record, after the same checks that readers make.

    Raises:
        RecordError: Naming key and field.
    """
    try:
        body = record.to_json()
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        record.validate(taxonomy)
        raise RecordError(record.key, "json", f"cannot be written ({error})") from None
    images = tuple(image.data for image in record.images)
    Record.from_json(body, images, record.key, taxonomy)
    if len(images) > MAX_MEMBERS:
        raise RecordError(record.key, "images", f"{len(images)} images, the limit is {MAX_MEMBERS}")
    longest = max(map(len, [*member_names(record), "json"]))
    if len(record.key) + 1 + longest > MAX_NAME_BYTES:
        raise RecordError(
            record.key, "key", f"must be at most {MAX_NAME_BYTES - 1 - longest} characters for these images"
        )
    for i, image in enumerate(record.images):
        if len(image.data) > MAX_MEMBER_BYTES:
            raise RecordError(record.key, f"images[{i}]", f"{len(image.data)} bytes, the limit is {MAX_MEMBER_BYTES}")
        if hashlib.sha256(image.data).hexdigest() != image.sha256:
            raise RecordError(record.key, f"images[{i}].sha256", "is not the SHA-256 of the bytes")
    return body


def member_names(record: Record) -> list[str]:
    """File names of the images, without ``KEY.``."""
    return [image.format if i == 0 else f"{i}.{image.format}" for i, image in enumerate(record.images)]


class ShardWriter:
    """Write records into ``root``, split by split; equal input gives equal bytes.

    At the end of the ``with`` block it writes the indexes, ``sizes.json`` and, last, ``manifest.json``. An exception in the
    block deletes the written files. A killed process leaves no manifest, so an incomplete folder cannot be mistaken for a
    complete one, and a journal by which the next writer recognises the leftovers. Files of others are not touched.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str,
        licence: str,
        taxonomy: Taxonomy,
        origin: dict[str, str] | None = None,
        samples_per_shard: int = 512,
    ) -> None:
        """Prepare the folder.

        Args:
            root: Folder to write into; created if missing. Files of an interrupted run of this library are replaced.
            name: Data set name.
            licence: SPDX identifier or text.
            taxonomy: Categories that records may have.
            origin: Origin of the data.
            samples_per_shard: Records per tar file; the last one of a split may have fewer.

        Raises:
            ShardError: If ``root`` holds a finished data set or files of others named like shards, is being written by another
                process, or cannot be written to.
            ValueError: If ``samples_per_shard`` is not positive, or a name cannot be written.
        """
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; it must be positive")
        _check_names(name, licence, taxonomy, origin or {})
        self.root = Path(root)
        self._target = Target(root)
        self._about: dict[str, Any] = {"name": name, "licence": licence, "taxonomy": taxonomy, "origin": origin or {}}
        self._taxonomy = taxonomy
        self._per_shard = samples_per_shard
        self._splits: dict[str, _SplitWriter] = {}
        self._keys: set[str] = set()

    def write(self, split: str, record: Record) -> None:
        """Append one record to a split.

        Raises:
            RecordError: If the record is invalid; it is not written, and further records can be.
            ShardError: If its key was used before, the split's name is not letters, digits, ``_`` or ``-``, or the disk is
                full.
        """
        body = encoded(record, self._taxonomy)
        if record.key in self._keys:
            raise ShardError(f"key {record.key!r} occurs twice")
        if not SPLIT_NAME.fullmatch(split):
            raise ShardError(f"split name {split!r:.140} must be 1-100 letters, digits, '_' or '-'")
        self._keys.add(record.key)
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self._target, split, self._taxonomy, self._per_shard)
        self._splits[split].add(record, body)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the folder, or delete the written files after an exception."""
        if kind is not None:
            self._target.discard()
            return
        try:
            splits = {name: split.finish() for name, split in self._splits.items()}
            sizes = {shard.file: shard.samples for split in splits.values() for shard in split.shards}
            lines = ",\n".join(f' "{file}": {count}' for file, count in sizes.items())
            self._target.add(SIZES, ("{\n" + lines + "\n}\n").encode())
            self._target.finish(new_manifest(**self._about, splits=splits).to_json())
        except BaseException:
            self._target.discard()
            raise


def _check_names(name: str, licence: str, taxonomy: Taxonomy, origin: dict[str, str]) -> None:
    """Check before anything is written that the manifest can hold the data set's names.

    Raises:
        ValueError: Naming what the manifest cannot hold.
    """
    texts = {"name": name, "licence": licence, "taxonomy": "".join((taxonomy.name, *taxonomy.categories))}
    for where, text in {**texts, "origin": "".join((*origin, *origin.values()))}.items():
        if problem := check_text(text):
            raise ValueError(f"{where} of the data set: {problem}")
    if problem := taxonomy.problem():
        raise ValueError(f"categories of the data set: {problem}")


class _SplitWriter:
    """Shards, index rows and histograms of one split."""

    def __init__(self, target: Target, name: str, taxonomy: Taxonomy, per_shard: int) -> None:
        self.target = target
        self.name = name
        self.taxonomy = taxonomy
        self.per_shard = per_shard
        self.pending: list[tuple[Record, bytes]] = []
        self.shards: list[ShardInfo] = []
        self.rows: list[tuple[int | bytes, ...]] = []
        self.category_sets: dict[tuple[str, ...], int] = {}
        self.histograms = Histograms()

    def add(self, record: Record, body: bytes) -> None:
        self.pending.append((record, body))
        self.histograms.add(record)
        if len(self.pending) == self.per_shard:
            self.flush()

    def flush(self) -> None:
        """Write the pending records as one tar file and index them from its headers."""
        import webdataset  # imports torch: only when something is written

        buffer = io.BytesIO()
        # Fixed time stamps and owners make equal records give equal bytes.
        with webdataset.TarWriter(buffer, mtime=0, user="", group="", encoder=False) as tar:
            for record, body in self.pending:
                members = zip(member_names(record), (image.data for image in record.images), strict=True)
                tar.write({"__key__": record.key, **dict(members), "json": body})
        data = buffer.getvalue()
        file = f"{self.name}-{len(self.shards):06d}.tar"
        self.target.add(file, data)
        for (record, _), sample in zip(self.pending, scan_shard(self.target.root / file), strict=True):
            start = min(member.header for member in sample)
            end = max(member.offset + member.size for member in sample)
            category = self.category_number(record.category)
            digest = sample_digest(data[start:end])
            place = (len(self.shards), start, end - start, len(sample))
            self.rows.append((*place, category, group_hash(record), len(record.responses), digest))
        self.shards.append(ShardInfo(file, len(self.pending), len(data), hashlib.sha256(data).hexdigest()))
        self.pending = []

    def category_number(self, category: tuple[str, ...] | None) -> int:
        """The number of a record's category in the index."""
        if not category:
            return UNKNOWN_CATEGORY if category is None else NO_CATEGORY
        return self.category_sets.setdefault(tuple(sorted(category)), len(self.category_sets))

    def finish(self) -> SplitInfo:
        if self.pending:
            self.flush()
        index = np.array(self.rows, dtype=INDEX_DTYPE)
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        file = f"{self.name}.index.npy"
        self.target.add(file, buffer.getvalue())
        about = {"file": file, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        groups = len(np.unique(index["group"]))
        sets = tuple(self.category_sets)
        return SplitInfo(len(index), groups, tuple(self.shards), about, self.histograms.counts(), sets)
