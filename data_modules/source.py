"""Samples by number: read from the shard, decoded, or reported as broken; data workers import only this light module."""

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
HINT = "correct or remove the record, or skip such records with data.on_bad_sample: skip-and-count"


class Sample(NamedTuple):
    """A record and its decoded images.

    Attributes:
        record: The record; ``None`` in a masked row.
        images: Decoded images, each uint8 (H, W, 3).
        problem: What was broken, in a masked row.
        shard: Path of the shard that holds the record.
    """

    record: Record | None
    images: tuple[NDArray[np.uint8], ...]
    problem: str = ""
    shard: str = ""


MASKED = Sample(None, ())
"""A row that does not count."""


@dataclass
class ImageOptions:
    """How pictures are decoded.

    Attributes:
        max_pixels: Refuse larger pictures, by their header.
        size: Scale the longer side to this many pixels; ``None`` keeps the picture's size.
        cache: Number of records that are kept in memory with their decoded pictures, so that later epochs do not read them
            again; 0 for none.
    """

    max_pixels: int = MAX_PIXELS
    size: int | None = None
    cache: int = 0


@dataclass
class Source:
    """A map-style data set over one split whose items are whole batches.

    Attributes:
        split: The split that holds the records.
        rows: Numbers of the records, in stored order.
        collate: Makes a typed batch of samples (record ``None`` = masked row); its ``problem(record)``, if it has one, says why
            a record does not fit into a batch.
        images: Decoding options.
        on_bad_sample: ``error`` stops at the first broken sample; ``skip-and-count`` replaces it by a masked row.
    """

    split: ShardedSplit
    rows: Sequence[int]
    collate: Callable[[list[Sample]], Any]
    images: ImageOptions = field(default_factory=ImageOptions)
    on_bad_sample: OnBadSample = "error"
    _cache: dict[int, Sample] = field(default_factory=dict, init=False)

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
        if number in self._cache:
            return self._cache[number]
        try:
            record = self.split[self.rows[number]]
            options = {"max_pixels": self.images.max_pixels, "size": self.images.size}
            shard = self.split.file_of(self.rows[number])
            if problem := getattr(self.collate, "problem", lambda record: "")(record):
                raise ShardError(f"{shard}: record {record.key!r}: {problem}")
            images = tuple(self._decode(record, i, shard, options) for i in range(len(record.images)))
            sample = Sample(record, images, shard=shard)
            if len(self._cache) < self.images.cache:
                self._cache[number] = sample
            return sample
        except ShardError as error:
            if self.on_bad_sample == "error":
                raise ShardError(f"{error}; {HINT}") from None
            return Sample(None, (), str(error))

    def _decode(self, record: Record, i: int, shard: str, options: dict[str, Any]) -> NDArray[np.uint8]:
        try:
            return decode(record.images[i].data, **options)
        except ImageError as error:
            raise ShardError(f"{shard}: record {record.key!r}, field 'images[{i}]': {error}") from None
