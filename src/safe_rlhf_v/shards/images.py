"""The one place where pictures become pixels, for training, evaluation and the guard alike.

Untrusted bytes: only JPEG (multi-picture JPEG of phones included), PNG and WebP are opened, the pixel count is read from the
header before anything is decoded, and every failure is an :class:`ImageError`. How pixels become RGB is said in
:func:`~safe_rlhf_v.shards.pixels.to_rgb`.

A file may hold several pictures: an animation, or the further pictures of a multi-picture JPEG. The guard looks at all of them
(:func:`load_frames`). A record holds still pictures: an animation is refused, of a multi-picture JPEG the first is taken, which
is what viewers show.
"""

import hashlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFile, UnidentifiedImageError

from safe_rlhf_v.records import Image
from safe_rlhf_v.shards.pixels import to_rgb

MAX_PIXELS = 25_000_000
"""Of one file, all its pictures together."""
MAX_BYTES = 50_000_000
MAX_FRAMES = 64
_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_EXIF = re.compile(rb"(\xff\xe1..)Exif\0\0", re.DOTALL)
_UNREAD = b"exif\0\0"

Fit = Literal["longest", "squash"]


class ImageError(ValueError):
    """Bytes that are not an acceptable image; the message says why."""


def load_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[PILImage.Image, str]:
    """Decode a still picture to RGB; also gives its format (``"jpg"``, ``"png"`` or ``"webp"``).

    Args:
        data: Encoded image, at most 50 MB.
        max_pixels: Refuse larger pictures, from the header, before decoding.

    Raises:
        ImageError: If the bytes are not a whole, acceptable image, or an animation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own, lower limits follow
            picture = _open(data)
            count = _count(picture)
            if count > 1 and picture.format != "MPO":
                raise ImageError(
                    f"an animation of {count} pictures; a record holds still ones: save the one that is meant"
                )
            return next(_frames(picture, 1, max_pixels)), _SUFFIX[str(picture.format)]
    except Exception as error:
        raise _refusal(error) from None


def load_frames(
    source: bytes | PILImage.Image, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES
) -> list[PILImage.Image]:
    """Every picture of a file as RGB: all frames of an animation, its hidden default picture, those of a multi-picture JPEG.

    Args:
        source: Encoded image, at most 50 MB; or a picture, of any format Pillow opened it from.
        max_pixels: Most pixels of all of them together.
        max_frames: Most of them.

    Raises:
        ImageError: If one of them cannot be decoded whole, or there are too many.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _open(source) if isinstance(source, bytes) else source
            count = _count(picture)
            if count > max_frames:
                raise ImageError(f"{count} pictures in one file, the limit is {max_frames}")
            at = picture.tell() if count > 1 else 0
            try:
                return list(_frames(picture, count, max_pixels))
            finally:
                if count > 1:
                    picture.seek(at)
    except Exception as error:
        raise _refusal(error) from None


def pixel_id(picture: PILImage.Image) -> str:
    """SHA-256 (hex) of size and pixels of an RGB picture: equal pixels have equal ids."""
    return hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Identify encoded bytes: format, size, and the hashes of bytes and pixels.

    Raises:
        ImageError: See :func:`load_rgb`.
    """
    picture, suffix = load_rgb(data, max_pixels=max_pixels)
    return Image(data, suffix, pixel_id(picture), hashlib.sha256(data).hexdigest(), picture.width, picture.height)


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, size: int | None = None, fit: Fit = "longest"
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels.

    Args:
        data: Encoded image.
        max_pixels: Refuse larger pictures before decoding.
        size: Resize to this side in pixels; ``None`` keeps the picture's own.
        fit: ``longest`` scales the longer side to ``size``, ``squash`` makes both sides ``size``. Nothing is cropped: the
            part cut off could be the harmful one.

    Raises:
        ImageError: See :func:`load_rgb`.
    """
    picture, _ = load_rgb(data, max_pixels=max_pixels)
    if size is not None and (max(picture.size) != size or fit == "squash"):
        scale = size / max(picture.size)
        new = (size, size) if fit == "squash" else tuple(max(1, round(side * scale)) for side in picture.size)
        if new != picture.size:
            picture = picture.resize((new[0], new[1]), PILImage.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8)


# --- the door -----------------------------------------------------------------------------------------------------------


def _open(data: bytes) -> PILImage.Image:
    """The header.

    Raises:
        ImageError: If it is too large, none of the formats, or an animation that contradicts itself.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"{len(data)} bytes, the limit is {MAX_BYTES}")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so a truncated picture would pass; set it to False"
        )
    if data.startswith(b"\xff\xd8"):
        data = _EXIF.sub(rb"\1" + _UNREAD, data)  # else Pillow reads all its tags and may fail on any
    picture = PILImage.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    if picture.format == "PNG":
        animated = _png_frames(data)
        if animated and _count(picture) not in (animated, animated + 1):  # one more: the hidden default picture
            raise ImageError("an animated PNG that states another number of pictures than it holds")
    return picture


def _count(picture: PILImage.Image) -> int:
    return int(getattr(picture, "n_frames", 1))


def _frames(picture: PILImage.Image, count: int, max_pixels: int) -> Iterator[PILImage.Image]:
    """The first ``count`` pictures of a file, sizes checked before they are decoded."""
    pixels = missing = 0
    for number in range(count):
        if count > 1 and not _seek(picture, number):
            missing += 1
            continue
        width, height = picture.size
        pixels += width * height
        if pixels > max_pixels:
            size = f"{width} x {height} pixels" if number == 0 else f"{pixels} pixels in {number + 1} pictures"
            raise ImageError(f"{size}, the limit is {max_pixels}")
        picture.load()
        yield to_rgb(picture, _exif(picture))
    if 0 < missing < count - 1:
        raise ImageError(f"{missing} of its {count} pictures are missing")


def _exif(picture: PILImage.Image) -> object:
    """EXIF bytes of a loaded picture, where Pillow or :func:`_open` put them."""
    segments: list[tuple[str, bytes]] = getattr(picture, "applist", [])
    unread = [body[len(_UNREAD) :] for name, body in segments if name == "APP1" and body.startswith(_UNREAD)]
    return b"".join(unread) or picture.info.get("exif")


def _seek(picture: PILImage.Image, number: int) -> bool:
    """Go to a picture of the file; says whether one is there."""
    try:
        picture.seek(number)
    except ValueError as error:
        # Editors drop all further pictures of a multi-picture JPEG and leave their index: nothing is there to be shown.
        if picture.format == "MPO" and "No data found" in str(error):
            return False
        raise
    return True


def _png_frames(data: bytes) -> int:
    """Frame controls of a PNG, counted by its chunks: readers differ in what they make of a wrong count (PNG 3, 11.3.3).

    Raises:
        ImageError: If they contradict what it states.
    """
    stated: list[int] = []
    controls = parts = 0
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":
            stated.append(int.from_bytes(data[at + 8 : at + 12], "big"))
        controls += kind == b"fcTL"
        parts += kind == b"fdAT"
        at += 12 + length
        if kind == b"IEND":
            break
    if (stated or controls or parts) and stated != [controls]:
        raise ImageError("an animated PNG that states another number of pictures than it holds")
    return controls


def _refusal(error: Exception) -> ImageError:
    """Any failure as one of ours, in one line."""
    if isinstance(error, ImageError):
        return error
    words = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        words = "no decoder knows it"  # Pillow's own words name an address
    return ImageError(f"not a readable JPEG, PNG or WebP ({type(error).__name__}: {words:.200})")
