"""The reader of tables guesses nothing: a wrong table is refused, and rows are written or listed, never half used."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ingest.conftest import CHAT, lines, listed

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.ingest.folder import import_folder
from safe_rlhf_v.ingest.table import TableError
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.check import check


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
        (b"question;with, a comma;response_0\nq;x, y;a\n", "t.csv", "separated by semicolons; they must be separated by commas"),
        ("question\nq\n".encode("utf-16"), "t.csv", "save it as UTF-8"),
        ('{"question": "q"}\n'.encode("utf-16"), "t.jsonl", "save it as UTF-8"),
        ("question\nq\n".encode("utf-32"), "t.csv", "save it as UTF-8"),
        ("question\nq\n".encode("utf-16-be"), "t.csv", "save it as UTF-8"),
        (b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)), "t.csv", "is a workbook of a spreadsheet, or another archive; export it as .csv"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "t.CSV", "is a workbook of a spreadsheet; export it as .csv"),
        (b"\x1f\x8b\x08\x00abc", "t.jsonl", "is compressed with gzip; export it as .jsonl"),
        (b"PAR1\x15\x04", "t.csv", "is a Parquet file"),
        (b"%PDF-1.7\n%\xe2\xe3", "t.csv", "is a PDF document"),
        (b'question,response_0\nq,a\nr,"never closed\ns,b\nt,c\n', "t.csv", "the row that begins at line 3 is never closed"),
        (b"question\nq\n", "t.tsv", "tables are .csv or .jsonl files"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("extra", [(), ("--on_bad_row", "skip")])
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


def test_skipping_leaves_out_whole_rows_and_counts_them(tmp_path, run, capsys):
    rows = [{"question": f"q {i}", "response_0": "a" if i % 3 else CHAT, "split": "train"} for i in range(9)]
    assert run(lines(*rows), "t.jsonl", "--on_bad_row", "skip") == 0
    out = capsys.readouterr().out
    assert "6 records written" in out and "3 rows left out" in out and "out.bad_rows.jsonl" in out
    assert [row for row, _, _ in listed(tmp_path)] == [1, 4, 7]
    split = ShardedSplit(tmp_path / "out", "train")
    assert [split[i].question for i in range(6)] == [f"q {i}" for i in (1, 2, 4, 5, 7, 8)]
    assert [split[i].origin["row"] for i in range(6)] == ["2", "3", "5", "6", "8", "9"]
    assert check(tmp_path / "out") == []


def test_when_every_row_is_bad_nothing_is_written(tmp_path, run, capsys):
    assert run(lines({"question": 3}, {"question": 4}), "t.jsonl", "--on_bad_row", "skip") == 2
    assert "2 of 2 rows cannot be used, nothing was written; no row is left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_list_of_an_earlier_import_is_replaced_and_nothing_else(tmp_path, run, capsys):
    assert run(lines({"question": 3}, {"question": "q"}), "t.jsonl") == 2
    assert len(listed(tmp_path)) == 1
    assert run(lines({"question": "q"}), "t.jsonl") == 0
    assert not (tmp_path / "out.bad_rows.jsonl").exists()  # it would say what is no longer true
    (tmp_path / "out").rename(tmp_path / "first")
    for content in (b"my notes", b"{}\n", b"[" * 100_000, b""):
        (tmp_path / "notes").write_bytes(content)
        assert run(lines({"question": 3}), "t.jsonl", "--bad_rows", str(tmp_path / "notes")) == 2
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
           "safety_0", "safety_1", "is_safe_0", "helpfulness_0", "source_0", "system", "history", "prompt_safety", "safety_votes_0",
           "is_safe_votes_0", "helpfulness_votes_0", "more_helpful_votes", "safer_votes"]  # fmt: skip


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


def test_a_quotation_mark_that_swallows_rows_says_which(tmp_path, run):
    text = 'question,image\n"q,0.jpg\nr,1.jpg\ns,"2.jpg\nt,3.jpg\n'
    assert run(text, "t.csv", "--on_bad_row", "skip") == 0
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
    assert run(header + b"\n" + b"x\n" * 60, "t.csv", "--on_bad_row", "skip") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out.bad_rows.jsonl").exists()


def test_a_list_of_bad_rows_that_cannot_be_written_is_named(tmp_path, run, capsys):
    text = lines({"question": "q"}, {"question": 3})
    (tmp_path / "file").touch()
    assert run(text, "t.jsonl", "--on_bad_row", "skip", "--bad_rows", str(tmp_path / "file" / "x")) == 2
    assert "file/x: cannot be written" in capsys.readouterr().err
    assert run(text, "t.jsonl", "--on_bad_row", "skip", "--bad_rows", "/dev/full") == 2
    assert "/dev/full: exists and is not a list" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--name", "--licence"])
def test_names_no_manifest_can_hold_are_refused_first(tmp_path, run, capsys, option):
    assert run(lines({"question": "q"}), "t.jsonl", option, "\udcff") == 2
    assert "of the data set: holds the lone surrogate" in capsys.readouterr().err.replace("taxonomy", "name")


def test_an_ordinal_import_counts_what_it_skips(tmp_path, pictures, capsys):
    (tmp_path / "t.csv").write_text("id,label\n0,0\n1,7\nnone,0\n2,1\n")
    (tmp_path / "t.json").write_text('{"questions": ["q"], "claims": [["a"], ["b"]]}')
    args = ["import-ordinal", f"--table={tmp_path / 't.csv'}", f"--images={pictures}", f"--out={tmp_path / 'out'}"]
    args += ["--name=n", "--licence=l", f"--template={tmp_path / 't.json'}"]
    assert main(args) == 2
    assert main([*args, "--on_bad_row=skip"]) == 0
    assert f"2 rows left out; they are listed in {tmp_path / 'out.bad_rows.jsonl'}" in capsys.readouterr().out
    assert main([*args, "--on_bad_row=skip", "--id_column=ID"]) == 2
    (tmp_path / "t.csv").write_text("id,label\n0,0\n")
    capsys.readouterr()
    assert main([*args[:3], f"--out={tmp_path / 'other'}", *args[4:], "--label_column=level"]) == 2
    assert "header: column 'level' is missing; there are: 'id', 'label'" in capsys.readouterr().err
