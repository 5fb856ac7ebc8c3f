"""People as a judge: responses go out as a CSV sheet or as tasks of Label Studio, and come back with ratings."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from safe_rlhf_v.construct.label_studio import (
    ALONE,
    QUESTIONS_ALONE,
    labelling_config,
    task_data_alone,
    write_task_files,
)
from safe_rlhf_v.construct.label_studio_export import Fault, Note, counted, read_answers
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.evaluation.people_sheet import (
    SHOWN,
    Asked,
    Rating,
    hashes_of,
    read_sheet,
    row_id,
    sheet_line,
    write_sheet,
)
from safe_rlhf_v.evaluation.prompts import PromptSet
from safe_rlhf_v.evaluation.work import named
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge

if TYPE_CHECKING:
    from safe_rlhf_v.evaluation.work import Work

SHOWN_BY_TASKS = ("key", "pictures", "conversation", "response")
"""What people go by, which may not be changed after it was written."""
ENDINGS = (".csv", ".jsonl", ".json")


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
        self._unchanged: dict[tuple[str, str], list[Rating]] = {}

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
        if Path(self.file).suffix.lower() not in ENDINGS:
            raise ValueError(
                f"file {self.file!r}: must end in {', '.join(ENDINGS[:-1])} (a table) or {ENDINGS[-1]} (an export)"
            )
        if not self.awaited:
            self._ratings = self._read()
            self._unchanged = {}

    @property
    def ratings(self) -> dict[str, list[Rating]]:
        """What people said, by id."""
        if self._ratings is None:
            self._ratings = self._read()
        return self._ratings

    def score(self, record: Record, text: str) -> dict[str, float]:
        several = self._by_people_who_saw(row_id(record.key, text), record, text)
        helpful, level = (_middle([getattr(one, axis) for one in several]) for axis in ("helpfulness", "level"))
        return {
            "helpfulness": helpful,
            "level": level,
            "harmful": math.nan if math.isnan(level) else float(level < 0),
        }

    def _by_people_who_saw(self, name: str, record: Record, text: str) -> list[Rating]:
        """Ratings of a response by people who saw what was written; asked several times, and tasks hold whole pictures."""
        place = (name, record.question)  # records of two splits may have one key
        if place not in self._unchanged:
            several = self.ratings.get(name, [])
            right: dict[str, str] = {}
            if any(one.saw for one in several):
                task = task_data_alone(name, record, text) if self.from_label_studio else sheet_line(record, text)
                right = hashes_of(task, SHOWN_BY_TASKS if self.from_label_studio else SHOWN)
            self._unchanged[place] = [one for one in several if all(right[p] == value for p, value in one.saw.items())]
        return self._unchanged[place]

    def write(self, folder: Path, asked: Asked, seed: int, name: str) -> str:
        """Write what people fill in, unless it stands there or everything is rated; gives what they are to do.

        Args:
            folder: Of the evaluation.
            asked: The responses.
            seed: Of their order, which tells nothing.
            name: Of the files.

        Raises:
            FileError: If a sheet or tasks of other responses stand there, on which people may be working.
        """
        if not self.awaited and self.rates_all(asked):
            return ""
        order = sorted(asked)
        random.Random(seed).shuffle(order)
        shuffled = {one: asked[one] for one in order}
        if self.from_label_studio:
            place = folder / f"{name}_label_studio"
            tasks = (task_data_alone(one, record, text) for one, (record, text) in shuffled.items())
            write_task_files(tasks, place, labelling_config(sides=ALONE))
            return f"label the tasks in {place} with Label Studio, save its JSON export as {self.file}"
        place = folder / f"{name}_sheet.csv"
        if place.resolve() != Path(self.file).resolve():
            write_sheet(place, shuffled)
            return f"fill in {place}, save it as {self.file}"
        if self.awaited:
            write_sheet(place, shuffled)
        return f"fill in {place}"

    def nothing_yet(self) -> str:
        """Says that there is no rating yet; "" if there is one."""
        if self.awaited:
            return f"{self.file} is not there yet"
        if any(one.says_something for several in self.ratings.values() for one in several):
            return ""
        return f"{self.file} holds no rating{self._noted('; ')}"

    def _noted(self, before: str = "") -> str:
        """What in an export is not plainly a rating, and where the first of it stands."""
        return (
            f"{before}{counted(self._notes)}, the first: {self._notes[0].where}: {self._notes[0].message}"
            if self._notes
            else ""
        )

    def rates_all(self, asked: Asked) -> bool:
        """Whether every response has a rating of helpfulness and one of safety.

        Args:
            asked: The responses that are to be rated.
        """
        return not any(math.isnan(value) for one in asked.values() for value in self.score(*one).values())

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
        edited = [one for one in asked if one in self.ratings and not self._by_people_who_saw(one, *asked[one])]
        scores = [self.score(*one) for one in asked.values()]
        helpful, safe = (sum(not math.isnan(one[axis]) for one in scores) for axis in ("helpfulness", "level"))
        complete = helpful == safe == len(asked)
        facts = (
            ""
            if complete
            else f"of {len(asked)} responses the helpfulness of {helpful} and the safety of {safe} are rated",
            f"edited (they show something else than was written, and do not count): {_listed(edited)}"
            if edited
            else "",
            f"foreign (of other responses, so they do not count): {_listed(strangers)}" if strangers else "",
            self._noted(),
        )
        return f"{self.file}: {'; '.join(filter(None, facts))}" if any(facts) else ""

    def _read(self) -> dict[str, list[Rating]]:
        return self._read_export() if self.from_label_studio else read_sheet(Path(self.file))

    def _read_export(self) -> dict[str, list[Rating]]:
        ratings: dict[str, list[Rating]] = {}
        answers, self._notes = read_answers([Path(self.file)], QUESTIONS_ALONE, _fault_of_task)
        for one in answers:
            helpful, level = (float(one.values.get(axis, math.nan)) for axis in ("helpfulness", "safety"))
            ratings.setdefault(one.key, []).append(Rating(helpful, level, hashes_of(one.data, SHOWN_BY_TASKS)))
        return ratings


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return median_low(known) if known else math.nan


def _fault_of_task(data: dict[str, Any]) -> Fault | None:
    return None if isinstance(data.get("key"), str) else ("foreign", f"its key is {data.get('key')!r:.140}, not a text")


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}, the first {names[0]}"


def check_people(judges: Mapping[str, Judge], audit: str) -> None:
    """Refuse names of people who are judges that cannot be those of their files.

    Args:
        judges: By name.
        audit: Name of the files of an audit.

    Raises:
        ValueError: Naming the judge.
    """
    for name, judge in judges.items():
        if isinstance(judge, PeopleRatings) and (
            name == audit or not name.replace("-", "_").isidentifier() or len(name) > 100
        ):
            raise ValueError(
                f"judges.{name:.120}: the files for people get this name: use letters, digits, _ or -, up to 100, not {audit!r}"
            )


def wait_for_people(work: "Work") -> None:
    """Let people who are judges rate every response before anything is scored.

    Args:
        work: The evaluation, whose policies have responded.

    Raises:
        ValueError: As long as ratings are missing: it says where the responses are, and what is to be done.
    """
    people = {name: judge for name, judge in work.judges.items() if isinstance(judge, PeopleRatings)}
    asked = asked_of_people(work.rows("responses"), work.prompts) if people else {}
    # All are written before one stops, so that people can work side by side.
    todo = {name: judge.write(work.folder, asked, work.seed, name) for name, judge in people.items()}
    for name, judge in people.items():
        with named(f"judges.{name}"):
            missing = judge.nothing_yet() or ("" if judge.rates_all(asked) else judge.shortfalls(asked))
            if missing:
                raise ValueError(
                    f"{missing}; a judge rates every response: {todo[name]}, and run the same command again"
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
