"""Checkpoints survive kills, are found again, and refuse what does not fit."""

import errno
import fcntl
import logging
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.training.stages import Stub, one_line, save

from safe_rlhf_v.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    clear_leftovers,
    find_checkpoint,
    read_checkpoint,
    read_stage,
)


class Bomb:
    """Fails, or kills the process, in the middle of being written."""

    def __init__(self, kill: bool) -> None:
        self.kill = kill

    def __reduce__(self) -> Any:
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("no space left on device")


def test_a_failing_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, file)
    with pytest.raises(OSError, match="no space"):
        io.save_checkpoint({"weights": torch.zeros(50_000), "bomb": Bomb(kill=False)}, file)
    assert torch.load(file) == {"step": 1}
    assert os.listdir(file.parent) == ["last.ckpt"]  # noqa: PTH208
    io.save_checkpoint({"step": 2}, file)
    assert torch.load(file) == {"step": 2}


def test_a_killed_write_leaves_the_old_file_and_the_next_one_clears_up(tmp_path: Path) -> None:
    file, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, file)
    child = os.fork()
    if child == 0:
        io.save_checkpoint({"weights": torch.zeros(50_000), "bomb": Bomb(kill=True)}, file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert find_checkpoint(tmp_path) == file
    assert torch.load(file) == {"step": 1}
    io.save_checkpoint({"step": 2}, file)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def age(path: Path, seconds: int) -> Path:
    """Make a file (not what it links to) that many seconds old."""
    os.utime(path, (2e9 - seconds, 2e9 - seconds), follow_symlinks=False)
    return path


def cut(path: Path, content: bytes, keep: float) -> Path:
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def test_the_newest_whole_checkpoint_is_found_and_the_rest_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = age(save(tmp_path / "run" / "step=2.ckpt", Stub()), 50)
    age(save(tmp_path / "run" / "older" / "step=1.ckpt", Stub()), 60)
    content = good.read_bytes()
    for name, keep, seconds in (("half", 0.5, 10), ("empty", 0, 20), ("tail", 1 - 10 / len(content), 30)):
        age(cut(tmp_path / "run" / f"{name}.ckpt", content, keep), seconds)
    dangling = tmp_path / "run" / "last.ckpt"
    dangling.symlink_to("gone.ckpt")
    age(dangling, 5)
    (tmp_path / "run" / "notes.txt").write_text("no checkpoint")
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) == good
    assert all(f"{name}.ckpt" in caplog.text for name in ("half", "empty", "tail", "last"))
    assert "step=" not in caplog.text
    assert find_checkpoint(good) == good
    for path, words in (
        (dangling, "gone.ckpt"),
        (tmp_path / "run" / "half.ckpt", "cut off"),
        (tmp_path / "no.ckpt", "no such"),
    ):
        with pytest.raises(CheckpointError, match=words):
            find_checkpoint(path)


def test_newest_means_most_steps_whatever_the_times_of_the_files_say(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, steps, seconds in (("a/step=9", 9, 10), ("a/step=10", 10, 90), ("a/step=2", 2, 1)):
        age(save(run / f"{name}.ckpt", Stub(), global_step=steps), seconds)
    assert find_checkpoint(run) == run / "a" / "step=10.ckpt"
    (run / "a" / "last.ckpt").symlink_to("step=10.ckpt")
    assert find_checkpoint(run) == run / "a" / "step=10.ckpt"  # named by itself, not by a link to it
    for version in (2, 10, 9):  # trained again, just as long: the later version
        save(run / f"version_{version}" / "x.ckpt", Stub(), global_step=10)
    assert find_checkpoint(run) == run / "version_10" / "x.ckpt"


def test_checkpoints_that_lie_elsewhere_or_are_none_of_torchs_are_passed_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = save(run / "good.ckpt", Stub(), global_step=1)
    outside = save(tmp_path / "outside.ckpt", Stub(), global_step=5)
    (run / "planted.ckpt").symlink_to(outside)
    (run / "folder.ckpt").symlink_to(tmp_path)
    with zipfile.ZipFile(run / "archive.ckpt", "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")
    torch.save([1, 2], run / "list.ckpt")
    torch.save({"global_step": Opener(tmp_path / "opened")}, run / "code.ckpt")
    assert find_checkpoint(run) == good
    assert not (tmp_path / "opened").exists()


class Opener:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_folders_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no readable checkpoint; train that stage first"):
            find_checkpoint(folder)
    (tmp_path / "torn.ckpt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"no readable checkpoint.*torn\.ckpt"):
        find_checkpoint(tmp_path)


def damage(path: Path, at: float = 0.5, count: int = 400) -> Path:
    """Invert so many bytes, from that share of the file on; a link's target keeps its length and, as by rot, its time."""
    content, about = bytearray(path.read_bytes()), path.stat()
    start = int(len(content) * at)
    content[start : start + count] = bytes(255 - byte for byte in content[start : start + count])
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    return path


def step(path: Path, number: int, width: int = 20_000) -> Path:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(width), "global_step": number}, path)
    return path


@pytest.mark.parametrize("count", [1, 400, 4096])
def test_damage_is_refused_by_every_reader(tmp_path: Path, count: int) -> None:
    file = damage(step(tmp_path / "x.ckpt", 1), count=count)
    for reader in (find_checkpoint, read_checkpoint, read_stage, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(CheckpointError, match="damaged at") as error:
            reader(str(file))
        assert one_line(error, "x.ckpt", "newest complete one")


def test_any_damaged_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Every byte of a small file in turn: also of the zip's headers, directory and padding."""
    file, stored = tmp_path / "x.ckpt", {"weights": torch.arange(7.0), "global_step": 3, "name": "text"}
    AtomicCheckpointIO().save_checkpoint(stored, file)
    content, refused = file.read_bytes(), 0
    for i in range(0, len(content), 4):
        changed = bytearray(content)
        changed[i] ^= 1 << (i // 4 % 8)
        file.write_bytes(changed)
        os.utime(file, (i + 1, i + 1))
        try:
            read = read_checkpoint(file)
        except CheckpointError:
            refused += 1
        else:
            assert torch.equal(read["weights"], stored["weights"])
            assert (read["global_step"], read["name"]) == (3, "text")
    assert refused > len(content) // 10  # the rest is alignment between the members


def test_the_newest_has_the_most_steps_and_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the time of writing nor the name decides; two runs with equal steps: the one written last."""
    age(step(tmp_path / "version_0" / "best.ckpt", 30), 10)
    age(step(tmp_path / "version_0" / "step=99.ckpt", 20), 1)
    newest = age(step(tmp_path / "version_1" / "a.ckpt", 40), 99)
    assert find_checkpoint(tmp_path) == newest
    later = age(step(tmp_path / "version_2" / "a.ckpt", 40), 50)
    assert find_checkpoint(tmp_path) == later
    damage(later)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path) == newest
    assert f"skipped {later}" in caplog.text
    damage(newest, at=0.1)
    assert find_checkpoint(tmp_path) == tmp_path / "version_0" / "best.ckpt"
    for name in ("best", "step=99"):
        damage(tmp_path / "version_0" / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match=r"not complete: .*step=99\.ckpt"):
        find_checkpoint(tmp_path)


def test_only_our_own_leftovers_are_cleared_and_none_that_is_being_written(tmp_path: Path) -> None:
    ours = tmp_path / "step=3.ckpt.1234.safe_rlhf_v-part"
    busy = tmp_path / "step=4.ckpt.1235.safe_rlhf_v-part"
    others = ["step=3.ckpt.part-1", "x.part", "step=3.ckpt.abc.safe_rlhf_v-part", "safe_rlhf_v-part", "notes.txt"]
    for name in others:
        (tmp_path / name).write_text("a stranger's")
    (tmp_path / "9.1.safe_rlhf_v-part").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "8.1.safe_rlhf_v-part").mkdir()
    ours.write_bytes(b"half")
    busy.write_bytes(b"half")
    before = {path.name for path in tmp_path.iterdir()}
    with busy.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        clear_leftovers(tmp_path)
        assert before - {path.name for path in tmp_path.iterdir()} == {ours.name}
    clear_leftovers(tmp_path)
    assert before - {path.name for path in tmp_path.iterdir()} == {ours.name, busy.name}
    clear_leftovers(tmp_path / "missing")


def test_leftovers_of_a_run_that_went_on_before_are_cleared_below_its_folder_only(tmp_path: Path) -> None:
    name = "step=3.ckpt.1234.safe_rlhf_v-part"
    run, link, other = tmp_path / "run", tmp_path / "run" / "version_2", tmp_path / "other"
    for folder in (run, run / "version_1" / "checkpoints", other):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"half")
    link.symlink_to(other)
    clear_leftovers(run)
    assert not (run / name).exists() and (run / "version_1" / "checkpoints" / name).exists()
    clear_leftovers(run, below=True)
    assert not (run / "version_1" / "checkpoints" / name).exists()
    assert (other / name).exists()  # a link out of the folder is not followed


@pytest.mark.parametrize("where", ["writing", "syncing"])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = step(tmp_path / "step=1.ckpt", 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def wrapped(checkpoint: Any, part: Any) -> None:
        part.write(b"PK half of it")
        try:
            full()
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662")  # noqa: B904

    monkeypatch.setattr(*(("torch.save", wrapped) if where == "writing" else ("os.fsync", full)))
    with pytest.raises(CheckpointError) as error:
        AtomicCheckpointIO().save_checkpoint({"global_step": 2}, tmp_path / "step=2.ckpt")
    assert one_line(error, "step=2.ckpt", "the disk is full", "earlier checkpoints are not changed")
    assert list(tmp_path.iterdir()) == [file] == [find_checkpoint(tmp_path)]


def test_pickles_and_foreign_content_are_refused_without_running_them(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"global_step": 1, "x": Evil()}, tmp_path / "evil.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, words in (("evil", "not a checkpoint of plain data"), ("list", "it holds a list")):
        with pytest.raises(CheckpointError, match=words) as error:
            read_checkpoint(tmp_path / f"{name}.ckpt")
        assert one_line(error, f"{name}.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_stored_configuration_survives_the_way_into_a_checkpoint(policy_stages: Path) -> None:
    stage = read_checkpoint(policy_stages / "reward")
    assert yaml.safe_load(stage["config_yaml"])["model"]["class_path"] == "safe_rlhf_v.modules.RewardModule"
    assert isinstance(stage["sources"]["files"]["tokenizer"]["tokenizer.json"], bytes)
    assert torch.is_tensor(next(iter(stage["state_dict"].values())))
