"""Convert a decoded picture to the RGB pixels that a viewer shows: orientation, colour modes, transparency, depth."""

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}


def to_rgb(picture: PILImage.Image, exif: object = None) -> PILImage.Image:
    """A loaded picture of any mode as upright RGB; one that is so already is given back itself.

    Transparent pixels are blended with white. Modes without a fixed range are scaled by their values: ``F`` within 0..1 by
    255; ``I`` and ``F`` are not scaled within 0..255, and taken as 16-bit values within 0..65535. ``I;16`` always has 16 bits.
    Colour profiles are not applied.

    Args:
        picture: A loaded picture.
        exif: Its EXIF bytes; see :func:`orientation`.

    Raises:
        ValueError: If values are not finite or outside these ranges.
    """
    turn = _TRANSPOSE.get(orientation(exif))
    rgb = _colours(picture)
    return rgb if turn is None else rgb.transpose(turn)


def orientation(exif: object) -> int:
    """The orientation 1..8 of EXIF bytes, 1 if they state none; no other tag is read.

    The TIFF structure: TIFF 6.0, section 2; the tag: EXIF 2.32 (CIPA DC-008), 4.6.4.

    Args:
        exif: The bytes, with or without their ``Exif`` marker; anything else gives 1.
    """
    if not isinstance(exif, bytes):
        return 1
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, at)
        if tag == _ORIENTATION:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1


def _colours(picture: PILImage.Image) -> PILImage.Image:
    """RGB with transparency blended with white, and values of more than 8 bits scaled to 8 bits."""
    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        return _deep(picture)
    if mode == "LAB":
        return _from_lab(picture)
    if mode == "La":  # premultiplied; Pillow converts it to LA only
        picture = picture.convert("LA")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = PILImage.new("RGBA", rgba.size, (255, 255, 255, 255))
        return PILImage.alpha_composite(white, rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _deep(picture: PILImage.Image) -> PILImage.Image:
    """Grey values of more than 8 bits, scaled to 8 bits (Pillow would clip them to white)."""
    values = np.asarray(picture).astype(np.float64)
    low = float(values.min())
    high = float(values.max())
    if not 0 <= low <= high <= 65535:  # false for NaN, too
        raise ValueError(f"mode {picture.mode} with values {low:g}..{high:g}: neither 0..1 nor 8 nor 16 bits")
    if picture.mode == "F" and high <= 1:
        scale = 255.0
    elif picture.mode.startswith("I;16") or high > 255:
        scale = 1 / 257
    else:
        scale = 1.0
    grey: NDArray[np.uint8] = (values * scale).round().astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return PILImage.fromarray(grey).convert("RGB")


def _from_lab(picture: PILImage.Image) -> PILImage.Image:
    """CIELAB (D50) to sRGB, which Pillow's own conversion does not do."""
    from PIL import ImageCms

    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    rgb = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert rgb is not None
    return rgb
