"""Decode image files to RGB pixels: the one implementation for training, evaluation and the guard.

The bytes are untrusted: only JPEG (including multi-picture JPEG of phones), PNG and WebP are opened, the number of pixels is
read from the header before anything is decoded, and every failure is an :class:`ImageError`. The conversion of pixels to RGB
is described at :func:`~safe_rlhf_v.shards.pixels.to_rgb`.

A file may hold several pictures: an animation, or the further pictures of a multi-picture JPEG. The guard reads all of them
(:func:`load_frames`). A record holds still pictures: an animation is refused, and of a multi-picture JPEG the first picture is
used, which is the one that viewers show.

With the package ``simplejpeg`` (extra ``jpeg``), plain JPEGs are decoded straight into their place: the same library,
libjpeg-turbo, and the same pixels as Pillow's, without its copies. What it does not accept, Pillow decides.
"""

import hashlib
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFile, UnidentifiedImageError

from safe_rlhf_v.records import Image
from safe_rlhf_v.shards.pixels import orientation, to_rgb

try:
    import simplejpeg
except ImportError:  # optional, because it only saves time
    simplejpeg = None

MAX_PIXELS = 25_000_000
"""Limit for all pictures of one file together."""
MAX_BYTES = 50_000_000
MAX_FRAMES = 64
_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_EXIF = re.compile(rb"(\xff\xe1..)Exif\0\0", re.DOTALL)
_UNREAD = b"exif\0\0"
_EXTRAS = re.compile(
    rb"Exif\0\0|MPF\0"
)  # tags, or further pictures with tags of their own behind the first one's pixels


class ImageError(ValueError):
    """Bytes are not an acceptable image; the message says why."""


def load_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[PILImage.Image, str]:
    """Decode a still picture to RGB; also returns its format (``"jpg"``, ``"png"`` or ``"webp"``).

    Args:
        data: Encoded image, at most 50 MB.
        max_pixels: Refuse larger pictures, from the header, before decoding.

    Raises:
        ImageError: If the bytes are not a complete, acceptable image, or are an animation.
    """
    with without_warnings():
        return _load_rgb(data, max_pixels)


def load_frames(
    source: bytes | PILImage.Image, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES
) -> list[PILImage.Image]:
    """Every picture of a file as RGB: the frames of an animation and its hidden default picture, or of a multi-picture JPEG.

    Args:
        source: Encoded image, at most 50 MB; or a picture that Pillow opened from any format.
        max_pixels: Maximum number of pixels of all pictures together.
        max_frames: Maximum number of pictures.

    Raises:
        ImageError: If one of them cannot be decoded completely, or there are too many.
    """
    try:
        with without_warnings():
            picture = _open(source) if isinstance(source, bytes) else source
            count = _count(picture)
            if count > max_frames:
                raise ImageError(f"{count} pictures in one file, the limit is {max_frames}")
            at = picture.tell() if count > 1 else 0
            try:
                frames = _frames(picture, count, max_pixels)
                return [frame.copy() if frame is picture else frame for frame in frames]
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


Allocate = Callable[[tuple[int, int, int]], NDArray[np.uint8]]
"""Gives an array of a shape, of any content."""


def new_array(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An array of its own."""
    return np.empty(shape, dtype=np.uint8)


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, size: int | None = None, allocate: Allocate = new_array
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels.

    Several threads may decode at the same time within one :func:`without_warnings`: Pillow releases the interpreter meanwhile.

    Args:
        data: Encoded image.
        max_pixels: Refuse larger pictures before decoding.
        size: Scale the longer side to this number of pixels; ``None`` keeps the size. Nothing is cropped, because the part
            cropped away could be the harmful one.
        allocate: Gives the array that is filled; it holds the picture only if none of the errors is raised.

    Raises:
        ImageError: See :func:`load_rgb`.
    """
    try:
        picture = _open_still(data)
        if scaled(*picture.size, size) == picture.size and picture.width * picture.height <= max_pixels:
            pixels = _plain_jpeg(data, picture, allocate)
            if pixels is not None:
                return pixels
        rgb = next(_frames(picture, 1, max_pixels))
    except Exception as error:
        raise _refusal(error) from None
    target = scaled(*rgb.size, size)
    if target != rgb.size:
        rgb = rgb.resize(target, PILImage.Resampling.BICUBIC)
    pixels = allocate((rgb.height, rgb.width, 3))
    pixels[...] = np.asarray(rgb)
    return pixels


def scaled(width: int, height: int, size: int | None) -> tuple[int, int]:
    """Width and height with the longer side scaled to ``size`` pixels; unchanged if ``size`` is ``None``."""
    if size is None or max(width, height) == size:
        return width, height
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def without_warnings() -> Iterator[None]:
    """A context without Pillow's warnings, because our own, lower limits are errors.

    The interpreter has one list of filters for all threads: enter it once around them, never inside of one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- opening and checking files -----------------------------------------------------------------------------------------


def _load_rgb(data: bytes, max_pixels: int) -> tuple[PILImage.Image, str]:
    """See :func:`load_rgb`; Pillow may warn."""
    try:
        picture = _open_still(data)
        return next(_frames(picture, 1, max_pixels)), _SUFFIX[str(picture.format)]
    except Exception as error:
        raise _refusal(error) from None


def _open_still(data: bytes) -> PILImage.Image:
    """A still picture with its header read; see :func:`_open`."""
    picture = _open(data)
    count = _count(picture)
    if count > 1 and picture.format != "MPO":
        raise ImageError(
            f"an animation of {count} pictures; a record holds still pictures: save one frame as a still picture"
        )
    return picture


def _plain_jpeg(data: bytes, picture: PILImage.Image, allocate: Allocate) -> NDArray[np.uint8] | None:
    """The pixels of an upright colour JPEG; ``None`` for other pictures, and where there is anything to complain of."""
    if simplejpeg is None or picture.format != "JPEG" or picture.mode != "RGB" or orientation(_exif(picture)) != 1:
        return None
    pixels = allocate((picture.height, picture.width, 3))
    try:
        # Its C code fills the array without holding the interpreter. Strict: its warnings are errors, too.
        decoded = simplejpeg.decode_jpeg(
            data, "RGB", fastdct=False, fastupsample=False, buffer=pixels.reshape(-1), strict=True
        )
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def _open(data: bytes) -> PILImage.Image:
    """A picture with its header read.

    Raises:
        ImageError: If it is too large, none of the formats, or an animation that contradicts itself.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"{len(data)} bytes, the limit is {MAX_BYTES}")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so a truncated picture would pass; set it to False"
        )
    if data.startswith(b"\xff\xd8") and _EXTRAS.search(data, 0, _scan_start(data)):
        data = _EXIF.sub(rb"\1" + _UNREAD, data)  # otherwise Pillow reads all EXIF tags and may fail on any of them
    picture = PILImage.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    if picture.format == "PNG":
        animated = _png_frames(data)
        if animated and _count(picture) not in (animated, animated + 1):  # one more with the hidden default picture
            raise ImageError("an animated PNG that states another number of pictures than it holds")
    return picture


def _scan_start(data: bytes) -> int:
    """First byte of a JPEG's pixels: of the marker SOS (ITU-T T.81, B.1.1); the end of the data if its header is unusual."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and 0xC0 <= data[at + 1] < 0xFF:
        if data[at + 1] == 0xDA:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def _count(picture: PILImage.Image) -> int:
    return int(getattr(picture, "n_frames", 1))


def _frames(picture: PILImage.Image, count: int, max_pixels: int) -> Iterator[PILImage.Image]:
    """The first ``count`` pictures of a file; sizes are checked before they are decoded."""
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
    """EXIF bytes of a loaded picture, from where Pillow or :func:`_open` stored them."""
    segments: list[tuple[str, bytes]] = getattr(picture, "applist", [])
    unread = [body[len(_UNREAD) :] for name, body in segments if name == "APP1" and body.startswith(_UNREAD)]
    return b"".join(unread) or picture.info.get("exif")


def _seek(picture: PILImage.Image, number: int) -> bool:
    """Seek a picture of the file; returns whether it exists."""
    try:
        picture.seek(number)
    except ValueError as error:
        # Editors drop the further pictures of a multi-picture JPEG and leave their index entries.
        if picture.format == "MPO" and "No data found" in str(error):
            return False
        raise
    return True


def _png_frames(data: bytes) -> int:
    """Number of frame control chunks of a PNG; readers differ in how they treat a wrong stated number (PNG 3, 11.3.3).

    Raises:
        ImageError: If it contradicts the stated number.
    """
    stated: list[int] = []
    controls = data_chunks = 0
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":
            stated.append(int.from_bytes(data[at + 8 : at + 12], "big"))
        controls += kind == b"fcTL"
        data_chunks += kind == b"fdAT"
        at += 12 + length
        if kind == b"IEND":
            break
    if (stated or controls or data_chunks) and stated != [controls]:
        raise ImageError("an animated PNG that states another number of pictures than it holds")
    return controls


def _refusal(error: Exception) -> ImageError:
    """Any failure as an :class:`ImageError` of one line."""
    if isinstance(error, ImageError):
        return error
    reason = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        reason = "no decoder recognises it"  # Pillow's message holds a memory address
    return ImageError(f"not a readable JPEG, PNG or WebP ({type(error).__name__}: {reason:.200})")
