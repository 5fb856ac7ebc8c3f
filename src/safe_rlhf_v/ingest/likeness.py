"""Pictures that look alike: one perceptual hash, and one rule for how far two may differ."""

from typing import Any

import numpy as np
from PIL import Image as PILImage

from safe_rlhf_v.records.packages import package

HASH_SIDE = 64
"""Pictures are reduced to about this side before their hash, which looks at 32 x 32 pixels."""


def perceptual_hash(picture: PILImage.Image) -> str:
    """Perceptual hash (``imagehash.phash``, 64 bits) as 16 hexadecimal digits.

    Args:
        picture: In RGB.

    Raises:
        PackageError: If ``imagehash`` is not installed.
    """
    small = picture.reduce(max(1, min(picture.size) // HASH_SIDE))
    return str(package("imagehash", "data").phash(small))


def any_alike(hashes: "np.ndarray[Any, np.dtype[np.uint64]]", own: np.uint64, distance: int) -> bool:
    """Whether one of the hashes differs from another in at most so many bits.

    Args:
        hashes: (N,) uint64, N may be 0.
        own: The other.
        distance: Number of bits.
    """
    return bool((np.bitwise_count(hashes ^ own) <= distance).any())
