"""Samples by number: read from the shard, decoded, or reported as broken; data workers import only this light module."""

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from safe_rlhf_v.data_modules.plan import PADDING
from safe_rlhf_v.data_modules.transfer import Allocator, Block, Pixels, private_block
from safe_rlhf_v.records import Image, Record
from safe_rlhf_v.shards.images import MAX_PIXELS, ImageError, decode, new_array, scaled, without_warnings
from safe_rlhf_v.shards.manifest import ShardError
from safe_rlhf_v.shards.split import ShardedSplit

OnBadSample = Literal["error", "skip-and-count"]
THREADED_BYTES = 2_000_000
"""Bytes of pixels in a batch that take longer to decode than threads take to start."""
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
    images: tuple[Pixels, ...]
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
            again; 0 for none. Each split has its own, and so has each of ``num_workers`` processes, which then stay between
            epochs: a record is decoded again where another process has it.
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
        collated, problems, _ = self.load(batch)
        return collated, problems

    def load(
        self, batch: Sequence[int], *, threads: int = 1, allocate: Allocator = private_block
    ) -> tuple[Any, list[str], Block]:
        """As ``[]``, with the memory in which the pictures lie.

        Args:
            batch: Numbers of the samples; :data:`PADDING` gives a masked row.
            threads: Number of threads that decode.
            allocate: Gives the memory.

        Raises:
            ShardError: For a broken sample, unless such are to be skipped.
        """
        samples = [self._read(number) for number in batch]
        jobs = [
            (image, cached)
            for sample in samples
            if sample.record
            for image, cached in itertools.zip_longest(sample.record.images, sample.images)
        ]
        shapes = [self._shape(image) for image, _ in jobs]
        size = sum(math.prod(shape) for shape in shapes)
        block = allocate(size)
        places = map(block.take, shapes)
        with (
            without_warnings(),
            ThreadPoolExecutor(threads) if threads > 1 and size > THREADED_BYTES else nullcontext() as pool,
        ):
            run = pool.map if pool else map
            pictures = iter([*run(self._decode, jobs, places)])
        samples = [
            self._complete(number, sample, [*itertools.islice(pictures, len(sample.record.images))])
            if sample.record
            else sample
            for number, sample in zip(batch, samples, strict=True)
        ]
        problems = [sample.problem for number, sample in zip(batch, samples, strict=True) if number != PADDING]
        return self.collate(samples), problems, block

    def _read(self, number: int) -> Sample:
        """A sample whose pictures are not decoded yet, unless they are in the cache."""
        if number == PADDING:
            return MASKED
        if number in self._cache:
            return self._cache[number]
        row = self.rows[number]
        try:
            record = self.split[row]
        except ShardError as error:
            return self._broken(str(error))
        shard = self.split.file_of(row)
        if problem := getattr(self.collate, "problem", lambda record: "")(record):
            return self._broken(f"{shard}: record {record.key!r}: {problem}")
        return Sample(record, (), shard=shard)

    def _broken(self, problem: str) -> Sample:
        """A masked row.

        Raises:
            ShardError: Unless broken samples are to be skipped.
        """
        if self.on_bad_sample == "error":
            raise ShardError(f"{problem}; {HINT}")
        return Sample(None, (), problem)

    def _shape(self, image: Image) -> tuple[int, int, int]:
        """Shape of a picture by its record; nothing if it claims more than may be decoded."""
        if not 0 < image.width * image.height <= self.images.max_pixels:
            return 0, 0, 3
        width, height = scaled(image.width, image.height, self.images.size)
        return height, width, 3

    def _decode(self, job: tuple[Image, Pixels | None], place: Pixels | None) -> Pixels | ImageError:
        """The pixels of a picture: in their place, or elsewhere if the record states another size."""

        def allocate(shape: tuple[int, int, int]) -> Pixels:
            return place if place is not None and place.shape == shape else new_array(shape)

        image, cached = job
        if cached is not None:
            pixels = allocate((cached.shape[0], cached.shape[1], 3))
            pixels[...] = cached
            return pixels
        try:
            return decode(image.data, max_pixels=self.images.max_pixels, size=self.images.size, allocate=allocate)
        except ImageError as error:
            return error

    def _complete(self, number: int, sample: Sample, pictures: list[Pixels | ImageError]) -> Sample:
        """A sample with its decoded pictures; copies of them are cached, because the batch belongs to its reader."""
        assert sample.record is not None
        images = tuple(picture for picture in pictures if not isinstance(picture, ImageError))
        if len(images) < len(pictures):
            i, error = next((i, x) for i, x in enumerate(pictures) if isinstance(x, ImageError))
            return self._broken(f"{sample.shard}: record {sample.record.key!r}, field 'images[{i}]': {error}")
        if number not in self._cache and len(self._cache) < self.images.cache:
            self._cache[number] = sample._replace(images=tuple(image.copy() for image in images))
        return sample._replace(images=images)
