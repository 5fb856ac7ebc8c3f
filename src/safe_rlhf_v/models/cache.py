"""A key-value cache for sampling that is not copied at every token.

Shapes: n rows, H key heads, S cached tokens, L new tokens, W columns of buffers, E width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def decoding_cache(room: int, config: Any | None = None) -> DynamicCache:
    """An empty cache whose ordinary attention layers reserve memory for the tokens to come.

    Args:
        room: Tokens that will follow the prompt; more may come, and cost a copy.
        config: Config of the language model, if its layers keep different things; ``None`` makes all layers alike.
    """
    cache = DecodingCache(config=config)
    cache.layers = [PreallocatedLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if config is None:
        cache.layer_class_to_replicate = partial(PreallocatedLayer, room)
    return cache


class DecodingCache(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """A cache whose rows can be repeated and dropped, the states of linear attention and convolutions among them."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, copies next to one another."""
        self._change_rows("batch_repeat_interleave", repeats, lambda state: state.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Drop all rows but those at the indices."""
        self._change_rows("batch_select_indices", indices, lambda state: state[indices])

    @property
    def ordinary(self) -> bool:
        """Whether all layers keep the keys and values of all tokens."""
        return all(isinstance(layer, PreallocatedLayer) for layer in self.layers)

    def fix(self, columns: int, place: Tensor) -> None:
        """Put :attr:`ordinary` layers into buffers of a fixed width, for :mod:`~safe_rlhf_v.models.decoding_graph`.

        Args:
            columns: W, more than are held.
            place: (1,) int64, the column that the next token goes to; whoever runs tokens moves it.
        """
        layers: list[Any] = self.layers
        for layer in layers:
            layer.fix(columns, place)

    def _change_rows(self, method: str, argument: Any, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            for name in ("conv_states", "recurrent_states"):  # transformers itself changes only keys and values
                states = getattr(layer, name, {})
                states.update({key: change(state) for key, state in states.items() if state is not None})
            if hasattr(layer, method):
                getattr(layer, method)(argument)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one layer, as views of buffers with room for more.

    The parent class joins old and new states into new tensors at every token: a copy of the whole cache per token, and twice
    its memory while it copies. Here the prompt's states are copied once, at the first token; dropping rows costs one more.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        """Begin empty.

        Args:
            room: Tokens that will follow the first ones.
        """
        super().__init__()
        self.room = room
        self.capacity = 0
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None
        self._place: Tensor | None = None

    def fix(self, columns: int, place: Tensor) -> None:
        """From now on take single tokens only, and give all W columns back; see :meth:`DecodingCache.fix`."""
        self._key_buffer = None
        self._value_buffer = None
        self.keys = _widened(self.keys, columns)
        self.values = _widened(self.values, columns)
        self._place = place

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (n, H, L, E) states and return all of them, (n, H, S + L, E); in fixed buffers all W columns."""
        if self._place is not None:
            self.keys.index_copy_(2, self._place, key_states)
            self.values.index_copy_(2, self._place, value_states)
            return self.keys, self.values
        if self.get_seq_length() == 0:
            self.capacity = key_states.shape[-2] + self.room
            states: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return states
        self.keys, self._key_buffer = self._appended(self.keys, self._key_buffer, key_states)
        self.values, self._value_buffer = self._appended(self.values, self._value_buffer, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows; the buffers of all of them go at once, not at the next token, when every layer has new ones."""
        super().batch_select_indices(indices)
        self._key_buffer = None
        self._value_buffer = None

    def _appended(self, held: Tensor, buffer: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """The held states with the new ones behind them, and the buffer that both lie in."""
        start = held.shape[-2]
        end = start + new.shape[-2]
        # Selecting or repeating rows leaves the buffer: what is held then has memory of its own.
        in_buffer = buffer is not None and held.data_ptr() == buffer.data_ptr() and held.shape[:2] == buffer.shape[:2]
        if buffer is None or not in_buffer or end > buffer.shape[-2]:
            self.capacity = max(self.capacity, end)
            buffer = held.new_empty(*held.shape[:2], self.capacity, held.shape[-1])
            buffer[:, :, :start] = held
        buffer[:, :, start:end] = new
        return buffer[:, :, :end], buffer


def _widened(held: Tensor, columns: int) -> Tensor:
    """A copy in W columns; those that hold nothing yet are zero, as masked columns must be finite."""
    return torch.nn.functional.pad(held, (0, 0, 0, columns - held.shape[2]))
