"""Foreign WebDataset shards as the source of an import."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.ingest.made_up import jpeg

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.ingest.dataset import import_dataset
from safe_rlhf_v.ingest.mapping import DataMapping, parse_mapping
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.shards import ShardedSplit

MAPPING = """
name: foreign
licence: CC0-1.0
splits: {train: train, val: test}
fields:
  question: {column: [json.caption, txt]}
  image: {column: [jpg, png], optional: true}
  response_0: {column: json.answers.0, optional: true}
"""
Members = list[tuple[str, bytes]]


def mapping(text: str = MAPPING) -> DataMapping:
    return parse_mapping(text, "mapping")


def sample(number: int, folder: str = "") -> Members:
    about = {"caption": f"what is in {number} ?", "answers": [f"thing {number}"], "size": float(number)}
    return [(f"{folder}{number:05d}.jpg", jpeg(number)), (f"{folder}{number:05d}.json", json.dumps(about).encode())]


def write(path: Path, members: Members, mode: Any = "w", format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards(root: Path, rows: int = 40) -> Path:
    write(root / "train-000000.tar", [one for i in range(rows) for one in sample(i)])
    write(root / "train-000001.tar", [one for i in range(rows, rows + 5) for one in sample(i, f"{'long/' * 30}")])
    write(root / "val-000000.tar", [one for i in range(1000, 1003) for one in sample(i)])
    (root / "sizes.json").write_text('{"train-000000.tar": 40}')
    return root


def questions(out: Path, split: str) -> list[str]:
    return [record.question for record in ShardedSplit(out, split)]  # type: ignore[attr-defined]


def test_a_folder_of_shards(tmp_path: Path) -> None:
    imported = import_dataset(str(shards(tmp_path / "in")), tmp_path / "out", mapping())
    assert imported.records == 48
    assert questions(tmp_path / "out", "train") == [f"what is in {i} ?" for i in range(45)]
    record = ShardedSplit(tmp_path / "out", "test")[2]
    assert (record.key, record.images[0].data) == ("val-000000-000003", jpeg(1002))
    assert record.responses[0].text == "thing 1002"


def test_the_command_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(MAPPING)
    source = str(shards(tmp_path / "in") / "val-000000.tar")
    out = str(tmp_path / "out")
    assert entry.main(["shards", "import", source, "--mapping", str(tmp_path / "mine.yaml"), "--out", out]) == 0
    assert entry.main(["shards", "check", out]) == 0
    assert "no error" in capsys.readouterr().out


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 64, 69])
def test_reading_begins_at_any_row(tmp_path: Path, start: int, format: int) -> None:
    from safe_rlhf_v.ingest.tar_rows import scan, tar_rows

    members = [one for i in range(70) for one in sample(i, "ä" * 90 + "/")]  # names with headers of their own
    path = write(tmp_path / "a.tar", members, format=format)
    rows = list(tar_rows(path, scan(path), start, ["json"]))
    assert [row.number for row in rows] == list(range(start + 1, 71))
    assert [row.cells["json"]["size"] for row in rows] == list(range(start, 70))
    assert all("jpg" not in row.cells for row in rows)


def test_names_and_forms_of_members(tmp_path: Path) -> None:
    from safe_rlhf_v.ingest.tar_rows import scan, tar_rows

    path = write(tmp_path / "a.tar", [
        ("__meta__/x.json", b"{}"), ("README", b"about"), ("._x.jpg", b"mac"),
        ("d/a.JPG", b"1"), ("d/a.1.png", b"2"), ("d/a.txt", "ü".encode()), ("d/a.cls", b"\xff\xfe"),
        ("d/b.json", b'\xef\xbb\xbf{"x": NaN}'), ("b.json", b"[1]"), ("c.json", b"{"),
    ])  # fmt: skip
    scanned = scan(path)
    assert scanned.columns == ["__key__", "jpg", "1.png", "txt", "cls", "json"]
    first, second, third, fourth = tar_rows(path, scanned, 0, None)
    assert first.cells == {"__key__": "d/a", "jpg": b"1", "1.png": b"2", "txt": "ü", "cls": b"\xff\xfe"}
    assert (second.cells["json"], third.cells["json"]) == ({"x": None}, [1])
    assert fourth.problems[0][0] == "json"


class Exploding:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("ending", ["pkl", "pyd", "pth", "PTH", "cls.pickle", "pt"])
def test_pickles_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in/train.tar", [*sample(0), (f"00000.{ending}", pickle.dumps(Exploding()))])
    with pytest.raises(TableError, match=r"train.tar: member .* is a pickle.*; pack the shard without it"):
        import_dataset("in", tmp_path / "out", mapping())
    assert not (tmp_path / "exploded").exists()


def test_no_shell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("pipe:touch exploded", "pipe:touch exploded; cat a.tar"):
        with pytest.raises(TableError, match="no such file"):
            import_dataset(source, tmp_path / "out", mapping())
    write(tmp_path / "in/pipe:touch exploded.tar", sample(0))
    text = MAPPING.replace("val: test", "'*': train")
    assert import_dataset("in", tmp_path / "out", mapping(text)).records == 1
    assert not (tmp_path / "exploded").exists()


def _damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "header":
        with tarfile.open(path) as archive:
            at = archive.getmembers()[20].offset
        data[at : at + 512] = b"x" * 512
    elif kind == "in a member":
        data = data[: len(data) // 2]
    elif kind == "behind a member":
        with tarfile.open(path) as archive:
            data = data[: archive.getmembers()[20].offset]
    elif kind == "compressed":
        import gzip

        data = bytearray(gzip.compress(bytes(data)))
    elif kind == "empty file":
        data = bytearray()
    elif kind == "no tar":
        data = bytearray(b"hello" * 1000)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["header", "in a member", "behind a member", "compressed", "empty file", "no tar"])
@pytest.mark.parametrize("skip", ["skip", "error"])
def test_a_damaged_shard_is_never_passed(tmp_path: Path, kind: str, skip: Any) -> None:
    _damage(shards(tmp_path / "in") / "train-000000.tar", kind)
    with pytest.raises(TableError, match=r"train-000000.tar: (damaged|not a plain tar file)"):
        import_dataset(str(tmp_path / "in"), tmp_path / "out", mapping(), on_bad_row=skip)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_member_twice_and_a_member_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.tar", [*sample(0), *sample(1), sample(1)[1]])
    with pytest.raises(TableError, match=r"behind row 1 .*duplicate file name"):
        import_dataset(str(tmp_path / "train.tar"), tmp_path / "out", mapping())
    monkeypatch.setattr("safe_rlhf_v.ingest.tar_rows.MAX_BYTES", 100)
    with pytest.raises(TableError, match=r"'00000.jpg' has \d+ bytes; the limit is 100"):
        import_dataset(str(tmp_path / "train.tar"), tmp_path / "out", mapping())


def test_a_sample_without_its_picture_or_text_is_a_bad_row(tmp_path: Path) -> None:
    text = MAPPING.replace(", optional: true}\n  response", "}\n  response")
    write(tmp_path / "train.tar", [*sample(0), sample(1)[0], *sample(2), sample(3)[1]])
    imported = import_dataset(str(tmp_path / "train.tar"), tmp_path / "out", mapping(text), on_bad_row="skip")
    assert (imported.records, imported.skipped) == (2, 2)


def test_links_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tar", sample(0))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("00001.txt")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        archive.addfile(link)
    assert import_dataset(str(path), tmp_path / "out", mapping()).records == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from safe_rlhf_v.ingest import dataset
from safe_rlhf_v.ingest.mapping import parse_mapping
class Dying(dataset.Progress):
    count = 0
    def add(self, body):
        super().add(body)
        Dying.count += 1
        if Dying.count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
dataset.Progress = Dying
dataset.import_dataset(sys.argv[1], Path(sys.argv[2]), parse_mapping(Path("mine.yaml").read_text(), "mine"))
"""


@pytest.mark.slow
def test_killed_and_resumed_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MAPPING)
    source = str(shards(tmp_path / "in"))
    import_dataset(source, tmp_path / "once", mapping())
    command = [sys.executable, "-c", KILLED, source, str(tmp_path / "killed"), "2"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/manifest.json").exists()
    import_dataset(source, tmp_path / "killed", mapping())
    for path in (tmp_path / "once").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes(), path.name
