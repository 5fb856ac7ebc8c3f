"""Broken samples: an error by default, else masked, counted and named, up to a limit."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_rlhf_v.commands.fit import raised_here
from safe_rlhf_v.data_modules import PreferenceDataModule, SupervisedDataModule
from safe_rlhf_v.data_modules.collate import CollateSupervised
from safe_rlhf_v.data_modules.loader import PlannedLoader, TooManyBadSamples
from safe_rlhf_v.data_modules.plan import Plan
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.shards import ShardedSplit, ShardError, split
from safe_rlhf_v.shards.manifest import OpenFilesError

Folder = Callable[..., Path]
Damage = Callable[[Path, str, int], None]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_default_is_an_error_that_names_shard_and_key(folder: Folder, damage: Damage, workers: int) -> None:
    root = folder(train=8)
    damage(root, "train", 5)
    data = PreferenceDataModule(str(root), validation_splits=("train",), batch_size=2, num_workers=workers)
    with pytest.raises(ShardError, match=r"train-000001\.tar.*train-0005") as caught:
        list(data.val_dataloader()[0])
    assert len(str(caught.value).splitlines()) == 1 and raised_here(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_limit_of_open_files_is_one_line_too(folder: Folder, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PreferenceDataModule(str(folder(train=4)), batch_size=2, num_workers=workers, on_bad_sample="skip-and-count")
    loader = data.train_dataloader()

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files", "train-000000.tar")

    monkeypatch.setattr(split.os, "open", refuse)  # workers are forked from here
    with pytest.raises(OpenFilesError, match=r"^train-000000\.tar: too many open files; raise the limit.*$") as caught:
        list(loader)
    assert raised_here(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_masks_counts_and_names(
    folder: Folder, damage: Damage, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(train=8)
    for number in (1, 5):
        damage(root, "train", number)
    data = PreferenceDataModule(
        str(root), validation_splits=("train",), batch_size=3, num_workers=workers, on_bad_sample="skip-and-count"
    )
    loader = data.val_dataloader()[0]
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [batch.valid.tolist() for batch in batches] == [
        [True, False, True],
        [True, True, False],
        [True, True, False],
    ]
    assert batches[0].keys == ("train-0000", "", "train-0002")
    assert batches[0].prompts.images[1] == ()
    assert batches[0].more_helpful.tolist() == [0, -1, 0]
    assert loader.bad_samples == 2  # the padding row of the last batch is not a bad sample
    assert [name for name in ("train-0001", "train-0005") if name in caplog.text] == ["train-0001", "train-0005"]


def test_training_goes_on_at_the_same_places(folder: Folder, damage: Damage) -> None:
    root = folder(train=8)
    whole = [batch.keys for batch in SupervisedDataModule(str(root), batch_size=2).train_dataloader()]
    damage(root, "train", 3)
    data = SupervisedDataModule(str(root), batch_size=2, on_bad_sample="skip-and-count")
    assert [batch.keys for batch in data.train_dataloader()] == [
        tuple("" if key == "train-0003" else key for key in row) for row in whole
    ]


def limited(root: Path, samples: int, batch: int, limit: int) -> PlannedLoader:
    source = Source(
        ShardedSplit(root, "train"), range(samples), CollateSupervised("helpful"), on_bad_sample="skip-and-count"
    )
    return PlannedLoader(source, Plan(samples, batch), max_bad_in_a_row=limit)


def test_too_many_in_a_row_stop(folder: Folder, damage: Damage) -> None:
    root = folder(train=8)
    for number in (2, 3, 4):
        damage(root, "train", number)
    with pytest.raises(TooManyBadSamples, match=r"3 broken samples in a row, the last: .*train-0004"):
        list(limited(root, 8, 2, 3))
    assert len(list(limited(root, 8, 2, 4))) == 4


def test_good_samples_of_the_same_batch_break_the_row(folder: Folder, damage: Damage) -> None:
    root = folder(train=8)
    for number in (1, 3, 5, 7):  # one broken sample in every batch: half of the data is good
        damage(root, "train", number)
    loader = limited(root, 8, 2, 2)
    assert len(list(loader)) == 4
    assert loader.bad_samples == 4


def test_a_record_with_another_number_of_responses_names_its_shard_or_is_left_out(tmp_path):
    from safe_rlhf_v.data_modules.collate import CollatePreference
    from safe_rlhf_v.data_modules.source import Source
    from safe_rlhf_v.records import Record, Response
    from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
    from safe_rlhf_v.shards import ShardedSplit, ShardError, ShardWriter

    with ShardWriter(tmp_path, name="n", licence="l", taxonomy=BEAVERTAILS_V) as writer:
        for i, count in enumerate((2, 1, 2, 3)):
            writer.write("train", Record(f"k-{i}", "q", (), tuple(Response(f"a {j}") for j in range(count))))
    split = ShardedSplit(tmp_path, "train")
    collate = CollatePreference(split.manifest.taxonomy, 2)
    with pytest.raises(ShardError, match=r"train-000000.tar: record 'k-1': has 1 responses, .*skip-and-count"):
        Source(split, range(4), collate)[[0, 1]]
    batch, problems = Source(split, range(4), collate, on_bad_sample="skip-and-count")[[0, 1, 2, 3]]
    assert batch.valid.tolist() == [True, False, True, False]
    assert [bool(problem) for problem in problems] == [False, True, False, True]
