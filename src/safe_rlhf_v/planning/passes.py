"""What one pass of one network holds beside its weights, counted on fake tensors.

A pass is traced with two and with three blocks of the language model; every further block adds what the third did, as blocks
are alike (Korthikanti et al., arXiv 2205.05198, section 4, derive the same linear growth by hand). Networks of up to three
blocks are traced as they are.

Shapes: B rows, S columns, N responses, R response tokens, D hidden.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from safe_rlhf_v.functional.language import log_probs_of
from safe_rlhf_v.models import hf_masks as masks
from safe_rlhf_v.models.backbone import before_tokens
from safe_rlhf_v.planning.live_bytes import LiveBytes
from safe_rlhf_v.planning.network import BackboneOptions, fake_copy

Reads = Literal["log_probs", "states", "evidence", "nothing"]
"""What is read of the responses: log-probabilities of their tokens, their states (a head's input), both, or nothing."""

CHUNK = 1024
"""Positions that meet the LM head together; see :func:`~safe_rlhf_v.functional.language.token_log_probs`."""


class Rows(NamedTuple):
    """Token rows of one pass.

    Attributes:
        rows: B.
        width: S.
        response: R.
        responses: Responses behind one prompt in the same row; 0 for prompts alone.
        image: Tokens of a prompt's picture.
    """

    rows: int
    width: int
    response: int
    responses: int
    image: int


class Passes:
    """The passes of networks with the same settings; each is traced once."""

    def __init__(self, options: BackboneOptions, mixed: bool) -> None:
        """Trace nothing yet.

        Args:
            options: Settings of the network.
            mixed: Whether it runs under bfloat16 autocast.
        """
        self.options = options
        self.mixed = mixed
        self._peaks: dict[Any, int] = {}

    def peak(self, rows: Rows, reads: Reads, *, learns: bool, held: bool = False) -> int:
        """Most bytes that a pass holds beside weights, optimizer states and pictures.

        Args:
            rows: Its input.
            reads: What is read of it.
            learns: With a backward pass; its gradients are then counted, unless they are ``held``.
            held: Gradients of an earlier pass are there, and counted elsewhere.
        """
        depth = self.options.config.get_text_config().num_hidden_layers
        key = (rows, reads, learns, held)
        if key not in self._peaks:
            if depth <= 3:
                self._peaks[key] = self.traced(depth, *key)
            else:
                two = self.traced(2, *key)
                three = self.traced(3, *key)
                self._peaks[key] = three + (depth - 3) * (three - two)
        return self._peaks[key]

    def traced(self, layers: int, rows: Rows, reads: Reads, learns: bool, held: bool) -> int:
        """As :meth:`peak`, for a network with so many blocks."""
        mode = FakeTensorMode()
        model = fake_copy(self.options, mode, layers).train(learns)
        with mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if held:
                for parameter in model.parameters():
                    parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            parameters = [*model.parameters(), *model.buffers()]
            gradients = [p.grad for p in parameters if p.grad is not None]
            with LiveBytes([*parameters, *gradients]) as live, torch.set_grad_enabled(learns):
                with self._autocast():
                    result = _read(model, _hidden(model, rows, self.options.dtype), rows, reads)
                if learns:
                    result.backward()
        return int(live.peak)

    def _autocast(self) -> AbstractContextManager[Any]:
        # As Lightning's mixed precision: weights are cast each time they are read.
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if self.mixed else nullcontext()


def _hidden(model: Any, rows: Rows, dtype: torch.dtype) -> Tensor:
    """(B, S, D) states, with an explicit mask as padded and packed rows have it."""
    b = rows.rows
    s = rows.width
    ids = torch.zeros(b, s, dtype=torch.long)
    mask = torch.ones(b, 1, s, s, dtype=torch.bool)
    positions = torch.zeros((3, b, s) if hasattr(model.model, "get_rope_index") else (b, s), dtype=torch.long)
    embedded: Tensor = model.get_input_embeddings()(ids)
    if rows.image:
        features = torch.empty(b * rows.image, embedded.shape[-1], dtype=dtype)
        placeholders = torch.zeros(b, s, dtype=torch.bool)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(placeholders, features.to(embedded.dtype))
    decoder = model.model.get_decoder()
    seen = masks.attention_masks(model, ids, mask, None)
    result = decoder(inputs_embeds=embedded, attention_mask=seen, position_ids=positions, use_cache=False)
    states: Tensor = result.last_hidden_state
    return states


def _read(model: Any, hidden: Tensor, rows: Rows, reads: Reads) -> Tensor:
    """What a backbone's ``read`` does with the states, summed up to one number."""
    if reads == "nothing":
        return hidden[:, -1]
    n = rows.rows * rows.responses
    row = torch.zeros(n, dtype=torch.long)
    index = torch.zeros(n, rows.response, dtype=torch.long)
    at = hidden[row[:, None], index] * torch.ones(n, rows.response, 1, dtype=torch.bool)  # (N, R, D)
    before = before_tokens(hidden[row, row], at)  # (N, R, D)
    seen = before.float().sum() + at.float().sum() if reads in ("states", "evidence") else 0
    if reads == "states":
        return torch.as_tensor(seen)

    def score(states: Tensor, targets: Tensor) -> Tensor:
        return log_probs_of(model.get_output_embeddings()(states), targets)

    states = before.flatten(0, 1).clone()  # as a boolean index makes it
    targets = torch.zeros(len(states), dtype=torch.long)
    pieces = list(zip(states.split(CHUNK), targets.split(CHUNK), strict=True))
    if len(pieces) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(score, s, w, use_reentrant=False) for s, w in pieces]).sum() + seen
    return torch.cat([score(s, w) for s, w in pieces]).sum() + seen
