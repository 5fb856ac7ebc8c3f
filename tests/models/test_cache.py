"""The preallocated cache holds what transformers' own holds, through rows that are repeated and dropped."""

import pytest
import torch
from transformers import DynamicCache

from safe_rlhf_v.models.cache import decoding_cache


def states(rows: int, tokens: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("room", [0, 1, 3, 20])
def test_it_holds_what_a_dynamic_cache_holds(room: int) -> None:
    ours, theirs = decoding_cache(room), DynamicCache()

    def update(rows: int, tokens: int, seed: int) -> None:
        for layer in range(2):
            keys, values = states(rows, tokens, 4, seed + layer), states(rows, tokens, 6, seed + layer + 50)
            for held, expected in zip(
                ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True
            ):
                assert torch.equal(held, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0)

    update(2, 5, 0)
    for cache in (ours, theirs):
        cache.batch_repeat_interleave(3)
    for step in range(3):
        update(6, 1, 10 * (step + 1))
    for index in ([0, 2, 3, 5], [1, 2], [0, 1], [1]):  # the third keeps every row
        for cache in (ours, theirs):
            cache.batch_select_indices(torch.tensor(index))
        update(len(index), 1, 100 + len(index))
    for cache in (ours, theirs):
        cache.crop(-2)
    update(1, 4, 200)


def test_a_token_is_appended_without_a_copy() -> None:
    cache = decoding_cache(8)
    cache.update(states(3, 5), states(3, 5), 0)
    places = set()
    for step in range(8):
        keys, _ = cache.update(states(3, 1, seed=step), states(3, 1, seed=step), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1
