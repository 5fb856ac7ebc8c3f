"""Sources and mapping files that a stranger gets wrong: refused in one line, or read without losing anything in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.ingest.made_up import jpeg

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.ingest.fields import Field, FieldError
from safe_rlhf_v.ingest.mapping import parse_mapping
from safe_rlhf_v.shards import ShardedSplit

MAPPING = "name: m\nlicence: CC0-1.0\nfields:\n  question: q\n  safety_0: {column: s, optional: true, scale: SCALE}\n  response_0: q\n"


def run(*args: object) -> int:
    return entry.main(["shards", "import", *map(str, args)])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(MAPPING.replace(", scale: SCALE", ""))
    return tmp_path


@pytest.mark.parametrize(
    "scale",
    ["{1: 3, yes: 2}", "{yes: 3, 1: 2}", "{0: 1, no: 2}", "{1: 2, 1.0: 3}", "{yes: 1, true: 2}", "{yes: 1, on: 1}"],
)
def test_keys_that_are_equal_for_yaml_are_refused(scale: str) -> None:
    with pytest.raises(ValueError, match=r"line 5: .*scale.* equals .* for YAML.*quotation marks"):
        parse_mapping(MAPPING.replace("SCALE", scale), "m.yaml")


@pytest.mark.parametrize(
    "scale", ["{1: 3, 'yes': 2}", "{0: 1, 1: 2, 2: 3}", "{yes: 1, no: 0, 2: 3}", "{'1': 1, true: 1}"]
)
def test_other_keys_are_not(scale: str) -> None:
    assert parse_mapping(MAPPING.replace("SCALE", scale), "m.yaml").schemas


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "s", "scale": {"A": 1, "a": 2}}, "has two values"),
        ({"column": "s", "scale": {"yes": 1, True: 2}}, "has two values"),
        ({"column": "s", "scale": {"a": None}}, "a row that must be left out needs skip"),
        ({"column": "s", "scale": {"a": {}}}, "scale: a is an object"),
        ({"column": "s", "scale": {"a": float("inf")}}, "scale: a is"),
        ({"column": "s", "times": float("nan")}, "times is"),
        ({"column": "s", "plus": float("inf")}, "plus is"),
        ({"column": "s", "roles": 3}, "roles must map"),
        ({"column": "s", "role": 3}, "role is"),
        ({"column": "s", "text": ["x"]}, "text is"),
        ({"template": "{s"}, "names no column in braces"),
    ],
)
def test_wrong_options_of_a_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        Field.parse(options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name: [1]", "name: must be text"),
        ("licence: {a: b}", "licence: must be text"),
        ("source: true", "source: must be text"),
        ("images: /etc", "images: '/etc' must be below the folder"),
        ("images: a/../../b", "must be below the folder"),
        ("files: [{pattern: x, images: ../b}]", "files: images: '../b' must be below"),
        ("files: [{pattern: [x]}]", "pattern: must be text"),
        ("rows: [x]", "rows: must be text"),
    ],
)
def test_wrong_entries_of_a_mapping(line: str, message: str) -> None:
    head = "\n".join(one for one in MAPPING.splitlines() if one.split(":")[0] != line.split(":")[0])
    with pytest.raises(ValueError, match=message):
        parse_mapping(f"{line}\n{head}".replace("SCALE", "{a: 1}"), "m.yaml")


def test_json_data_are_no_settings(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"q": f"{i} ?", "tags": list(range(100)), "see": "other.json"} for i in range(1200)
    ]  # more than 100,000 values
    (mine / "data.json").write_text(json.dumps(rows))
    (mine / "other.json").write_text("{")
    assert run("data.json", "--mapping", "m.yaml", "--out", "out") == 0
    assert len(ShardedSplit("out", "train")) == 1200
    assert run("other.json", "--mapping", "m.yaml", "--out", "more") == 2
    assert "YAML" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "u.jsonl", "r.jsonl"])
def test_a_file_without_a_row_that_can_be_read(mine: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "e.jsonl": b"\n",
        "e.csv": b"q,s\n",
        "u.jsonl": b'{"q": "\xe9"}\n',
        "r.jsonl": b'{"q": "a"}\r{"q": "b"}\r',
    }
    (mine / name).write_bytes(content[name])
    assert run(name, "--mapping", "m.yaml", "--out", "out") == 2
    assert f"{name}: no row can be read: " in capsys.readouterr().err


def test_an_empty_source_is_not_the_working_folder(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "train.jsonl").write_text('{"q": "a ?"}\n')
    for source in ("", "--source="):
        assert run(source, "--mapping", "m.yaml", "--out", "out") == 2
        assert "name a SOURCE" in capsys.readouterr().err
    assert not (mine / "out").exists()


def test_files_that_are_not_read_are_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "in").mkdir()
    (mine / "in/train.jsonl").write_text('{"q": "a ?"}\n')
    (mine / "in/about.json").write_text("{}")
    assert run("in", "--mapping", "m.yaml", "--out", "out") == 0
    assert "note:" not in "".join(capsys.readouterr())
    (mine / "in/more.csv").write_text("q\nb ?\n")
    assert run("in", "--mapping", "m.yaml", "--out", "again") == 0
    assert "only the 1 .jsonl files are read, not the 2 others (.csv)" in "".join(capsys.readouterr())


def test_a_picture_by_a_strange_name(mine: Path) -> None:
    names = ["ü ñ 图.jpg", "no_ending", "a b.jpg", " first.jpg"]
    (mine / "in").mkdir()
    for i, name in enumerate(names):
        (mine / "in" / name).write_bytes(jpeg(i))
    (mine / "p.yaml").write_text("name: m\nlicence: CC0-1.0\nfields: {question: q, image: image}\n")
    lines = [json.dumps({"q": f"{name} ?", "image": name}) for name in names]
    (mine / "in/train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert run("in", "--mapping", "p.yaml", "--out", "out") == 0
    split = ShardedSplit("out", "train")
    assert [split[i].images[0].data for i in range(4)] == [jpeg(i) for i in range(4)]
