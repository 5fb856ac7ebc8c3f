"""Pictures of a cell: encoded bytes, files, base64 text, or lists of them, identified on all cores at once.

Pillow and hashlib release the interpreter's lock, so threads suffice. A picture that occurs again is not decoded again.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from safe_rlhf_v.ingest.fields import empty
from safe_rlhf_v.ingest.likeness import perceptual_hash
from safe_rlhf_v.ingest.pictures import PictureError, read_file
from safe_rlhf_v.ingest.rows import describe
from safe_rlhf_v.records import Image
from safe_rlhf_v.records.packages import package
from safe_rlhf_v.shards.images import MAX_BYTES, MAX_PIXELS, ImageError, load_rgb, pixel_id


class Identity(NamedTuple):
    """What is known of encoded bytes.

    Attributes:
        problem: Why they are no acceptable picture; empty if they are.
        format: Format.
        id: Hash of the pixels.
        width: Pixels.
        height: Pixels.
        likeness: Perceptual hash: 16 hexadecimal digits, which differ little for pictures that look alike.
    """

    problem: str
    format: str = ""
    id: str = ""
    width: int = 0
    height: int = 0
    likeness: str = ""


class IdentifiedPicture(NamedTuple):
    """A picture of a cell.

    Attributes:
        image: As a record holds it; ``None`` if it cannot be used.
        likeness: Perceptual hash.
        problem: Why it cannot be used; empty if it can.
    """

    image: Image | None
    likeness: str = ""
    problem: str = ""


class Identifier:
    """Reads and identifies the pictures of cells in threads."""

    def __init__(self) -> None:
        """Start the threads.

        Raises:
            PackageError: If a package is not installed.
        """
        package("imagehash", "data")  # before any thread needs it
        self._known: dict[str, Identity] = {}
        self._pool = ThreadPoolExecutor(os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count())

    def submit(self, cell: Any, form: str, folder: Path | None) -> "Future[list[IdentifiedPicture]]":
        """Begin to read the pictures of a cell.

        Args:
            cell: Bytes, an object with ``bytes`` and ``path``, a text, or a list of them.
            form: ``base64`` if texts are encoded pictures; else they name files.
            folder: Folder of the files.
        """
        return self._pool.submit(lambda: [self._picture(one, form, folder) for one in _flat(cell)])

    def remember(self, image: Image, likeness: str) -> None:
        """Take over what an interrupted run has found out."""
        self._known[image.sha256] = Identity("", image.format, image.id, image.width, image.height, likeness)

    def _picture(self, cell: Any, form: str, folder: Path | None) -> IdentifiedPicture:
        try:
            data = _encoded(cell, form, folder)
        except PictureError as error:
            return IdentifiedPicture(None, problem=str(error))
        sha256 = hashlib.sha256(data).hexdigest()
        known = self._known.get(sha256)
        if known is None:
            known = self._known.setdefault(sha256, identity(data))
        if known.problem:
            return IdentifiedPicture(None, problem=known.problem)
        return IdentifiedPicture(Image(data, known.format, known.id, sha256, known.width, known.height), known.likeness)

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def identity(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Identity:
    """Decode bytes once: both hashes of the pixels.

    Args:
        data: Encoded picture.
        max_pixels: Refuse larger pictures, from the header, before decoding.
    """
    try:
        picture, suffix = load_rgb(data, max_pixels=max_pixels)
    except ImageError as error:
        return Identity(str(error))
    return Identity("", suffix, pixel_id(picture), picture.width, picture.height, perceptual_hash(picture))


def _flat(cell: Any) -> Iterator[Any]:
    """The pictures of a cell, one after another."""
    if empty(cell) or cell == {"bytes": None, "path": None}:
        return
    if isinstance(cell, list):
        for one in cell:
            yield from _flat(one)
    else:
        yield cell


def _encoded(cell: Any, form: str, folder: Path | None) -> bytes:
    """The bytes of one picture.

    Raises:
        PictureError: If there are none.
    """
    if isinstance(cell, dict) and set(cell) <= {"bytes", "path"}:
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell)
    if not isinstance(cell, str):
        raise PictureError(f"must be a picture, not {describe(cell)}")
    if form == "base64" or cell.startswith("data:image/"):
        text = cell.partition("base64,")[2] if cell.startswith("data:") else cell
        try:
            if len(text) > MAX_BYTES * 4 // 3 + 4:
                raise PictureError(f"{len(text)} characters, the limit is {MAX_BYTES} bytes")
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise PictureError(f"is not base64 ({error})") from None
    if folder is None:
        raise PictureError(f"{describe(cell)} names a file, but there is no folder of pictures; name it with --images")
    return read_file(folder, cell)
