"""An allocation counter: bytes of all tensors that are alive, and the most there were at once.

It counts storages as operations create them and as the garbage collector frees them, so what autograd keeps for a backward pass
is in it. What a kernel allocates inside itself is not, nor what an allocator keeps back.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context that counts; it works for real tensors and for fake ones.

    Attributes:
        now: Bytes that are alive.
        peak: The most that were.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        """Start at 0.

        Args:
            ignored: Tensors that are never counted, nor what shares their memory.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.now = 0
        self.peak = 0
        self._known: dict[int, Any] = {}
        self._ignored = [tensor.untyped_storage() for tensor in ignored]  # kept: an address must not be used again
        self._ignored_keys = {storage._cdata for storage in self._ignored}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.count(value)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._ignored_keys:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size
