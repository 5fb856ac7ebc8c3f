"""What every judge says of every response; of the same responses beside other pictures; and the audit of a random sample."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.stage import add_usage
from safe_rlhf_v.evaluation.evidence import HEADLINES
from safe_rlhf_v.evaluation.prompts import PromptForm
from safe_rlhf_v.evaluation.work import Work, described, font_of, named
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import digest
from safe_rlhf_v.scoring.judge import Asked, Axis, Judge, Usage

NAMES: dict[Axis, str] = {"helpfulness": "helpfulness", "safety": "level"}


class Verdict(NamedTuple):
    """What a judge says of one response.

    Attributes:
        values: Scores by name; ``None`` where one does not apply or is not known.
        fault: ``missing`` (there is no response), ``unknown`` (one of the scores
            :data:`~safe_rlhf_v.evaluation.evidence.HEADLINES` is not known), or the fault of
            an :class:`~safe_rlhf_v.scoring.judge.Opinion`.
        reply: The words of the judge.
        usage: What asking took.
    """

    values: Mapping[str, float | None]
    fault: str = ""
    reply: str = ""
    usage: Usage = Usage()


def write_scores(work: Work) -> None:
    """Let every judge score every response."""
    tasks = [score_task(name, row) for name in _scoring(work.judges) for row in work.rows("responses")]
    write_tasks(work, "scores", tasks, work.judges, {"judges": described(work.judges)})


def write_judge_pictures(work: Work) -> None:
    """Let judges that look at pictures score the sampled responses of some prompts as :attr:`Work.pictures` shows them, too.

    The lines hold what the judge saw; what it said beside the real picture stands among the scores.
    """
    judges = {name: judge for name, judge in work.judges.items() if judge.reads_pictures}
    pictures = [picture for picture in work.pictures if picture != "real"]
    chosen = {picture: {(one.split, one.key) for one in work.prompts.under(picture)} for picture in pictures}
    rows = [row for row in work.rows("responses") if (row["mode"], row["picture"]) == ("sampled", "real")]
    tasks = [
        {**score_task(name, row), "picture": picture}
        for name in _scoring(judges)
        for picture in pictures
        for row in rows
        if (row["split"], row["key"]) in chosen[picture]
    ]
    write_tasks(work, "judge_pictures", tasks, judges, {"judges": described(judges), **font_of(work)}, beside=True)


def _scoring(judges: Mapping[str, Judge]) -> list[str]:
    """Judges that score single responses; the others only compare."""
    return [name for name, judge in judges.items() if judge.by_scores or judge.rates]


def score_task(judge: str, row: Row) -> Row:
    """What a judge is to score: the response of a line, by its hash.

    Args:
        judge: Name of the judge.
        row: Line of ``responses.jsonl``.
    """
    about = {name: row[name] for name in ("policy", "split", "mode", "picture", "key")}
    return {"judge": judge, **about, "of": digest([row["task"], row["response"], row["fault"]])}


def write_tasks(
    work: Work, file: str, tasks: Sequence[Row], judges: Mapping[str, Judge], settings: Row, beside: bool = False
) -> None:
    """Score responses, judge by judge.

    Args:
        work: The evaluation.
        file: Name of the lines.
        tasks: Which responses, by which judges.
        judges: By name.
        settings: What the lines depend on.
        beside: Whether the picture of a task is what the judge sees; else it is what the policy saw, and judges see the real one.
    """
    texts = {
        (row["policy"], row["split"], row["mode"], row["picture"], row["key"]): row for row in work.rows("responses")
    }

    def do(batch: Sequence[Row]) -> list[Row]:
        rows: list[Row] = []
        for name, several in itertools.groupby(batch, lambda task: str(task["judge"])):
            group = list(several)
            for other, judge in judges.items():
                if other != name:
                    judge.unload()
            items: list[tuple[Record, Row]] = []
            for task in group:
                seen: PromptForm = task["picture"] if beside else "real"
                source = "real" if beside else task["picture"]
                row = texts[task["policy"], task["split"], task["mode"], source, task["key"]]
                items.append((work.prompts.record(task["split"], task["key"], seen), row))
            with named(f"judges.{name}"):
                new = verdicts(judges[name], items)
            rows += [_row(task, one) for task, one in zip(group, new, strict=True)]
        return rows

    try:
        work.write(file, tasks, settings, do)
    finally:
        for judge in judges.values():
            judge.unload()


def verdicts(judge: Judge, items: Sequence[tuple[Record, Row]]) -> list[Verdict]:
    """One verdict on each response, in order.

    Args:
        judge: The judge.
        items: Prompts as the judge sees them, and lines of responses.

    Raises:
        ValueError: If what the judge gives is not what a judge gives.
    """
    pairs = [(record, str(row["response"])) for record, row in items if not row["fault"]]
    new = iter((_by_scores if judge.by_scores else _by_asking)(judge, pairs) if pairs else ())
    return [Verdict({}, "missing") if row["fault"] else next(new) for _, row in items]


def _by_scores(judge: Judge, pairs: Sequence[tuple[Record, str]]) -> list[Verdict]:
    scores = judge.scores(pairs)
    if len(scores) != len(pairs):
        raise ValueError(f"gave {len(scores)} scores for {len(pairs)} responses")
    several: list[Verdict] = []
    for (record, _), one in zip(pairs, scores, strict=True):
        if not isinstance(one, Mapping):
            raise ValueError(f"gave {one!r:.60} for record {record.key}, not scores by name")
        values = {str(key): _number(record.key, str(key), value) for key, value in one.items()}
        unknown = any(values.get(headline, 0.0) is None for headline in HEADLINES)
        several.append(Verdict(values, "unknown" if unknown else ""))
    return several


def _number(record: str, name: str, value: Any) -> float | None:
    """A score as it is stored: ``None`` for NaN and infinity. Raises: ValueError: If it is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the score {name!r} of record {record} is no number: {value!r:.60}") from None
    return round(number, 6) if math.isfinite(number) else None


def _by_asking(judge: Judge, pairs: Sequence[tuple[Record, str]]) -> list[Verdict]:
    questions = [Asked(record, (text,), axis) for record, text in pairs for axis in judge.axes]
    answered = judge.ask(questions)
    if len(answered) != len(questions):
        raise ValueError(f"gave {len(answered)} opinions on {len(questions)} questions")
    opinions = iter(answered)
    several: list[Verdict] = []
    for _ in pairs:
        own = {axis: next(opinions) for axis in judge.axes}
        values: dict[str, float | None] = {NAMES[axis]: opinion.value for axis, opinion in own.items()}
        if "level" in values:
            level = values["level"]
            values["harmful"] = None if level is None else float(level < 0)
        fault = next((opinion.fault or "unknown" for opinion in own.values() if opinion.value is None), "")
        reply = "\n---\n".join(opinion.reply for opinion in own.values() if opinion.reply)
        total = add_usage([opinion.usage for opinion in own.values()]).get("usage", (0, 0, 0.0))
        several.append(Verdict(values, fault, reply, Usage(int(total[0]), int(total[1]), total[2])))
    return several


def _row(task: Row, verdict: Verdict) -> Row:
    about = {name: task[name] for name in ("judge", "policy", "split", "mode", "picture", "key")}
    reply = {"reply": verdict.reply} if verdict.reply else {}
    return {**about, "values": dict(verdict.values), "fault": verdict.fault, **reply, **add_usage([verdict.usage])}
