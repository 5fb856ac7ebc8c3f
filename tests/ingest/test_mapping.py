"""Mapping files are read strictly, values as the source writes them, conversations and JSON piece by piece."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.ingest import json_rows as reader
from safe_rlhf_v.ingest.conversations import read_conversation
from safe_rlhf_v.ingest.dataset import import_dataset
from safe_rlhf_v.ingest.fields import Field, FieldError
from safe_rlhf_v.ingest.json_rows import json_rows
from safe_rlhf_v.ingest.mapping import parse_mapping, preset_text
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.records import Turn
from safe_rlhf_v.shards import Manifest, ShardedSplit


@pytest.mark.parametrize(
    ("options", "cells", "value"),
    [
        ("a", {"a": "x"}, "x"),
        ("a", {"a": 3}, "3"),
        ("a", {"a": True}, "true"),
        ("a", {"a": Decimal("1.50")}, "1.50"),
        ("a", {"a": float("nan")}, None),
        ("a", {"a": ""}, None),
        ("a", {}, None),
        ("a", {"a": ["x", "y"]}, ["x", "y"]),
        ("a.b.1", {"a": {"b": ["x", "y"]}}, "y"),
        ("a.b.7", {"a": {"b": ["x", "y"]}}, None),
        ("a.b", {"a.b": "x", "a": {"b": "y"}}, "x"),
        ({"column": ["a", "b"]}, {"a": None, "b": "x"}, "x"),
        ({"value": 0}, {}, "0"),
        ({"value": False}, {}, "false"),
        ({"template": "{a}_{b.c}.png"}, {"a": 1, "b": {"c": "x"}}, "1_x.png"),
        ({"template": "{a}_{b}.png"}, {"a": 1, "b": None}, None),
        ({"template": "{a.__class__}"}, {"a": 1}, None),
        ({"column": "a", "plus": -1}, {"a": "2"}, "1"),
        ({"column": "a", "times": 0.5}, {"a": 3}, "1.5"),
        ({"column": "a", "times": 2, "plus": -3}, {"a": 0}, "-3"),
        ({"column": "a", "scale": {True: "x", False: "y"}}, {"a": "Yes"}, "x"),
        ({"column": "a", "scale": {True: "x", False: "y"}}, {"a": False}, "y"),
        ({"column": "a", "scale": {1: -3, "two": 0}}, {"a": 1}, "-3"),
        ({"column": "a", "scale": {1: -3, "two": 0}}, {"a": " TWO "}, "0"),
        ({"column": "a", "form": "snake_case"}, {"a": "Animal  Abuse & more"}, "animal_abuse_more"),
        ({"column": "a", "form": "snake_case"}, {"a": ["A b", "C"]}, "a_b;c"),
    ],
)
def test_a_field_is_read(options, cells, value):
    assert Field.parse(options).cell(cells) == value


@pytest.mark.parametrize(
    ("options", "cells", "message"),
    [
        ({"column": "a", "scale": {1: 2}}, {"a": 3}, "is none of 1"),
        ({"column": "a", "plus": -1}, {"a": "one"}, "must be a number, not 'one'"),
        ({"column": "a", "plus": -1}, {"a": ["1"]}, "must be a number"),
    ],
)
def test_a_value_that_does_not_fit_is_named(options, cells, message):
    with pytest.raises(FieldError, match=message):
        Field.parse(options).cell(cells)


GOOD = "name: n\nlicence: x\nfields: {question: q}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map names"), ("[]", "must map names"), ("a: [", "not a mapping file"), ("name: n\nname: m\n", "given twice"),
        ("name: n\n", "needs one of fields and records"), (GOOD + "colour: red\n", "'colour' is no entry"),
        (GOOD.replace("question", "frage"), "'frage' is no field"), (GOOD.replace("question", "response_0"), "needs a question"),
        (GOOD.replace("question: q", "question: q, response_10: a"), "'response_10' is no field"),
        (GOOD.replace("question: q", "question: [q]"), "must be a column's name"),
        (GOOD.replace("question: q", "question: {colum: q}"), "'colum' is no option"),
        (GOOD.replace("question: q", "question: {column: q, value: 1}"), "exactly one of"),
        (GOOD.replace("question: q", "question: {column: q, form: jpeg}"), "form is 'jpeg'"),
        (GOOD.replace("question: q", "question: {column: q, plus: '1'}"), "plus is '1'"),
        (GOOD.replace("question: q", "question: {column: q, optional: 1}"), "optional is"),
        (GOOD.replace("question: q", "question: {column: q, scale: [1]}"), "scale must map"),
        (GOOD + "use: maybe\n", "use: is 'maybe'"), (GOOD + "splits: train\n", "splits: must map"),
        (GOOD + "splits: {a: 'b c'}\n", "letters, digits"), (GOOD + "cut: {validation: 1.5}\n", "is not a share"),
        (GOOD + "cut: {validation: 0.6, test: 0.6}\n", "must leave something"), (GOOD + "cut: {train: 0.1}\n", "not named itself"),
        (GOOD + "categories: 3\n", "categories: must be a list"), (GOOD + "pair_by: [image]\n", "'image' is no field"),
        (GOOD + "files: [3]\n", "has no pattern"), ("schemas: []\n", "schemas: is empty"), ("schemas: {}\n", "must be a list"),
        ("!!python/object/apply:os.system ['true']\n", "not a mapping file"), ("a: &a [*a]\n", "not a mapping file"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_is_one_line(text, message):
    with pytest.raises(ValueError, match=r"^m\.yaml: not a mapping file: ") as caught:
        parse_mapping(text, "m.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_of_a_mapping_gives_a_mapping_or_one_line(data):
    lines = preset_text("beavertails-v").splitlines()
    i = data.draw(st.integers(0, len(lines) - 1))
    lines[i] = data.draw(
        st.sampled_from([lines[i][:-3], lines[i] + ": x", "  " + lines[i], lines[i].replace(":", " :["), "\t", "- a"])
    )
    try:
        parse_mapping("\n".join(lines), "m")
    except ValueError as error:
        assert str(error).startswith("m: not a mapping file: ") and "\n" not in str(error)


def turns(*texts, role="from", text="value", names=("human", "gpt")):
    return [{role: names[i % 2], text: one} for i, one in enumerate(texts)]


def test_turns_become_history_question_and_response():
    field = Field(columns=("c",))
    talk = read_conversation(field, turns("<image>\na ?", "b", "c <image> ?", "d"), 2)
    assert talk == ("", (Turn("user", "a ?", 1), Turn("assistant", "b")), "c  ?", 1, "d")
    assert read_conversation(field, turns("a ?"), 1) == ("", (), "a ?", 1, "")
    chat = Field(columns=("m",), role="role", text="content")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "a ?"}]
    system = {"role": "system", "content": "be kind"}
    rest = turns(parts, "b", role="role", text="content", names=("user", "assistant"))
    assert read_conversation(chat, [system, *rest], 1) == ("be kind", (), "a ?", 1, "b")


@pytest.mark.parametrize(
    ("value", "images", "message"),
    [
        (None, 0, "must be a list of turns"), ([], 0, "must be a list of turns"), ("text", 0, "must be a list of turns"),
        (turns("a", "b")[::-1], 0, "must alternate"), ([*turns("a"), *turns("b")], 0, "must alternate"), ([3], 0, "must be an object"),
        ([{"from": "robot", "value": "x"}], 0, "name it in roles"), ([{"from": "human", "value": 3}], 0, "must be text"),
        (turns("a <image> <image>"), 1, "says <image> 2 times, but the row has 1 pictures"), (turns("a", "<image>b"), 1, "a turn of the assistant"),
        (turns(""), 0, "turn 0 is empty"), ([{"from": "system", "value": "s"}], 0, "no turn of the user"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named(value, images, message):
    with pytest.raises(FieldError, match=message):
        read_conversation(Field(columns=("c",)), value, images)


def test_a_json_array_is_read_piece_by_piece(tmp_path, monkeypatch):
    rows = [{"i": i, "text": "x" * (i % 50), "deep": {"a": [i, "é"]}} for i in range(300)]
    file = tmp_path / "rows.json"
    for indent in (None, 2):
        file.write_text(
            json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8-sig" if indent else "utf-8"
        )
        for chunk in (7, 64, 1 << 16):
            monkeypatch.setattr(reader, "_CHUNK", chunk)
            assert [row.cells for row in json_rows(file)] == rows
    file.write_text(json.dumps({"a": {"q": 1}, "b": {"q": 2}}))
    assert [row.cells for row in json_rows(file)] == [{"q": 1}, {"q": 2}]
    file.write_text('[{"q": NaN}, 3]')
    first, second = json_rows(file)
    assert first.cells == {"q": None} and second.problems


@pytest.mark.parametrize(
    "text", ["", "x", "3", "[", '[{"a": 1}', '[{"a": 1}, {"a"', "{}", '{"a": 1}', "[" * 100_000, '{"rows": 3}']
)
def test_what_is_no_json_of_rows_is_one_line(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    for entry in ("", "rows"):
        with pytest.raises(TableError, match=r"rows\.json") as caught:
            list(json_rows(tmp_path / "rows.json", entry))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"q": 1}]\n[{"q": 2}]', "something stands behind the array of 1 entries"),
        ('[{"q": 1}], 3', "something stands behind"),
        ("[] x", "something stands behind"),
        ('[{"q": 1} {"q": 2}]', "a comma is missing"),
        ('[{"q": 1},, {"q": 2}]', "behind entry 1"),
        ('[{"q": 1},]', "behind entry 1"),
        ('[,{"q": 1}]', "behind entry 0"),
        ('[{"q": 1, "safe": "yes", "safe": "no"}]', "a field occurs twice"),
        ('[{"q": {"a": 1, "a": 1}}]', "a field occurs twice"),
        ('{"rows": [{"q": 1}], "rows": [{"q": 2}]}', "a field occurs twice"),
        ('{"a": {"q": 1}, "a": {"q": 2}}', "a field occurs twice"),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_json_is_read_as_strictly_as_lines(text, message, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK", chunk)
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(TableError, match=r"rows\.json") as caught:
        list(json_rows(tmp_path / "rows.json", "rows" if '"rows"' in text else ""))
    assert message in str(caught.value)


def test_numbers_at_the_end_of_a_piece_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK", 3)
    (tmp_path / "rows.json").write_text("[ 12345 , 67 ]  \n ")
    assert len([row for row in json_rows(tmp_path / "rows.json") if row.problems]) == 2


PAIRED = """
name: mine
licence: x
splits: {train: train, test: test}
skip: {video: a video}
pair_by: [question]
unpaired: keep
fields: {question: q, response_0: a, is_safe_0: {column: safe, optional: true}, split: {column: s, optional: true}}
"""


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({}, {}, ""),
        ({"video": "clip.mp4"}, {}, "a video"),
        ({}, {"video": "clip.mp4"}, "a video"),
        ({"s": "test"}, {}, "two responses to one prompt in different splits"),
        ({}, {"s": "test"}, "two responses to one prompt in different splits"),
        ({"s": "test"}, {"s": "test"}, ""),
    ],
)
def test_what_holds_for_rows_holds_for_both_rows_of_a_pair(first, second, reason, tmp_path):
    rows = [
        {"q": "one", "a": "x", "video": None, "s": "train", **first},
        {"q": "one", "a": "y", "video": None, "s": "train", **second},
        {"q": "two", "a": "x", "video": None, "s": "train"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = import_dataset(str(tmp_path / "rows.jsonl"), tmp_path / "out", parse_mapping(PAIRED, "mine"))
    written = {
        (name, record.question): len(record.responses)
        for name in Manifest.load(tmp_path / "out").splits
        for record in ShardedSplit(tmp_path / "out", name)
    }
    split = first.get("s", "train")
    assert written == {("train", "two"): 1} | ({} if reason else {(split, "one"): 2})
    assert imported.skipped == 0 and (not reason or any(reason in note for note in imported.notes))


def test_a_pair_with_an_unknown_split_is_a_bad_row(tmp_path):
    for wrong in (0, 1):
        rows = [{"q": "one", "a": str(i), "video": None, "s": "tset" if i == wrong else "train"} for i in range(2)]
        rows.append({"q": "two", "a": "x", "video": None, "s": "train"})
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"out{wrong}"
        mapping = parse_mapping(PAIRED, "mine")
        imported = import_dataset(str(tmp_path / "rows.jsonl"), out, mapping, on_bad_row="skip")
        assert (imported.records, imported.skipped) == (1, 1)


MINE = """
name: mine
licence: x
splits: {"*": train, dev: validation}
cut: {validation: 0.3, calibration: 0.3}
fields: {question: q, response_0: a, split: s, key: {column: k, optional: true}, category: {column: c, optional: true}}
"""


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_rows_may_state_their_splits_and_categories_are_those_that_occur(tmp_path, suffix):
    rows = [
        {"q": f"q{i}", "a": "x", "s": "dev" if i % 10 == 7 else "learn", "c": "b" if i % 2 else "a"} for i in range(40)
    ]
    rows.append({"q": "q7", "a": "y", "s": "learn", "c": "a"})  # the prompt of a row of dev
    text = {
        ".csv": "q,a,s,c\n" + "".join(",".join(row.values()) + "\n" for row in rows),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
    }[suffix]
    (tmp_path / f"rows{suffix}").write_text(text)
    (tmp_path / "mine.yaml").write_text(MINE)
    out = tmp_path / "out"
    assert (
        main(["import", str(tmp_path / f"rows{suffix}"), "--mapping", str(tmp_path / "mine.yaml"), "--out", str(out)])
        == 0
    )
    questions = {
        name: {one.question for one in ShardedSplit(out, name)} for name in ("train", "validation", "calibration")
    }
    assert questions["validation"] == {"q7", "q17", "q27", "q37"}  # nothing is cut for a split that the rows state
    assert sum(map(len, questions.values())) == 40 and len(questions["calibration"]) > 3
    assert ShardedSplit(out, "train").manifest.taxonomy.categories == ("a", "b")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rows.jsonl"], "name one of --preset"), (["rows.jsonl", "--preset", "spa-vl", "--mapping", "mine.yaml"], "name one of --preset"),
        (["rows.jsonl", "--preset", "x"], "there is no 'x'; there are: beavertails-v"), (["nowhere", "--preset", "spa-vl"], "no such file or folder"),
        (["rows.jsonl", "--mapping", "nowhere.yaml"], "nowhere.yaml: does not exist"), ([], "name a SOURCE"),
        (["rows.jsonl", "--mapping", "mine.yaml", "--categories", "a"], "does not go with --categories"),
        (["rows.jsonl", "--table", "rows.jsonl"], "--table does not go with SOURCE"), (["--table", "rows.jsonl"], "--table needs --images, --name, --licence"),
        (["rows.jsonl", "--mapping", "mine.yaml", "--cut", "{validation: 2}"], "is not a share"), (["empty", "--mapping", "mine.yaml"], "holds no data file"),
        (["mine.yaml", "--mapping", "mine.yaml"], "data are .parquet"), (["rows.jsonl", "--mapping", "bare.yaml"], "--licence: the mapping states none"),
        (["none.jsonl", "--mapping", "mine.yaml"], "no row can be read"), (["owner/name", "--preset", "spa-vl"], "cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": "b", "s": "learn"}\n')
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "bare.yaml").write_text(MINE.replace("licence: x", ""))
    (tmp_path / "empty").mkdir()
    assert main(["import", *args, "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and not (tmp_path / "out").exists()
