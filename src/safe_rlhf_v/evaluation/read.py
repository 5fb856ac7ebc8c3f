"""What an evaluation left, read again: one row for each prompt, with the response and every value that there is of it."""

import math
from collections.abc import Iterable
from pathlib import Path

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.evaluation.scores import score_task
from safe_rlhf_v.records.parsing import RecordError, parse_json
from safe_rlhf_v.records.user_files import digest, printable, read_bounded

FACTS = "evaluation.json"
MAX_FACTS = 10_000_000


def check_evaluation(folder: Path) -> None:
    """Refuse a folder in which no evaluation stands.

    Args:
        folder: Of a finished evaluation.

    Raises:
        ValueError: If it is missing, no folder, of something else, or its evaluation is not finished.
    """
    responses = Lines(folder, "responses")
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "there is no such folder"
        raise ValueError(f"{printable(folder)}: {problem}; name the one that evaluate wrote")
    if not responses.path.exists():
        raise ValueError(f"{printable(folder)}: there is no {responses.path.name}; run evaluate first")
    for lines in (responses, Lines(folder, "scores")):
        if lines.path.exists() and not lines.finished:
            raise ValueError(f"{lines.path}: is not finished; run the same evaluate command again, which goes on")


def check_scores(folder: Path, responses: Iterable[Row], scores: Iterable[Row]) -> None:
    """Refuse scores of other responses than those that stand there now.

    Args:
        folder: Of the evaluation, for the message.
        responses: Lines of the responses.
        scores: Lines of scores, or of the audit, of these responses.

    Raises:
        ValueError: If a line belongs to none of the responses: they were written anew, and the scores were not.
    """
    place = ("policy", "split", "mode", "picture", "key")
    of_place = {tuple(row[name] for name in place): row for row in responses}
    for score in scores:
        row = of_place.get(tuple(score[name] for name in place))
        if row is None or digest(score_task(score["judge"], row)) != score["task"]:
            raise ValueError(
                f"{folder}: scores or audit are not those of the responses that stand there ({score['policy']}, prompt "
                f"{score['key']}, by {score['judge']}); run evaluate again"
            )


def audit_rows(folder: Path) -> list[Row]:
    """Lines of the audit; none if the evaluation had no audit, or nobody has rated anything yet.

    Args:
        folder: Of a finished evaluation.

    Raises:
        ValueError: If the audit is not finished.
    """
    lines = Lines(folder, "audit")
    facts = folder / FACTS
    about = read_json(facts, MAX_FACTS).get("audit") if facts.exists() else {}
    if about is None or not about.get("done", lines.path.exists()):
        return []
    if not lines.path.exists():
        raise ValueError(f"{lines.path}: is not there; run the same evaluate command again, which goes on")
    return lines.rows()


def read_json(file: Path, limit: int) -> Row:
    """The object that stands in a JSON file.

    Args:
        file: The file.
        limit: Most bytes.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        return parse_json(read_bounded(file, limit), file.name, limit)
    except RecordError as error:
        raise ValueError(f"{file}: {error.problem}") from None


def response_rows(folder: Path, policy: str, split: str = "test", mode: str = "sampled") -> list[Row]:
    """``key``, ``response`` and named values, in stored order; NaN where a value is not known.

    Of values with one name those of the first judge are taken, in the order in which the judges are named.

    Args:
        folder: Of a finished evaluation.
        policy: Name of the policy.
        split: Which prompts.
        mode: How the responses were drawn.

    Raises:
        ValueError: If the evaluation is not finished, or holds no such responses.
    """

    def lines(name: str) -> list[Row]:
        place = (policy, split, mode, "real")
        return [
            row
            for row in Lines(folder, name).rows()
            if (row["policy"], row["split"], row["mode"], row["picture"]) == place
        ]

    check_evaluation(folder)
    responses = lines("responses")
    scores = lines("scores")
    check_scores(folder, responses, scores)
    rows: dict[str, Row] = {}
    for row in responses:
        rows[row["key"]] = {"key": row["key"], "response": row["response"], **row["values"]}
    for row in scores:
        rows[row["key"]] = {**row["values"], **rows[row["key"]]}
    if not rows:
        raise ValueError(f"{folder}: holds no responses of {policy} to {split} in the mode {mode}")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return [{name: math.nan if row.get(name) is None else row[name] for name in names} for row in rows.values()]
