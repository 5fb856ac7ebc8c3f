"""What is said about judges counts images: rows of one image are alike, and more of them make nothing surer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from safe_rlhf_v.construct.agreement import ordinal_alpha
from safe_rlhf_v.construct.alarms import Tolerances, checks_of_judge
from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.measures import Rate
from safe_rlhf_v.evaluation.findings import FALSE_ALARM_RATE, one_pair_of_a_group
from safe_rlhf_v.evaluation.trust import together


def width(row: Any) -> float:
    return float(row["high"] - row["low"])


def test_counts_of_image_groups_known_answers() -> None:
    assert together([]) is None and together([Rate(0, 0)]) is None
    alone = together([Rate(1, 1)] * 3 + [Rate(0, 1)] * 7 + [Rate(0, 0)])
    assert alone is not None
    exact = Rate(3, 10).to_json()
    assert (alone["count"], alone["of"], alone["rate"], alone["clusters"]) == (3, 10, 0.3, 10)
    assert width(alone) >= width(exact) - 1e-6
    several = together([Rate(5, 5)] * 3 + [Rate(0, 5)] * 7)  # every image says the same five times
    assert several is not None and several["rate"] == 0.3 and several["of"] == 50
    assert width(alone) <= width(several) <= 1.15 * width(alone)  # its variance is estimated from ten images
    one = together([Rate(5, 50)])
    assert one is not None and one["rate"] == 0.1 and one["low"] == 0 and one["high"] > 0.95


def share(hits: Sequence[bool], rows: int) -> Any:
    return together(Rate(rows * hit, rows) for hit in hits)


def test_intervals_of_correlated_rows_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        found = share((rng.random(40) < 0.2).tolist(), 4)
        covered += found["low"] <= 0.2 <= found["high"]
    assert covered >= 465  # exact intervals of 160 rows would cover in about three quarters of the draws


def test_alpha_draws_images_and_not_rows() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(0, 4, 30)
    second = np.where(rng.random(30) < 0.3, rng.integers(0, 4, 30), first)
    rows = [f"{image}/{copy}" for image in range(30) for copy in range(8)]
    ratings = {
        name: {row: float(values[int(row.split("/")[0])]) for row in rows}
        for name, values in (("a", first), ("b", second))
    }
    groups = {row: row.split("/")[0] for row in rows}
    by_row = ordinal_alpha(ratings, range(4))
    by_image = ordinal_alpha(ratings, range(4), clusters=groups)
    alone = ordinal_alpha({name: {row: own[row] for row in rows[::8]} for name, own in ratings.items()}, range(4))
    assert by_row.value == by_image.value and by_row.units == by_image.units == 240
    assert None not in (by_row.low, by_row.high, by_image.low, by_image.high, alone.low, alone.high)
    narrow, wide, of_one = ((one.high or 0) - (one.low or 0) for one in (by_row, by_image, alone))
    assert wide > 2 * narrow and wide == pytest.approx(of_one, rel=0.25)
    assert ordinal_alpha(ratings, range(4), clusters=dict.fromkeys(rows, "one"))[1:3] == (None, None)


def opinions(moods: Sequence[int], pairs: int) -> list[Judgement]:
    """A response against itself: on every pair of an image the judge names the same place, drawn by a fair coin per image."""
    return [
        Judgement(f"{image}/{pair}", "judge", "identical", "safety", (0, 0), float(mood), "", "")
        for image, mood in enumerate(moods)
        for pair in range(pairs)
    ]


def test_moods_that_belong_to_images_raise_no_alarm() -> None:
    rng = np.random.default_rng(2)
    alarms = {"rows": 0, "images": 0}
    for _ in range(400):
        every = opinions(rng.choice([-1, 1], 20).tolist(), 10)
        groups = {one.pair: one.pair.split("/")[0] for one in every}
        for name, asked in (("rows", every), ("images", one_pair_of_a_group(every, groups))):
            (check,) = [
                one
                for one in checks_of_judge("judge", {"safety": asked}, None, Tolerances())
                if one.name == "position_bias"
            ]
            alarms[name] += check.p < FALSE_ALARM_RATE
    assert alarms["images"] <= 400 * FALSE_ALARM_RATE + 2 * (400 * FALSE_ALARM_RATE * (1 - FALSE_ALARM_RATE)) ** 0.5
    assert alarms["rows"] > 100  # what counting rows would have raised


def test_the_pair_with_probes_stands_for_its_image() -> None:
    asked = [
        *opinions([1, -1], 3),
        Judgement("0/2", "judge", "repeat", "safety", (0, 1), 1.0, "", ""),
        Judgement("1/0", "judge", "padded", "safety", (0, 2), 1.0, "", ""),
    ]
    groups = {one.pair: one.pair.split("/")[0] for one in asked}
    chosen = one_pair_of_a_group(asked, groups)
    assert {one.pair for one in chosen} == {"0/2", "1/0"} and len(chosen) == 4
