"""People as a judge: responses go out as a CSV sheet or as tasks of Label Studio, and come back with ratings."""

import csv
import io
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.construct.label_studio import (
    ALONE,
    QUESTIONS_ALONE,
    labelling_config,
    task_data_alone,
    write_task_files,
)
from safe_rlhf_v.construct.label_studio_export import Fault, Note, counted, read_answers
from safe_rlhf_v.construct.lines import Row, digest
from safe_rlhf_v.construct.reply_parsing import RANGES
from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.evaluation.prompts import PromptSet
from safe_rlhf_v.evaluation.work import named
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError, write_whole
from safe_rlhf_v.scoring.judge import Judge

if TYPE_CHECKING:
    from safe_rlhf_v.evaluation.work import Work

COLUMNS = ("id", "key", "picture", "question", "response", "helpfulness", "safety")
SHOWN = {"sheet": ("key", "question", "response"), "tasks": ("key", "pictures", "conversation", "response")}
"""What people go by, which may not be changed after it was written."""

Asked = Mapping[str, tuple[Record, str]]
"""Prompt and response by id."""


class Rating(NamedTuple):
    """What one person says of one response; NaN where nothing.

    Attributes:
        helpfulness: 0..3.
        level: Safety level -3..3.
        saw: Hashes of what the person saw, by name; of a sheet only those columns that it still has.
    """

    helpfulness: float
    level: float
    saw: Mapping[str, str] = MappingProxyType({})

    @property
    def says_something(self) -> bool:
        """Whether there is a value."""
        return not (math.isnan(self.helpfulness) and math.isnan(self.level))


class PeopleRatings(Judge):
    """Ratings by people, out of what an evaluation wrote for them.

    A file whose name ends in ``.json`` is an export of Label Studio of the tasks in ``NAME_label_studio``; any other is the
    filled-in table ``NAME_sheet.csv``, NAME being ``audit`` or the judge's. Neither says whose a response is, and equal responses
    to a prompt stand there once. They are found again by their id. Of several people's ratings the median counts, of two middle
    ones the lower. What was changed after it was written does not count. The file may be missing until the people are done.

    In an audit a rating may be left out: each of the two counts where it is given, and more may be added later. As a judge people
    have to rate every response in both respects before anything is scored.

    YAML::

        audit: {judge: {class_path: safe_rlhf_v.evaluation.PeopleRatings, init_args: {file: rated.csv}}, samples: 200}
    """

    reads_pictures = False

    def __init__(self, file: str) -> None:
        """Name the file.

        Args:
            file: The filled-in table, or an export of Label Studio in its format JSON: helpfulness 0..3, safety level -3..3.
        """
        self.file = file
        self._ratings: dict[str, list[Rating]] | None = None
        self._notes: tuple[Note, ...] = ()

    @property
    def from_label_studio(self) -> bool:
        """Whether the file is an export of Label Studio."""
        return Path(self.file).suffix.lower() == ".json"

    @property
    def awaited(self) -> bool:
        """Whether the file is not there yet."""
        return not Path(self.file).exists()

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        return "" if self.awaited else file_content(self.file)

    def check(self) -> None:
        if not self.awaited:
            self._ratings = self._read()

    @property
    def ratings(self) -> dict[str, list[Rating]]:
        """What people said, by id."""
        if self._ratings is None:
            self._ratings = self._read()
        return self._ratings

    def score(self, record: Record, text: str) -> dict[str, float]:
        several = self._unchanged(row_id(record.key, text), record, text)
        helpful, level = (_middle([getattr(one, axis) for one in several]) for axis in ("helpfulness", "level"))
        return {
            "helpfulness": helpful,
            "level": level,
            "harmful": math.nan if math.isnan(level) else float(level < 0),
        }

    def _unchanged(self, name: str, record: Record, text: str) -> list[Rating]:
        """Ratings of a response by people who saw what was written."""
        several = self.ratings.get(name, [])
        if not any(one.saw for one in several):
            return several
        if self.from_label_studio:
            right = _hashes(task_data_alone(name, record, text), SHOWN["tasks"])
        else:
            right = _hashes(sheet_line(record, text), SHOWN["sheet"])
        return [one for one in several if all(right[part] == value for part, value in one.saw.items())]

    def write(self, folder: Path, asked: Asked, seed: int, name: str) -> str:
        """Write what people fill in, unless it stands there; gives what they are to do, in one sentence.

        Args:
            folder: Of the evaluation.
            asked: The responses.
            seed: Of their order, which tells nothing.
            name: Of the files.

        Raises:
            FileError: If a sheet or tasks of other responses stand there, on which people may be working.
        """
        order = sorted(asked)
        random.Random(seed).shuffle(order)
        shuffled = {name: asked[name] for name in order}
        if self.from_label_studio:
            place = folder / f"{name}_label_studio"
            tasks = (task_data_alone(one, record, text) for one, (record, text) in shuffled.items())
            write_task_files(tasks, place, labelling_config(sides=ALONE))
            return f"label the tasks in {place} with Label Studio, save its JSON export as {self.file}"
        place = folder / f"{name}_sheet.csv"
        write_sheet(place, shuffled)
        return f"fill in {place}, save it as {self.file}"

    @property
    def says_something(self) -> bool:
        """Whether the file is there and holds a rating."""
        return not self.awaited and any(one.says_something for several in self.ratings.values() for one in several)

    def unrated(self, asked: Asked) -> list[str]:
        """Ids of the responses that lack a rating of helpfulness or of safety.

        Args:
            asked: The responses that are to be rated.
        """
        scores = {name: self.score(*one) for name, one in asked.items()}
        return [name for name, one in scores.items() if math.isnan(one["helpfulness"]) or math.isnan(one["level"])]

    def shortfalls(self, asked: Asked) -> str:
        """Says what is not rated, and what in the file does not count; "" if there is nothing to say.

        Args:
            asked: The responses that are to be rated.

        Raises:
            ValueError: If the file is about none of them.
        """
        strangers = [name for name in self.ratings if name not in asked]
        if asked and len(strangers) == len(self.ratings):
            what = "export" if self.from_label_studio else "sheet"
            raise ValueError(
                f"{self.file}: none of its {len(strangers)} ids is that of one of the {len(asked)} responses that are to be "
                f"rated; it is the {what} of another evaluation"
            )
        answered = {name: self._unchanged(name, *asked[name]) for name in asked if name in self.ratings}
        rated = sum(any(one.says_something for one in several) for several in answered.values())
        edited = [name for name, several in answered.items() if not several]
        facts = (
            f"{rated} of {len(asked)} responses are rated" if rated < len(asked) else "",
            f"edited (they show something else than was written, and do not count): {_listed(edited)}"
            if edited
            else "",
            f"foreign (of other responses, so they do not count): {_listed(strangers)}" if strangers else "",
            f"{counted(self._notes)}, the first: {self._notes[0].where}: {self._notes[0].message}"
            if self._notes
            else "",
        )
        return f"{self.file}: {'; '.join(filter(None, facts))}" if any(facts) else ""

    def _read(self) -> dict[str, list[Rating]]:
        return self._read_export() if self.from_label_studio else self._read_table()

    def _read_export(self) -> dict[str, list[Rating]]:
        ratings: dict[str, list[Rating]] = {}
        answers, self._notes = read_answers([Path(self.file)], QUESTIONS_ALONE, _fault_of_task)
        for one in answers:
            helpful, level = (float(one.values.get(axis, math.nan)) for axis in ("helpfulness", "safety"))
            ratings.setdefault(one.key, []).append(Rating(helpful, level, _hashes(one.data, SHOWN["tasks"])))
        return ratings

    def _read_table(self) -> dict[str, list[Rating]]:
        ratings: dict[str, list[Rating]] = {}
        for row in read_table(Path(self.file), required=("id", "helpfulness", "safety")):
            if not row.problems and not any(str(cell or "").strip() for cell in row.cells.values()):
                continue  # spreadsheets leave empty rows behind
            name = row.text("id") or ""
            values: dict[str, Any] = {"helpfulness": row.decimal("helpfulness"), "safety": row.integer("safety")}
            for axis, (low, high) in RANGES.items():
                if values[axis] is not None and not low <= values[axis] <= high:
                    row.bad(axis, f"{values[axis]:g} is outside {low}..{high}")
            if not row.problems and not name:
                row.bad("id", "is empty; keep the ids of the sheet")
            if not row.problems and name in ratings:
                row.bad("id", "occurs twice; keep one row")
            if row.problems:
                column, problem = row.problems[0]
                raise TableError(f"{self.file}, row {row.number}, {column or 'row'}: {problem}")
            helpful, level = (math.nan if value is None else float(value) for value in values.values())
            ratings[name] = [Rating(helpful, level, _hashes(row.cells, [c for c in SHOWN["sheet"] if c in row.cells]))]
        return ratings


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median_low(known) if known else math.nan


def _fault_of_task(data: dict[str, Any]) -> Fault | None:
    return None if isinstance(data.get("key"), str) else ("foreign", f"its key is {data.get('key')!r:.140}, not a text")


def _hashes(data: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """Hash of each of these parts; of a text without its spaces, which spreadsheets change; "" of what nobody wrote."""
    hashes = {}
    for part in parts:
        value = data.get(part)
        try:
            hashes[part] = digest(" ".join(value.split()) if isinstance(value, str) else value or "")
        except (ValueError, RecursionError):  # NaN, or lists in lists without end
            hashes[part] = ""
    return hashes


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}, the first {names[0]}"


def row_id(key: str, text: str) -> str:
    """What a row of the sheet is found by: it begins with a letter, for a spreadsheet would take 12e45 for a number.

    Args:
        key: Key of the record.
        text: The response.
    """
    return f"r{digest([key, text])}"


def wait_for_people(work: "Work") -> None:
    """Let people who are judges rate every response before anything is scored.

    Args:
        work: The evaluation, whose policies have responded.

    Raises:
        ValueError: As long as ratings are missing: it says where the responses are, and what is to be done.
    """
    for name, judge in work.judges.items():
        if not isinstance(judge, PeopleRatings):
            continue
        asked = asked_of_people(work.rows("responses"), work.prompts)
        what = judge.write(work.folder, asked, work.seed, name)
        if not judge.says_something:
            raise ValueError(f"judges.{name}: {what}, and run the same command again")
        with named(f"judges.{name}"):
            problems = judge.shortfalls(asked)
            if unrated := judge.unrated(asked):
                raise ValueError(
                    f"{problems or judge.file}; {len(unrated)} of {len(asked)} responses lack a rating, the first {unrated[0]}: "
                    "rate them all, or let people audit a sample (audit in place of judges)"
                )


def asked_of_people(rows: Sequence[Row], prompts: PromptSet) -> dict[str, tuple[Record, str]]:
    """Prompt and response by id, of the lines that hold a response.

    Args:
        rows: Lines of responses.
        prompts: Their prompts.
    """
    records = {(row["split"], row["key"]): prompts.record(row["split"], row["key"]) for row in rows if not row["fault"]}
    return {
        row_id(row["key"], row["response"]): (records[row["split"], row["key"]], row["response"])
        for row in rows
        if not row["fault"]
    }


def write_sheet(file: Path, asked: Asked) -> None:
    """Write the sheet, and the pictures beside it, in a folder of the same name.

    Args:
        file: The sheet; one that is there stays as it is, for it may hold ratings.
        asked: The responses, in the order of the sheet.

    Raises:
        FileError: If a sheet of other responses is there.
    """
    if file.exists():
        known = {str(row.cells.get("id") or "").strip() for row in read_table(file, required=("id",))} - {""}
        if known != asked.keys():
            raise FileError(f"{file}: is the sheet of other responses; move it away, with the ratings that it may hold")
        return
    pictures = file.with_suffix("")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for name, (record, response) in asked.items():
        for picture, image in zip(_picture_names(record), record.images, strict=True):
            pictures.mkdir(parents=True, exist_ok=True)
            if not (pictures / picture).exists():
                write_whole(pictures / picture, image.data)
        writer.writerow({"id": name, **sheet_line(record, response)})
    write_whole(file, text.getvalue().encode())


def sheet_line(record: Record, response: str) -> dict[str, str]:
    """What the sheet shows of a response.

    Args:
        record: The prompt.
        response: The response.
    """
    turns = "\n".join(f"[{turn.role}] {turn.text}" for turn in record.turns)
    cells = {
        "key": record.key,
        "picture": " ".join(_picture_names(record)),
        "question": turns if record.history else record.question,
        "response": response,
    }
    return {column: _plain(cell) for column, cell in cells.items()}


def _picture_names(record: Record) -> list[str]:
    return [f"{record.key}-{number}.{image.format.lower()}" for number, image in enumerate(record.images)]


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
