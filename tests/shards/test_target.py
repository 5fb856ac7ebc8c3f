"""A shard folder is written whole or not at all, and other people's files in it are left alone, whatever happens in between."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardError
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.target import JOURNAL, Target
from tests.shards.conftest import write

FOREIGN = {"photos.tar": b"my photos", "notes.part": b"half a thought", "mine.npy": b"x", "train-1.tar": b"short number",
           "manifest.json.bak": b"old", "tokenizer/vocab.json": b"{}"}  # fmt: skip


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return content(write(tmp_path_factory.mktemp("whole") / "out"))


def test_foreign_files_are_left_alone(tmp_path, whole):
    put(tmp_path, FOREIGN)
    write(tmp_path)
    assert content(tmp_path) == {**whole, **FOREIGN}


@pytest.mark.parametrize(
    "name", ["train-000000.tar", "other-000123.tar", "train.index.npy", "sizes.json", "manifest.json"]
)
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_foreign_file_in_the_way_is_named_before_any_work(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="already holds a finished" if name == "manifest.json" else name):
        write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert kind != "file" or path.read_bytes() == b"precious"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = Target(tmp_path)
    (tmp_path / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(ShardError, match=r"train-000000\.tar: another program has created"):
        target.add("train-000000.tar", b"ours")
    target.discard()
    assert content(tmp_path) == {"train-000000.tar": b"precious"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_removes_what_was_written(tmp_path, error, monkeypatch):
    from safe_rlhf_v.shards import writer

    put(tmp_path, FOREIGN)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(writer, "new_manifest", fail)
    with pytest.raises(error):
        write(tmp_path)
    assert content(tmp_path) == FOREIGN
    with pytest.raises(error):
        write(tmp_path / "new" / "deep")
    assert content(tmp_path) == FOREIGN and not (tmp_path / "new").exists()


def in_child(work, step=0):
    """Exit status of a forked process that dies without any clean-up before its ``step``-th change of the disk."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = step

    def counted(function):
        def call(*args, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return function(*args, **options)

        return call

    try:
        os.fsync, os.open = counted(os.fsync), counted(os.open)
        Path.rename, Path.unlink = counted(Path.rename), counted(Path.unlink)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_at_any_step_leaves_no_data_set_and_the_next_run_a_whole_one(tmp_path):
    whole = content(write(tmp_path / "whole", n=1))
    status, step, unfinished = 9, 0, 0
    while status == 9:
        step += 1
        root = tmp_path / str(step)
        put(root, FOREIGN)
        status = in_child(lambda root=root: write(root, n=1), step)
        assert {name: content(root)[name] for name in FOREIGN} == FOREIGN
        if (root / "manifest.json").exists():  # killed after the end: all is there
            assert {**content(root), JOURNAL: b""} == {**whole, **FOREIGN, JOURNAL: b""}
            continue
        unfinished += 1
        with pytest.raises(ShardError, match="no manifest"):
            ShardedSplit(root, "train")
        if step % 4 == 0:
            in_child(lambda root=root: write(root, n=1), 5)  # the next one is killed, too, perhaps while it clears away
        write(root, n=1)
        assert content(root) == {**whole, **FOREIGN}
    assert status == 0 and unfinished > 15


def test_leftovers_that_somebody_changed_are_foreign(tmp_path):
    assert in_child(lambda: write(tmp_path), 12) == 9
    leftover = next(tmp_path.glob("*.tar"))
    leftover.write_bytes(b"now mine")
    before = content(tmp_path)
    with pytest.raises(ShardError, match=leftover.name):
        write(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "journal",
    [b"my diary", b"my diary\n", b"\xff\xfe", b"safe_rlhf_v.unfinished 1 zzzzzzzz\n", b"[" * 100_000,
     b'safe_rlhf_v.unfinished 1 0123abcd\n{"file": "../photos.tar", "bytes": 9, "sha256": "x"}\n',
     b'safe_rlhf_v.unfinished 1 0123abcd\n{"file": "photos.tar", "bytes": 9, "sha256": "x"}\n',
     b"safe_rlhf_v.unfinished 1 0123abcd\n" + b"[" * 100_000 + b"\n",
     b"safe_rlhf_v.unfinished 1 0123abcd\n[]\n"],
)  # fmt: skip
def test_a_journal_that_is_not_ours_is_refused_and_kept(tmp_path, journal):
    put(tmp_path / "out", {JOURNAL: journal})
    put(tmp_path, {"photos.tar": b"my photos"})
    with pytest.raises(ShardError, match="not a journal of this library"):
        write(tmp_path / "out")
    assert content(tmp_path) == {"photos.tar": b"my photos", f"out/{JOURNAL}": journal}


def test_two_writers_of_one_folder_are_refused(tmp_path, whole):
    first = Target(tmp_path)
    first.add("train-000000.tar", b"one")
    with pytest.raises(ShardError, match="another process is writing"):
        Target(tmp_path)
    first.discard()
    assert content(write(tmp_path)) == whole


@pytest.mark.parametrize("call", [1, 2, 3, 6, 9, 12])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_one_line_and_nothing_stays(tmp_path, monkeypatch, call, code):
    put(tmp_path, FOREIGN)
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShardError) as caught:
        write(tmp_path)
    assert str(tmp_path) in str(caught.value) and os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == FOREIGN


def test_a_file_size_limit_is_one_line(tmp_path):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # a shard of the tiny set is larger, the journal is not
        try:
            write(tmp_path / "out")
        except ShardError as error:
            os._exit(42 if "File too large" in str(error) and not (tmp_path / "out").exists() else 1)

    assert in_child(work) == 42


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    from safe_rlhf_v.demo.world import main

    (tmp_path / "file").write_bytes(b"precious")
    places = [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere/data")]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o555)
        places += [tmp_path / "closed", tmp_path / "closed" / "below"]
    for place in places:
        assert main(["--out", str(place), "--size", "small"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {place}") and err.count("\n") == 1
    assert (tmp_path / "file").read_bytes() == b"precious"


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from tests.shards.conftest import write
print("go", flush=True)
write({root!r}, n=100, per_shard=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_sigkill_at_any_time(tmp_path, delay):
    root = tmp_path / "out"
    put(root, FOREIGN)
    code = WRITER.format(tests=str(Path(__file__).parents[2]), root=str(root))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        while delay and not (root / JOURNAL).exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    if not (root / "manifest.json").exists():
        write(root, n=100, per_shard=1)
    assert check(root) == []
    assert {name: content(root)[name] for name in FOREIGN} == FOREIGN
    assert sum(split.samples for split in Manifest.load(root).splits.values()) == 102
    assert json.loads((root / "sizes.json").read_text())
