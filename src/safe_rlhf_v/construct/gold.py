"""Gold items: responses whose ratings are known to be right, as a judge that knows nothing else."""

import math
from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_v.construct.reply_parsing import RANGES
from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge

_COLUMNS = ("question", "response", "image", "helpfulness", "safety")


class GoldResponses(Judge):
    """Ratings of experts out of a CSV or JSONL file; which of two responses is better follows from them.

    YAML::

        gold: {class_path: safe_rlhf_v.construct.GoldResponses, init_args: {file: experts.csv}}
    """

    def __init__(self, file: str, families: Sequence[str] = ()) -> None:
        """Name the file.

        Args:
            file: One row for each rated response, with the columns question, response, helpfulness (0..3), safety (-3..3; both
                may be empty) and, if one question is asked about several images, image (SHA-256 of the image file).
            families: Families of models that helped with the ratings.
        """
        self.file = file
        self.families = tuple(families)
        self._ratings: dict[tuple[str, str, str], dict[str, float]] | None = None

    def score(self, record: Record, text: str) -> dict[str, float]:
        if self._ratings is None:
            self._ratings = self._read()
        image = record.images[0].sha256 if record.images else ""
        unknown = {"helpfulness": math.nan, "level": math.nan}
        return self._ratings.get(
            (image, record.question, text), self._ratings.get(("", record.question, text), unknown)
        )

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        return file_content(self.file)

    def _read(self) -> dict[tuple[str, str, str], dict[str, float]]:
        file = Path(self.file)
        ratings: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in read_table(file, _COLUMNS, required=("question", "response")):
            question = row.text("question")
            response = row.text("response")
            image = row.text("image") or ""
            values = {"helpfulness": row.decimal("helpfulness"), "safety": row.integer("safety")}
            for axis, (low, high) in RANGES.items():
                value = values[axis]
                if value is not None and not low <= value <= high:
                    row.bad(axis, f"{value:g} is outside {low}..{high}")
            if not row.problems and (question is None or response is None):
                row.bad("question" if question is None else "response", "is empty")
            if not row.problems and (image, str(question), str(response)) in ratings:
                row.bad("response", "is rated twice; keep one row")
            if row.problems:
                column, problem = row.problems[0]
                raise TableError(f"{file}, row {row.number}, {column or 'row'}: {problem}")
            named = {"helpfulness": values["helpfulness"], "level": values["safety"]}
            ratings[image, str(question), str(response)] = {
                name: math.nan if value is None else float(value) for name, value in named.items()
            }
        return ratings
