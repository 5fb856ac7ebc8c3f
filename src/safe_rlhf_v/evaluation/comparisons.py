"""Every policy against the start, prompt by prompt: by every judge, on every axis, in both orders.

Judges that score compare by their scores, and nobody is asked again. The others are asked; on a share of the pairs they are
tested, too, as in the construction of data (:mod:`safe_rlhf_v.construct.judging`). Two equal responses are a tie by definition,
and no judge is asked about them.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence

from safe_rlhf_v.construct.judging import Question, opinion_row, questions
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.work import Work, described, named
from safe_rlhf_v.records.user_files import digest
from safe_rlhf_v.scoring.judge import Judge

ORDERS = ((0, 1), (1, 0))
Name = tuple[str, str, str, str]
"""Policy, split, mode and key of a response beside its real picture."""


def write_comparisons(work: Work, probes: float) -> None:
    """Compare; without a start nothing is written.

    Args:
        work: The evaluation.
        probes: Share of the pairs on which judges are tested that are asked.
    """
    if work.start is None:
        return
    texts = {_name(row): row for row in work.rows("responses") if row["picture"] == "real"}
    scores = {
        (row["judge"], *_name(row)): row["values"]
        for row in work.rows("scores")
        if row["picture"] == "real" and not row["fault"]
    }
    fixed = not work.policies[work.start].samples
    tasks = [
        {
            "judge": name,
            **about,
            "of": digest([texts[one][part] for one in _names(about, fixed) for part in ("task", "response")]),
        }
        for name, judge in work.judges.items()
        if judge.axes
        for about in _pairs(work, texts, fixed)
    ]

    def do(batch: Sequence[Row]) -> list[Row]:
        rows: list[Row] = []
        for judge, several in itertools.groupby(batch, lambda task: str(task["judge"])):
            group = list(several)
            names = [_names(task, fixed) for task in group]
            pairs = [(str(texts[first]["response"]), str(texts[second]["response"])) for first, second in names]
            if work.judges[judge].by_scores:
                both = [tuple(scores.get((judge, *name)) for name in two) for two in names]
                rows += [_by_scores(work.judges[judge], *one) for one in zip(group, pairs, both, strict=True)]
            else:
                with named(f"judges.{judge}"):
                    rows += _by_asking(work, work.judges[judge], group, pairs, probes)
        return rows

    work.write("comparisons", tasks, {"judges": described(work.judges), "probes": probes}, do)


def _pairs(work: Work, texts: Mapping[Name, Row], fixed: bool) -> Iterator[Row]:
    """What is compared; a start with fixed texts is compared with every mode of a policy."""
    for policy, split, mode, key in texts:
        if policy == work.start:
            continue
        for name in (mode, f"matched:{policy}") if mode == "sampled" else (mode,):
            about = {"policy": policy, "against": work.start, "split": split, "mode": name, "key": key}
            names = _names(about, fixed and name == mode)
            if names[1] in texts and not any(texts[one]["fault"] for one in names):
                yield about


def _names(about: Row, fixed: bool) -> tuple[Name, Name]:
    """The policy's response and the start's."""
    mode = str(about["mode"])
    own = "sampled" if mode.startswith("matched:") else mode
    theirs = "sampled" if fixed else mode
    return (about["policy"], about["split"], own, about["key"]), (
        about["against"],
        about["split"],
        theirs,
        about["key"],
    )


def _name(row: Row) -> Name:
    return row["policy"], row["split"], row["mode"], row["key"]


def _about(task: Row) -> Row:
    return {name: task[name] for name in ("judge", "policy", "against", "split", "mode", "key")}


def _tie(judge: Judge) -> Row:
    """The opinions on two equal responses."""
    return {
        "opinions": [
            {"probe": "compare", "axis": axis, "order": list(order), "value": 0.0}
            for axis in judge.axes
            for order in ORDERS
        ]
    }


def _by_scores(
    judge: Judge, task: Row, texts: tuple[str, str], scores: tuple[Mapping[str, float | None] | None, ...]
) -> Row:
    """What follows from the scores; both orders say the same."""
    if texts[0] == texts[1]:
        return {**_about(task), **_tie(judge)}
    first, second = ({name: math.nan if v is None else v for name, v in (one or {}).items()} for one in scores)
    opinions: list[Row] = []
    for axis in judge.axes:
        value = judge.compared(axis, first, second) if first and second else None
        for order in ORDERS:
            signed = value if value is None or order == (0, 1) else -value
            fault = {"fault": "unknown"} if value is None else {}
            opinions.append({"probe": "compare", "axis": axis, "order": list(order), "value": signed, **fault})
    return {**_about(task), "opinions": opinions}


def _by_asking(
    work: Work, judge: Judge, tasks: Sequence[Row], pairs: Sequence[tuple[str, str]], probes: float
) -> list[Row]:
    """What the judge says."""
    asked = [_questions(work, judge, task, texts, probes) for task, texts in zip(tasks, pairs, strict=True)]
    opinions = iter(judge.ask([one.asked for several in asked for one in several]))
    rows: list[Row] = []
    for task, several in zip(tasks, asked, strict=True):
        answers = [next(opinions) for _ in several]
        rows.append({**_about(task), **(opinion_row(several, answers) if several else _tie(judge))})
    return rows


def _questions(work: Work, judge: Judge, task: Row, texts: tuple[str, str], probes: float) -> list[Question]:
    if texts[0] == texts[1]:
        return []
    place = (task["split"], task["key"])
    probed = random.Random(f"{work.seed}/probe/{'/'.join(place)}").random() < probes
    other = work.prompts.record(*place, "other") if probed else None
    record = work.prompts.record(*place)
    return questions(judge, task["key"], texts, record, probed, other, rated=judge.rates and probed)
