"""Random access to the records of one split through its index: one ``pread`` per sample, without streaming or pickle."""

import contextlib
import hashlib
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.records import Record, RecordError
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards.index import MEMBER, Index, Member, check_members, load_index, sample_digest
from safe_rlhf_v.shards.manifest import Manifest, ShardError, refuse_too_many_files

OPEN_FILES = 64
"""Shards that a split has open at once: a process may open a limited number of files."""


class ShardedSplit:
    """The records of one split, by number.

    Attributes:
        root: Shard folder.
        name: Split name.
        manifest: The folder's manifest.
        index: One row per record (see ``INDEX_DTYPE``).
    """

    def __init__(self, root: str | Path, split: str, *, verify: Literal["size", "sha256"] = "size") -> None:
        """Open a split and check that its files are the ones the manifest states.

        Args:
            root: Shard folder.
            split: Split name.
            verify: ``size`` compares file sizes and the index's hash, ``sha256`` every byte (about 1 GB/s per core).

        Raises:
            ShardError: If the split does not exist, or a file is missing or differs from the manifest.
        """
        self.root = Path(root)
        self.name = split
        self.manifest = Manifest.load(root)
        if split not in self.manifest.splits:
            raise ShardError(f"{root}: no split {split!r}; there are: {', '.join(self.manifest.splits)}")
        info = self.manifest.splits[split]
        self.files = tuple(shard.file for shard in info.shards)
        for shard in info.shards:
            _verify(self.root / shard.file, shard.bytes, shard.sha256 if verify == "sha256" else None)
        path = self.root / info.index["file"]
        self.index: Index = load_index(path, info.index["sha256"], [shard.bytes for shard in info.shards])
        if len(self.index) != info.samples:
            raise ShardError(f"{path}: {len(self.index)} rows, the manifest states {info.samples} samples")
        self._digests = "digest" in (self.index.dtype.names or ())
        self._paths = tuple(str(self.root / file) for file in self.files)
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of records."""
        return len(self.index)

    def rows_of(self, categories: Iterable[str]) -> list[int]:
        """Numbers of the records that have at least one of these harm categories.

        Raises:
            ValueError: If the manifest's taxonomy does not have one of them.
        """
        selected = set(categories)
        for name in selected:
            self.manifest.taxonomy.category_index(name)
        sets = self.manifest.splits[self.name].category_sets
        numbers = [i for i, names in enumerate(sets) if selected & {*names}]
        return np.flatnonzero(np.isin(self.index["category"], numbers)).tolist()

    @property
    def groups(self) -> NDArray[np.uint64]:
        """(n,) hash of each record's image group."""
        return self.index["group"]

    def __getitem__(self, row: int) -> Record:
        """Read one record, check its bytes against their hash, and validate it.

        Raises:
            ShardError: Naming shard and key (and field, for a record that breaks the schema).
        """
        shard, offset, length, members, *_, digest = self.index[row].item()
        try:
            data = os.pread(self._handle(shard), length, offset)
        except (OSError, MemoryError) as error:
            raise ShardError(f"{self._paths[shard]}: cannot be read ({error})") from None
        record = parse_sample(
            data, members, self.files[shard], digest if self._digests else None, self.manifest.taxonomy
        )
        if record.category is None and self.manifest.null_is_harmless:
            return replace(record, category=())
        return record

    def file_of(self, row: int) -> str:
        """Path of the shard that holds a record, for messages."""
        return self._paths[int(self.index["shard"][row])]

    def _handle(self, shard: int) -> int:
        """A file descriptor of this process for a shard; beyond ``OPEN_FILES`` the one used longest ago is closed."""
        handle = self._handles.pop(shard, None)
        if handle is None:
            if len(self._handles) >= OPEN_FILES:
                os.close(self._handles.pop(next(iter(self._handles))))
            try:
                handle = os.open(self.root / self.files[shard], os.O_RDONLY)
            except OSError as error:
                refuse_too_many_files(error)
                raise ShardError(f"{self.root / self.files[shard]}: {error.strerror}") from None
        self._handles[shard] = handle  # at the end: the order of the dict is the order of use
        return handle

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling, without the open files: worker processes open their own."""
        return {**self.__dict__, "_handles": {}}

    def __del__(self) -> None:
        """Close the files."""
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def parse_sample(
    data: bytes, members: int, shard: str, digest: bytes | None = None, taxonomy: Taxonomy | None = None
) -> Record:
    """A record from the bytes of its adjacent tar members.

    Args:
        data: Bytes from the first member's header to the end of the last member.
        members: Number of members.
        shard: Name of the shard, for messages.
        digest: Digest of ``data`` in the index; without it only the images are verified, by the hashes in the JSON.
        taxonomy: Categories that the record may have.

    Raises:
        ShardError: Naming shard and key (and field).
    """
    if digest is not None and sample_digest(data) != digest:
        raise ShardError(f"{shard}: record {_key_of(data)}: its bytes do not match their SHA-256: damaged or changed")
    sample: list[Member] = []
    position = 0
    while position + 512 <= len(data) and len(sample) < members:
        sample.append(Member.at(data, position, shard, verified=digest is not None))
        position += 512 + -(-sample[-1].size // 512) * 512
    if len(sample) != members or sample[-1].offset + sample[-1].size > len(data):
        raise ShardError(f"{shard}: sample {sample[0].key if sample else '?'!r} is cut off")
    if len({member.key for member in sample}) > 1:
        raise ShardError(f"{shard}: the index mixes samples {sorted({m.key for m in sample})}; run 'shards check'")
    check_members(sample, shard)
    key = sample[0].key
    bodies = [data[m.offset : m.offset + m.size] for m in sample]
    try:
        record = Record.from_json(bodies[-1], tuple(bodies[:-1]), key, taxonomy)
    except RecordError as error:
        raise ShardError(f"{shard}: {error}") from None
    for member, image in zip(sample, record.images, strict=False):
        if member.suffix != image.format:
            raise ShardError(
                f"{shard}: record {key!r}: the image is stored as {member.suffix}, its JSON says {image.format}"
            )
        if digest is None and hashlib.sha256(image.data).hexdigest() != image.sha256:
            raise ShardError(f"{shard}: record {key!r}, field 'images': the bytes do not match their SHA-256")
    return record


def _key_of(data: bytes) -> str:
    """The key in the first undamaged member header of a sample or in its JSON, for messages."""
    for position in range(0, len(data) - 511, 512):
        with contextlib.suppress(tarfile.TarError, ValueError):
            info = tarfile.TarInfo.frombuf(data[position : position + 512], "utf-8", "strict")
            if match := MEMBER.fullmatch(info.name):
                return repr(match["key"])
    stated = re.search(rb'"key":"([A-Za-z0-9_\-]{1,128})"', data)
    return repr(stated[1].decode()) if stated else "?"


def _verify(path: Path, size: int | None, sha256: str | None) -> None:
    """Compare a file with the manifest.

    Raises:
        ShardError: If the file is missing, or its size or hash differs.
    """
    try:
        if not path.is_file():
            raise ShardError(f"{path}: the manifest states this file, but it is missing")
        if size is not None and path.stat().st_size != size:
            raise ShardError(f"{path}: {path.stat().st_size} bytes, the manifest states {size}: damaged or cut off")
        if sha256 is not None and file_sha256(path) != sha256:
            raise ShardError(f"{path}: its SHA-256 is not the one in the manifest: damaged or changed")
    except OSError as error:
        refuse_too_many_files(error)
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_of(group: str, fractions: dict[str, float], salt: str = "") -> str:
    """The split of a group, chosen by hash, so that a group stays in its split when data are added.

    Args:
        group: ``Record.group``.
        fractions: Split name to share; each lies in 0..1, and they sum to 1.
        salt: Another salt gives another assignment.

    Raises:
        ValueError: If they do not.
    """
    if not all(0 <= share <= 1 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"split fractions must each lie in 0..1 and sum to 1, got {fractions}")
    position = int(hashlib.sha256((salt + group).encode()).hexdigest()[:12], 16) / 16**12
    for name, share in fractions.items():
        if position < share:
            return name
        position -= share
    return next(reversed(fractions))
