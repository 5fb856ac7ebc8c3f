"""Tiles show every picture of a prompt, and their texts within a few lines."""

import time

import numpy as np
import pytest
import torch

from safe_rlhf_v.callbacks.tiles import MAX_LINES, PICTURE, Tile, _font, _wrap, draw_grid, picture_of
from safe_rlhf_v.records.batches import Prompts


def prompts(*sizes: tuple[int, int]) -> Prompts:
    images = tuple(torch.full((*size, 3), 20 * (i % 12 + 1), dtype=torch.uint8) for i, size in enumerate(sizes))
    return Prompts((images,), (tuple(map(str, range(len(sizes)))),), ("question ?",))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10])
def test_every_picture_is_shown_in_order(count: int) -> None:
    shown = picture_of(prompts(*[(8, 8 + i % 9) for i in range(count)]), 0)
    values = [int(value) for value in np.unique(shown) if value < 255]
    assert values == [20 * (i + 1) for i in range(count)]
    assert max(shown.shape[:2]) <= PICTURE
    first = {value: tuple(np.argwhere(shown[..., 0] == value)[0]) for value in values}
    assert list(first.values()) == sorted(first.values())


def test_one_picture_stays_as_it_is() -> None:
    assert picture_of(prompts((9, 7)), 0).shape == (9, 7, 3)
    assert (picture_of(prompts(), 0) == 255).all()


def test_very_many_pictures_do_not_fail() -> None:
    assert picture_of(prompts(*[(4, 400)] * 1000), 0).dtype == np.uint8


@pytest.mark.parametrize("size", [(9, 7), (192, 100), (400, 300)])
def test_a_tile_has_memory_of_its_own_and_looks_the_same(size: tuple[int, int]) -> None:
    """A view would keep all pictures of its batch."""
    block = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    picture = picture_of(Prompts(((torch.from_numpy(block[0]),),), (("a",),), ("?",)), 0)
    assert picture.base is None and not np.shares_memory(picture, block) and max(picture.shape) <= PICTURE
    assert np.array_equal(draw_grid([Tile(picture, ())]), draw_grid([Tile(block[0], ())]))


ROOM = 100


@pytest.mark.parametrize(
    "text", ["a" * 30_000, "水" * 30_000, "\u0301" * 30_000, "word " * 30_000, "ab " + "x" * 30_000]
)
def test_a_long_text_costs_no_more_than_its_lines(text: str) -> None:
    begin = time.process_time()
    pieces = _wrap(text, _font(False), ROOM)
    assert time.process_time() - begin < 2
    assert len(pieces) <= MAX_LINES
    assert all(_font(False).getlength(piece) <= ROOM for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a b c", ["a b c"]),
        ("one two three four five", ["one two three", "four five"]),
        ("WWWWWWWWWWWW and more", ["WWWWWWW", "WWWWW", "and more"]),
        ("no WWWWWWWWWWWW", ["no", "WWWWWWW", "WWWWW"]),
        ("W" * 28, ["WWWWWWW"] * 4),
        ("W" * 29, ["WWWWWWW"] * 3 + ["WWWWW…"]),
        ("seven lines " * 7, ["seven lines"] * 3 + ["seven lin…"]),
    ],
)
def test_texts_are_wrapped_by_their_width(text: str, pieces: list[str]) -> None:
    assert _wrap(text, _font(False), ROOM) == pieces
