"""The order of the samples in an epoch, for every rank, worker count and batch size.

The order of an epoch depends only on seed, epoch and the number of samples. A global batch is G consecutive entries of it;
each rank takes its contiguous slice. So 1, 2 and 4 ranks with the same global batch size train on the same global batches,
and a position is two numbers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

PADDING = -1
"""Index of a masked row."""


class Position(NamedTuple):
    """Position of training in the data.

    Attributes:
        epoch: The epoch.
        batch: Number of the next global batch in it.
    """

    epoch: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """Batches of one split for one rank.

    Attributes:
        samples: Number n of samples in the split.
        batch_size: Samples per rank and batch.
        world_size: Number of ranks.
        rank: Number of this rank.
        seed: Seed of the training order; ``None`` keeps the stored order (evaluation).
        split: Name of the split, for messages.
        option: Name of the option that is the batch size, for messages.
    """

    samples: int
    batch_size: int
    world_size: int = 1
    rank: int = 0
    seed: int | None = None
    split: str = "train"
    option: str = "batch_size"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If a training split is smaller than one global batch, or a number is outside its range.
        """
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"batch size {self.batch_size} or rank {self.rank} of {self.world_size} is outside its range"
            )
        if self.seed is not None and self.samples < self.global_batch:
            most = self.samples // self.world_size
            lower = f"lower {self.option}, as --data.init_args.{self.option}={most}"
            mend = lower if most else "give more data, or fewer ranks"
            raise ValueError(
                f"{self.samples} training samples of split {self.split!r} are fewer than one global batch of {self.global_batch} "
                f"({self.world_size} ranks x {self.batch_size}): {mend}"
            )

    @property
    def global_batch(self) -> int:
        """Number G of samples of all ranks together in one step."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Number of batches per epoch, the same on every rank: training drops the last incomplete one, evaluation pads it."""
        if self.seed is None:
            return -(-self.samples // self.global_batch)
        return self.samples // self.global_batch

    def order(self, epoch: int) -> list[int]:
        """The samples of an epoch, all ranks together."""
        order = list(range(self.samples))
        if self.seed is not None:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order

    def batches(self, epoch: int, start: int = 0) -> list[list[int]]:
        """This rank's batches from batch ``start`` to the end of the epoch; :data:`PADDING` marks masked rows."""
        order = self.order(epoch)
        batches = []
        for batch in range(start, len(self)):
            first = batch * self.global_batch + self.rank * self.batch_size
            rows = order[first : first + self.batch_size]
            batches.append(rows + [PADDING] * (self.batch_size - len(rows)))
        return batches


def nested_subset(rows: Sequence[int], size: int | None, seed: int) -> list[int]:
    """``size`` of the rows in their stored order, such that a smaller subset is always part of a larger one."""
    if size is None or size >= len(rows):
        return list(rows)
    rank = {row: random.Random(f"subset/{seed}/{row}").random() for row in rows}
    return sorted(sorted(rows, key=rank.__getitem__)[:size])
