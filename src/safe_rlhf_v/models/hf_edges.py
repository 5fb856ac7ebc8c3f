"""No edge of a picture is cut off on its way into a Hugging Face model: the part cut off could be the harmful one.

CLIP's processor, which LLaVA-1.5 uses, scales the shorter side and cuts both ends off the longer one. LLaVA-1.5 itself pads to
a square first. Whether a processor cuts is tried out, not read from its settings: their names differ between families.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

_SHAPES = ((192, 32), (32, 192), (256, 256))
"""Width and height of the pictures that are tried: strips of 6:1, and a square of which a line is 0.4 %."""


def needs_padding(processor: Any) -> bool:
    """Whether pictures must be padded to a square so that the processor keeps their edges.

    Args:
        processor: A Hugging Face processor of pictures and text.

    Raises:
        ValueError: If it cuts edges off padded pictures, too.
    """
    if all(_kept(processor, *shape, padded=False) for shape in _SHAPES):
        return False
    if all(_kept(processor, *shape, padded=True) for shape in _SHAPES):
        return True
    name = type(processor.image_processor).__name__
    raise ValueError(
        f"processor: {name} cuts off the edges of pictures, so that what stands there is never seen; set its crop_size to "
        "its size, or do_center_crop: false, in preprocessor_config.json"
    )


def pad_to_square(picture: Image.Image, processor: Any) -> Image.Image:
    """The picture in the middle of a square of the processor's mean colour, as LLaVA-1.5 pads (``expand2square``).

    Args:
        picture: RGB.
        processor: Its ``image_processor.image_mean`` is the colour, in 0..1.
    """
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    red, green, blue = (int(255 * channel) for channel in processor.image_processor.image_mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _kept(processor: Any, width: int, height: int, padded: bool) -> bool:
    """Whether a change in the outermost line of pixels, at each end, changes what the model gets."""
    plain = np.full((height, width, 3), 128, dtype=np.uint8)
    before = _pixels(processor, plain, padded)
    return all(not torch.equal(before, _pixels(processor, changed, padded)) for changed in _changed(plain))


def _changed(plain: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The picture with one of its four outermost lines white."""
    for line in ((0,), (-1,), (slice(None), 0), (slice(None), -1)):
        changed = plain.copy()
        changed[line] = 255
        yield changed


def _pixels(processor: Any, array: NDArray[np.uint8], padded: bool) -> torch.Tensor:
    picture = Image.fromarray(array)
    if padded:
        picture = pad_to_square(picture, processor)
    found = processor(text=[processor.image_token], images=[picture], return_tensors="pt")
    pixels: torch.Tensor = found["pixel_values"]
    return pixels
