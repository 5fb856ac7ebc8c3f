"""One token of sampling as a CUDA graph: a step is one launch instead of thousands.

A language model of 7 B parameters with adapters launches about three thousand kernels per token. On a large card that takes
the processor several times as long as the card needs for them. A graph is recorded once and launched as a whole; it needs
tensors that stay where they are: caches, masks and inputs of a fixed size, where columns that hold nothing yet are masked.

Shapes: n rows, S cached tokens, W columns of the buffers.
"""

from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.cache import DecodingCache
from safe_rlhf_v.models.sharding import is_sharded

COLUMNS = 256
"""Columns by which buffers grow. Every growth records a new graph; columns without a token are read in vain."""


def fixed_step_works(backbone: Backbone, cache: Any) -> bool:
    """Whether tokens can run in fixed buffers: this device holds all weights, and attention sees every earlier token.

    Args:
        backbone: The policy.
        cache: With its prompts.
    """
    config = getattr(backbone.language_model, "config", None)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    ordinary = isinstance(cache, DecodingCache) and cache.ordinary
    return config is not None and ordinary and not any(windows) and not is_sharded(backbone.lm_head)


class FixedStep:
    """Runs tokens of n rows in buffers of a fixed size; on CUDA from the second token on as a graph."""

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
        else:
            hidden = self._run()
            if tokens.is_cuda:  # libraries have prepared themselves by now, which a graph cannot record
                self._record()
        self._places += 1
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
