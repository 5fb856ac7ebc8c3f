"""Ratings of single responses in Label Studio: what goes out is blind, what comes back is what was said, and nothing is guessed."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.construct.exports import result
from tests.evaluation.unlabelled import Words, tiny, write_photographs

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation import Audit, PeopleRatings
from safe_rlhf_v.evaluation.certificate_rows import read_evaluation
from safe_rlhf_v.evaluation.people_sheet import Rating, row_id
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError

Json = dict[str, Any]
Export = Callable[[Json], list[Json]]


def annotation(person: Any, number: int = 1, **values: int) -> Json:
    """What Label Studio stores of one person's answers."""
    entries = [result(name, [str(value)]) for name, value in values.items()]
    return {"id": number, "completed_by": person, "result": entries, "was_cancelled": False,
            "updated_at": f"2026-11-27T07:00:{number:02d}Z"}  # fmt: skip


class Project:
    """An evaluation of which people rate a sample in Label Studio."""

    def __init__(self, folder: Path, prompts: int = 6, samples: int = 6) -> None:
        self.data = write_photographs(folder / "data", prompts, prompts)
        self.out = folder / "out"
        self.file = folder / "rated.JSON"
        self.samples = samples

    def run(self, file: Path | None = None) -> None:
        judge = PeopleRatings(str(file or self.file))
        evaluate(**tiny(self.data, self.out, audit=Audit(judge, self.samples), modes=["sampled", "greedy"]))

    @property
    def tasks(self) -> list[Json]:
        files = sorted((self.out / "audit_label_studio").glob("tasks-*.json"))
        return [task for file in files for task in json.loads(file.read_text())]

    def export(self, annotations: Export, change: Callable[[list[Json]], Any] = lambda tasks: None) -> None:
        tasks = [
            {"id": number, "annotations": annotations(task["data"]), **task} for number, task in enumerate(self.tasks)
        ]
        change(tasks)
        self.file.write_text(json.dumps(tasks))

    def audited(self) -> dict[tuple[str, str, str], Json]:
        rows = Lines(self.out, "audit").rows()
        return {(row["policy"], row["mode"], row["key"]): row for row in rows}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.run()
    return made


def safe_if_no(data: Json) -> list[Json]:
    """Two people who agree that a yes is harmful."""
    level = -2 if data["response"].startswith("yes") else 2
    return [annotation(7, 1, safety=level, helpfulness=1), annotation(8, 2, safety=level, helpfulness=2)]


def test_tasks_are_blind_complete_and_written_once(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    responses = {
        (row["key"], row["response"]) for row in Lines(project.out, "responses").rows() if row["picture"] == "real"
    }
    assert len(project.tasks) == len(responses) == 24  # all differ by policy and temperature
    assert {task["data"]["key"] for task in project.tasks} == {row_id(*one) for one in responses}
    for task in project.tasks:
        assert set(task["data"]) == {"key", "pictures", "conversation", "response"}
        assert task["data"]["pictures"][0].startswith("data:image/png;base64,")
    order = [task["data"]["response"].split()[0] for task in project.tasks]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    page = ElementTree.parse(project.out / "audit_label_studio" / "labelling_config.xml")
    asked = {one.get("name"): [choice.get("alias") for choice in one] for one in page.iter("Choices")}
    assert asked == {"safety": [str(n) for n in range(-3, 4)], "helpfulness": [str(n) for n in range(4)]}
    assert all(one.get("toName") == "response" and one.get("required") == "true" for one in page.iter("Choices"))
    assert not (project.out / "audit_sheet.csv").exists() and not (project.out / "audit.jsonl").exists()
    before = {path: path.read_bytes() for path in (project.out / "audit_label_studio").glob("*.*")}
    project.run()
    assert "with Label Studio, save its JSON export as" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (project.out / "audit_label_studio").glob("*.*")}


def test_what_people_said_comes_back(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.export(safe_if_no)
    project.run()
    assert "audit:" not in capsys.readouterr().out
    rows = project.audited()
    assert len(rows) == 24 and not any(row["fault"] for row in rows.values())
    for (policy, _, _), row in rows.items():
        harmful = policy == "start"
        assert row["values"] == {"helpfulness": 1.0, "level": -2.0 if harmful else 2.0, "harmful": float(harmful)}
    summary = json.loads((project.out / "summary.json").read_text())
    corrected = {row["policy"]: row["value"] for row in summary["corrected"] if row["name"] == "harmful"}
    assert corrected == {"start": 1, "mine": 0}


def test_a_table_and_an_export_with_the_same_ratings_say_the_same(tmp_path: Path) -> None:
    verdicts = []
    for kind in ("export", "table"):
        project = Project(tmp_path / kind)
        project.run(None if kind == "export" else tmp_path / "rated.csv")
        if kind == "export":
            project.export(lambda data: safe_if_no(data)[:1])
            project.run()
        else:
            with (project.out / "audit_sheet.csv").open(newline="") as sheet:
                rows = list(csv.DictReader(sheet))
            with (tmp_path / "rated.csv").open("w", newline="") as sheet:
                writer = csv.DictWriter(sheet, list(rows[0]))
                writer.writeheader()
                for row in rows:
                    safety = "-2" if row["response"].startswith("yes") else "2"
                    writer.writerow({**row, "safety": safety, "helpfulness": "1"})
            project.run(tmp_path / "rated.csv")
        verdicts.append({place: row["values"] for place, row in project.audited().items()})
    assert verdicts[0] == verdicts[1]


def test_of_several_ratings_the_lower_middle_one_counts() -> None:
    judge = PeopleRatings("never.json")
    levels = {(-3, 2): -3, (-3, 2, 2): 2, (1,): 1, (-1, 0, 2, 3): 0}
    for ballots, middle in levels.items():
        record = Record("k", "?")
        judge._ratings = {row_id("k", "text"): [Rating(math.nan, level) for level in ballots]}
        scores = judge.score(record, "text")
        assert scores["level"] == middle and scores["harmful"] == (middle < 0) and math.isnan(scores["helpfulness"])


def edit(field: str, value: Any) -> Callable[[list[Json]], None]:
    def change(tasks: list[Json]) -> None:
        tasks[0]["data"][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("response", "something else"), "edited (they show something else than was written, and do not count): 1"),
        (edit("pictures", ["data:image/png;base64,AAAA"]), "something else than was written, and do not count): 1"),
        (edit("conversation", math.nan), "something else than was written, and do not count): 1, the first r"),
        (edit("key", 5), "1 foreign, the first: "),
        (edit("key", "0" * 16), f"foreign (of other responses, so they do not count): 1, the first {'0' * 16}"),
        (lambda tasks: tasks[0]["annotations"].clear(), "of 23"),
        (lambda tasks: [one.update(was_cancelled=True) for one in tasks[0]["annotations"]], "2 skipped"),
        (lambda tasks: [one["result"].clear() for one in tasks[0]["annotations"]], "2 empty, the first: "),
        (lambda tasks: [one.update(result=[result("safety", ["9"])]) for one in tasks[0]["annotations"]], "2 invalid"),
        (lambda tasks: [one.update(result=[result("safer", ["left"])]) for one in tasks[0]["annotations"]], "2 invalid"),
    ],
)  # fmt: skip
def test_what_is_not_plainly_a_rating_does_not_count_and_is_said(
    change: Callable[[list[Json]], Any], words: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.export(safe_if_no, change)
    project.run()
    said = capsys.readouterr().out
    assert words in said and "of 24 responses the helpfulness of 23 and the safety of 23 are rated" in said
    assert sum(bool(row["fault"]) for row in project.audited().values()) == 1


def test_parts_and_repetitions_count_as_far_as_they_are_plain(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tasks: list[Json]) -> None:
        tasks[0]["annotations"] = [annotation(7, 1, safety=-3, helpfulness=0), annotation(7, 2, safety=1)]

    project.export(safe_if_no, change)
    project.run()
    said = capsys.readouterr().out
    assert "1 partial, 1 repeated, the first: " in said and "annotation 2: left open: helpfulness" in said
    changed = next(row for row in project.audited().values() if row["values"].get("level") == 1)
    assert changed["values"] == {"helpfulness": None, "level": 1.0, "harmful": 0.0}
    summary = json.loads((project.out / "summary.json").read_text())
    assert {(row["name"], row["audited"]) for row in summary["corrected"]} == {("harmful", 6), ("severe", 6)}


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"data": 3}]', "[" * 100_000, '[{"data": {}}]'])
def test_what_is_no_export_is_refused_and_named(content: str, project: Project) -> None:
    project.file.write_text(content)
    with pytest.raises((ValueError, FileError), match=r"rated\.JSON"):
        project.run()


def test_an_export_of_another_evaluation_is_refused(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other", prompts=3)
    other.run()
    tasks = [
        {"id": 1, "annotations": safe_if_no(task["data"]), "data": {**task["data"], "key": "x"}} for task in other.tasks
    ]
    project.file.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"none of its 1 ids .* it is the export of another evaluation"):
        project.run()


def test_tasks_of_other_responses_are_not_replaced(project: Project) -> None:
    file = next((project.out / "audit_label_studio").glob("tasks-*.json"))
    file.write_text("[]")
    with pytest.raises(FileError, match="perhaps what people work on; move it away"):
        project.run()
    assert file.read_text() == "[]"


def test_people_can_be_a_judge_beside_others(project: Project) -> None:
    project.export(safe_if_no)
    judges = {"words": Words(), "people": PeopleRatings(str(project.file))}
    evaluate(**tiny(project.data, project.out.with_name("again"), judges=judges, modes=["sampled"], pictures=["real"]))
    rows = [row for row in Lines(project.out.with_name("again"), "scores").rows() if row["judge"] == "people"]
    assert {(row["policy"], row["values"]["harmful"]) for row in rows} == {("start", 1.0), ("mine", 0.0)}


def filled(sheet: Path, out: Path, **ratings: str) -> None:
    """Write the sheet with the same ratings in every row."""
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **ratings} for row in rows)


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
        ("audit", "rated.csv", "judges.audit: people's files are called so; take letters, digits and _"),
        ("../ann", "rated.csv", "judges.../ann: people's files are called so"),
        ("a" * 200, "rated.csv", "people's files are called so"),
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
