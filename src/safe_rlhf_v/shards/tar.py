"""A tar file that grows by one sample at a time: plain WebDataset, equal samples give equal bytes."""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO, NamedTuple

from safe_rlhf_v.shards.index import sample_digest
from safe_rlhf_v.shards.manifest import ShardError

_BLOCK = 512


class Place(NamedTuple):
    """Where a sample stands.

    Attributes:
        shard: Number of the shard within its split.
        offset: First byte of the sample.
        length: Number of its bytes, without the zeros that fill the last block.
        members: Number of its members.
        digest: Digest of its bytes (hex), as the index stores it.
    """

    shard: int
    offset: int
    length: int
    members: int
    digest: str


class GrowingTar:
    """An open tar file, its size and its hash so far.

    Attributes:
        size: Number of bytes so far.
        samples: Number of samples so far.
    """

    def __init__(self, file: BinaryIO, shard: int) -> None:
        """Begin at the end of an empty file.

        Args:
            file: Open for writing; nobody else writes into it.
            shard: Its number within the split.
        """
        self.file = file
        self.size = 0
        self.samples = 0
        self._shard = shard
        self._hash = hashlib.sha256()

    @classmethod
    def reopened(cls, file: BinaryIO, shard: int, places: Sequence[Place]) -> "GrowingTar":
        """Go on behind samples that an interrupted run has written.

        Args:
            file: Open for reading and writing.
            shard: Its number within the split.
            places: Where the samples stand, in order.

        Raises:
            ShardError: If their bytes are not the ones that were written.
        """
        tar = cls(file, shard)
        for place in places:
            data = file.read(place.length)
            padding = file.read(-place.length % _BLOCK)
            if place.offset != tar.size or sample_digest(data).hex() != place.digest or any(padding):
                raise ShardError(f"its shard {shard} was changed since it was written")
            tar._count(data + padding)
        file.truncate(tar.size)
        return tar

    def add(self, members: Iterable[tuple[str, bytes]]) -> Place:
        """Append the members of one sample.

        Args:
            members: File names of at most 100 ASCII letters, and contents.

        Raises:
            OSError: If the file cannot be written; the sample may then stand in it in part.
        """
        parts: list[bytes] = []
        for name, content in members:
            parts += (_header(name, len(content)), content, bytes(-len(content) % _BLOCK))
        sample = b"".join(parts[:-1])
        self.file.write(sample)
        self.file.write(parts[-1])
        place = Place(self._shard, self.size, len(sample), len(parts) // 3, sample_digest(sample).hex())
        self._count(sample + parts[-1])
        return place

    def flush(self) -> None:
        """Hand what was written to the system, so that the end of this process cannot lose it."""
        self.file.flush()

    def end(self) -> str:
        """Write the end of the archive to disk; gives the SHA-256 (hex) of the file."""
        end = bytes(2 * _BLOCK)
        end += bytes(-(self.size + len(end)) % tarfile.RECORDSIZE)
        self.file.write(end)
        self._hash.update(end)
        self.size += len(end)
        self.file.flush()
        os.fsync(self.file.fileno())
        return self._hash.hexdigest()

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self.samples += 1


def _header(name: str, size: int) -> bytes:
    """A header without time stamp and owner, readable by all."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)
