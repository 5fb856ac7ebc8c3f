"""The index: position of each sample in the tar files, so that any sample is read by one ``pread``.

It is one structured NumPy array per split (no pickle), 50 bytes per sample. Only members with names that the schema allows are
indexed, so nothing else in a shard can be read. The manifest holds the index's hash, and the index the hash of every sample:
each byte of a picture or label is verified when it is read, and only bytes that are read have to be hashed.
"""

import hashlib
import io
import re
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError, read_bounded
from safe_rlhf_v.shards.manifest import ShardError, refuse_too_many_files

MEMBER = re.compile(r"(?P<key>[A-Za-z0-9_\-]{1,128})(?:\.(?P<number>[1-9]\d?))?\.(?P<suffix>json|jpg|png|webp)")
MAX_MEMBER_BYTES = 50_000_000
MAX_MEMBERS = 100
MAX_NAME_BYTES = 100  # a longer name needs a second header, which the index does not support
NO_CATEGORY = -1
UNKNOWN_CATEGORY = -2

INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # number of the shard within the split
        ("offset", "<u8"),  # first byte of the sample's first member header
        ("length", "<u8"),  # bytes from there to the end of its last member
        ("members", "<u2"),  # how many members: images and the JSON
        ("category", "<i2"),  # which of the split's ``category_sets``, else NO_CATEGORY or UNKNOWN_CATEGORY
        ("group", "<u8"),  # first 8 bytes of SHA-256 of the record's group
        ("responses", "<u2"),
        ("digest", "V16"),  # first 16 bytes of SHA-256 of the ``length`` bytes from ``offset``: headers, images, JSON
    ]
)
WITHOUT_DIGEST = np.dtype([(name, INDEX_DTYPE[name]) for name in (INDEX_DTYPE.names or ())[:-1]])
"""Layout of the first releases: the JSON holds the hash of the image bytes, and nothing holds the hash of the JSON."""
MAX_INDEX_BYTES = 4_000_000_000

Index = NDArray[np.void]


class Member:
    """One tar member of a sample.

    Attributes:
        key: Key of the record.
        number: Number of the image, ``None`` for the JSON.
        suffix: File suffix without the dot.
        header: Position of its tar header.
        offset: Position of its first byte.
        size: Number of bytes.
    """

    __slots__ = ("header", "key", "number", "offset", "size", "suffix")

    def __init__(self, name: str, size: int, header: int, offset: int, shard: str) -> None:
        """Check name and size.

        Args:
            name: Its name in the tar file.
            size: Number of bytes that its header claims.
            header: Position of its header.
            offset: Position of its first byte.
            shard: Name of the shard, for messages.

        Raises:
            ShardError: If they are not allowed.
        """
        match = MEMBER.fullmatch(name)
        if match is None:
            raise _not_plain(name, shard)
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise ShardError(f"{shard}: member {name!r:.140} claims {size} bytes, the limit is {MAX_MEMBER_BYTES}")
        self.key = match["key"]
        self.suffix = match["suffix"]
        self.number = None if self.suffix == "json" else int(match["number"] or 0)
        self.header = header
        self.offset = offset
        self.size = size

    @classmethod
    def at(cls, data: bytes, header: int, shard: str, *, verified: bool) -> Self:
        """The member whose header stands at a position (POSIX.1-1988 ustar, as the writer makes it).

        Args:
            data: Bytes of a sample.
            header: Position of the header.
            shard: Name of the shard, for messages.
            verified: Whether a hash of these bytes was checked, so that the checksum need not be.

        Raises:
            ShardError: If the header is damaged, or not of a plain file with an allowed name and size.
        """
        block = data[header : header + tarfile.BLOCKSIZE]
        name, size, checksum, kind, prefix = _HEADER.unpack(block)
        try:
            text = name.partition(b"\0")[0].decode()
            if not verified and sum(block) - sum(checksum) + 8 * ord(" ") != _octal(checksum):
                raise ValueError("bad checksum")
            length = _octal(size)
        except ValueError as error:
            raise ShardError(f"{shard}: damaged member header ({error})") from None
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) or prefix[0]:
            raise _not_plain(text, shard)
        return cls(text, length, header, header + tarfile.BLOCKSIZE, shard)


_HEADER = struct.Struct("100s 24x 12s 12x 8s 1s 188x 155s 12x")
"""Name, size, checksum, type and prefix of the name in a tar header."""


def _octal(field: bytes) -> int:
    return int(field.strip(b" \0") or b"0", 8)


def _not_plain(name: str, shard: str) -> ShardError:
    return ShardError(f"{shard}: member {name!r:.140} is not a plain KEY.json, KEY.jpg, KEY.png or KEY.webp file")


def scan_shard(path: Path) -> list[list[Member]]:
    """The members of a shard, grouped by sample, from its tar headers alone.

    Raises:
        ShardError: For a damaged tar, a member that does not belong, or members of one sample that are not adjacent.
    """
    samples: list[list[Member]] = []
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isreg():
                    raise _not_plain(info.name, path.name)
                member = Member(info.name, info.size, info.offset, info.offset_data, path.name)
                if samples and samples[-1][0].key == member.key:
                    samples[-1].append(member)
                elif member.key in seen:
                    raise ShardError(f"{path.name}: the members of {member.key!r} are not adjacent, or it occurs twice")
                else:
                    seen.add(member.key)
                    samples.append([member])
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, ShardError):
            raise
        if isinstance(error, OSError):
            refuse_too_many_files(error)
        raise ShardError(f"{path.name}: damaged tar ({type(error).__name__}: {error})") from None
    for sample in samples:
        check_members(sample, path.name)
    return samples


def check_members(sample: list[Member], shard: str) -> None:
    """Sort a sample's members: images 0, 1, ..., then the JSON.

    Raises:
        ShardError: Unless there is exactly one JSON and the images are numbered without gaps.
    """
    sample.sort(key=lambda member: MAX_MEMBERS if member.number is None else member.number)
    numbers = [member.number for member in sample]
    if numbers != [*range(len(sample) - 1), None]:
        names = ["json" if number is None else f"image {number}" for number in numbers]
        raise ShardError(f"{shard}: sample {sample[0].key!r} must have one JSON and images 0, 1, ...; found {names}")


def sample_digest(data: bytes) -> bytes:
    """The digest of a sample's bytes in the index."""
    return hashlib.sha256(data).digest()[:16]


def group_hash(record: Record) -> int:
    """The hash of a record's group in the index."""
    return int.from_bytes(hashlib.sha256(record.group.encode()).digest()[:8], "little")


def load_index(path: Path, sha256: str, shard_bytes: Sequence[int]) -> Index:
    """Read an index file.

    Args:
        path: The file.
        sha256: What the manifest states (hex).
        shard_bytes: Size of each shard, in order.

    Raises:
        ShardError: If it is missing, differs from the manifest, has another layout, or refers to bytes that do not exist.
    """
    try:
        data = read_bounded(path, MAX_INDEX_BYTES)
    except FileError as error:
        raise ShardError(str(error)) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(f"{path}: its SHA-256 is not the one in the manifest: damaged or changed")
    try:
        index: Index = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds of errors for a damaged header
        raise ShardError(f"{path}: unreadable index ({type(error).__name__}: {error!s:.80})") from None
    if index.dtype not in (INDEX_DTYPE, WITHOUT_DIGEST) or index.ndim != 1:
        raise ShardError(f"{path}: not an index of this version")
    if not len(index):
        return index
    if int(index["shard"].max()) >= len(shard_bytes):
        raise ShardError(f"{path}: refers to shard {int(index['shard'].max())} of {len(shard_bytes)}")
    size = np.array(shard_bytes, dtype=np.uint64)[index["shard"]]
    outside = (index["offset"] > size) | (index["length"] > size - np.minimum(index["offset"], size))
    if outside.any():
        raise ShardError(f"{path}: row {int(outside.argmax())} refers to bytes beyond the end of its shard")
    return index
