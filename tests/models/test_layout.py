"""Layout, positions and visibility of token rows, against small cases written out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.models.layout import PaddingSide, PromptTokens, layout, position_ids, visibility

PAD = 99


def prompts(**more: object) -> PromptTokens:
    """Two prompts of 3 and 1 tokens; images 0 and 1 belong to the first, 2 to the second."""
    return PromptTokens([[1, 2, 3], [4]], [0, 0, 1], **more)  # type: ignore[arg-type]


RESPONSES = [[[10, 11], [20]], [[30, 31, 32]]]


def test_one_response_per_row_right() -> None:
    tokens = layout(prompts(), RESPONSES, pad_id=PAD)
    assert tokens.input_ids.tolist() == [[1, 2, 3, 10, 11], [1, 2, 3, 20, PAD], [4, 30, 31, 32, PAD]]
    assert tokens.segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, -1], [0, 1, 1, 1, -1]]
    assert tokens.attention_mask.tolist() == [[True] * 5, [True] * 4 + [False], [True] * 4 + [False]]
    assert tokens.response_row.tolist() == [0, 1, 2]
    assert tokens.response_index.tolist() == [[3, 4, 0], [3, 0, 0], [1, 2, 3]]
    assert tokens.response_mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert tokens.prompt_end.tolist() == [2, 2, 0]
    assert tokens.image_row.tolist() == [0, 0, 1, 1, 2]  # both rows of the first prompt hold its two images
    assert tokens.image_index.tolist() == [0, 1, 0, 1, 2]


def test_one_response_per_row_left() -> None:
    tokens = layout(prompts(), RESPONSES, pad_id=PAD, side="left")
    assert tokens.input_ids.tolist() == [[1, 2, 3, 10, 11], [PAD, 1, 2, 3, 20], [PAD, 4, 30, 31, 32]]
    assert tokens.response_index.tolist() == [[3, 4, 0], [4, 0, 0], [2, 3, 4]]
    assert tokens.prompt_end.tolist() == [2, 3, 1]
    assert position_ids(tokens).tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]


@pytest.mark.parametrize(("side", "left"), [("right", 0), ("left", 2)])
def test_packed(side: PaddingSide, left: int) -> None:
    tokens = layout(prompts(), RESPONSES, pad_id=PAD, packed=True, side=side)
    second = [PAD] * left + [4, 30, 31, 32] + [PAD] * (2 - left)
    assert tokens.input_ids.tolist() == [[1, 2, 3, 10, 11, 20], second]
    assert tokens.segments[0].tolist() == [0, 0, 0, 1, 1, 2]
    assert tokens.response_row.tolist() == [0, 0, 1]
    assert tokens.response_index.tolist() == [[3, 4, 0], [5, 0, 0], [left + 1, left + 2, left + 3]]
    assert tokens.prompt_end.tolist() == [2, 2, left]
    assert tokens.image_index.tolist() == [0, 1, 2]
    # The second response goes on from the prompt, not from the first response.
    assert position_ids(tokens)[0].tolist() == [0, 1, 2, 3, 4, 3]


def test_packed_visibility() -> None:
    tokens = layout(prompts(), [[[10], [20]], [[30]]], pad_id=PAD, packed=True)
    seen = visibility(tokens)
    assert seen.shape == (2, 1, 5, 5)
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],  # the second response does not see the first
    ]
    assert seen[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],  # padding sees itself only
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_left_padded_visibility() -> None:
    tokens = layout(prompts(), [[[10], [20]], [[30]]], pad_id=PAD, packed=True, side="left")
    assert visibility(tokens)[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_generation_rows_have_no_responses() -> None:
    tokens = layout(prompts(), [[], []], pad_id=PAD, side="left")
    assert tokens.input_ids.tolist() == [[1, 2, 3], [PAD, PAD, 4]]
    assert tokens.response_mask.shape == (0, 0)
    assert tokens.image_index.tolist() == [0, 1, 2]
    assert position_ids(tokens).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_fields_and_extras_follow_their_tokens_and_images() -> None:
    given_fields = {"kind": [[7, 8, 9], [6]]}
    grids = torch.tensor([[0], [1], [2]])
    source = prompts(token_fields=given_fields, response_fill={"kind": 5}, extras={"grid": grids})
    tokens = layout(source, RESPONSES, pad_id=PAD, side="left")
    assert tokens.extras["kind"].tolist() == [[7, 8, 9, 5, 5], [5, 7, 8, 9, 5], [5, 6, 5, 5, 5]]
    assert tokens.extras["grid"].flatten().tolist() == [0, 1, 0, 1, 2]


def test_prompts_without_images_place_none() -> None:
    tokens = layout(PromptTokens([[1], [2]], [1]), [[[3]], [[4]]], pad_id=PAD)
    assert tokens.image_row.tolist() == [1]
    assert layout(PromptTokens([[1]], []), [[[3]]], pad_id=PAD).image_index.shape == (0,)


lengths = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(lengths, st.booleans(), st.sampled_from(["left", "right"]))
def test_a_response_always_sees_its_prompt_and_itself(
    rows: list[tuple[int, list[int]]], packed: bool, side: PaddingSide
) -> None:
    """Whatever the layout: right tokens, consecutive positions, prompt + own earlier tokens visible, nothing else."""
    ids = [list(range(1, n + 1)) for n, _ in rows]
    responses = [[[100 * k + i for i in range(r)] for k, r in enumerate(found, 1)] for _, found in rows]
    tokens = layout(PromptTokens(ids, []), responses, pad_id=PAD, packed=packed, side=side)
    seen, positions = visibility(tokens)[:, 0], position_ids(tokens)
    flat = [(n, response) for (n, _), group in zip(rows, responses, strict=True) for response in group]
    for i, (n, response) in enumerate(flat):
        row, columns = int(tokens.response_row[i]), tokens.response_index[i][tokens.response_mask[i]]
        assert tokens.input_ids[row, columns].tolist() == response
        assert positions[row, columns].tolist() == list(range(n, n + len(response)))
        assert seen[row, columns].sum(-1).tolist() == list(range(n + 1, n + len(response) + 1))
        assert int(tokens.input_ids[row, tokens.prompt_end[i]]) == n
