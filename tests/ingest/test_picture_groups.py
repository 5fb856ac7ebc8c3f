"""Rows that share one of several pictures stand in one split, and 'check' finds a picture that stands in two."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from tests.ingest.made_up import jpeg

from safe_rlhf_v.ingest.bad_rows import BadRowsError
from safe_rlhf_v.ingest.folder import import_folder
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit, ShardWriter
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.images import probe
from safe_rlhf_v.shards.manifest import Manifest

FRACTIONS = {"train": 0.34, "validation": 0.33, "test": 0.33}


def table(root: Path, rows: list[list[int]], splits: list[str] | None = None) -> Path:
    (root / "pictures").mkdir()
    for number in {one for row in rows for one in row}:
        (root / f"pictures/{number}.jpg").write_bytes(jpeg(number, 8))
    with (root / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "image", "split"])
        for i, row in enumerate(rows):
            writer.writerow([f"question {i} ?", ";".join(f"{one}.jpg" for one in row), splits[i] if splits else ""])
    return root / "t.csv"


def imported(root: Path, rows: list[list[int]], splits: list[str] | None = None) -> dict[str, list[Record]]:
    out = root / "out"
    import_folder(table(root, rows, splits), root / "pictures", out, name="t", licence="CC0-1.0", fractions=FRACTIONS)
    assert check(out) == []
    return {
        name: [split[i] for i in range(len(split))]
        for name in Manifest.load(out).splits
        if (split := ShardedSplit(out, name))
    }


CHAIN = [[i, i + 1] for i in range(0, 20)]
PAIRS = [[2 * i, 2 * i + 1] for i in range(10)]


@pytest.mark.parametrize(
    ("rows", "connected"),
    [
        (CHAIN, True),
        ([*([i] for i in range(21)), *reversed(CHAIN)], True),  # single pictures first: known too late by a single pass
        ([[0], [1], [2, 0, 1]], True),
        (PAIRS + [list(reversed(pair)) for pair in PAIRS], False),
        ([[0, 0], [0]], True),
    ],
    ids=["chain", "singles first", "bridge last", "order", "the same twice"],
)
def test_no_picture_stands_in_two_splits(tmp_path: Path, rows: list[list[int]], connected: bool) -> None:
    places = defaultdict(set)
    splits = imported(tmp_path, rows)
    for name, records in splits.items():
        for record in records:
            for image in record.images:
                places[image.id].add(name)
    assert sum(map(len, splits.values())) == len(rows)
    assert all(len(names) == 1 for names in places.values())
    assert (len(splits) == 1) == connected


def test_stated_splits_may_not_share_one_of_several_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadRowsError) as caught:
        imported(tmp_path, [[0, 1], [1, 2], [3]], ["train", "test", "test"])
    assert caught.value.problems == [
        f"{tmp_path}/t.csv, row 2, column 'split': is 'test', but row 1 puts the same picture into 'train'"
    ]


def test_check_finds_one_of_several_pictures_in_two_splits(tmp_path: Path) -> None:
    first, second, third = (probe(jpeg(i, 8)) for i in range(3))
    with ShardWriter(tmp_path / "out", name="t", licence="CC0-1.0", taxonomy=None) as writer:
        writer.write("train", Record("a", "question ?", (first, second)))
        writer.write("test", Record("b", "question ?", (second, third)))
    (problem,) = check(tmp_path / "out")
    assert "its image occurs in split" in problem
