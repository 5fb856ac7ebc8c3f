"""Arrange prompts and responses as token rows, packed or one response per row.

Packed, a row is ``[prompt | response 1 | response 2 | ...]`` with a mask that hides the responses from one another, so
the prompt (62-83 % of the tokens of a real pair) runs once. Both layouts give the same hidden states.

Shapes: B rows, S columns, N responses, R response tokens.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.models.types import TokenBatch

PaddingSide = Literal["left", "right"]


class PromptTokens(NamedTuple):
    """Tokenised prompts, image placeholders expanded, no padding.

    Attributes:
        ids: Per prompt its token ids.
        image_prompt: For each image the prompt it belongs to.
        token_fields: Further per-token integers the family needs (token types), aligned with ``ids``.
        response_fill: Value of each of those fields on response and padding tokens.
        extras: Tensors (M, ...) the language model needs per image (grids).
    """

    ids: list[list[int]]
    image_prompt: list[int]
    token_fields: dict[str, list[list[int]]] = {}
    response_fill: dict[str, int] = {}
    extras: dict[str, Tensor] = {}

    def take(self, rows: Sequence[int]) -> "tuple[PromptTokens, list[int]]":
        """The prompts at ``rows``, and which of the M images they show, in their order."""
        images_of = [[m for m, p in enumerate(self.image_prompt) if p == row] for row in rows]
        images = [m for images_of_row in images_of for m in images_of_row]
        selected = PromptTokens(
            ids=[self.ids[row] for row in rows],
            image_prompt=[new for new, images_of_row in enumerate(images_of) for _ in images_of_row],
            token_fields={name: [values[row] for row in rows] for name, values in self.token_fields.items()},
            response_fill=self.response_fill,
            extras={name: value[images] for name, value in self.extras.items()},
        )
        return selected, images


def layout(
    prompts: PromptTokens,
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    pad_id: int,
    packed: bool = False,
    side: PaddingSide = "right",
) -> TokenBatch:
    """Arrange prompts and their responses into one token batch.

    Args:
        prompts: B prompts.
        responses: Per prompt its responses' token ids, end token included; empty lists for generation.
        pad_id: Id written into padding.
        packed: One row per prompt with all its responses, instead of one row per response.
        side: Where rows are padded.

    Returns:
        A token batch whose N responses are ordered prompt by prompt.
    """
    rows: list[tuple[int, list[Sequence[int]]]] = []  # (prompt, responses in this row)
    for p, group in enumerate(responses):
        rows.extend([(p, list(group))] if packed or not group else [(p, [a]) for a in group])
    width = max(len(prompts.ids[p]) + sum(map(len, group)) for p, group in rows)
    lengths = [len(a) for _, group in rows for a in group]
    b = len(rows)
    n = len(lengths)
    r = max(lengths, default=0)

    ids = torch.full((b, width), pad_id)  # (B, S)
    segments = torch.full((b, width), -1)  # (B, S)
    fields = {name: torch.full((b, width), prompts.response_fill[name]) for name in prompts.token_fields}
    row_of = torch.empty(n, dtype=torch.long)
    prompt_end = torch.empty(n, dtype=torch.long)
    index = torch.zeros(n, r, dtype=torch.long)
    mask = torch.zeros(n, r, dtype=torch.bool)
    i = 0
    for row, (p, group) in enumerate(rows):
        start = width - len(prompts.ids[p]) - sum(map(len, group)) if side == "left" else 0
        end = start + len(prompts.ids[p])
        ids[row, start:end] = torch.tensor(prompts.ids[p])
        segments[row, start:end] = 0
        for name, values in prompts.token_fields.items():
            fields[name][row, start:end] = torch.tensor(values[p])
        prompt_last = end - 1
        for k, response in enumerate(group, start=1):
            stop = end + len(response)
            ids[row, end:stop] = torch.tensor(response)
            segments[row, end:stop] = k
            row_of[i] = row
            prompt_end[i] = prompt_last
            index[i, : len(response)] = torch.arange(end, stop)
            mask[i, : len(response)] = True
            end = stop
            i = i + 1
    placed = [(row, m) for row, (p, _) in enumerate(rows) for m, q in enumerate(prompts.image_prompt) if q == p]
    image_row, image_index = torch.tensor(placed, dtype=torch.long).reshape(-1, 2).unbind(1)
    per_image = {name: value[image_index] for name, value in prompts.extras.items()}
    return TokenBatch(
        ids, segments >= 0, segments, row_of, index, mask, prompt_end, image_row, image_index, {**fields, **per_image}
    )


def position_ids(tokens: TokenBatch) -> Tensor:
    """(B, S) int64: each token's position, counting only the tokens it can see; 0 on padding."""
    prompt = tokens.segments == 0
    positions = (prompt.long().cumsum(1) - 1).clamp(min=0) * prompt  # (B, S)
    start = prompt.sum(1)[tokens.response_row]  # (N,)
    steps = torch.arange(tokens.response_mask.shape[1], device=start.device)  # (R,)
    rows = tokens.response_row[:, None].expand_as(tokens.response_index)
    mask = tokens.response_mask
    return positions.index_put((rows[mask], tokens.response_index[mask]), (start[:, None] + steps)[mask])


def visibility(tokens: TokenBatch) -> Tensor:
    """(B, 1, S, S) bool: True where a query (third axis) may read a key (last axis); padding sees only itself."""
    segments = tokens.segments
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    same = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])  # (B, S, S)
    seen = same & causal & tokens.attention_mask[:, None, :] & tokens.attention_mask[:, :, None]
    return (seen | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device))[:, None]
