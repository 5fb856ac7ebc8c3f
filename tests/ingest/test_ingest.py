"""Other people's files become valid shards, or an error that names row and column."""

import json

import pytest
from tests.shards.conftest import picture

from safe_rlhf_v.ingest.ordinal import Template, safety_of
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.command import main

HEADER = "image,question,response_0,response_1,safety_0,safety_1,is_safe_0,more_helpful,safer,category,split\n"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.jpg").write_bytes(picture(i, "JPEG"))
    return folder


def run(tmp_path, pictures, text, name="table.csv", *extra):
    table = tmp_path / name
    table.write_text(text)
    return main(["import", "--table", str(table), "--images", str(pictures), "--out", str(tmp_path / "out"),
                 "--name", "mine", "--licence", "CC0-1.0", "--categories", "fire", *extra])  # fmt: skip


def test_a_csv_becomes_shards(tmp_path, pictures):
    rows = HEADER + "0.jpg,what ?,yes,no,-2,1,no,0,1,fire,train\n" + ",only text ?,yes,no,,,,,,,test\n"
    assert run(tmp_path, pictures, rows) == 0
    record = ShardedSplit(tmp_path / "out", "train")[0]
    assert (record.question, record.category, record.more_helpful, record.safer) == ("what ?", ("fire",), 0, 1)
    assert [(r.text, r.safety, r.is_safe) for r in record.responses] == [("yes", -2, False), ("no", 1, None)]
    assert ShardedSplit(tmp_path / "out", "test")[0].images == ()
    assert check(tmp_path / "out") == []


def test_a_jsonl_is_split_by_picture(tmp_path, pictures):
    rows = [{"image": f"{i}.jpg", "question": f"{j} ?", "response_0": "a"} for i in range(30) for j in range(2)]
    assert run(tmp_path, pictures, "\n".join(map(json.dumps, rows)), "table.jsonl") == 0
    assert check(tmp_path / "out") == []  # which also says that no picture stands in two splits
    assert sum(split.samples for split in Manifest.load(tmp_path / "out").splits.values()) == 60


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("31.jpg,q,a,b,,,,,,,", "row 1, column 'image': there is no"),
        ("../x.jpg,q,a,b,,,,,,,", "lies outside"),
        ("0.jpg,,a,b,,,,,,,", "column 'question': is missing"),
        ("0.jpg,q,a,b,4,,,,,,", "outside -3..3"),
        ("0.jpg,q,a,b,1.5,,,,,,", "column 'safety_0': '1.5' is not int"),
        ("0.jpg,q,a,b,,,maybe,,,,", "column 'is_safe_0': 'maybe' is not bool"),
        ("0.jpg,q,a,b,,,,2,,,", "column 'more_helpful': 2 is not the 0-based index"),
        ("0.jpg,q,a,b,,,,,,flood,", "column 'category': 'flood'"),
        ("0.jpg,q", "another number of cells"),
    ],
)
def test_the_first_bad_cell_is_named_and_nothing_counts_as_written(tmp_path, pictures, capsys, row, message):
    assert run(tmp_path, pictures, HEADER + row + "\n") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_unknown_column_is_named(tmp_path, pictures, capsys):
    assert run(tmp_path, pictures, "question,anser\nq,a\n") == 2
    assert "'anser': is not a known column" in capsys.readouterr().err


def test_claims_about_an_ordered_label(tmp_path, pictures):
    (tmp_path / "labels.csv").write_text("id,severity\n" + "".join(f"{i},{(i * i) % 3}\n" for i in range(30)))
    template = {"questions": ["how bad ?"], "claims": [["fine"], ["bad"], ["worse"]]}
    (tmp_path / "template.json").write_text(json.dumps(template))
    options = ["import-ordinal", "--table", str(tmp_path / "labels.csv"), "--images", str(pictures), "--name", "l",
               "--licence", "CC0-1.0", "--label-column", "severity", "--template", str(tmp_path / "template.json")]  # fmt: skip
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    assert check(tmp_path / "out") == []
    level = {"fine": 0, "bad": 1, "worse": 2}
    for name in Manifest.load(tmp_path / "out").splits:
        for record in ShardedSplit(tmp_path / "out", name):
            label = record.truth.attributes["level"]
            gaps = [abs(level[r.text] - label) for r in record.responses]
            assert record.more_helpful == (None if gaps[0] == gaps[1] else int(gaps[1] < gaps[0]))
            assert [r.safety for r in record.responses] == [safety_of(level[r.text], label) for r in record.responses]
    (tmp_path / "labels.csv").write_text("id,severity\n0,7\n")
    assert main([*options, "--out", str(tmp_path / "other")]) == 2


def test_understating_is_harmful_and_overstating_is_not():
    assert [safety_of(claim, 4) for claim in range(5)] == [-3, -3, -2, -1, 1]
    assert [safety_of(claim, 1) for claim in range(5)] == [-1, 1, 0, 0, 0]


def test_the_published_template_is_one():
    from pathlib import Path

    template = Template.load(Path(__file__).parents[2] / "examples" / "leaf_severity" / "template.json")
    assert len(template.claims) == 5


@pytest.mark.parametrize(
    ("cell", "category"),
    [
        ("", None),
        ("none", ()),
        ("[]", ()),
        ("fire", ("fire",)),
        ("fire;fraud", ("fire", "fraud")),
        (" fire ; fraud", ("fire", "fraud")),
    ],
)
def test_a_category_cell_is_names_none_or_unknown(tmp_path, pictures, cell, category):
    assert run(tmp_path, pictures, f"question,category,split\nq,{cell},train\n", "table.csv", "fraud") == 0
    assert ShardedSplit(tmp_path / "out", "train")[0].category == category


@pytest.mark.parametrize(
    ("value", "category"), [(None, None), ([], ()), (["fire", "fraud"], ("fire", "fraud")), ("fire", ("fire",))]
)
def test_a_category_in_json_is_a_list_or_a_name(tmp_path, pictures, value, category):
    text = json.dumps({"question": "q", "category": value, "split": "train"})
    assert run(tmp_path, pictures, text, "table.jsonl", "fraud") == 0
    assert ShardedSplit(tmp_path / "out", "train")[0].category == category


def test_none_is_no_name_of_a_category(tmp_path, pictures, capsys):
    assert run(tmp_path, pictures, "question\nq\n", "table.csv", "none") == 2
    assert "'none' is the word for" in capsys.readouterr().err
