"""Every row that cannot be used is listed with its columns, and nothing is written unless such rows are skipped."""

import json
import os

import pytest
from tests.ingest.conftest import CHAT, lines, listed
from tests.shards.conftest import picture

from safe_rlhf_v.ingest.table import MAX_LINE

HEADER = "image,question,response_0,response_1,safety_0,safety_1,is_safe_0,more_helpful,safer,category,split\n"


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
        ({"image": ["0.jpg", 1]}, "image", "entry 1 must be text"),
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


def test_all_problems_of_all_rows_are_listed_and_the_printing_is_bounded(tmp_path, run, capsys):
    bad = {"question": CHAT, "split": 3, "safety_0": 9, "image": "nowhere.jpg", "key": "a b"}
    assert run(lines(*[bad] * 30, {"question": "q"}), "t.jsonl") == 2
    rows = listed(tmp_path)
    assert len(rows) == 30
    assert all(set(columns) == {*bad} for _, columns, _ in rows)
    err = capsys.readouterr().err.splitlines()
    assert sum(", row " in line for line in err) == 50 and err[-2] == "... and 100 more problems"
    assert "30 of 31 rows cannot be used" in err[-1] and "out.bad_rows.jsonl" in err[-1]


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
