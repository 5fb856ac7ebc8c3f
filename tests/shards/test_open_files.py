"""A split of many shards keeps few files open, and the limit of open files is no fault of the data."""

import errno
import os
import tarfile
from pathlib import Path

import pytest

from safe_rlhf_v.data_modules.collate import CollatePrompts
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.shards import ShardedSplit, split
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.manifest import OpenFilesError
from tests.shards.conftest import write


def count_open(root):
    """Number of files of a folder that this process has open."""
    targets = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            targets.append(handle.readlink())
        except OSError:  # the handle of the listing itself
            continue
    return sum(target.is_relative_to(root) for target in targets)


def test_the_shard_used_longest_ago_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "OPEN_FILES", 3)
    root = write(tmp_path / "shards", n=8, per_shard=1).resolve()
    records = ShardedSplit(root, "train")
    for row in (0, 1, 2, 0, 3, 4, 5, 6, 7, 0, 7, 3):
        assert records[row].key == f"k-{row}"
        assert count_open(root) <= 3
    assert list(records._handles) == [0, 7, 3]
    del records
    assert count_open(root) == 0


def refuse(*arguments, **options):
    raise OSError(errno.EMFILE, "Too many open files", str(arguments[0]))


@pytest.mark.parametrize("policy", ["error", "skip-and-count"])
def test_the_limit_of_open_files_is_no_broken_sample(tmp_path, monkeypatch, policy):
    root = write(tmp_path / "shards")
    records = ShardedSplit(root, "train")
    source = Source(records, range(7), CollatePrompts(records.manifest.taxonomy), on_bad_sample=policy)
    monkeypatch.setattr(split.os, "open", refuse)
    with pytest.raises(OpenFilesError, match=r"train-000000\.tar: too many open files; raise the limit"):
        source[[0]]


@pytest.mark.parametrize("place", [(split.os, "open"), (tarfile, "open"), (Path, "open")])
def test_the_limit_of_open_files_is_no_damage(tmp_path, monkeypatch, place):
    root = write(tmp_path / "shards")
    names = {"train-000000.tar", "train.index.npy"}
    original = getattr(*place)

    def limited(path, *arguments, **options):
        if Path(path).name in names and arguments != (os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC,):
            refuse(path)
        return original(path, *arguments, **options)

    monkeypatch.setattr(*place, limited)
    with pytest.raises(OpenFilesError, match="too many open files; raise the limit"):
        check(root)
