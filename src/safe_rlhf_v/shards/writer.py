"""Write records to shards: plain WebDataset tar files, an index per split, and a manifest at the very end."""

import hashlib
import io
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from safe_rlhf_v.records import Record
from safe_rlhf_v.shards.index import INDEX_DTYPE, scan_shard
from safe_rlhf_v.shards.manifest import FILE_NAME, ShardError, ShardInfo, SplitInfo, new_manifest
from safe_rlhf_v.taxonomy import Taxonomy


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class ShardWriter:
    """Write records into ``root``, split by split; equal input gives equal bytes.

    Leaving the ``with`` block normally writes the indexes, ``sizes.json`` and, last, ``manifest.json``. Leaving it by an
    exception leaves no manifest, so a half-written folder can never be mistaken for a whole one.
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
        """Args:
        root: Folder to fill; created if missing. Leftovers of a run that did not finish are replaced.
        name: Data set name.
        licence: SPDX identifier or text.
        taxonomy: Categories that records may have.
        origin: Where the data came from.
        samples_per_shard: Records per tar file; the last one of a split has fewer.

        Raises:
            ShardError: If ``root`` already holds a finished data set, or foreign files named like shards.
        """
        self.root = Path(root)
        if (self.root / FILE_NAME).exists():
            raise ShardError(f"{self.root} already holds a finished data set; delete it or choose another folder")
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.root.glob("*.tar"), *self.root.glob("*.part"), *self.root.glob("*.index.npy")]:
            leftover.unlink()
        self._about: dict[str, Any] = {"name": name, "licence": licence, "taxonomy": taxonomy, "origin": origin or {}}
        self._taxonomy, self._per_shard = taxonomy, samples_per_shard
        self._splits: dict[str, _SplitWriter] = {}
        self._keys: set[str] = set()

    def write(self, split: str, record: Record) -> None:
        """Append one record to a split.

        Raises:
            RecordError: If the record is invalid.
            ShardError: If its key was used before, or the split's name is not letters, digits, ``_`` or ``-``.
        """
        record.validate(self._taxonomy)
        if record.key in self._keys:
            raise ShardError(f"key {record.key!r} stands twice")
        if not split.replace("_", "").replace("-", "").isalnum():
            raise ShardError(f"split name {split!r} must be letters, digits, '_' or '-'")
        self._keys.add(record.key)
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self.root, split, self._taxonomy, self._per_shard)
        self._splits[split].add(record)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the folder unless an exception is under way."""
        if kind is not None:
            return
        splits = {name: split.finish() for name, split in self._splits.items()}
        sizes = {shard.file: shard.samples for split in splits.values() for shard in split.shards}
        lines = ",\n".join(f' "{file}": {count}' for file, count in sizes.items())
        write_atomically(self.root / "sizes.json", ("{\n" + lines + "\n}\n").encode())
        write_atomically(self.root / FILE_NAME, new_manifest(**self._about, splits=splits).to_json())


class _SplitWriter:
    """Shards, index rows and histograms of one split."""

    def __init__(self, root: Path, name: str, taxonomy: Taxonomy, per_shard: int) -> None:
        self.root, self.name, self.taxonomy, self.per_shard = root, name, taxonomy, per_shard
        self.pending: list[Record] = []
        self.shards: list[ShardInfo] = []
        self.rows: list[tuple[int, ...]] = []
        self.histograms: dict[str, Counter[str]] = {
            name: Counter() for name in ("category", "image_severity", "responses", "safety", "source")
        }

    def add(self, record: Record) -> None:
        self.pending.append(record)
        self.histograms["category"][record.category or "none"] += 1
        self.histograms["image_severity"][str(record.image_severity)] += 1
        self.histograms["responses"][str(len(record.responses))] += 1
        for response in record.responses:
            self.histograms["safety"][str(response.safety)] += 1
            self.histograms["source"][response.source or "unknown"] += 1
        if len(self.pending) == self.per_shard:
            self.flush()

    def flush(self) -> None:
        """Write the pending records as one tar file and index them from its headers."""
        import webdataset  # pulls torch in: only when something is written

        buffer = io.BytesIO()
        # Fixed time stamps and owners make equal records give equal bytes.
        with webdataset.TarWriter(buffer, mtime=0, user="", group="", encoder=False) as tar:
            for record in self.pending:
                members = {
                    image.format if i == 0 else f"{i}.{image.format}": image.data
                    for i, image in enumerate(record.images)
                }
                tar.write({"__key__": record.key, **members, "json": record.to_json()})
        data = buffer.getvalue()
        path = self.root / f"{self.name}-{len(self.shards):06d}.tar"
        write_atomically(path, data)
        for record, sample in zip(self.pending, scan_shard(path), strict=True):
            start = min(member.header for member in sample)
            group = int.from_bytes(hashlib.sha256(record.group.encode()).digest()[:8], "little")
            category = self.taxonomy.category_index(record.category)
            length = max(member.offset + member.size for member in sample) - start
            self.rows.append((len(self.shards), start, length, len(sample), category, group, len(record.responses)))
        self.shards.append(ShardInfo(path.name, len(self.pending), len(data), hashlib.sha256(data).hexdigest()))
        self.pending = []

    def finish(self) -> SplitInfo:
        if self.pending:
            self.flush()
        index = np.array(self.rows, dtype=INDEX_DTYPE)
        buffer = io.BytesIO()
        np.save(buffer, index, allow_pickle=False)
        file = f"{self.name}.index.npy"
        write_atomically(self.root / file, buffer.getvalue())
        about = {"file": file, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        histograms = {name: dict(sorted(counts.items())) for name, counts in self.histograms.items()}
        return SplitInfo(len(index), len(np.unique(index["group"])), tuple(self.shards), about, histograms)
