"""Write records to shards: plain WebDataset tar files, an index per split, and the manifest last."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

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
)
from safe_rlhf_v.shards.manifest import Histograms, Manifest, ShardError, ShardInfo, SplitInfo, new_manifest
from safe_rlhf_v.shards.tar import GrowingTar, Place
from safe_rlhf_v.shards.target import SIZES, SPLIT_NAME, Target


def encoded(record: Record, taxonomy: Taxonomy | None) -> bytes:
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

    A resumable writer keeps its files in both cases. Whoever uses it notes what :meth:`write` and :meth:`mark` give, hands the
    notes to the next writer (:meth:`remember`, :meth:`remember_mark`, then :meth:`go_on`), and repeats what came after the
    last mark; the files are then those of an uninterrupted run.

    Attributes:
        target: The folder.
        extras: Makes further files (name and content) of the manifest, before that is written.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str,
        licence: str,
        taxonomy: Taxonomy | None,
        origin: dict[str, str] | None = None,
        samples_per_shard: int = 512,
        resumable: bool = False,
    ) -> None:
        """Prepare the folder.

        Args:
            root: Folder to write into; created if missing. Files of an interrupted run of this library are replaced.
            name: Data set name.
            licence: SPDX identifier or text.
            taxonomy: Categories that records may have; ``None`` allows all, and the manifest states those that occur.
            origin: Origin of the data.
            samples_per_shard: Records per tar file; the last one of a split may have fewer.
            resumable: Keep what an interrupted run has written, see above.

        Raises:
            ShardError: If ``root`` holds a finished data set or files of others named like shards, is being written by another
                process, or cannot be written to.
            ValueError: If ``samples_per_shard`` is not positive, or a name cannot be written.
        """
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {samples_per_shard}; it must be positive")
        _check_names(name, licence, taxonomy or Taxonomy(name, ()), origin or {})
        self.root = Path(root)
        self.target = Target(root, resume=resumable)
        self.extras: Callable[[Manifest], dict[str, bytes]] = lambda manifest: {}
        self._about: dict[str, Any] = {"name": name, "licence": licence, "origin": origin or {}}
        self._taxonomy = taxonomy
        self._per_shard = samples_per_shard
        self._resumable = resumable
        self._splits: dict[str, _SplitWriter] = {}
        self._keys: set[str] = set()

    def write(self, split: str, record: Record) -> Place:
        """Append one record to a split.

        Returns:
            Where it stands.

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
        place = self._split(split).add(record, body)
        self._keys.add(record.key)
        return place

    def __contains__(self, key: str) -> bool:
        """Whether a record of this key was written."""
        return key in self._keys

    def mark(self) -> dict[str, Any]:
        """Hand everything to the system; gives the shards completed since the last mark and the sizes of open ones."""
        return {name: split.mark() for name, split in self._splits.items()}

    def remember(self, split: str, record: Record, place: Place) -> None:
        """Count a record that an interrupted run has written; its texts are not needed."""
        self._keys.add(record.key)
        self._split(split).note(record, place)

    def remember_mark(self, mark: Mapping[str, Any]) -> None:
        """Take over what :meth:`mark` gave to an interrupted run.

        Raises:
            TypeError, KeyError, ValueError: If it is no such thing.
        """
        for name, about in mark.items():
            split = self._split(name)
            split.shards += [ShardInfo(**shard) for shard in about["shards"]]
            split.marked = len(split.shards)
            split.open_bytes = int(about["bytes"])

    def go_on(self) -> None:
        """Open the unfinished shards behind the last record that was remembered.

        Raises:
            ShardError: If files are missing or were changed.
        """
        splits = self._splits.values()
        complete = {shard.file: shard.bytes for split in splits for shard in split.shards}
        files = self.target.keep(complete, {split.file: split.open_bytes for split in splits if split.open_bytes})
        for split in splits:
            if split.open_bytes:
                split.reopen(files[split.file])

    def _split(self, name: str) -> "_SplitWriter":
        if name not in self._splits:
            self._splits[name] = _SplitWriter(self.target, name, self._per_shard)
        return self._splits[name]

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the folder, or, after an exception, delete the written files or leave them to the next run."""
        give_up = self.target.leave if self._resumable else self.discard
        if kind is not None:
            give_up()
            return
        try:
            splits = {name: split.finish() for name, split in self._splits.items()}
            sizes = {shard.file: shard.samples for split in splits.values() for shard in split.shards}
            lines = ",\n".join(f' "{file}": {count}' for file, count in sizes.items())
            self.target.add(SIZES, ("{\n" + lines + "\n}\n").encode())
            names = {name for split in splits.values() for categories in split.category_sets for name in categories}
            taxonomy = self._taxonomy or Taxonomy(self._about["name"], tuple(sorted(names)))
            manifest = new_manifest(**self._about, taxonomy=taxonomy, splits=splits)
            for name, data in self.extras(manifest).items():
                self.target.add(name, data)
            self.target.finish(manifest.to_json())
        except BaseException:
            give_up()
            raise

    def discard(self) -> None:
        """Delete the written files."""
        for split in self._splits.values():
            split.close()
        self.target.discard()


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
    """Shards, index rows and histograms of one split.

    Attributes:
        marked: Number of shards that the last mark named.
        open_bytes: Size of the unfinished shard, as an interrupted run has marked it.
    """

    def __init__(self, target: Target, name: str, per_shard: int) -> None:
        self.target = target
        self.name = name
        self.per_shard = per_shard
        self.tar: GrowingTar | None = None
        self.shards: list[ShardInfo] = []
        self.marked = 0
        self.open_bytes = 0
        self.rows: list[tuple[int | bytes, ...]] = []
        self.places: list[Place] = []
        self.category_sets: dict[tuple[str, ...], int] = {}
        self.histograms = Histograms()

    @property
    def file(self) -> str:
        """Name of the unfinished shard."""
        return f"{self.name}-{len(self.shards):06d}.tar"

    def add(self, record: Record, body: bytes) -> Place:
        """Append a record to the unfinished shard, and complete the shard if it is full."""
        with self.target.writing(self.file):
            if self.tar is None:
                self.tar = GrowingTar(self.target.begin(self.file), len(self.shards))
            # As WebDataset orders the members of a sample: by name.
            images = zip(member_names(record), (image.data for image in record.images), strict=True)
            members = sorted([*images, ("json", body)])
            place = self.tar.add((f"{record.key}.{name}", data) for name, data in members)
        self.note(record, place)
        if self.tar.samples == self.per_shard:
            self.complete()
        return place

    def note(self, record: Record, place: Place) -> None:
        """Count a record that stands in a shard."""
        category = self.category_number(record.category)
        digest = bytes.fromhex(place.digest)
        self.rows.append((*place[:4], category, group_hash(record), len(record.responses), digest))
        if self.places and self.places[0].shard != place.shard:
            self.places = []
        self.places.append(place)
        self.histograms.add(record)

    def complete(self) -> None:
        """Complete the unfinished shard."""
        assert self.tar is not None
        with self.target.writing(self.file):
            sha256 = self.tar.end()
            self.target.complete(self.file, self.tar.file, sha256)
        self.shards.append(ShardInfo(self.file, self.tar.samples, self.tar.size, sha256))
        self.tar = None

    def mark(self) -> dict[str, Any]:
        """See :meth:`ShardWriter.mark`."""
        with self.target.writing(self.file):
            if self.tar is not None:
                self.tar.flush()
        new = [asdict(shard) for shard in self.shards[self.marked :]]
        self.marked = len(self.shards)
        return {"shards": new, "bytes": self.tar.size if self.tar else 0}

    def reopen(self, file: BinaryIO) -> None:
        """Go on with the unfinished shard of an interrupted run."""
        with self.target.writing(self.file):
            self.tar = GrowingTar.reopened(file, len(self.shards), self.places)

    def category_number(self, category: tuple[str, ...] | None) -> int:
        """The number of a record's category in the index."""
        if not category:
            return UNKNOWN_CATEGORY if category is None else NO_CATEGORY
        return self.category_sets.setdefault(tuple(sorted(category)), len(self.category_sets))

    def close(self) -> None:
        """Close the unfinished shard."""
        if self.tar is not None:
            with contextlib.suppress(OSError):
                self.tar.file.close()

    def finish(self) -> SplitInfo:
        """Complete the last shard, and write the index."""
        if self.tar is not None:
            self.complete()
        index = np.array(self.rows, dtype=INDEX_DTYPE)
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        file = f"{self.name}.index.npy"
        self.target.add(file, buffer.getvalue())
        about = {"file": file, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        groups = len(np.unique(index["group"]))
        sets = tuple(self.category_sets)
        return SplitInfo(len(index), groups, tuple(self.shards), about, self.histograms.counts(), sets)
