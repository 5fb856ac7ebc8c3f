"""The command over many inputs: every kind of input, broken entries, and going on after an interruption."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from safe_rlhf_v.commands import moderate
from safe_rlhf_v.guard import entries as entries_module
from safe_rlhf_v.guard.entries import MAX_LINE, JsonlEntries, open_entries
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.records.user_files import FileError
from safe_rlhf_v.shards import ShardedSplit, ShardWriter


def run(guard_path, source, output, *extra):
    return moderate.main(["--guard", str(guard_path), "--input", str(source), "--output", str(output), *extra])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def table(world, tmp_path):
    """A JSON-lines file of 40 inputs beside its pictures, with every kind of broken entry."""
    records = [ShardedSplit(world, "test")[i] for i in range(12)]
    for record in records:
        (tmp_path / f"{record.key}.jpg").write_bytes(record.images[0].data)
    rows = [
        json.dumps(
            {"key": f"k{i}", "image": f"{r.key}.jpg", "question": r.question, "response": r.responses[i % 2].text}
        )
        for i in range(34)
        for r in [records[i % 12]]
    ]
    rows[5] = '{"key": "bad json'
    rows[6] = json.dumps({"key": "typo", "reply": "x"})
    rows[7] = json.dumps({"key": "number", "question": 3})
    rows[8] = json.dumps({"key": "outside", "image": "../../etc/passwd"})
    rows[9] = json.dumps({"key": "gone", "image": "gone.jpg", "question": "a"})
    rows[10] = "[" * 100_000
    rows[12] = '{"key": "twice", "question": "bad", "question": "fine"}'
    (tmp_path / "broken.jpg").write_bytes(records[0].images[0].data[:50])
    rows[11] = json.dumps({"key": "broken", "image": "broken.jpg", "question": "a"})
    path = tmp_path / "inputs.jsonl"
    path.write_bytes("\n".join(rows).encode() + b"\n\xff\xfe\n" + rows[0].encode())
    return path


def test_json_lines_give_one_verdict_each_and_broken_ones_are_blocked(calibrated_run, table, tmp_path, capsys):
    assert run(calibrated_run, table, tmp_path / "out.jsonl", "--batch_size", "8") == 0
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == 36
    for number in (5, 6, 7, 8, 9, 10, 11, 12, 34):
        assert found[number]["status"] == "error" and found[number]["decision"] == "block", found[number]
        assert found[number]["reasons"][0].startswith("unsafe: could not be checked")
    assert "unknown fields ['reply']" in found[6]["reasons"][0] and "lies outside" in found[8]["reasons"][0]
    assert all(row["status"] == "ok" for n, row in enumerate(found) if n not in (5, 6, 7, 8, 9, 10, 11, 12, 34))
    assert "a field occurs twice" in found[12]["reasons"][0]
    first, again = found[0], found[35]  # one input in batches of another company: equal but for the last digits
    assert (first["decision"], first["level"], first["category"], first["input_sha256"]) == (
        again["decision"], again["level"], again["category"], again["input_sha256"],
    )  # fmt: skip
    assert first["harm"] == pytest.approx(again["harm"], abs=2e-5)
    assert first["level_probabilities"] == pytest.approx(again["level_probabilities"], abs=2e-5)
    said = capsys.readouterr().out
    assert "36 verdicts" in said and "unchecked 9" in said


@pytest.mark.parametrize("cut", [0, 1, 700, 5000, 9000])
def test_an_interrupted_run_goes_on_to_the_same_bytes(cut, guard, table, tmp_path, monkeypatch):
    entries = JsonlEntries(table)
    moderate.moderate_entries(guard, entries, tmp_path / "whole.jsonl", batch_size=5)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    judged = []
    batch = guard.moderate_batch

    def stop(inputs, timeout=None):
        judged.append(len(inputs))
        if len(judged) == 4:
            raise KeyboardInterrupt
        return batch(inputs, timeout)

    monkeypatch.setattr(guard, "moderate_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        moderate.moderate_entries(guard, entries, tmp_path / "cut.jsonl", batch_size=5)
    part = tmp_path / "cut.jsonl.part"
    assert not (tmp_path / "cut.jsonl").exists()
    if cut:  # a kill may leave any prefix
        part.write_bytes(part.read_bytes()[:cut])
    judged.clear()
    monkeypatch.setattr(
        guard, "moderate_batch", lambda inputs, timeout=None: judged.append(1) or batch(inputs, timeout)
    )
    moderate.moderate_entries(guard, entries, tmp_path / "cut.jsonl", batch_size=5)
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    assert len(judged) <= 8 and (cut != 0 or len(judged) == 5)
    assert not part.exists() and not (tmp_path / "cut.jsonl.part.json").exists()


@pytest.fixture
def unfinished(guard, table, tmp_path, monkeypatch):
    """What an interruption after 15 of 36 inputs leaves."""
    judged = []

    def stop(entries, size, start):
        for batch in batches(entries, size, start):
            if len(judged) == 3:
                raise KeyboardInterrupt
            judged.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        batches = entries_module.batches
        patch.setattr(entries_module, "batches", stop)
        with pytest.raises(KeyboardInterrupt):
            moderate.moderate_entries(guard, JsonlEntries(table), tmp_path / "out.jsonl", batch_size=5)
    assert len(lines(tmp_path / "out.jsonl.part")) == 15
    return tmp_path / "out.jsonl"


def go_on(guard, table, output, **options):
    return moderate.moderate_entries(guard, JsonlEntries(table), output, **{"batch_size": 5, **options})


def test_unfinished_work_of_another_setting_is_refused(guard, table, unfinished):
    with pytest.raises(ValueError, match="unfinished work with another shape, batch_size"):
        go_on(guard, table, unfinished, shape="openai", batch_size=6)
    note = unfinished.with_name("out.jsonl.part.json")
    for content in (None, b"{", b"[]", b"3"):
        note.unlink() if content is None else note.write_bytes(content)
        with pytest.raises(ValueError, match="unfinished work"):
            go_on(guard, table, unfinished)


@pytest.mark.parametrize("change", ["a response", "a picture", "a broken line", "a key", "order", "a line less"])
def test_unfinished_work_of_other_inputs_is_refused(change, guard, table, unfinished, world):
    rows = table.read_bytes().split(b"\n")
    if change == "a response":
        rows[3] = json.dumps({**json.loads(rows[3]), "response": "this changed"}).encode()
    elif change == "a picture":
        name = json.loads(rows[3])["image"]
        (table.parent / name).write_bytes(ShardedSplit(world, "test")[11].images[0].data)
    elif change == "a broken line":
        rows[6] = rows[0]
    elif change == "a key":
        rows[3] = json.dumps({**json.loads(rows[3]), "key": "another"}).encode()
    elif change == "order":
        rows[2], rows[3] = rows[3], rows[2]
    else:
        del rows[4]
    table.write_bytes(b"\n".join(rows))
    part = unfinished.with_name("out.jsonl.part")
    before = part.read_bytes()
    with pytest.raises(ValueError, match=r"is not the input that was moderated there|another entries"):
        go_on(guard, table, unfinished)
    assert part.read_bytes() == before


def test_inputs_that_come_later_may_change(guard, table, unfinished):
    rows = table.read_bytes().split(b"\n")
    rows[20] = rows[0]
    table.write_bytes(b"\n".join(rows))
    assert sum(go_on(guard, table, unfinished).values()) == 36


def test_a_file_that_we_did_not_write_is_not_touched(guard, table, tmp_path):
    part = tmp_path / "out.jsonl.part"
    part.write_bytes(b"half of a download")
    with pytest.raises(ValueError, match="not unfinished work of this command"):
        go_on(guard, table, tmp_path / "out.jsonl")
    assert part.read_bytes() == b"half of a download"


HOLD = """
import sys
from safe_rlhf_v.records.user_files import lock
file = open(sys.argv[1], "ab"); lock(file, "x"); print("held", flush=True); sys.stdin.read()
"""


def test_two_processes_on_one_output_are_refused(guard, table, unfinished):
    part = unfinished.with_name("out.jsonl.part")
    before = part.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FileError, match=r"out\.jsonl: another process is writing it"):
            go_on(guard, table, unfinished)
        assert part.read_bytes() == before
        other.kill()
        other.wait()
        assert sum(go_on(guard, table, unfinished).values()) == 36


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_and_a_byte_order_mark_are_no_inputs(mark, end, tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [b"", b'{"question": "a"}', b"  \t", b"", b'{"question": "b", "key": null}', b"{", b" ", b'{"key": "c"}']
    path.write_bytes(mark + end.join(rows))
    entries = JsonlEntries(path)
    found = [entries[i] for i in range(len(entries))]
    assert [entry.key for entry in found] == ["line 2", "line 5", "line 6", "c"]
    assert [entry.input is None for entry in found] == [False, False, True, False]
    path.write_bytes(mark + end * 3)
    with pytest.raises(ValueError, match="nothing to moderate"):
        open_entries(path, None)


def test_a_line_of_any_length_is_one_entry(tmp_path):
    path = tmp_path / "in.jsonl"
    fits = json.dumps({"key": "fits", "question": "x" * (MAX_LINE - 40)})
    long = json.dumps({"key": "long", "question": "x" * 3 * MAX_LINE})
    path.write_text(f"{fits}\n{long}\n{' ' * 2 * MAX_LINE}\n{fits}\n{long}")
    entries = JsonlEntries(path)
    found = [entries[i] for i in range(len(entries))]
    assert [entry.key for entry in found] == ["fits", "line 2", "fits", "line 5"]
    assert "the limit is" in found[1].problem and found[3].input is None


@pytest.mark.parametrize("kind", ["pipe", "device", "missing", "loop"])
def test_an_input_that_is_no_file_is_refused_at_once(kind, calibrated_run, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    source = "/dev/zero" if kind == "device" else path
    assert run(calibrated_run, source, tmp_path / "out.jsonl") == 2
    assert capsys.readouterr().err.startswith(f"error: {source}: ")
    assert not (tmp_path / "out.jsonl.part").exists()


def test_whatever_is_named_like_a_picture_is_reported(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.webp").symlink_to("nowhere")
    (tmp_path / "link.jpg").symlink_to("folder.jpg")
    for name in ("a.gif", "notes.txt", "sub/b.JPG"):
        (tmp_path / name).write_bytes(b"x")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(3_000_000_000)
    entries = open_entries(tmp_path, None)
    found = {entry.key: entry.problem for entry in (entries[i] for i in range(len(entries)))}
    assert set(found) == {"a.gif", "gone.webp", "huge.png", "link.jpg", "loop.png", "pipe.jpg", "sub/b.JPG"}
    for name, words in {"pipe.jpg": "named pipe", "link.jpg": "a folder", "huge.png": "limit"}.items():
        assert words in found[name]
    assert not found["a.gif"]  # read, and refused by the guard


def test_pictures_of_json_lines_are_looked_at_before_they_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "out.jpg").symlink_to("/etc/hostname")
    names = ("pipe.jpg", "loop.jpg", "out.jpg", ".", "", "a\0b", "\ud800")
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"image": name}) for name in names))
    entries = JsonlEntries(path)
    assert all(entries[i].input is None and entries[i].problem for i in range(len(names)))
    assert "named pipe" in entries[0].problem and "lies outside" in entries[2].problem


def test_shards_and_folders(calibrated_run, world, table, tmp_path, capsys):
    assert run(calibrated_run, world, tmp_path / "a.jsonl") == 2
    assert "choose one of its splits" in capsys.readouterr().err
    assert run(calibrated_run, world, tmp_path / "a.jsonl", "--split", "test", "--format", "openai") == 0
    found = lines(tmp_path / "a.jsonl")
    assert len(found) == 24 and found[0]["id"].endswith("/0") and found[1]["id"].endswith("/1")
    assert set(found[0]) == {"id", "model", "results", "input_sha256"}
    assert set(found[0]["results"][0]) >= {"flagged", "categories", "category_scores", "category_applied_input_types"}
    assert run(calibrated_run, tmp_path, tmp_path / "b.jsonl") == 0
    pictures = lines(tmp_path / "b.jsonl")
    assert len(pictures) == 13 and all(row["level"] is None for row in pictures)
    assert [row["key"] for row in pictures if row["status"] == "error"] == ["broken.jpg"]
    assert run(calibrated_run, tmp_path, tmp_path / "b.jsonl") == 2
    assert "exists" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to moderate"):
        open_entries(tmp_path / "empty", None)
    assert run("nowhere", table, tmp_path / "c.jsonl") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("stated", [(1, 0), (0, 1), (2, 2), (3, 0)])
def test_an_index_with_another_number_of_responses_is_an_error(stated, tmp_path):
    with ShardWriter(tmp_path / "s", name="s", licence="CC0-1.0", taxonomy=Taxonomy("t", ())) as writer:
        writer.write("test", Record("a", "q", responses=(Response("x"), Response("y"))))
        writer.write("test", Record("b", "q"))
    index = np.load(tmp_path / "s" / "test.index.npy")
    index["responses"] = stated
    np.save(tmp_path / "s" / "test.index.npy", index)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    content = (tmp_path / "s" / "test.index.npy").read_bytes()
    manifest["splits"]["test"]["index"]["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    entries = open_entries(tmp_path / "s", "test")
    wrong = [entry for i in range(len(entries)) if (entry := entries[i]).input is None]
    rows = [f"row {i}" for i, (count, right) in enumerate(zip(stated, (2, 0), strict=True)) if count != right]
    assert sorted({entry.key for entry in wrong}) == rows
    assert all("another number of responses" in entry.problem for entry in wrong)


def test_nothing_in_a_folder_is_passed_over(tmp_path, monkeypatch):
    for name in ("in/a.png", "in/deep/b.PJPEG", "in/c.pjp", "in/closed/d.png", "out/e.png", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "deep" / "circle").symlink_to(tmp_path / "in")
    scan = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    entries = open_entries(tmp_path / "in", None)
    keys = {entries[i].key: entries[i].problem for i in range(len(entries))}
    assert list(keys) == ["a.png", "c.pjp", "closed", "deep/b.PJPEG", "deep/circle", "more"]
    assert keys["closed"] == "a folder that cannot be read: Permission denied"
    assert all("a link to a folder" in keys[name] for name in ("deep/circle", "more"))
    assert not keys["a.png"] and not keys["c.pjp"] and not keys["deep/b.PJPEG"]
