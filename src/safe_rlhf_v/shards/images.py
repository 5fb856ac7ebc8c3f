"""The one place where image bytes become pixels, for training, evaluation and the guard alike.

Untrusted bytes: only JPEG, PNG and WebP are opened, the pixel count is read from the header before anything is decoded, and
every failure is an :class:`ImageError`. EXIF rotation is applied, transparency is composited on white, 16-bit grey is scaled
to 8 bits, CMYK is converted.
"""

import hashlib
import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps

from safe_rlhf_v.records import Image

MAX_PIXELS = 25_000_000
MAX_BYTES = 50_000_000
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

Fit = Literal["longest", "squash"]


class ImageError(ValueError):
    """Bytes that are not an acceptable image; the message says why."""


def load_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[PILImage.Image, str]:
    """Decode to an RGB picture; also gives its format (``"jpg"``, ``"png"`` or ``"webp"``).

    Args:
        data: Encoded image, at most 50 MB.
        max_pixels: Refuse larger pictures, from the header, before decoding.

    Raises:
        ImageError: If the bytes are not a whole, acceptable image.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"{len(data)} bytes, the limit is {MAX_BYTES}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)  # our own, lower limit follows
        try:
            picture = PILImage.open(io.BytesIO(data), formats=tuple(_SUFFIX))
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(f"{width} x {height} pixels, the limit is {max_pixels}")
            suffix = _SUFFIX[str(picture.format)]
            return _to_rgb(ImageOps.exif_transpose(picture)), suffix
        except ImageError:
            raise
        except (OSError, ValueError, SyntaxError, KeyError, EOFError, MemoryError, Warning) as error:
            raise ImageError(f"not a readable JPEG, PNG or WebP ({type(error).__name__}: {error})") from None
        except (PILImage.DecompressionBombError, OverflowError, IndexError, TypeError, ArithmeticError) as error:
            raise ImageError(f"damaged or hostile image ({type(error).__name__}: {error})") from None


def _to_rgb(picture: PILImage.Image) -> PILImage.Image:
    """RGB, transparency on white, deep grey scaled."""
    if picture.mode.startswith("I"):  # 16-bit grey (Pillow would clip it to white)
        grey = np.asarray(picture).astype(np.float64) / 257.0
        return PILImage.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = PILImage.new("RGBA", rgba.size, (255, 255, 255, 255))
        return PILImage.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Identify encoded bytes: format, size, and the hashes of bytes and pixels.

    Raises:
        ImageError: If the bytes are not a whole, acceptable image.
    """
    picture, suffix = load_rgb(data, max_pixels=max_pixels)
    pixels = hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()
    return Image(data, suffix, pixels, hashlib.sha256(data).hexdigest(), picture.width, picture.height)


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, size: int | None = None, fit: Fit = "longest"
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels.

    Args:
        data: Encoded image.
        max_pixels: Refuse larger pictures before decoding.
        size: Resize to this side in pixels; ``None`` keeps the picture's own.
        fit: ``longest`` scales the longer side to ``size``, ``squash`` makes both sides ``size``. Nothing is ever cropped:
            the part cut off could be the harmful one.

    Raises:
        ImageError: If the bytes are not a whole, acceptable image.
    """
    picture, _ = load_rgb(data, max_pixels=max_pixels)
    if size is not None and (max(picture.size) != size or fit == "squash"):
        scale = size / max(picture.size)
        new = (size, size) if fit == "squash" else tuple(max(1, round(side * scale)) for side in picture.size)
        if new != picture.size:
            picture = picture.resize((new[0], new[1]), PILImage.Resampling.BICUBIC)
    return np.array(picture, dtype=np.uint8)
