"""Modules that stay float32 under every precision setting."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Float32Module(nn.Module):
    """Moves between devices but keeps its dtype: half precision loses small differences and small updates."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        return self
