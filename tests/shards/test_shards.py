"""Writing, reading, damage and hostile shards."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
import tarfile

import pytest

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardError, ShardWriter, split_of
from safe_rlhf_v.shards.check import Finding, check
from safe_rlhf_v.shards.index import scan_shard
from tests.shards.conftest import picture, record, write


def test_every_record_comes_back(folder):
    split = ShardedSplit(folder, "train", verify="sha256")
    assert len(split) == 7
    assert [split[i] for i in range(7)] == [
        record(i, images=i % 3, category=("animal_abuse",) if i % 2 else ()) for i in range(7)
    ]
    assert split.rows_of(["animal_abuse"]) == [1, 3, 5]
    assert len(set(split.groups.tolist())) == 7
    assert [shard.samples for shard in split.manifest.splits["train"].shards] == [3, 3, 1]
    assert pickle.loads(pickle.dumps(split))[4] == split[4]
    assert check(folder) == []


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_other_readers_understand_the_shards(folder):
    import datasets
    import webdataset

    paths = [str(p) for p in sorted(folder.glob("test-*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["k-100", "k-101"]
    assert Record.from_json(samples[0]["json"], (samples[0]["jpg"],), "k-100") == record(100)
    table = datasets.load_dataset("webdataset", data_files=paths, split="train", streaming=True)
    rows = list(table)
    assert rows[0]["jpg"].size == (12, 8)
    assert rows[0]["json"]["question"] == "question 100 ?"


def test_an_unfinished_folder_is_not_a_data_set(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        writer.write("train", record(0))
        raise RuntimeError
    with pytest.raises(ShardError, match="no manifest"):
        ShardedSplit(tmp_path, "train")
    write(tmp_path)  # leftovers are replaced
    with pytest.raises(ShardError, match="already holds a finished data set"):
        write(tmp_path)


def test_the_writer_refuses(tmp_path):
    with ShardWriter(tmp_path, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        writer.write("train", record(0))
        with pytest.raises(ShardError, match="'k-0' occurs twice"):
            writer.write("test", record(0))
        with pytest.raises(ValueError, match="category"):
            writer.write("train", record(1, category=("weather",)))
        with pytest.raises(ShardError, match="split name"):
            writer.write("../x", record(2))


def test_splits_by_hash_never_move():
    shares = {"train": 0.8, "test": 0.2}
    found = [split_of(f"g{i}", shares) for i in range(2000)]
    assert 0.76 < found.count("train") / 2000 < 0.84
    assert found[:100] == [split_of(f"g{i}", shares) for i in range(100)]
    assert found != [split_of(f"g{i}", shares, salt="x") for i in range(2000)]
    assert split_of("g", {"train": 1.0, "test": 0.0}) == "train"


@pytest.mark.parametrize("shares", [(0.5,), (1.5, -0.5), (math.nan, 0.1), (math.inf, 0.5), (0.5, 0.6), (2, -1), ()])
def test_fractions_that_are_no_shares_are_refused(shares):
    with pytest.raises(ValueError, match=r"must each lie in 0\.\.1 and sum to 1"):
        split_of("g", {f"split{i}": share for i, share in enumerate(shares)})


def damage(path, change):
    data = bytearray(path.read_bytes())
    changed = change(data)
    path.write_bytes(bytes(data if changed is None else changed))


def flip(position):
    def change(data):
        data[position] ^= 0xFF

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[: len(d) // 2],  # cut inside
        lambda d: d[:1024],  # cut at a member header
        lambda d: b"",  # empty
        lambda d: b"\x00" * len(d),  # zeros
        flip(20),  # a header byte
        flip(700),  # a payload byte
        lambda d: d[512:],  # the first header gone
    ],
)
def test_every_damage_is_named(folder, change):
    damage(folder / "train-000001.tar", change)
    problems = check(folder)
    assert problems and all("train-000001.tar" in p or "train.index.npy" in p for p in problems)
    with pytest.raises(ShardError, match=r"train-000001\.tar"):
        ShardedSplit(folder, "train", verify="sha256")


def test_a_missing_shard_index_and_split_are_named(folder):
    (folder / "train-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000002\.tar: the manifest states this file"):
        ShardedSplit(folder, "train")
    (folder / "test.index.npy").write_bytes(b"rubbish")
    with pytest.raises(ShardError, match=r"test\.index\.npy: its SHA-256"):
        ShardedSplit(folder, "test")
    with pytest.raises(ShardError, match="no split 'validation'; there are: test, train"):
        ShardedSplit(folder, "validation")
    assert {"missing" in p for p in check(folder) if "000002" in p} >= {True}


def test_a_manifest_cannot_point_outside(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("train-000000.tar", "../train-000000.tar"))
    with pytest.raises(ShardError, match="outside the shard folder"):
        Manifest.load(folder)
    path.write_text(json.dumps({"format": "other", "version": 1}))
    with pytest.raises(ShardError, match="format 'other'"):
        Manifest.load(folder)


def test_the_same_picture_in_two_splits_is_found(tmp_path):
    with ShardWriter(tmp_path, name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        writer.write("train", record(0))
        writer.write("test", Record("other", "q", record(0).images))
    assert any("its image occurs in split 'test' too" in p for p in check(tmp_path))


def hostile(tmp_path, *members):
    """A tar of (name, bytes or a ready TarInfo)."""
    path = tmp_path / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


class Bomb:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('EXECUTED').touch()",)


@pytest.mark.parametrize(
    "members",
    [
        [("a.pkl", pickle.dumps(Bomb())), ("a.json", b"{}")],
        [("a.pyd", pickle.dumps(Bomb()))],
        [("a.json.gz", b"x")],
        [("../a.json", b"{}")],
        [("/etc/a.json", b"{}")],
        [("sub/a.json", b"{}")],
        [("a.b.json", b"{}")],
        [(link("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), ("a.json", b"{}")],
        [(link("a.jpg", tarfile.LNKTYPE, "b.json"), b""), ("a.json", b"{}")],
        [("a.jpg", b"1"), ("b.jpg", b"1"), ("a.json", b"{}"), ("b.json", b"{}")],  # not adjacent
        [("a.jpg", b"1")],  # no JSON
        [("a.jpg", b"1"), ("a.2.jpg", b"1"), ("a.json", b"{}")],  # image 1 missing
        [("a.json", b"{}"), ("a.json", b"{}")],
    ],
)
def test_hostile_members_are_refused_by_name(tmp_path, monkeypatch, members):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        scan_shard(hostile(tmp_path, *members))
    assert not (tmp_path / "EXECUTED").exists()


def test_a_member_that_claims_gigabytes_is_refused_before_anything_is_read(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.size = 8 << 30
    (tmp_path / "train-000000.tar").write_bytes(info.tobuf() + b"\0" * 1024)
    with pytest.raises(ShardError, match="claims 8589934592 bytes"):
        scan_shard(tmp_path / "train-000000.tar")


def test_swapped_bytes_are_found_while_reading(folder):
    """A forger who keeps the sizes is caught by the hash in the index."""
    path = folder / "test-000000.tar"
    data = path.read_bytes()
    old, new = record(100).images[0].data, picture(5, "JPEG", quality=95)
    assert old in data
    forged = data.replace(old, (new + b"\0" * len(old))[: len(old)])
    path.write_bytes(forged)
    with pytest.raises(ShardError, match=r"'k-100': its bytes do not match"):
        ShardedSplit(folder, "test")[0]


def test_the_command_shows_and_checks(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "animal_abuse: 3" in out and "licence MIT" in out
    assert main(["check", str(folder)]) == 0
    damage(folder / "train-000000.tar", flip(700))
    assert main(["check", str(folder)]) == 1
    assert "train-000000.tar" in capsys.readouterr().out
    assert main(["inspect", str(folder / "nowhere")]) == 2
    assert "no manifest" in capsys.readouterr().err


def test_the_table_counts_groups_and_does_not_call_them_images(tmp_path, capsys):
    with ShardWriter(tmp_path / "text", name="x", licence="MIT", taxonomy=BEAVERTAILS_V) as writer:
        for i in range(5):
            writer.write("train", Record(f"k-{i}", f"question {i}"))
    assert main(["inspect", str(tmp_path / "text")]) == 0
    header, row = (
        line.split() for line in capsys.readouterr().out.splitlines()[-12:] if line.startswith(("split", "train  "))
    )
    assert dict(zip(header, row, strict=True)) | {"MB": ""} == dict(
        split="train", records="5", groups="5", shards="1", MB=""
    )


NAMES = [b"x\xff.tar", "ü\n.npy".encode(), b"\x80.part"]


def test_a_report_names_files_that_are_no_text(folder, tmp_path, capsys):
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes(b"")
    report = tmp_path / "report.jsonl"
    assert main(["check", str(folder), "--report", str(report)]) == 0
    findings = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert {os.fsencode(finding["file"]) for finding in findings} == {*NAMES}


def test_a_check_that_fails_leaves_no_report_behind(folder, tmp_path, monkeypatch, capsys):
    def fail(*_, **options):
        yield Finding("warning", "", "a", "", "", "b")
        raise OSError("no space")

    report = tmp_path / "report.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("safe_rlhf_v.shards.check.examine", fail)
        assert main(["check", str(folder), "--report", str(report)]) == 2
    assert list(tmp_path.iterdir()) == [folder]
    assert main(["check", str(folder), "--report", str(report)]) == 0 and report.read_bytes() == b""


def test_looking_at_shards_needs_no_torch(folder):
    code = f"import sys; from safe_rlhf_v.__main__ import main; main(['shards', 'inspect', {str(folder)!r}]); " \
           "assert not {'torch', 'lightning', 'transformers', 'webdataset'} & set(sys.modules)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
