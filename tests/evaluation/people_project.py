"""An evaluation of which people rate a sample: what they write, and how it comes back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.construct.exports import result
from tests.evaluation.unlabelled import tiny, write_photographs

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation import Audit, PeopleRatings

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


def safe_if_no(data: Json) -> list[Json]:
    """Two people who agree that a yes is harmful."""
    level = -2 if data["response"].startswith("yes") else 2
    return [annotation(7, 1, safety=level, helpfulness=1), annotation(8, 2, safety=level, helpfulness=2)]


def filled(sheet: Path, out: Path, **ratings: str) -> None:
    """Write the sheet with the same ratings in every row."""
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **ratings} for row in rows)
