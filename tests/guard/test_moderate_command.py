"""The command over many inputs: every kind of input, broken entries, and going on after an interruption."""

import json

import pytest

from safe_rlhf_v.guard import files, moderate
from safe_rlhf_v.guard.inputs import JsonlEntries, open_entries
from safe_rlhf_v.shards import ShardedSplit


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
    rows[6] = json.dumps({"key": "typo", "answer": "x"})
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
    assert run(calibrated_run, table, tmp_path / "out.jsonl", "--batch-size", "8") == 0
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == 36
    for number in (5, 6, 7, 8, 9, 10, 11, 12, 34):
        assert found[number]["status"] == "error" and found[number]["decision"] == "block", found[number]
        assert found[number]["reasons"][0].startswith("unsafe: could not be checked")
    assert "unknown fields ['answer']" in found[6]["reasons"][0] and "lies outside" in found[8]["reasons"][0]
    assert all(row["status"] == "ok" for n, row in enumerate(found) if n not in (5, 6, 7, 8, 9, 10, 11, 12, 34))
    assert "a field stands twice" in found[12]["reasons"][0]
    assert found[0] == found[35]
    said = capsys.readouterr().out
    assert "36 verdicts" in said and "unchecked 9" in said


@pytest.mark.parametrize("cut", [0, 1, 700, 5000, 9000])
def test_an_interrupted_run_goes_on_to_the_same_bytes(cut, guard, table, tmp_path, monkeypatch):
    entries = JsonlEntries(table)
    files.moderate_file(guard, entries, tmp_path / "whole.jsonl", batch_size=5, progress=False)
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
        files.moderate_file(guard, entries, tmp_path / "cut.jsonl", batch_size=5, progress=False)
    part = tmp_path / "cut.jsonl.part"
    assert not (tmp_path / "cut.jsonl").exists()
    if cut:  # a kill may leave any prefix
        part.write_bytes(part.read_bytes()[:cut])
    judged.clear()
    monkeypatch.setattr(
        guard, "moderate_batch", lambda inputs, timeout=None: judged.append(1) or batch(inputs, timeout)
    )
    files.moderate_file(guard, entries, tmp_path / "cut.jsonl", batch_size=5, progress=False)
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    assert len(judged) <= 8 and (cut != 0 or len(judged) == 5)
    assert not part.exists() and not (tmp_path / "cut.jsonl.part.json").exists()


def test_unfinished_work_of_another_setting_is_refused(guard, table, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(files, "batches", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.moderate_file(guard, JsonlEntries(table), output, progress=False)
    with pytest.raises(ValueError, match="unfinished work with another shape"):
        files.moderate_file(guard, JsonlEntries(table), output, "openai", progress=False)


def test_shards_and_folders(calibrated_run, world, table, tmp_path, capsys):
    assert run(calibrated_run, world, tmp_path / "a.jsonl") == 2
    assert "choose one of its splits" in capsys.readouterr().err
    assert run(calibrated_run, world, tmp_path / "a.jsonl", "--split", "test", "--format", "openai") == 0
    found = lines(tmp_path / "a.jsonl")
    assert len(found) == 24 and found[0]["id"].endswith("/0") and found[1]["id"].endswith("/1")
    assert set(found[0]["results"][0]) == {"flagged", "categories", "category_scores", "category_applied_input_types"}
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
