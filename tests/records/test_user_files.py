"""What is no regular file of a bounded size is never read, whatever it is."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from safe_rlhf_v.records.user_files import (
    FileError,
    json_text,
    lock,
    locked_folder,
    open_regular,
    open_to_append,
    read_bounded,
)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_json_has_no_word_for_what_is_no_finite_number(broken):
    def refuse(word):
        raise AssertionError(word)

    value = {"a": broken, "b": [1.5, broken, (broken, "é")], "c": None, "d": True, "e": 3}
    text = json_text(value)
    assert json.loads(text, parse_constant=refuse) == {**value, "a": None, "b": [1.5, None, [None, "é"]]}
    assert json_text({"a": 0.1}, indent=1) == json.dumps({"a": 0.1}, indent=1)


def test_a_regular_file_and_a_link_to_it_are_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_bounded(tmp_path / "a", 5) == read_bounded(str(tmp_path / "link"), 5) == b"12345"
    with pytest.raises(FileError, match=r"5 bytes, the limit is 4"):
        read_bounded(tmp_path / "link", 4)


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(3_000_000_000)  # sparse
    with pytest.raises(FileError, match="3000000000 bytes, the limit is 1000"):
        read_bounded(path, 1000)


def test_a_file_of_no_stated_size_is_bounded_too():
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(FileError, match="more than 10 bytes"):
        read_bounded("/proc/self/maps", 10)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "loop", "missing", "dangling", "nul", "surrogate",
                                  "long", "through a file", "forbidden", "line break"])  # fmt: skip
def test_everything_else_is_refused_at_once_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "file").write_bytes(b"x")
    path, words = {
        "pipe": ("it", "a named pipe, not a regular file"),
        "socket": ("it", "a socket, not a regular file"),
        "folder": (".", "a folder, not a regular file"),
        "device": ("/dev/zero", "a device, not a regular file"),
        "loop": ("it", "too many levels of symbolic links"),
        "missing": ("it", "no such file"),
        "dangling": ("it", "no such file"),
        "nul": ("a\0b", "no file can have this name"),
        "surrogate": ("a\ud800", "no file can have this name"),
        "long": ("a" * 5000, "file name too long"),
        "through a file": ("file/a", "not a directory"),
        "forbidden": ("it", "permission denied"),
        "line break": ("a\nb", "no such file"),
    }[kind]
    if kind == "pipe":
        os.mkfifo("it")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("it")
    elif kind in ("loop", "dangling"):
        Path("it").symlink_to("it" if kind == "loop" else "gone")
    elif kind == "forbidden":
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        (tmp_path / "it").write_bytes(b"")
    with pytest.raises(FileError, match=words) as raised:
        read_bounded(path, 1000)
    assert "\n" not in str(raised.value)


def test_a_pipe_put_in_place_of_the_file_does_not_block(tmp_path, monkeypatch):
    path, plain = tmp_path / "it", tmp_path / "plain"
    plain.write_bytes(b"x")
    os.mkfifo(path)
    seen = plain.stat()
    monkeypatch.setattr(Path, "stat", lambda _: seen)
    with pytest.raises(FileError, match="a named pipe"):
        open_regular(path)


HOLD = """
import sys
from safe_rlhf_v.records.user_files import lock, locked_folder
file = open(sys.argv[1], "ab"); lock(file, "x")
with locked_folder(__import__("pathlib").Path(sys.argv[2])):
    print("held", flush=True); sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_released_when_it_dies(tmp_path):
    name, folder = tmp_path / "out.part", tmp_path / "folder"
    command = [sys.executable, "-c", HOLD, str(name), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process, name.open("ab") as file:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(FileError, match="another process is writing it"):
            lock(file, name)
        with pytest.raises(FileError, match="another process is writing it"), locked_folder(folder):
            pass
        process.kill()
        process.wait()
        lock(file, name)
        with locked_folder(folder):
            pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_nothing_but_a_regular_file_is_appended_to(kind, tmp_path):
    path, victim = tmp_path / "v.jsonl.part", tmp_path / "victim"
    if kind == "link":
        victim.write_text("mine")
    if kind.endswith("link"):
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(FileError, match=r"v\.jsonl\.part: "):
        open_to_append(path)
    assert victim.exists() == (kind == "link")
    with open_to_append(tmp_path / "new") as file:
        file.write(b"x")
    with open_to_append(tmp_path / "new") as file:
        file.write(b"y")
    assert (tmp_path / "new").read_bytes() == b"xy"
