"""Attention masks of Hugging Face vision-language models.

Needed for packed rows (several responses behind one prompt) and for image tokens that attend to each other in both
directions. A mask is True where a query may attend to a key; a sliding window counts visible tokens, not columns.

Shapes: B rows, L new tokens, S = cached + new tokens.
"""

from typing import Any

import torch
from torch import Tensor

BIDIRECTIONAL_IMAGES = frozenset({"gemma3"})
"""Model types whose image tokens attend to each other in both directions."""

Masks = Tensor | dict[str, Tensor]


def image_blocks(input_ids: Tensor, image_id: int) -> Tensor:
    """(B, L, L) bool: True where both tokens are placeholders of the same image (one unbroken run)."""
    image = input_ids == image_id  # (B, L)
    start = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    block = start.cumsum(1)  # (B, L)
    return (block[:, :, None] == block[:, None, :]) & image[:, :, None] & image[:, None, :]


def sees_images_both_ways(model: Any) -> bool:
    """Whether image tokens of the model's family attend to each other in both directions."""
    return model.config.model_type in BIDIRECTIONAL_IMAGES


def attention_masks(model: Any, input_ids: Tensor, mask: Tensor, cache: Any | None) -> Masks:
    """What the language model takes as ``attention_mask``.

    Args:
        model: The conditional-generation model.
        input_ids: (B, L) new tokens.
        mask: (B, S) bool of real tokens, or (B, 1, L, S) bool of what may be read.
        cache: The key-value cache, if any.

    Raises:
        ValueError: If the attention implementation takes no such mask.
    """
    both_ways = sees_images_both_ways(model)
    if mask.dim() == 2 and not both_ways:
        return mask
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = list(getattr(text, "layer_types", None) or [])
    if mask.dim() == 2:
        full = _causal(mask, input_ids, model.config.image_token_id)
        steps = mask.long().cumsum(1) - 1  # (B, S)
    else:
        full = mask
        if window is not None and mask.shape[2] != mask.shape[3]:
            raise ValueError("a packed mask with a key-value cache is not supported for sliding-window attention")
        steps = mask[:, 0].tril().sum(-1) - 1  # (B, S): tokens seen before each
    if window is None:
        return _typed(model, full)
    near = steps[:, -full.shape[2] :, None] - steps[:, None, :] < window  # (B, L, S)
    sliding = full & near[:, None]
    if "sliding_attention" not in kinds:
        return _typed(model, sliding if not kinds else full)
    masks = {"full_attention": full, "sliding_attention": sliding}
    return {kind: _typed(model, _cached(masks[kind], cache, kinds.index(kind))) for kind in set(kinds)}


def _causal(mask: Tensor, input_ids: Tensor, image_id: int) -> Tensor:
    """(B, 1, L, S) bool: True for earlier real tokens, tokens of the same image, and the token itself."""
    length = input_ids.shape[1]
    total = mask.shape[1]
    column = torch.arange(total, device=mask.device)
    query = column[total - length :, None]  # (L, 1)
    seen = (column <= query) & mask[:, None, :]  # (B, L, S)
    seen[..., total - length :] |= image_blocks(input_ids, image_id)
    return (seen | (column == query))[:, None]


def _cached(mask: Tensor, cache: Any | None, layer: int) -> Tensor:
    """The columns of the keys that this layer's cache still holds."""
    if cache is None:
        return mask
    length, offset = cache.get_mask_sizes(mask.shape[2], layer)
    return mask[..., offset : offset + length]


def _typed(model: Any, mask: Tensor) -> Tensor:
    """The mask as the attention implementation takes it: bool for SDPA, additive for eager attention."""
    kind = model.config.get_text_config()._attn_implementation
    if kind == "sdpa":
        return mask
    if kind == "eager":
        zero = torch.zeros((), dtype=model.dtype, device=mask.device)
        return torch.where(mask, zero, torch.finfo(model.dtype).min)
    raise ValueError(f"attention implementation {kind!r} takes no 4-D mask; use sdpa or eager, or packed: false")
