"""Photographs that look almost like another one: some show the same leaf, and a test on one must not be trained on the other."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIZE = (32, 16)
ALIKE = 0.8
"""98 of 1,747 photographs are above it: all pairs of one leaf that we saw, and more pairs of two leaves in the same light."""


def lookalikes(files: Sequence[bytes], alike: float = ALIKE) -> set[int]:
    """Numbers of the photographs whose small copies correlate with that of another one.

    The mean of all photographs is taken off first, since all show one leaf in the same place.

    Args:
        files: The photographs, encoded.
        alike: Correlation from which two are alike.
    """
    if not files:
        return set()
    copies = np.stack([_small(file) for file in files])
    copies -= copies.mean(0)
    lengths = np.linalg.norm(copies, axis=1, keepdims=True)
    directions = np.where(lengths > 1e-3, copies / np.maximum(lengths, 1e-3), 0)
    correlations = directions @ directions.T
    np.fill_diagonal(correlations, 0)
    return {int(i) for i in np.flatnonzero(correlations.max(1) > alike)}


def _small(file: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(file))
    picture.draft("RGB", (4 * SIZE[0], 4 * SIZE[1]))  # a JPEG is decoded small
    return np.asarray(picture.convert("RGB").resize(SIZE, Image.Resampling.BOX), np.float64).ravel()
