"""Fit a decoded image to a tower's square input."""

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_square(image: Tensor, size: int) -> Tensor:
    """(size, size, 3) uint8 from (H, W, 3) uint8: the longer side scaled to ``size``, mid-grey around.

    Nothing is cropped: the part cut off could be the harmful one.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    scale = size / max(height, width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = image.permute(2, 0, 1)[None].float()
    small = F.interpolate(x, new, mode="bicubic", antialias=True, align_corners=False)
    out = torch.full((size, size, 3), 127, dtype=torch.uint8)
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    out[top : top + new[0], left : left + new[1]] = small[0].permute(1, 2, 0).round().clamp(0, 255).byte()
    return out
