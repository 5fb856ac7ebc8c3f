"""An import that is killed anywhere goes on with the same command, and gives the bytes of an uninterrupted one."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.ingest.made_up import beavertails, jpeg, struct, write_beavertails

from safe_rlhf_v.ingest import dataset, sources
from safe_rlhf_v.ingest.dataset import import_dataset
from safe_rlhf_v.ingest.mapping import load_mapping
from safe_rlhf_v.ingest.progress import Progress
from safe_rlhf_v.shards import ShardError
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.target import JOURNAL, PROGRESS

CATEGORIES = ("animal_abuse", "horror_and_gore")


def content(root):
    return {path.name: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 3)
    monkeypatch.setattr(dataset, "BATCH", 3)


def odd(sets):
    """A leaked picture, a damaged one, a row twice, and rows that share pictures."""
    rows = sets[CATEGORIES[0]]["train"]
    rows[2]["image"] = sets[CATEGORIES[1]]["evaluation"][0]["image"]
    rows[4]["image"] = struct(jpeg(900)[:-40])
    rows[6] |= {"image": rows[5]["image"], "question": "another question about the same picture"}
    rows.append(dict(rows[1]))
    return sets


@pytest.fixture(scope="module")
def sources_by_kind(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    kinds = ("pairs", "single")
    return {
        kind: write_beavertails(root / kind, odd(beavertails(9, 2, CATEGORIES)), kind == "single") for kind in kinds
    }


@pytest.fixture
def source(sources_by_kind):
    return sources_by_kind["pairs"]


def go(source, out):
    mapping = load_mapping("beavertails-v", None)
    return import_dataset(str(source), out, mapping, on_bad_row="skip", samples_per_shard=4)


def in_child(work, change):
    """Exit status of a forked process, in which ``change`` plants its end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        change()
        work()
        os._exit(0)
    finally:
        os._exit(1)


def dies_at(step, *functions):
    """Plants the end of the process before the ``step``-th call of any of these functions (owner, name)."""
    left = step

    def plant():
        for owner, name in functions:
            setattr(owner, name, counted(getattr(owner, name)))

    def counted(function):
        def call(*args, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return function(*args, **options)

        return call

    return plant


DISK = [(os, "fsync"), (Path, "rename"), (Path, "unlink")]
NOTES = [(Progress, "add")]


@pytest.mark.parametrize(
    ("kind", "places", "stride"),
    [
        ("pairs", DISK, 9),
        ("single", NOTES, 3),
        *(
            pytest.param(kind, places, 1, marks=pytest.mark.slow)
            for kind in ("pairs", "single")
            for places in (DISK, NOTES)
        ),
    ],
)
def test_a_kill_anywhere_changes_no_byte(sources_by_kind, tmp_path, kind, places, stride):
    source = sources_by_kind[kind]
    go(source, tmp_path / "whole" / "out")
    whole = content(tmp_path / "whole")
    assert len(whole) > 10 and check(tmp_path / "whole" / "out") == []
    status, step, ended = 9, 1, 0
    while status == 9:
        root = tmp_path / str(step)
        status = in_child(lambda root=root: go(source, root / "out"), dies_at(step, *places))
        if (root / "out" / "manifest.json").exists():
            break
        in_child(lambda root=root: go(source, root / "out"), dies_at(3, *places))  # the next one is killed, too
        if not (root / "out" / "manifest.json").exists():
            go(source, root / "out")
        assert content(root) == whole, step
        step += stride
        ended += 1
    assert ended > 2


def killed(source, root):
    assert in_child(lambda: go(source, root / "out"), dies_at(5, (Progress, "add"))) == 9
    assert (root / "out" / JOURNAL).exists() and (root / "out" / PROGRESS).exists()


def test_what_was_read_is_not_decoded_again(source, tmp_path, monkeypatch):
    killed(source, tmp_path)
    lines = (tmp_path / "out" / PROGRESS).read_text().splitlines()[2:]
    before = sum(len(json.loads(line)["entries"]) for line in lines)
    decoded = []
    real = dataset.Identifier._picture
    monkeypatch.setattr(
        dataset.Identifier, "_picture", lambda self, cell, *rest: decoded.append(cell) or real(self, cell, *rest)
    )
    imported = go(source, tmp_path / "out")
    assert before >= 8 and 0 < len(decoded) <= imported.records - before + 4


def test_another_input_begins_anew_and_says_so(source, tmp_path, capsys):
    killed(source, tmp_path)
    mapping = load_mapping("beavertails-v", None)
    changed = dataset.overridden(mapping, "renamed", None, None)
    import_dataset(str(source), tmp_path / "out", changed, on_bad_row="skip", samples_per_shard=4)
    assert "begins anew" in capsys.readouterr().out
    import_dataset(str(source), tmp_path / "clean" / "out", changed, on_bad_row="skip", samples_per_shard=4)
    assert content(tmp_path / "clean") == {
        n: d for n, d in content(tmp_path).items() if n in content(tmp_path / "clean")
    }
    assert not (tmp_path / "out" / PROGRESS).exists()


@pytest.mark.parametrize("change", ["cut", "flip", "gone", "longer"])
def test_a_changed_shard_is_named_and_nothing_is_deleted(source, tmp_path, change):
    killed(source, tmp_path)
    mark = json.loads((tmp_path / "out" / PROGRESS).read_text().splitlines()[-1])["mark"]
    size = mark["test"]["bytes"]
    (file,) = tmp_path.glob("out/.test-*.part") if size else sorted(tmp_path.glob("out/test-*.tar"))[:1]
    data = file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": data[:700], "flip": data[:600] + b"\1" + data[601:], "longer": data + b"x"}[change])
    before = content(tmp_path)
    if size and change == "longer":  # behind what was noted: by the batch that was cut off
        go(source, tmp_path / "out")
        return
    if not size and change == "flip":
        return
    with pytest.raises(ShardError, match="cannot go on"):
        go(source, tmp_path / "out")
    after = content(tmp_path)
    assert {name for name in set(before) - set(after) if not name.endswith(".part")} == set()
    assert all(before[name] == data for name, data in after.items())


def test_a_torn_line_of_progress_does_not_count(source, tmp_path):
    go(source, tmp_path / "whole" / "out")
    killed(source, tmp_path / "torn")
    progress = tmp_path / "torn" / "out" / PROGRESS
    progress.write_bytes(progress.read_bytes()[:-30])
    go(source, tmp_path / "torn" / "out")
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_import_goes_on_after_ctrl_c_and_a_full_disk(source, tmp_path, monkeypatch, error):
    go(source, tmp_path / "whole" / "out")
    calls = []
    real = os.fsync

    def failing(handle):
        calls.append(handle)
        if len(calls) == 9:
            raise error
        real(handle)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises((KeyboardInterrupt, ShardError)):
            go(source, tmp_path / "broken" / "out")
    assert (tmp_path / "broken" / "out" / PROGRESS).exists()
    go(source, tmp_path / "broken" / "out")
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_other_peoples_files_stay(source, tmp_path):
    killed(source, tmp_path)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    go(source, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


SCRIPT = """
import sys
from pathlib import Path
from safe_rlhf_v.ingest import dataset, sources
from safe_rlhf_v.ingest.mapping import load_mapping
dataset.BATCH = sources.BATCH = 3
print("go", flush=True)
options = {"on_bad_row": "skip", "samples_per_shard": 4}
dataset.import_dataset(sys.argv[1], Path(sys.argv[2]), load_mapping("beavertails-v", None), **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_sigkill_at_any_time(source, tmp_path, delay):
    go(source, tmp_path / "whole" / "out")
    root = tmp_path / "killed"
    arguments = [sys.executable, "-c", SCRIPT, str(source), str(root / "out")]
    for _ in range(20):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"go\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if (root / "out" / "manifest.json").exists():
            break
    else:
        go(source, root / "out")
    assert {n: d for n, d in content(root).items() if n != JOURNAL} == content(tmp_path / "whole")
