"""Fit pictures to a tower's square input without cropping: the part cropped away could be the harmful one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_TEST_SHAPES = ((192, 32), (32, 192), (256, 256))
"""Width and height of the test pictures: strips of 6:1, and a square of which one line is 0.4 %."""


def fit_square(image: Tensor, size: int) -> Tensor:
    """(size, size, 3) uint8 from (H, W, 3) uint8: the longer side scaled to ``size``, padded with mid-grey."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    scale = size / max(height, width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = image.permute(2, 0, 1)[None].float()
    resized = F.interpolate(x, new, mode="bicubic", antialias=True, align_corners=False)
    out = torch.full((size, size, 3), 127, dtype=torch.uint8)
    top = (size - new[0]) // 2
    left = (size - new[1]) // 2
    out[top : top + new[0], left : left + new[1]] = resized[0].permute(1, 2, 0).round().clamp(0, 255).byte()
    return out


def needs_padding(processor: Any) -> bool:
    """Whether pictures must be padded to a square so that a Hugging Face processor keeps their edges.

    CLIP's processor, which LLaVA-1.5 uses, scales the shorter side and crops both ends of the longer one; LLaVA-1.5 itself
    pads to a square first. Whether a processor crops is tested with pictures and not read from its settings, whose names
    differ between families.

    Args:
        processor: A Hugging Face processor of pictures and text.

    Raises:
        ValueError: If it crops padded pictures, too.
    """
    if all(_keeps_edges(processor, *shape, padded=False) for shape in _TEST_SHAPES):
        return False
    if all(_keeps_edges(processor, *shape, padded=True) for shape in _TEST_SHAPES):
        return True
    name = type(processor.image_processor).__name__
    raise ValueError(
        f"processor: {name} crops the edges of pictures, so the model never sees them; set its crop_size to its size, or "
        "do_center_crop: false, in preprocessor_config.json"
    )


def pad_to_square(picture: Image.Image, processor: Any) -> Image.Image:
    """The picture centred on a square of the processor's mean colour, as LLaVA-1.5 pads (``expand2square``).

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


def _keeps_edges(processor: Any, width: int, height: int, padded: bool) -> bool:
    """Whether a change in any of the four outermost lines of pixels changes the model's input."""
    plain = np.full((height, width, 3), 128, dtype=np.uint8)
    before = _pixels(processor, plain, padded)
    return all(not torch.equal(before, _pixels(processor, marked, padded)) for marked in _with_white_edges(plain))


def _with_white_edges(plain: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The picture with one of its four outermost lines white, for each of the four."""
    for line in ((0,), (-1,), (slice(None), 0), (slice(None), -1)):
        marked = plain.copy()
        marked[line] = 255
        yield marked


def _pixels(processor: Any, array: NDArray[np.uint8], padded: bool) -> Tensor:
    picture = Image.fromarray(array)
    if padded:
        picture = pad_to_square(picture, processor)
    inputs = processor(text=[processor.image_token], images=[picture], return_tensors="pt")
    pixels: Tensor = inputs["pixel_values"]
    return pixels
