"""What is given to a guard, and what of it the model can read."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image as PILImage
from torch import Tensor

from safe_rlhf_v.batches import Prompts
from safe_rlhf_v.shards.images import decode, probe

ImageLike = bytes | str | Path | PILImage.Image


class Input(NamedTuple):
    """What is to be judged; at least one part must be there.

    Attributes:
        image: Encoded bytes, a file, or a picture; several of them in a list or tuple.
        question: The user's text.
        response: The answer; ``None`` moderates the prompt alone.
    """

    image: ImageLike | Sequence[ImageLike] | None = None
    question: str | None = None
    response: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """``"text"`` and ``"image"``, as far as they are there."""
        text = self.question is not None or self.response is not None
        return (*(("text",) if text else ()), *(("image",) if self.image is not None else ()))


class Ready(NamedTuple):
    """One input the model can read.

    Attributes:
        images: Decoded pixels.
        ids: Their identities.
        question: Normalised text.
        response: Normalised text, "" for none.
        flags: Tricks found in the texts.
    """

    images: tuple[Tensor, ...]
    ids: tuple[str, ...]
    question: str
    response: str
    flags: tuple[str, ...]


def load_images(image: ImageLike | Sequence[ImageLike] | None) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Pixels and identities of every picture, through the one decoder of untrusted images.

    Raises:
        ImageError: If one of them is refused.
        ValueError: If an empty list is given: nothing was there to be looked at.
    """
    if image is None:
        return (), ()
    several: Sequence[ImageLike] = [image] if isinstance(image, (bytes, str, Path, PILImage.Image)) else image
    if not several:
        raise ValueError("a list without any image")
    encoded = [_bytes(one) for one in several]
    return tuple(torch.from_numpy(decode(data)) for data in encoded), tuple(probe(data).id for data in encoded)


def _bytes(image: ImageLike) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, PILImage.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    return Path(image).read_bytes()


def prompts_of(rows: Sequence[Ready]) -> Prompts:
    """The rows' prompts as one batch."""
    return Prompts(tuple(r.images for r in rows), tuple(r.ids for r in rows), tuple(r.question for r in rows))
