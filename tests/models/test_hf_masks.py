"""Masks of sliding windows and image blocks, against small cases written out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Gemma3TextConfig

from safe_rlhf_v.models.hf_masks import attention_masks, image_blocks
from safe_rlhf_v.models.layout import PromptTokens, layout, visibility

IMAGE = 7


def model(kind: str, *, attention: str = "sdpa", **text: Any) -> Any:
    """Only what the masks read of a model."""
    text_config = SimpleNamespace(_attn_implementation=attention, **text)
    config = SimpleNamespace(model_type=kind, image_token_id=IMAGE, get_text_config=lambda: text_config)
    return SimpleNamespace(config=config, dtype=torch.float32)


GEMMA = model("gemma3", sliding_window=2, layer_types=["sliding_attention", "full_attention"])


def rows(mask: Any) -> list[str]:
    return ["".join(map(str, row)) for row in mask[0, 0].int().tolist()]


def test_image_blocks() -> None:
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE], [IMAGE, 1, 1, 1, 1]])
    blocks = image_blocks(ids, IMAGE)
    assert blocks[0].int().tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert blocks[1].sum() == 1


def test_plain_families_leave_padding_masks_to_transformers() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert attention_masks(model("llava"), torch.ones(1, 3), mask, None) is mask


def test_images_see_themselves_and_windows_are_short() -> None:
    ids = torch.tensor([[0, 1, IMAGE, IMAGE, 2]])
    masks = attention_masks(GEMMA, ids, torch.tensor([[False, True, True, True, True]]), None)
    assert isinstance(masks, dict)
    assert rows(masks["full_attention"]) == ["10000", "01000", "01110", "01110", "01111"]
    assert rows(masks["sliding_attention"]) == ["10000", "01000", "01110", "00110", "00011"]


def test_one_token_behind_a_cache() -> None:
    config = Gemma3TextConfig(
        num_hidden_layers=2, sliding_window=2, layer_types=["sliding_attention", "full_attention"]
    )
    cache = DynamicCache(config=config)
    for layer in (0, 1):
        cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), layer)
    mask = torch.tensor([[False, True, True, True, True]])
    masks = attention_masks(GEMMA, torch.tensor([[2]]), mask, cache)
    assert isinstance(masks, dict)
    assert rows(masks["full_attention"]) == ["01111"]
    assert rows(masks["sliding_attention"]) == ["11"]  # a sliding layer only kept the last key


def test_windows_of_packed_rows_count_tokens_not_columns() -> None:
    tokens = layout(PromptTokens([[1, 2]], []), [[[10, 11], [20]]], pad_id=0, packed=True)
    masks = attention_masks(GEMMA, tokens.input_ids, visibility(tokens), None)
    assert isinstance(masks, dict)
    assert rows(masks["full_attention"]) == ["10000", "11000", "11100", "11110", "11001"]
    assert rows(masks["sliding_attention"]) == ["10000", "11000", "01100", "00110", "01001"]
    mistral = attention_masks(model("llava_next", sliding_window=2), tokens.input_ids, visibility(tokens), None)
    assert torch.equal(mistral, masks["sliding_attention"])  # type: ignore[arg-type]
    plain = attention_masks(model("llava"), tokens.input_ids, visibility(tokens), None)
    assert torch.equal(plain, visibility(tokens))  # type: ignore[arg-type]


def test_packed_windows_need_the_whole_row() -> None:
    with pytest.raises(ValueError, match="sliding-window"):
        attention_masks(GEMMA, torch.ones(1, 1), torch.ones(1, 1, 1, 4, dtype=torch.bool), None)


def test_other_attention_implementations() -> None:
    seen = torch.tensor([[[[True, False], [True, True]]]])
    added = attention_masks(model("llava", attention="eager"), torch.ones(1, 2), seen, None)
    assert added.tolist() == [[[[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]]]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="flash_attention_2"):
        attention_masks(model("llava", attention="flash_attention_2"), torch.ones(1, 2), seen, None)
