"""A category is names, none or unknown: in files of both versions, in the index, in batches."""

import json

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule, PromptDataModule
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.batches import category_groups, hazard
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardWriter
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.manifest import WORLD_ORIGIN
from safe_rlhf_v.shards.writer import _SplitWriter
from tests.shards.conftest import record, written_by

TAXONOMY = Taxonomy("three", ("arson", "fraud", "theft"))
CATEGORIES = ((), ("fraud",), None, ("theft", "arson"), ("theft",))


def write(root, origin=None):
    with ShardWriter(root, name="tiny", licence="MIT", taxonomy=TAXONOMY, origin=origin, samples_per_shard=2) as writer:
        for i, category in enumerate(CATEGORIES):
            writer.write("train", record(i, category=category))
    return root


def write_old(root, monkeypatch, origin):
    """The same as version 1 wrote it: one name as text, or null."""

    def to_json(self):
        names = self.category or ()
        body = written_by(1, self, new_json) | {"category": names[0] if names else None}
        return json.dumps(body, sort_keys=True).encode()

    def category_number(self, category):
        return TAXONOMY.category_index(category[0]) if category else -1

    new_json = Record.to_json
    with monkeypatch.context() as old:
        old.setattr(Record, "to_json", to_json)
        old.setattr(_SplitWriter, "category_number", category_number)
        write(root, origin)
    body = json.loads((root / "manifest.json").read_text()) | {"version": 1}
    for split in body["splits"].values():
        del split["category_sets"], split["histograms"]["turns"], split["histograms"]["prompt_safety"]
    (root / "manifest.json").write_text(json.dumps(body))
    return root


def test_the_three_states_survive_the_file(tmp_path):
    root = write(tmp_path / "new")
    split = ShardedSplit(root, "train")
    assert [split[i].category for i in range(5)] == list(CATEGORIES)
    assert Manifest.load(root).splits["train"].histograms["category"] == {
        "(none)": 1, "(unknown)": 1, "arson": 1, "fraud": 1, "theft": 2,
    }  # fmt: skip
    assert split.rows_of(["theft"]) == [3, 4]
    assert split.rows_of(["arson", "fraud"]) == [1, 3] and split.rows_of([]) == []
    with pytest.raises(ValueError, match="unknown category 'flood'"):
        split.rows_of(["flood"])
    assert check(root) == []


@pytest.mark.parametrize(
    ("origin", "null"), [({"dataset": WORLD_ORIGIN, "seed": "0"}, ()), ({"table": "mine.csv"}, None), ({}, None)]
)
def test_old_files_are_read_with_what_they_meant(tmp_path, monkeypatch, origin, null):
    root = write_old(tmp_path / "old", monkeypatch, origin)
    split = ShardedSplit(root, "train")
    assert [split[i].category for i in range(5)] == [null, ("fraud",), null, ("theft",), ("theft",)]
    assert split.rows_of(["fraud"]) == [1] and split.rows_of(["theft"]) == [3, 4]
    assert check(root) == []


@pytest.mark.parametrize("module", [PreferenceDataModule, PromptDataModule])
def test_batches_tell_the_states_apart(tmp_path, module):
    data = module(str(write(tmp_path / "new")), validation_splits=("train",), batch_size=6)
    batch = next(iter(data.val_dataloader()[0]))  # its last row is padding
    unknown = [-1, -1, -1]
    assert batch.category.tolist() == [[0, 0, 0], [0, 1, 0], unknown, [1, 0, 1], [0, 0, 1], unknown]
    assert hazard(batch.category).tolist() == [0, 1, -1, 1, 1, -1]
    assert category_groups(batch.category) == [(-1,), (1,), (), (0, 2), (2,), ()]
    chosen = module(str(tmp_path / "new"), batch_size=1, categories=("arson",)).train_dataloader()
    assert [batch.keys for batch in chosen] == [("k-3",)]


def test_none_of_no_categories_says_nothing():
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    assert hazard(nothing).tolist() == [-1, -1, -1] and category_groups(nothing) == [(), (), ()]
