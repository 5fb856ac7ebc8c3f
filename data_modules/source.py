"""Samples by number: read from the shard, decoded once, or reported as broken. Imported by data workers: keep it light."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.data_modules.plan import PADDING
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards.images import MAX_PIXELS, ImageError, decode
from safe_rlhf_v.shards.manifest import ShardError
from safe_rlhf_v.shards.split import ShardedSplit

OnBadSample = Literal["error", "skip-and-count"]
MEND = "mend or remove the record, or let training leave it out with data.on_bad_sample: skip-and-count"


class Sample(NamedTuple):
    """A record and its decoded images, each uint8 (H, W, 3).

    ``problem`` says what was broken about a masked row, ``shard`` where the record is stored.
    """

    record: Record | None
    images: tuple[NDArray[np.uint8], ...]
    problem: str = ""
    shard: str = ""


MASKED = Sample(None, ())
"""A row that must not count."""


@dataclass
class ImageOptions:
    """How pictures are decoded.

    Attributes:
        max_pixels: Refuse larger pictures, from the header.
        size: Scale the longer side to this many pixels; ``None`` keeps the picture's size.
    """

    max_pixels: int = MAX_PIXELS
    size: int | None = None


@dataclass
class Source:
    """A map-style data set over one split whose items are whole batches.

    Attributes:
        split: The records.
        rows: Which of them, in stored order.
        collate: Samples (record ``None`` = masked row) to a typed batch; its ``problem(record)``, if it has one, says why a
            record fits into none.
        images: Decoding options.
        on_bad_sample: ``error`` stops at the first broken sample; ``skip-and-count`` gives a masked row in its place.
    """

    split: ShardedSplit
    rows: Sequence[int]
    collate: Callable[[list[Sample]], Any]
    images: ImageOptions = field(default_factory=ImageOptions)
    on_bad_sample: OnBadSample = "error"

    def __getitem__(self, batch: Sequence[int]) -> tuple[Any, list[str]]:
        """A collated batch of the samples at these numbers, and one entry per real sample: its problem, or ""."""
        samples = [self.sample(number) for number in batch]
        problems = [sample.problem for number, sample in zip(batch, samples, strict=True) if number != PADDING]
        return self.collate(samples), problems

    def sample(self, number: int) -> Sample:
        """One sample; :data:`PADDING` gives a masked row.

        Raises:
            ShardError: For a broken sample, unless it is to be skipped.
        """
        if number == PADDING:
            return MASKED
        try:
            record = self.split[self.rows[number]]
            options = {"max_pixels": self.images.max_pixels, "size": self.images.size}
            shard = self.split.file_of(self.rows[number])
            if problem := getattr(self.collate, "problem", lambda record: "")(record):
                raise ShardError(f"{shard}: record {record.key!r}: {problem}")
            images = tuple(self._decode(record, i, shard, options) for i in range(len(record.images)))
            return Sample(record, images, shard=shard)
        except ShardError as error:
            if self.on_bad_sample == "error":
                raise ShardError(f"{error}; {MEND}") from None
            return Sample(None, (), str(error))

    def _decode(self, record: Record, i: int, shard: str, options: dict[str, Any]) -> NDArray[np.uint8]:
        try:
            return decode(record.images[i].data, **options)
        except ImageError as error:
            raise ShardError(f"{shard}: record {record.key!r}, field 'images[{i}]': {error}") from None
