"""Ratings of single responses in a sheet: nothing that people wrote is lost, and nothing counts that they did not say."""

import csv
import json
import re
from pathlib import Path

import pytest
from tests.evaluation.people_project import Project, annotation, filled
from tests.evaluation.unlabelled import Words, tiny, write_photographs

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation import PeopleRatings
from safe_rlhf_v.evaluation.certificate_rows import read_evaluation
from safe_rlhf_v.records.user_files import FileError


def test_a_sheet_that_people_filled_in_where_it_stands_is_never_written_again(tmp_path: Path) -> None:
    for number, name in enumerate(("rated.csv", "out/audit_sheet.csv")):
        project = Project(tmp_path / str(number))
        file = tmp_path / str(number) / name
        project.run(file)
        sheet = project.out / "audit_sheet.csv"
        filled(sheet, sheet, safety="2", helpfulness="1")
        before = sheet.read_bytes()
        for _ in range(2):
            project.run(file)
            assert sheet.read_bytes() == before
    assert {row["values"]["level"] for row in project.audited().values()} == {2.0}
    sheet.write_text("id,helpfulness,safety\nother,1,1\n")
    for text, words in (("id,helpfulness,safety\nother,1,1\n", "holds others"), ("id;safety\nx;1\n", "cannot be read")):
        sheet.write_text(text)
        with pytest.raises(FileError, match=rf"is not the sheet of these 24 responses, it {words}; move it away"):
            project.run(tmp_path / "later.csv")
        assert sheet.read_text() == text
    sheet.write_bytes(b"".join(before.splitlines(keepends=True)[:-1]))
    with pytest.raises(FileError, match="it lacks some; move it away, and a whole one is written"):
        project.run(tmp_path / "later.csv")
    (tmp_path / "whole.csv").write_bytes(before)
    project.run(tmp_path / "whole.csv")  # nothing is left to be filled in


def test_one_of_two_ratings_counts_in_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A response that nobody called helpful or not has a safety level all the same, and the other way round."""
    project = Project(tmp_path)
    file = tmp_path / "rated.csv"
    project.run(file)
    filled(project.out / "audit_sheet.csv", file, safety="2", helpfulness="")
    project.run(file)
    summary = json.loads((project.out / "summary.json").read_text())
    assert {(row["name"], row["audited"], row["value"]) for row in summary["corrected"]} == {
        ("harmful", 6, 0),
        ("severe", 6, 0),
    }
    assert "of 24 responses the helpfulness of 0 and the safety of 24 are rated" in capsys.readouterr().out
    assert {row["audited_by"] for row in summary["corrected"]} == {f"people ({file})"}
    rows, _ = read_evaluation(project.out, "mine", "words", "rate", None, "sampled")
    assert [row.truth for row in rows] == [0.0] * 6
    filled(project.out / "audit_sheet.csv", file, safety="", helpfulness="3")
    project.run(file)  # ratings may be added and changed: they are read anew
    summary = json.loads((project.out / "summary.json").read_text())
    assert summary["corrected"] == []
    audited = project.audited().values()
    assert {tuple(row["values"].values()) for row in audited} == {(3.0, None, None)}


@pytest.mark.parametrize(
    ("column", "old", "new", "count"),
    [
        ("response", "no What", "no, what", 24),
        ("question", "What", "Why", 24),
        ("response", " ", "  ", 0),  # spreadsheets change spaces
        ("response", "no What", "'no What", 0),  # and apostrophes, which they take for a mark of text
        ("picture", ".png", ".jpg", 0),  # a name of a file, not what people go by
        ("key", "k00", "", 0),  # it is part of the id
        ("id", "r", " r", 0),
    ],
)
def test_what_was_edited_in_a_sheet_does_not_count(
    column: str, old: str, new: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    file = tmp_path / "rated.csv"
    project.run(file)
    filled(project.out / "audit_sheet.csv", file, safety="2", helpfulness="1")
    with file.open(newline="") as sheet:
        rows = [{**row, column: row[column].replace(old, new)} for row in csv.DictReader(sheet)]
    with file.open("w", newline="") as sheet:
        writer = csv.DictWriter(sheet, list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, dict.fromkeys(rows[0], "")])  # spreadsheets leave empty rows behind
    project.run(file)
    edited = count // 2 if old == "no What" else count  # those of one of two policies
    said = capsys.readouterr().out
    assert (f"and do not count): {edited}, the first r" in said) == (edited > 0)
    assert sum(bool(row["fault"]) for row in project.audited().values()) == edited


@pytest.mark.parametrize("kind", ["empty export", "no annotations", "skipped", "sheet", "header"])
def test_before_anybody_rated_the_audit_waits(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(tmp_path)
    file = tmp_path / ("rated.csv" if kind in ("sheet", "header") else "rated.json")
    project.run(file)
    if kind == "empty export":
        file.write_text("\N{BYTE ORDER MARK}[]")
    elif kind == "no annotations":
        file.write_text(json.dumps([{"annotations": [], **task} for task in project.tasks]))
    elif kind == "skipped":
        skipped = [{**annotation(7), "was_cancelled": True}]
        file.write_text(json.dumps([{"annotations": skipped, **task} for task in project.tasks]))
    else:
        text = (project.out / "audit_sheet.csv").read_text()
        file.write_text(text if kind == "sheet" else text.splitlines()[0] + "\n")
    capsys.readouterr()
    project.run(file)
    said = capsys.readouterr().out
    assert f"{file} holds no rating" in said and "and run the same command again" in said
    assert ("24 skipped, the first: " in said) == (kind == "skipped")
    assert not (project.out / "audit.jsonl").exists()


@pytest.mark.parametrize("how", ["emptied", "removed", "another file", "no audit"])
def test_ratings_that_are_gone_do_not_count_any_more(how: str, tmp_path: Path) -> None:
    project = Project(tmp_path)
    file = tmp_path / "rated.csv"
    project.run(file)
    filled(project.out / "audit_sheet.csv", file, safety="2", helpfulness="1")
    project.run(file)
    assert json.loads((project.out / "summary.json").read_text())["corrected"]
    if how == "emptied":
        filled(project.out / "audit_sheet.csv", file, safety="", helpfulness="")
    elif how == "removed":
        file.unlink()
    if how == "no audit":
        evaluate(**tiny(project.data, project.out, modes=["sampled", "greedy"]))
    else:
        project.run(tmp_path / "other.csv" if how == "another file" else file)
    assert json.loads((project.out / "summary.json").read_text())["corrected"] == []
    rows, _ = read_evaluation(project.out, "mine", "words", "rate", None, "sampled")
    assert {row.truth for row in rows} == {None}


def test_an_audit_that_was_broken_off_is_not_taken_for_none(tmp_path: Path) -> None:
    project = Project(tmp_path)
    file = tmp_path / "rated.csv"
    project.run(file)
    filled(project.out / "audit_sheet.csv", file, safety="2", helpfulness="1")
    project.run(file)
    (project.out / "audit.jsonl").unlink()
    with pytest.raises(ValueError, match=r"audit\.jsonl: is not there; run the same evaluate command again"):
        read_evaluation(project.out, "mine", "words", "rate", None, "sampled")
    project.run(file)
    assert read_evaluation(project.out, "mine", "words", "rate", None, "sampled")[0][0].truth == 0


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("audit", "rated.csv", "judges.audit: the files for people get this name: use letters, digits"),
        ("../ann", "rated.csv", "judges.../ann: the files for people get this name"),
        ("a" * 200, "rated.csv", "the files for people get this name"),
        (
            "people",
            "rated.xlsx",
            "judges.people: file 'rated.xlsx': must end in .csv, .jsonl (a table) or .json (an export)",
        ),
        ("people", "", "judges.people: file '': must end in"),
    ],
)
def test_names_that_cannot_be_used_are_refused_at_once(name: str, file: str, message: str, tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "data", 2, 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(**tiny(data, tmp_path / "out", judges={name: PeopleRatings(file)}))
    assert not (tmp_path / "out").exists()


def test_people_who_are_judges_rate_everything_before_anything_is_scored(tmp_path: Path) -> None:
    data, file = write_photographs(tmp_path / "data", 4, 4), tmp_path / "rated.csv"
    judges = {"words": Words(), "people": PeopleRatings(str(file))}
    options = tiny(data, tmp_path / "out", judges=judges, modes=["sampled"], pictures=["real"])
    sheet = tmp_path / "out" / "people_sheet.csv"

    def refused(message: str) -> None:
        judges["people"] = PeopleRatings(str(file))
        with pytest.raises(ValueError, match=message):
            evaluate(**options)
        assert not (tmp_path / "out" / "scores.jsonl").exists()

    todo = r"a judge rates every response: fill in .*people_sheet\.csv, save it as .*rated\.csv, and run the same command again"
    refused(rf"judges\.people: .*rated\.csv is not there yet; {todo}")
    filled(sheet, file, safety="2", helpfulness="")
    refused(rf"judges\.people: .*of 8 responses the helpfulness of 0 and the safety of 8 are rated; {todo}")
    filled(sheet, file, safety="2", helpfulness="1")
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    refused("of 8 responses the helpfulness of 7 and the safety of 7 are rated; a judge rates")
    sheet.write_text(whole)
    file.write_text(whole.replace("\nr", "\nx"))
    refused("none of its 8 ids .* it is the sheet of another evaluation")
    file.write_text(whole)
    judges["people"] = PeopleRatings(str(file))
    evaluate(**options)
    rows = [row for row in Lines(tmp_path / "out", "scores").rows() if row["judge"] == "people"]
    assert len(rows) == 8 and not any(row["fault"] or row["values"]["harmful"] for row in rows)
