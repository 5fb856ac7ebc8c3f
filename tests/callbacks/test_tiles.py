"""Tiles show every picture of a prompt."""

import numpy as np
import pytest
import torch

from safe_rlhf_v.callbacks.tiles import PICTURE, picture_of
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
