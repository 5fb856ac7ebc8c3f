"""Conversations and votes in shards: written, read, batched and checked; shards of older versions are read."""

import json
from dataclasses import replace

import pytest

from safe_rlhf_v.data_modules import PromptDataModule
from safe_rlhf_v.records import Context, PairVotes, Record, Turn, Votes
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardWriter, probe
from safe_rlhf_v.shards.check import check, examine
from tests.shards.conftest import picture, record, written_by

HISTORY = (Turn("user", "look", 1), Turn("assistant", "I do"))


def talk(i):
    one = record(i)
    responses = tuple(replace(response, votes=Votes((response.safety,) * 3)) for response in one.responses)
    return replace(one, images=(*one.images, probe(picture(100 + i))), system="Be kind.", history=HISTORY, prompt_safety=-2,
                   helpfulness_tie=True, votes=PairVotes((0, -1), (0,)), responses=responses)  # fmt: skip


def write(root, records):
    with ShardWriter(root, name="talks", licence="MIT", taxonomy=BEAVERTAILS_V, samples_per_shard=2) as writer:
        for one in records:
            writer.write("train", one)
    return root


def test_conversations_are_stored_with_equal_bytes_and_read_back(tmp_path):
    records = [talk(0), record(1), talk(2)]
    root = write(tmp_path / "a", records)
    again = write(tmp_path / "b", records)
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in root.iterdir())
    split = ShardedSplit(root, "train")
    assert [split[i] for i in range(3)] == records
    histograms = Manifest.load(root).splits["train"].histograms
    assert histograms["turns"] == {"1": 1, "3": 2} and histograms["prompt_safety"] == {"-2": 2, "None": 1}
    assert list(examine(root)) == []


def test_batches_carry_them(tmp_path):
    data = PromptDataModule(
        str(write(tmp_path / "a", [talk(0), record(1)])), validation_splits=("train",), batch_size=3
    )
    batch = next(iter(data.val_dataloader()[0]))  # its last row is padding
    assert batch.prompts.contexts == (Context("Be kind.", HISTORY), Context(), Context())
    assert [turn.images for turn in batch.prompts.turns(0)] == [1, 0, 1]
    assert batch.records[0].history == HISTORY


@pytest.mark.parametrize("version", [1, 2])
def test_shards_of_older_versions_are_read_and_checked(tmp_path, monkeypatch, version):
    new_json = Record.to_json
    records = [replace(record(i), category=()) for i in range(3)]
    with monkeypatch.context() as old:
        old.setattr(Record, "to_json", lambda self: json.dumps(written_by(version, self, new_json)).encode())
        root = write(tmp_path / "old", records)
    body = json.loads((root / "manifest.json").read_text()) | {"version": version}
    for name in ("turns", "prompt_safety"):
        del body["splits"]["train"]["histograms"][name]
    if version == 1:
        del body["splits"]["train"]["category_sets"]
    (root / "manifest.json").write_text(json.dumps(body))
    split = ShardedSplit(root, "train")
    assert [split[i] for i in range(3)] == records
    assert check(root) == []
