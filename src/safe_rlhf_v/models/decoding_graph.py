"""One token of sampling as a CUDA graph: a step is one launch instead of thousands.

A language model of 7 B parameters with adapters launches about three thousand kernels per token. On a large card that takes
the processor several times as long as the card needs for them. A graph is recorded once and launched as a whole; it needs
tensors that stay where they are: caches, masks and inputs of a fixed size, where columns that hold nothing yet are masked.

Shapes: n rows, S cached tokens, W columns of the buffers.
"""

import warnings
from typing import Any, Self

import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.cache import DecodingCache
from safe_rlhf_v.models.sharding import is_sharded

COLUMNS = 256
"""Columns by which buffers grow. Every growth records a new graph; columns without a token are read in vain."""
WAITING = "synchronizing CUDA operation"
"""In torch's warning of an operation for which the processor waits; a graph cannot hold one."""
_WINDOWS = ("sliding_window", "attention_chunk_size")


def fixed_step_works(backbone: Backbone, cache: Any) -> bool:
    """Whether tokens can run in fixed buffers.

    This device must hold all weights, attention must see every earlier token and heed a mask for each query, as packed rows need
    it, too, and positions must be those that are handed in: where there is no common rotary embedding, some networks count them
    from the width of the cache (XGLM, ALiBi, GPT-Neo's bands).

    Args:
        backbone: The policy.
        cache: With its prompts.
    """
    config = getattr(backbone.language_model, "config", None)
    rotary = hasattr(backbone.language_model, "rotary_emb") and not getattr(config, "alibi", False)
    windows = [getattr(config, name, None) for name in _WINDOWS]
    ordinary = isinstance(cache, DecodingCache) and cache.ordinary and backbone.packs
    return config is not None and ordinary and rotary and not any(windows) and not is_sharded(backbone.lm_head)


class FixedStep:
    """Runs tokens of n rows in buffers of a fixed size; on CUDA from the second token on as a graph.

    A network that waits for a result on the way (some mixtures of experts, rotary positions that are scaled as the text grows)
    cannot be recorded; its tokens go on one kernel at a time.
    """

    def __init__(self, backbone: Backbone, cache: DecodingCache, mask: Tensor, places: Tensor, length: int) -> None:
        """Move the cache into fixed buffers.

        Args:
            backbone: The policy.
            cache: S tokens of n rows.
            mask: (n, S + R) bool, which columns may be read once they are filled.
            places: (n, 1) or (3, n, 1), positions of the next token.
            length: S.
        """
        self.columns = min(mask.shape[1], length + COLUMNS)
        self._backbone = backbone
        self._cache = cache
        self._column = torch.tensor([length], device=mask.device)
        self._mask = mask[:, None, None, : self.columns].clone()  # (n, 1, 1, W)
        self._mask[..., length:] = False
        self._tokens = torch.zeros(len(mask), 1, dtype=torch.long, device=mask.device)
        self._places = places.clone()
        self._last = last_place(backbone)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden = mask.new_zeros(0)
        cache.fix(self.columns, self._column)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(n, D) states of the (n,) tokens; the next call overwrites them."""
        self._tokens.copy_(tokens[:, None])
        self._mask.index_fill_(3, self._column, True)
        if self._graph is not None:
            self._graph.replay()
            hidden = self._hidden
        elif tokens.is_cuda:
            with Waits() as waits:
                hidden = self._run()
            if not waits.seen:  # libraries have prepared themselves by now, which a graph cannot record either
                self._record()
        else:
            hidden = self._run()
        self._places.add_(1).clamp_(max=self._last)
        self._column += 1
        return hidden

    def _run(self) -> Tensor:
        return self._backbone.trunk(self._tokens, self._mask, self._places, None, {}, self._cache)[:, -1]

    def _record(self) -> None:
        """Record what a token runs; nothing runs meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._hidden = self._run()
        self._graph = graph


class Waits:
    """A context that notes whether the processor waits for a CUDA device in it.

    Attributes:
        seen: Whether it did; known when the context ends.
    """

    seen = False

    def __enter__(self) -> Self:
        """Have torch warn of waiting."""
        self._mode = torch.cuda.get_sync_debug_mode()
        self._caught = warnings.catch_warnings(record=True)
        messages = self._caught.__enter__()
        assert messages is not None  # since they are recorded
        self._messages = messages
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        """Look for its warnings; others are shown."""
        torch.cuda.set_sync_debug_mode(self._mode)
        self._caught.__exit__(None, None, None)
        for each in self._messages:
            if WAITING in str(each.message):
                self.seen = True
            else:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def last_place(backbone: Backbone) -> int:
    """The network's last position: rows that have finished and still run must not go beyond, where a table of positions ends."""
    return torch.iinfo(torch.long).max if backbone.context_length is None else backbone.context_length - 1
