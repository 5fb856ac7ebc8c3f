"""The pictures of a batch in one block of memory, which a worker process shares with the main process and uses again.

Without it torch would open a shared file for every picture. A fresh file for every batch is slow, too: its pages have to be
provided one by one, which takes a third of the time of decoding a picture. So a worker has a few blocks, and uses one again
when nobody in the main process holds a picture in it any more. To hand over a block takes a conversation between the processes,
about as long as decoding two pictures; so it is sent once, and the main process keeps it in a :class:`Mailbox`.
"""

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safe_rlhf_v.records.batches import exchanged

MAX_BYTES = 1 << 30
"""Pictures beyond it get memory of their own, whatever sizes their records state."""
BLOCKS = 8
"""Blocks of a worker; batches beyond it get memory of their own."""
_HEADER = 64
"""Bytes before the first picture; the first of them says whether the block is in use."""

Pixels = NDArray[np.uint8]


class Block:
    """Memory for the pictures of one batch."""

    def __init__(self, memory: Pixels) -> None:
        """Take memory for pictures.

        Args:
            memory: (n,) of any content.
        """
        self.memory = memory
        self._used = 0

    def take(self, shape: Sequence[int]) -> Pixels | None:
        """The next bytes of the block as an array; ``None`` if they are not enough."""
        start = self._used
        end = start + math.prod(shape)
        if end > len(self.memory):
            return None
        self._used = end
        return self.memory[start:end].reshape(shape)


class Allocator(Protocol):
    """Gives blocks."""

    def __call__(self, size: int) -> Block:
        """A block of at least so many bytes, or of the largest size that is allowed."""


def private_block(size: int) -> Block:
    """A block for this process alone."""
    return Block(np.empty(min(size, MAX_BYTES), dtype=np.uint8))


class SharedBlock(Block):
    """A block that the main process reads.

    Attributes:
        shared: The whole of it, as torch sends it.
        number: Which of the worker's blocks it is; -1 if it is used only once.
        sent: Whether the main process has it. A block is used again only after the main process has freed it, so it has it then.
    """

    def __init__(self, size: int, number: int) -> None:
        """Reserve memory.

        Args:
            size: Number of bytes for pictures.
            number: Which of the worker's blocks it is; -1 if it is used only once.
        """
        # As torch's own collation does it in a worker: what is shared from the start has not to be copied once more.
        storage = torch.UntypedStorage._new_shared(size + _HEADER)
        self.shared = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.number = number
        self.sent = False
        super().__init__(self.shared.numpy()[_HEADER:])

    @property
    def in_use(self) -> bool:
        """Whether it is on its way to the main process, or held there."""
        return bool(self.shared[0])

    def start(self) -> "SharedBlock":
        """The block itself, empty and in use."""
        self.shared[0] = 1
        self._used = 0
        return self


class SharedBlocks:
    """The blocks of one worker process."""

    def __init__(self) -> None:
        """Begin without any."""
        self._blocks: list[SharedBlock] = []

    def __call__(self, size: int) -> SharedBlock:
        """A block that is not in use; see :class:`Allocator`."""
        size = min(size, MAX_BYTES)
        free = [block for block in self._blocks if not block.in_use]
        for block in free:
            if len(block.memory) >= size:
                return block.start()
        if len(self._blocks) < BLOCKS:
            self._blocks.append(SharedBlock(size, len(self._blocks)))
            return self._blocks[-1].start()
        if free:  # all of them are too small
            larger = SharedBlock(size, free[0].number)
            self._blocks[larger.number] = larger
            return larger.start()
        return SharedBlock(size, -1).start()


class Place:
    """Where a picture of a batch lies in its block.

    Attributes:
        offset: Its first byte.
        shape: Its shape.
    """

    __slots__ = ("offset", "shape")

    def __init__(self, offset: int, shape: tuple[int, ...]) -> None:
        """Store both.

        Args:
            offset: Its first byte.
            shape: Its shape.
        """
        self.offset = offset
        self.shape = shape


class Mailbox:
    """The blocks that the main process has received from the workers of one loader.

    Attributes:
        blocks: By the numbers of the worker and of its block.
    """

    _numbers = itertools.count()
    _open: "weakref.WeakValueDictionary[int, Mailbox]" = weakref.WeakValueDictionary()

    def __init__(self, number: int | None = None) -> None:
        """Open a mailbox.

        Args:
            number: In a worker process, the number of the mailbox in the main process.
        """
        self.blocks: dict[tuple[int, int], Tensor] = {}
        self.number = next(self._numbers) if number is None else number
        self._open[self.number] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker knows only its number."""
        return Mailbox, (self.number,)

    @classmethod
    def received(cls, number: int, origin: tuple[int, int], shared: Tensor | None) -> Tensor:
        """The block of a message.

        Args:
            number: Number of the mailbox.
            origin: Numbers of the worker and of its block; a block of number -1 is not kept.
            shared: The block, if it comes for the first time.
        """
        mailbox = cls._open.get(number)
        if shared is None:
            assert mailbox is not None
            return mailbox.blocks[origin]
        if mailbox is not None and origin[1] >= 0:
            mailbox.blocks[origin] = shared
        return shared


class Packed:
    """A batch that a worker sends; it arrives as :class:`Arrived`."""

    def __init__(self, batch: Any, block: SharedBlock, worker: int, mailbox: Mailbox) -> None:
        """Replace tensors: those in the block by their places, others by arrays, which are small and travel with the message.

        Args:
            batch: Nested tuples and dicts.
            block: Holds its pictures.
            worker: Number of the worker.
            mailbox: Where the main process keeps the block.
        """
        first = block.shared.data_ptr()

        def parted(tensor: Tensor) -> Place | NDArray[Any]:
            offset = tensor.data_ptr() - first
            inside = tensor.dtype == torch.uint8 and _HEADER <= offset < len(block.shared)
            return Place(offset, tuple(tensor.shape)) if inside else tensor.numpy()

        self._block = block
        self._address = (mailbox.number, (worker, block.number))
        self._layout = exchanged(batch, Tensor, parted)

    def __reduce__(self) -> tuple[Any, ...]:
        """It is another object where it arrives."""
        shared = None if self._block.sent else self._block.shared
        self._block.sent = True
        return Arrived, (*self._address, shared, self._layout)


class Arrived:
    """A batch that a worker sent; its block is free for the worker as soon as nothing holds it or its pictures any more.

    Attributes:
        origin: Numbers of the worker and of its block.
    """

    def __init__(self, mailbox: int, origin: tuple[int, int], shared: Tensor | None, layout: Any) -> None:
        """Hold the block.

        Args:
            mailbox: Number of the mailbox.
            origin: Numbers of the worker and of its block.
            shared: The block, if it comes for the first time.
            layout: The batch with places and arrays for its tensors.
        """
        self.origin = origin
        shared = Mailbox.received(mailbox, origin, shared)
        self._layout = layout
        # Every picture is a view of this array, and keeps it alive: NumPy makes views of views of the first array.
        self._holder = shared.numpy()
        weakref.finalize(self._holder, _free, shared).atexit = False

    def batch(self) -> Any:
        """The batch; its pictures are views of the block."""

        def restored(part: Place | NDArray[Any]) -> Tensor:
            if isinstance(part, Place):
                end = part.offset + math.prod(part.shape)
                return torch.from_numpy(self._holder[part.offset : end].reshape(part.shape))
            return torch.from_numpy(part)

        return exchanged(self._layout, (Place, np.ndarray), restored)


def _free(shared: Tensor) -> None:
    shared[0] = 0
