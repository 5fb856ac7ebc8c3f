"""The reader of tables guesses nothing: every row that cannot be used is listed with its columns, and none is half used."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ingest.conftest import lines
from tests.shards.conftest import picture

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.ingest.folder import import_folder
from safe_rlhf_v.ingest.table import MAX_LINE, TableError
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.check import check

HEADER = "image,question,response_0,response_1,safety_0,safety_1,is_safe_0,more_helpful,safer,category,split\n"
CHAT = [{"role": "user", "content": "hi"}]


def listed(tmp_path):
    """(row, columns, reason) of every bad row."""
    text = (tmp_path / "out.bad_rows.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) == {"row", "line", "columns", "reason"} for line in found)
    return [(line["row"], line["columns"], line["reason"]) for line in found]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("31.jpg,q,a,b,,,,,,,", "image", "no such file"),
        ("../x.jpg,q,a,b,,,,,,,", "image", "is outside"),
        ("/etc/passwd,q,a,b,,,,,,,", "image", "is outside"),
        (f"{'x' * 300}.jpg,q,a,b,,,,,,,", "image", "name too long"),
        ("pipe.jpg,q,a,b,,,,,,,", "image", "named pipe"),
        ("folder,q,a,b,,,,,,,", "image", "folder"),
        (".,q,a,b,,,,,,,", "image", "folder"),
        ("loop.jpg,q,a,b,,,,,,,", "image", ""),
        ("link.jpg,q,a,b,,,,,,,", "image", "is outside"),
        ("text.jpg,q,a,b,,,,,,,", "image", "text.jpg"),
        ("0.jpg,,a,b,,,,,,,", "question", "is missing"),
        ("0.jpg,  ,a,b,,,,,,,", "question", "white space only"),
        ("0.jpg,q,a,b,4,,,,,,", "safety_0", "outside -3..3"),
        ("0.jpg,q,a,b,1.5,,,,,,", "safety_0", "must be a whole number, not '1.5'"),
        ("0.jpg,q,a,b,1_0,,,,,,", "safety_0", "whole number"),
        ("0.jpg,q,a,b,nan,,,,,,", "safety_0", "whole number"),
        ("0.jpg,q,a,b,٣,,,,,,", "safety_0", "whole number"),
        ("0.jpg,q,a,b,-inf,,,,,,", "safety_0", "whole number"),
        ("0.jpg,q,a,b,,,maybe,,,,", "is_safe_0", "must be one of true, yes"),
        ("0.jpg,q,a,b,,,,2,,,", "more_helpful", "2 is not the 0-based index"),
        ("0.jpg,q,a,b,,,,,-1,,", "safer", "-1 is not the 0-based index"),
        ("0.jpg,q,a,b,,,,,,flood,", "category", "'flood'"),
        ("0.jpg,q,a,b,,,,,,fire;fire,", "category", "fire"),
        ("0.jpg,q,a,b,,,,,,,../x", "split", "letters, digits"),
        ("0.jpg,q,a,b,,,,,,,träin", "split", "letters, digits"),
        ("0.jpg,q,,b,,,,,,,", "response_0", "is empty, but response_1 is given"),
        ("0.jpg,q,a,,,1,,,,,", "safety_1", "is given, but response_1 is empty"),
        ("0.jpg,q,,,,,yes,,,,", "is_safe_0", "is given, but response_0 is empty"),
        ("0.jpg,q,a,,,,,1,,,", "more_helpful", "1 is not the 0-based index"),
        ("0.jpg,q\0,a,b,,,,,,,", "question", "NUL"),
        (b"0.jpg,caf\xe9,a,b,,,,,,,", "question", "is not UTF-8 (byte 0xE9 after 'caf')"),
        (b"0.jpg,\xed\xa0\x80,a,b,,,,,,,", "question", "is not UTF-8"),
        ("0.jpg,q", "", "has 2 cells, but the header has 11"),
        ("0.jpg,q,a,b,,,,,,,,", "", "has 12 cells, but the header has 11"),
        ('0.jpg,"q"x,a,b,,,,,,,', "", "not CSV"),
        (f"0.jpg,{'x' * 1_000_001},a,b,,,,,,,", "", "limit is 1000000"),
        (f"0.jpg,{'x' * MAX_LINE},a,b,,,,,,,", "", "longer than"),
        (f'0.jpg,"{"x" * MAX_LINE}",a,b,,,,,,,', "", "longer than"),
    ],
)  # fmt: skip
def test_a_bad_cell_of_a_csv_is_named_and_nothing_is_written(tmp_path, run, capsys, row, column, message):
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.jpg").write_bytes(picture(0, "JPEG"))
    (images / "folder").mkdir()
    (images / "text.jpg").write_text("no picture")
    os.mkfifo(images / "pipe.jpg")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    (images / "link.jpg").symlink_to("/etc/passwd")
    row = row if isinstance(row, bytes) else row.encode()
    good = b"0.jpg,fine,a,b,,,,,,,train\n"
    assert run(HEADER.encode() + good + row + b"\n" + good, images=images) == 2
    place = "row 2, " + (f"column {column!r}" if column else "")
    err = capsys.readouterr().err
    assert place in err and message in err and len(err) < 2000
    assert err.splitlines()[-1].startswith("error: ") and "1 of 3 rows cannot be used, nothing was written" in err
    assert not (tmp_path / "out").exists()
    [(number, columns, reason)] = listed(tmp_path)
    assert number == 2 and columns == ([column] if column else []) and message in reason


@pytest.mark.parametrize(
    ("change", "column", "message"),
    [
        ({"question": CHAT}, "question", "must be text, not a list"),
        ({"question": {"text": "q"}}, "question", "must be text, not an object"),
        ({"question": {}}, "question", "must be text, not an object"),
        ({"question": []}, "question", "must be text, not a list"),
        ({"question": 3}, "question", "must be text, not a number (3)"),
        ({"question": True}, "question", "must be text, not true or false"),
        ({"response_0": CHAT}, "response_0", "must be text, not a list"),
        ({"response_1": ["b"]}, "response_1", "must be text, not a list"),
        ({"response_0": 0}, "response_0", "must be text"),
        ({"response_0": False}, "response_0", "must be text"),
        ({"response_0": ""}, "response_0", "is empty, but response_1 is given"),
        ({"response_0": None}, "response_0", "is empty, but response_1 is given"),
        ({"response_3": "d"}, "response_2", "is empty, but response_3 is given"),
        ({"safety_2": 1}, "safety_2", "is given, but response_2 is empty"),
        ({"is_safe_2": False}, "is_safe_2", "is given, but response_2 is empty"),
        ({"helpfulness_5": 0}, "helpfulness_5", "is given, but response_5 is empty"),
        ({"source_0": 7}, "source_0", "must be text"),
        ({"source_9": "m"}, "source_9", "is given, but response_9 is empty"),
        ({"question": "\ud800"}, "question", "lone surrogate U+D800"),
        ({"response_1": "x\udfff"}, "response_1", "lone surrogate U+DFFF"),
        ({"source_0": "\ud83d"}, "source_0", "lone surrogate"),
        ({"question": "a\0b"}, "question", "NUL"),
        ({"question": "x" * 1_000_001}, "", "limit is 1000000"),
        ({"question": "x" * MAX_LINE}, "", "longer than"),
        ({"split": 3}, "split", "must be text, not a number (3)"),
        ({"split": ["train"]}, "split", "must be text"),
        ({"split": "a/b"}, "split", "letters, digits"),
        ({"key": 17}, "key", "must be text"),
        ({"key": "a.b"}, "key", "dot"),
        ({"key": "k" * 96}, "key", "1-95"),
        ({"image": 0}, "image", "must be text"),
        ({"image": ["0.jpg", "1.jpg"]}, "image", "must be text"),
        ({"image": "0.jpg\0"}, "image", "NUL"),
        ({"image": "\ud800.jpg"}, "image", "lone surrogate"),
        ({"safety_0": "1"}, "safety_0", "must be a whole number, not '1'"),
        ({"safety_0": True}, "safety_0", "must be a whole number, not true or false"),
        ({"safety_0": 0.5}, "safety_0", "must be a whole number"),
        ({"safety_0": [1]}, "safety_0", "must be a whole number, not a list"),
        ({"safety_0": -4}, "safety_0", "outside -3..3"),
        ({"safety_0": 10**30}, "safety_0", "64 bits"),
        ({"is_safe_0": 1}, "is_safe_0", "must be true or false"),
        ({"is_safe_0": "yes"}, "is_safe_0", "must be true or false"),
        ({"helpfulness_0": "3"}, "helpfulness_0", "must be a number"),
        ({"helpfulness_0": True}, "helpfulness_0", "must be a number"),
        ({"helpfulness_0": 10**400}, "helpfulness_0", "not finite"),
        ({"more_helpful": "0"}, "more_helpful", "must be a whole number"),
        ({"more_helpful": 2}, "more_helpful", "0-based index"),
        ({"safer": False}, "safer", "must be a whole number"),
        ({"image_severity": "high"}, "image_severity", "must be a whole number"),
        ({"image_severity": 1 << 63}, "image_severity", "64 bits"),
        ({"category": 3}, "category", "must be text"),
        ({"category": ["fire", 3]}, "category", "must be a list of names"),
        ({"category": ["flood"]}, "category", "flood"),
        ({"category": {"fire": True}}, "category", "must be text"),
        ({"anser": "a"}, "anser", "is not a known column"),
        ({"Question": "q"}, "Question", "did you mean 'question'?"),
        ({"response_10": "q"}, "response_10", "is not a known column"),
        ({"response_٣": "q"}, "response_٣", "is not a known column"),
    ],
)  # fmt: skip
def test_a_bad_value_of_a_jsonl_is_named_and_nothing_is_written(tmp_path, run, capsys, change, column, message):
    good = {"image": "0.jpg", "question": "q", "response_0": "a", "response_1": "b", "split": "train"}
    assert run(lines(good, {**good, **change}, good), "table.jsonl") == 2
    err = capsys.readouterr().err
    assert err.replace("\n", "").isprintable()
    assert message in err and len(err) < 2000
    assert not (tmp_path / "out").exists()
    [(number, columns, reason)] = listed(tmp_path)
    assert number == 2 and column in [*columns, ""] and message in reason


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"question": "a", "question": "b"}', "column 'question': occurs twice"),
        (b'{"question": "q", "category": {"a": 1, "a": 2}}', "occurs twice"),
        (b'{"question": NaN}', "NaN is not allowed"),
        (b'{"question": "q", "helpfulness_0": -Infinity}', "-Infinity is not allowed"),
        (b'{"question": "q", "response_0": "a", "helpfulness_0": 1e999}', "not finite"),
        (b'{"question": "q", "response_0": "a", "safety_0": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b'["question"]', "must be an object, not list"),
        (b'"question"', "must be an object, not str"),
        (b"null", "must be an object"),
        (b'{"question": "q"', "not readable as JSON"),
        (b"{'question': 'q'}", "not readable as JSON"),
        (b'{"question": "q"} {"question": "r"}', "not readable as JSON"),
        (b'{"question": ' + b"[" * 100_000, "not readable as JSON"),
        (b'{"question": "caf\xe9"}', "not readable as JSON"),
        (b'{"question": "a\0b"}', "not readable as JSON"),
        (b'\xef\xbb\xbf{"question": "q"}', "not readable as JSON"),  # a byte-order mark inside the file
        (b"\0", "not readable as JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, run, capsys, raw, message):
    assert run(lines({"question": "q"}).encode() + raw + b"\n" + lines({"question": "r"}).encode(), "table.jsonl") == 2
    err = capsys.readouterr().err
    assert "row 2, " in err and message in err and len(err) < 1500
    assert [number for number, _, _ in listed(tmp_path)] == [2] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (b"", "t.csv", "is empty"),
        (b"\n\n", "t.csv", "is empty"),
        (b"", "t.jsonl", "has no rows"),
        (b"question\n", "t.csv", "has no rows"),
        (b"question,question\nq,r\n", "t.csv", "column 'question' occurs 2 times"),
        (b"question,anser,anser\nq,a,b\n", "t.csv", "column 'anser' occurs 2 times"),
        (b"question,anser\nq,a\n", "t.csv", "column 'anser': is not a known column"),
        (b"question,response0,safty_0\n", "t.csv", "did you mean 'response_0'?; column 'safty_0': is not a known column; did you mean"),
        (b"question, response_0\nq,a\n", "t.csv", "did you mean 'response_0'?"),
        (b"question,\nq,a\n", "t.csv", "a column has no name"),
        (b"question;response_0\nq;a\n", "t.csv", "separated by commas"),
        (b"question\tresponse_0\nq\ta\n", "t.csv", "separated by commas"),
        ("question\nq\n".encode("utf-16"), "t.csv", "save it as UTF-8"),
        ('{"question": "q"}\n'.encode("utf-16"), "t.jsonl", "save it as UTF-8"),
        ("question\nq\n".encode("utf-32"), "t.csv", "save it as UTF-8"),
        ("question\nq\n".encode("utf-16-be"), "t.csv", "save it as UTF-8"),
        (b'question,response_0\nq,a\nr,"never closed\ns,b\nt,c\n', "t.csv", "the row that begins at line 3 is never closed"),
        (b"question\nq\n", "t.tsv", "tables are .csv or .jsonl files"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("extra", [(), ("--on-bad-row", "skip")])
def test_a_table_that_cannot_be_read_is_one_line_even_where_rows_may_be_skipped(
    tmp_path, run, capsys, table, name, message, extra
):
    assert run(table, name, *extra) == 2
    err = capsys.readouterr().err
    assert message in err and name in err and err.startswith("error: ") and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_line_ending_is_one(tmp_path, run, ending):
    assert run(ending.join(["question,response_0", 'q,"a\nb"', "r,c"]), "t.csv") == 0
    if ending != "\r":
        (tmp_path / "out").rename(tmp_path / "csv")
        assert (
            run(
                ending.join([json.dumps({"question": q, "response_0": a}) for q, a in (("q", "a\nb"), ("r", "c"))]),
                "t.jsonl",
            )
            == 0
        )


def test_all_problems_of_all_rows_are_listed_and_the_printing_is_bounded(tmp_path, run, capsys):
    bad = {"question": CHAT, "split": 3, "safety_0": 9, "image": "nowhere.jpg", "key": "a b"}
    assert run(lines(*[bad] * 30, {"question": "q"}), "t.jsonl") == 2
    rows = listed(tmp_path)
    assert len(rows) == 30
    assert all(set(columns) == {*bad} for _, columns, _ in rows)
    err = capsys.readouterr().err.splitlines()
    assert sum(", row " in line for line in err) == 50 and err[-2] == "... and 100 more problems"
    assert "30 of 31 rows cannot be used" in err[-1] and "out.bad_rows.jsonl" in err[-1]


def test_skipping_leaves_out_whole_rows_and_counts_them(tmp_path, run, capsys):
    rows = [{"question": f"q {i}", "response_0": "a" if i % 3 else CHAT, "split": "train"} for i in range(9)]
    assert run(lines(*rows), "t.jsonl", "--on-bad-row", "skip") == 0
    out = capsys.readouterr().out
    assert "6 records written" in out and "3 rows left out" in out and "out.bad_rows.jsonl" in out
    assert [row for row, _, _ in listed(tmp_path)] == [1, 4, 7]
    split = ShardedSplit(tmp_path / "out", "train")
    assert [split[i].question for i in range(6)] == [f"q {i}" for i in (1, 2, 4, 5, 7, 8)]
    assert [split[i].origin["row"] for i in range(6)] == ["2", "3", "5", "6", "8", "9"]
    assert check(tmp_path / "out") == []


def test_when_every_row_is_bad_nothing_is_written(tmp_path, run, capsys):
    assert run(lines({"question": 3}, {"question": 4}), "t.jsonl", "--on-bad-row", "skip") == 2
    assert "2 of 2 rows cannot be used, nothing was written; no row is left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_keys_and_splits_that_disagree_with_an_earlier_row_are_named(tmp_path, run, capsys):
    rows = [{"key": "a", "question": "q", "image": "0.jpg", "split": "train"}, {"key": "a", "question": "r", "split": "train"},
            {"question": "s", "image": "0.jpg", "split": "test"}, {"question": "t", "split": "train"},
            {"question": "t", "split": "test"}, {"key": "t-00000001", "question": "u"}, {"key": "t-00000008", "question": "v"},
            {"question": "w"}]  # fmt: skip
    assert run(lines(*rows), "t.jsonl") == 2
    assert [(row, columns) for row, columns, _ in listed(tmp_path)] == [
        (2, ["key"]),
        (3, ["split"]),
        (5, ["split"]),
        (8, ["key"]),
    ]
    err = capsys.readouterr().err
    assert "'a' is the key of row 1, too" in err and "row 1 puts the same picture into 'train'" in err
    assert "row 4 puts the same question into 'train'" in err and "is the key of row 7, too" in err


def test_the_list_of_an_earlier_import_is_replaced_and_nothing_else(tmp_path, run, capsys):
    assert run(lines({"question": 3}, {"question": "q"}), "t.jsonl") == 2
    assert len(listed(tmp_path)) == 1
    assert run(lines({"question": "q"}), "t.jsonl") == 0
    assert not (tmp_path / "out.bad_rows.jsonl").exists()  # it would say what is no longer true
    (tmp_path / "out").rename(tmp_path / "first")
    for content in (b"my notes", b"{}\n", b"[" * 100_000, b""):
        (tmp_path / "notes").write_bytes(content)
        assert run(lines({"question": 3}), "t.jsonl", "--bad-rows", str(tmp_path / "notes")) == 2
        assert (tmp_path / "notes").read_bytes() == content
    assert capsys.readouterr().err.count("notes: exists and is not a list of bad rows") == 4


def test_tables_and_folders_that_are_none_are_one_line(tmp_path, run, capsys, pictures):
    assert run(b"question\nq\n", "t.csv", images=tmp_path / "nowhere") == 2
    os.mkfifo(tmp_path / "pipe.csv")
    for table in ("nowhere.csv", "pipe.csv", "."):
        with pytest.raises(ValueError, match=r"nowhere\.csv|pipe\.csv|tables are"):
            import_folder(tmp_path / table, pictures, tmp_path / "out", name="x", licence="x")
    for categories in (["fire", "fire"], [""], ["none"], ["a;b"]):
        with pytest.raises(ValueError, match="--categories"):
            import_folder(tmp_path / "t.csv", pictures, tmp_path / "out", name="x", licence="x", categories=categories)
    assert not (tmp_path / "out").exists()


def test_foreign_files_in_the_target_stay(tmp_path, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos.tar").write_bytes(b"precious")
    assert run(b"question,safety_0\nq,1\n") == 2
    assert run(b"question\nq\n") == 0
    assert (tmp_path / "out" / "photos.tar").read_bytes() == b"precious"


def test_a_full_disk_during_import_is_one_line(tmp_path, run, capsys, monkeypatch):
    import errno

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(b"question\nq\n") == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith(f"error: {tmp_path / 'out'}: ") and "No space left on device" in err[-1]
    assert not (tmp_path / "out").exists()


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
COLUMNS = ["question", "image", "key", "split", "category", "image_severity", "more_helpful", "safer", "response_0", "response_1",
           "safety_0", "safety_1", "is_safe_0", "helpfulness_0", "source_0"]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), any_json, max_size=5), min_size=1, max_size=4))
def test_whatever_a_jsonl_holds_is_written_whole_or_listed(tmp_path_factory, pictures, rows):
    root = tmp_path_factory.mktemp("any")
    (root / "t.jsonl").write_text(lines(*rows))
    whole_or_listed(root, root / "t.jsonl", pictures, len(rows))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120) | st.text('",\n\r\0 a1é;', max_size=60).map(str.encode))
def test_whatever_a_csv_holds_is_written_whole_or_listed(tmp_path_factory, pictures, raw):
    root = tmp_path_factory.mktemp("any")
    (root / "t.csv").write_bytes(b"question,response_0,safety_0\n" + raw)
    whole_or_listed(root, root / "t.csv", pictures, None)


def whole_or_listed(root, table, pictures, total):
    try:
        found = import_folder(table, pictures, root / "out", name="x", licence="x", on_bad_row="skip")
    except TableError as error:
        assert "\n" not in str(error) and not (root / "out").exists()
        return
    listed_rows = len((root / "out.bad_rows.jsonl").read_text().splitlines()) if found.skipped else 0
    assert listed_rows == found.skipped and (total is None or found.records + found.skipped == total)
    assert sum(split.samples for split in Manifest.load(root / "out").splits.values()) == found.records
    assert check(root / "out") == []


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"more_helpful": 2, "safer": -1}, {"more_helpful", "safer"}),
        ({"safety_0": 4, "is_safe_0": "maybe", "helpfulness_1": "x"}, {"safety_0", "is_safe_0", "helpfulness_1"}),
        ({"safety_0": 4, "safety_1": -9, "category": ["ice", "snow"]}, {"safety_0", "safety_1", "category"}),
        ({"anser": 1, "safety_1": 9, "key": "a.b"}, {"anser", "safety_1", "key"}),
        ({"question": 3, "safety_1": 9, "split": "a b"}, {"question", "safety_1", "split"}),
        ({"image": "none.jpg", "safer": 7}, {"image", "safer"}),
        ({"response_0": None, "safety_1": 9, "safer": 1}, {"response_0", "safety_1"}),
    ],
)
def test_one_look_finds_every_problem_of_a_row(tmp_path, run, row, found):
    whole = {"question": "q", "response_0": "a", "response_1": "b"}
    assert run(lines(whole, {**whole, **row}), "t.jsonl") == 2
    (listed,) = map(json.loads, (tmp_path / "out.bad_rows.jsonl").read_text().splitlines())
    assert set(listed["columns"]) == found


def test_a_quotation_mark_that_swallows_rows_says_which(tmp_path, run):
    text = 'question,image\n"q,0.jpg\nr,1.jpg\ns,"2.jpg\nt,3.jpg\n'
    assert run(text, "t.csv", "--on-bad-row", "skip") == 0
    (listed,) = map(json.loads, (tmp_path / "out.bad_rows.jsonl").read_text().splitlines())
    assert (listed["line"], listed["columns"]) == (2, [])
    assert "everything up to line 4" in listed["reason"]
    splits = [ShardedSplit(tmp_path / "out", name) for name in Manifest.load(tmp_path / "out").splits]
    assert [record.question for split in splits for record in split] == ["t"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"image", "column 'question' is missing; there are: 'image'"),
        ("quéstion".encode("latin-1"), "is not UTF-8; save the table as UTF-8"),
        (b"question|image", "separated by commas"),
        (b"question,,image", "a column has no name; name or delete it"),
    ],
)
def test_a_wrong_header_is_one_line(tmp_path, run, capsys, header, message):
    assert run(header + b"\n" + b"x\n" * 60, "t.csv", "--on-bad-row", "skip") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out.bad_rows.jsonl").exists()


def test_a_list_of_bad_rows_that_cannot_be_written_is_named(tmp_path, run, capsys):
    text = lines({"question": "q"}, {"question": 3})
    (tmp_path / "file").touch()
    assert run(text, "t.jsonl", "--on-bad-row", "skip", "--bad-rows", str(tmp_path / "file" / "x")) == 2
    assert "file/x: cannot be written" in capsys.readouterr().err
    assert run(text, "t.jsonl", "--on-bad-row", "skip", "--bad-rows", "/dev/full") == 2
    assert "/dev/full: exists and is not a list" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--name", "--licence", "--categories"])
def test_names_no_manifest_can_hold_are_refused_first(tmp_path, run, capsys, option):
    assert run(lines({"question": "q"}), "t.jsonl", option, "\udcff") == 2
    assert "of the data set: holds the lone surrogate" in capsys.readouterr().err.replace("taxonomy", "name")


def test_an_ordinal_import_counts_what_it_skips(tmp_path, pictures, capsys):
    (tmp_path / "t.csv").write_text("id,label\n0,0\n1,7\nnone,0\n2,1\n")
    (tmp_path / "t.json").write_text('{"questions": ["q"], "claims": [["a"], ["b"]]}')
    args = ["import-ordinal", f"--table={tmp_path / 't.csv'}", f"--images={pictures}", f"--out={tmp_path / 'out'}"]
    args += ["--name=n", "--licence=l", f"--template={tmp_path / 't.json'}"]
    assert main(args) == 2
    assert main([*args, "--on-bad-row=skip"]) == 0
    assert f"2 rows left out; they are listed in {tmp_path / 'out.bad_rows.jsonl'}" in capsys.readouterr().out
    assert main([*args, "--on-bad-row=skip", "--id-column=ID"]) == 2
    (tmp_path / "t.csv").write_text("id,label\n0,0\n")
    capsys.readouterr()
    assert main([*args[:3], f"--out={tmp_path / 'other'}", *args[4:], "--label-column=level"]) == 2
    assert "header: column 'level' is missing; there are: 'id', 'label'" in capsys.readouterr().err
