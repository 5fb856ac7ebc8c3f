"""Inputs of a guard, and their decoded form for the model."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from safe_rlhf_v.records import Context, Record, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.records.conversation import turn_problems
from safe_rlhf_v.records.user_files import read_bounded
from safe_rlhf_v.shards.images import MAX_BYTES, MAX_FRAMES, ImageError, load_frames, pixel_id

ImageLike = bytes | str | Path | PILImage.Image


class Input(NamedTuple):
    """An input of the guard; at least one part must be there.

    Attributes:
        image: Encoded bytes, a file, or a picture; several of them in a list or tuple, in the order of the conversation.
        question: The user's text.
        response: The response; ``None`` moderates the prompt alone.
        system: System text.
        history: Turns before the question, oldest first; they say how many of the pictures they hold.
    """

    image: ImageLike | Sequence[ImageLike] | None = None
    question: str | None = None
    response: str | None = None
    system: str = ""
    history: Sequence[Turn] = ()

    @classmethod
    def of(cls, record: Record, response: str | None = None) -> Self:
        """A record's whole conversation as an input.

        Args:
            record: With its image bytes.
            response: The response; ``None`` moderates the prompt alone.
        """
        images = [image.data for image in record.images] or None
        return cls(images, record.question, response, record.system, record.history)

    @property
    def parts(self) -> tuple[str, ...]:
        """The input's parts, of ``"text"`` and ``"image"``."""
        text = self.question is not None or self.response is not None or self.system or self.history
        return (*(("text",) if text else ()), *(("image",) if self.image is not None else ()))

    def context(self, images: int) -> Context:
        """What stands before the question.

        Args:
            images: Number of pictures.

        Raises:
            ValueError: If the turns do not alternate, or hold more pictures than there are.
        """
        history = tuple(self.history)
        for where, problem in turn_problems(history, images):
            raise ValueError(f"{where} {problem}")
        return Context(self.system, history)


class Ready(NamedTuple):
    """One reading of one input, a row of the model's batch.

    Attributes:
        images: Decoded pixels.
        ids: Identities of the images.
        question: The question in this reading.
        response: The response in this reading, "" without one.
        context: System text and earlier turns in this reading.
        undone: What was undone in this reading, () for the unaltered input (:class:`~safe_rlhf_v.guard.text.Reading`).
        tricks: Those of them that do not occur in genuine writing.
    """

    images: tuple[Tensor, ...]
    ids: tuple[str, ...]
    question: str
    response: str
    context: Context = Context()
    undone: tuple[str, ...] = ()
    tricks: tuple[str, ...] = ()


def load_views(image: ImageLike | Sequence[ImageLike] | None) -> list[tuple[tuple[Tensor, ...], tuple[str, ...]]]:
    """Pixels and identities of every view of an input's pictures, decoded as untrusted images.

    A still picture has one view. A file with several pictures (an animation, its hidden default picture, a multi-picture JPEG)
    has one view for each; several such files have every combination of views. Equal views are returned once.

    Raises:
        ImageError: If a picture is refused, or there are more than :data:`MAX_FRAMES` views.
        FileError: If a file cannot be read.
        ValueError: If the list is empty.
    """
    if image is None:
        return [((), ())]
    several: Sequence[ImageLike] = [image] if isinstance(image, (bytes, str, Path, PILImage.Image)) else image
    if not several:
        raise ValueError("a list without any image")
    frames = [_distinct(one) for one in several]
    if (views := math.prod(map(len, frames))) > MAX_FRAMES:
        raise ImageError(f"the pictures can be seen in {views} ways together, the limit is {MAX_FRAMES}")
    combined = itertools.product(*frames)
    return [(tuple(pixels for _, pixels in view), tuple(name for name, _ in view)) for view in combined]


def _distinct(image: ImageLike) -> list[tuple[str, Tensor]]:
    """Identity and pixels of each different picture of one file."""
    frames = load_frames(read_bounded(image, MAX_BYTES) if isinstance(image, (str, Path)) else image)
    return list({pixel_id(frame): torch.from_numpy(np.array(frame)) for frame in frames}.items())


def prompts_of(rows: Sequence[Ready]) -> Prompts:
    """The rows' prompts as one batch."""
    images, ids, questions, _, contexts, *_ = zip(*rows, strict=True)
    return Prompts(images, ids, questions, contexts)
