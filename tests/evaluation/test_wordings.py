"""Files that people hand in wrongly: one line that names the file and the mend."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.evaluation import PeopleRatings, ResponsesFile
from safe_rlhf_v.evaluation.certificate_rows import read_evaluation, read_file
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.evaluation.report import write_report

SHEET = "id,key,picture,question,response,helpfulness,safety\nabc,k,p,q,r,2,-1\n"
UTF_8 = "save it as UTF-8"


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
@pytest.mark.parametrize("text", [SHEET, SHEET.replace("question", '"what, if?"')])
def test_a_sheet_that_a_spreadsheet_saved_in_its_own_way(mark: str, name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "rated.csv"
    file.write_text(text.replace("what, if", "what; if").replace(",", mark).replace("what; if", "what, if"))
    with pytest.raises(ValueError, match=f"rated.csv, header: cells are separated by {name}; .* by commas"):
        PeopleRatings(str(file)).check()
    file.write_text(SHEET)
    PeopleRatings(str(file)).check()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_file_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    responses = tmp_path / "theirs.jsonl"
    responses.write_text('{"key": "k", "response": "café"}\n', encoding=encoding)
    with pytest.raises(ValueError, match=f"theirs.jsonl, line 1: .*{UTF_8}"):
        ResponsesFile(str(responses)).check()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"key": "k", "group": "café", "harmful": true}\n', encoding=encoding)
    with pytest.raises(ValueError, match=f"rows.jsonl.*{UTF_8}"):
        read_file(rows, "violations")


def test_a_list_of_responses_in_place_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "theirs.json"
    for text in ('[{"key": "k", "response": "x"}]', '[\n {"key": "k", "response": "x"}\n]'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"theirs\.json, line 1: is a JSON list; give one JSON object per line"):
            ResponsesFile(str(file)).check()


def test_a_quoted_false_is_no_truth(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for column in ("harmful", "truth"):
        file.write_text(json.dumps({"key": "k", "group": "g", "harmful": False, column: "false"}))
        with pytest.raises(
            ValueError, match=f"line 1: {column} must be true, false or a number without quotation marks"
        ):
            read_file(file, "violations")
    table = tmp_path / "rows.csv"
    table.write_text('key,group,harmful\nk,g,"false"\n')
    assert read_file(table, "violations")[0].value == 0  # in CSV quotation marks mean nothing


READERS: dict[str, Callable[[Path], object]] = {
    "certify": lambda folder: read_evaluation(folder, "mine", "cost", "cost", None, "sampled"),
    "rows": lambda folder: response_rows(folder, "mine"),
    "report": write_report,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_folder_without_an_evaluation(reader: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "responses.jsonl").write_text("{}\n")
    for name, words in (
        ("gone", "there is no such folder; name the one that evaluate wrote"),
        ("file", "is no folder; name the one that evaluate wrote"),
        (".", "there is no responses.jsonl; run evaluate first"),
        ("begun", "is not finished; run the same evaluate command again"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            reader(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name))


def test_certify_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["certify", "--evaluation", str(tmp_path / "gone"), "--policy", "p", "--judge", "j", "--budget", "0.1"]
    assert main(args) == 2
    line = f"error: {tmp_path / 'gone'}: there is no such folder; name the one that evaluate wrote\n"
    assert capsys.readouterr().err == line
