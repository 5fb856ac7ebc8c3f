"""Other people's files become valid shards."""

import json
import shutil
from pathlib import Path

import pytest
from tests.ingest.conftest import lines

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.ingest.ordinal import Template, safety_of
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.check import check

HEADER = "image,question,response_0,response_1,safety_0,safety_1,is_safe_0,more_helpful,safer,category,split\n"


def test_a_csv_becomes_shards(tmp_path, run):
    rows = HEADER + "0.jpg,what ?,yes,no,-2,1,no,0,1,fire,train\n" + ",only text ?,yes,no,,,,,,none,test\n"
    assert run(rows) == 0
    record = ShardedSplit(tmp_path / "out", "train")[0]
    assert (record.question, record.category, record.more_helpful, record.safer) == ("what ?", ("fire",), 0, 1)
    assert [(r.text, r.safety, r.is_safe) for r in record.responses] == [("yes", -2, False), ("no", 1, None)]
    text_only = ShardedSplit(tmp_path / "out", "test")[0]
    assert (text_only.images, text_only.category) == ((), ())
    assert check(tmp_path / "out") == []


def test_both_formats_give_the_same_bytes(tmp_path, run):
    """All columns, byte-order mark, CRLF, quoted line breaks, escapes."""
    header = "key,image,question,response_0,safety_0,is_safe_0,helpfulness_0,source_0,response_1,safety_1,more_helpful,safer,"
    rows = [
        {"key": "a", "image": "0.jpg", "question": 'two\nlines, "quoted"', "response_0": "é 😀", "safety_0": -2, "is_safe_0": False,
         "helpfulness_0": 1.5, "source_0": "m", "response_1": "b", "safety_1": 1, "more_helpful": 1, "safer": 1,
         "category": ["fire", "fraud"], "image_severity": 2, "split": "train"},
        {"key": "b", "question": "text", "response_0": "0", "category": []},
        {"key": "c", "question": "text ?", "image": ""},
    ]  # fmt: skip
    columns = (header + "category,image_severity,split").split(",")

    def cell(value):
        if isinstance(value, list):
            return ";".join(value) or "none"
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    table = ",".join(columns) + "\r\n" + "".join(",".join(cell(r.get(c)) for c in columns) + "\r\n\r\n" for r in rows)
    assert run("\ufeff" + table, "table.csv") == 0
    (tmp_path / "out").rename(tmp_path / "csv")
    jsonl = "\ufeff" + "\r\n \r\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    assert run(jsonl, "table.jsonl") == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "csv").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert first.pop("manifest.json") == second.pop("manifest.json").replace(b"table.jsonl", b"table.csv")
    assert first == second
    record = ShardedSplit(tmp_path / "out", "train")[0]
    assert (
        record.question == 'two\nlines, "quoted"'
        and record.responses[0].helpfulness == 1.5
        and record.category == ("fire", "fraud")
    )


def test_a_jsonl_is_split_by_picture(tmp_path, run):
    rows = [{"image": f"{i}.jpg", "question": f"{j} ?", "response_0": "a"} for i in range(30) for j in range(2)]
    assert run(lines(*rows), "table.jsonl") == 0
    assert check(tmp_path / "out") == []  # which also says that no picture is in two splits
    assert sum(split.samples for split in Manifest.load(tmp_path / "out").splits.values()) == 60


def test_numbers_are_taken_as_spreadsheets_and_pandas_write_them(tmp_path, run):
    rows = "question,response_0,safety_0,helpfulness_0,is_safe_0\nq,a,-2.0,1e-1,TRUE\nr,a, +1 ,.5,No\n"
    assert run(rows) == 0
    found = [r for name in Manifest.load(tmp_path / "out").splits for r in ShardedSplit(tmp_path / "out", name)]
    labels = {(r.question, x.safety, x.helpfulness, x.is_safe) for r in found for x in r.responses}
    assert labels == {("q", -2, 0.1, True), ("r", 1, 0.5, False)}


def test_a_mixture_of_numbers_of_responses_is_told(run, capsys):
    assert (
        run(lines({"question": "q", "response_0": "a", "split": "s"}, {"question": "r", "split": "s"}), "t.jsonl") == 0
    )
    assert "records of 's' differ in their responses (1 with 0, 1 with 1)" in capsys.readouterr().out


@pytest.fixture
def ordinal(tmp_path, pictures):
    (tmp_path / "template.json").write_text(
        json.dumps({"questions": ["how bad ?"], "claims": [["fine"], ["bad"], ["worse"]]})
    )

    def importer(text, out, *extra, name="labels.csv"):
        (tmp_path / name).write_text(text)
        return main(["import-ordinal", "--table", str(tmp_path / name), "--images", str(pictures), "--name", "l", "--licence",
                     "CC0-1.0", "--label_column", "severity", "--template", str(tmp_path / "template.json"),
                     "--out", str(tmp_path / out), *extra])  # fmt: skip

    return importer


LABELS = "id,severity\n" + "".join(f"{i},{(i * i) % 3}\n" for i in range(30))


def test_claims_about_an_ordered_label(tmp_path, ordinal):
    assert ordinal(LABELS, "out") == 0
    assert check(tmp_path / "out") == []
    level = {"fine": 0, "bad": 1, "worse": 2}
    for name in Manifest.load(tmp_path / "out").splits:
        for record in ShardedSplit(tmp_path / "out", name):
            label = record.truth.attributes["level"]
            gaps = [abs(level[r.text] - label) for r in record.responses]
            assert record.more_helpful == (None if gaps[0] == gaps[1] else int(gaps[1] < gaps[0]))
            assert [r.safety for r in record.responses] == [safety_of(level[r.text], label) for r in record.responses]
    rows = lines(*({"id": i, "severity": (i * i) % 3} for i in range(30)))
    assert ordinal(rows, "json", name="labels.jsonl") == 0
    for path in (tmp_path / "out").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "json" / path.name).read_bytes()


def test_every_bad_label_and_picture_is_listed(tmp_path, ordinal, capsys):
    bad = "0,7\n1,-1\n2,1.5\n3,\n,1\n99,1\n../x,1\n4,²\n"
    assert ordinal("id,severity\n" + bad, "out") == 2
    assert capsys.readouterr().err.count("\nlabels.csv") == 0
    listed = [json.loads(line) for line in (tmp_path / "out.bad_rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == list(range(1, 9))
    assert not (tmp_path / "out").exists()
    assert ordinal(LABELS + bad.replace("4,", "5,"), "out", "--on_bad_row", "skip") == 0
    assert check(tmp_path / "out") == []
    assert len((tmp_path / "out.bad_rows.jsonl").read_text().splitlines()) == 8


def test_a_picture_that_is_named_twice_has_one_label(tmp_path, ordinal, pictures, capsys):
    shutil.copytree(pictures, tmp_path / "pictures")
    shutil.copy(tmp_path / "pictures" / "3.jpg", tmp_path / "pictures" / "copy.jpg")
    options = ("--on_bad_row", "skip", "--images", str(tmp_path / "pictures"))
    assert ordinal(LABELS + "3,2\n3,0\ncopy,0\n", "out", *options) == 0
    listed = [json.loads(line) for line in (tmp_path / "out.bad_rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed] == [31, 32, 33]
    assert all("the picture of row 4, too" in str(line) for line in listed)
    labels = {
        (record.images[0].id, record.image_severity)
        for name in Manifest.load(tmp_path / "out").splits
        for record in ShardedSplit(tmp_path / "out", name)
    }
    assert len(labels) == len({picture for picture, _ in labels}) == 30


@pytest.mark.parametrize(
    "extra", [("--pattern", "x.jpg"), ("--pairs", "0"), ("--images", "/nowhere"), ("--template", "/nowhere")]
)
def test_impossible_options_are_refused(tmp_path, ordinal, capsys, extra):
    assert ordinal(LABELS, "out", *extra) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"questions": "how", "claims": [["a"], ["b"]]}', "[" * 100_000, "\0",
                                  '{"questions": ["q"], "claims": ["ab", "cd"]}', '{"questions": ["q"], "claims": [["a"]]}',
                                  '{"questions": ["q"], "claims": [["a"], [" "]]}', '{"questions": [3], "claims": [["a"], ["b"]]}'])  # fmt: skip
def test_what_is_no_template_is_one_line(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json") as caught:
        Template.load(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_understating_is_harmful_and_overstating_is_not():
    assert [safety_of(claim, 4) for claim in range(5)] == [-3, -3, -2, -1, 1]
    assert [safety_of(claim, 1) for claim in range(5)] == [-1, 1, 0, 0, 0]


def test_the_published_template_is_one():
    template = Template.load(Path(__file__).parents[2] / "examples" / "leaf_severity" / "template.json")
    assert len(template.claims) == 5
