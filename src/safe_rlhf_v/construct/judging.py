"""Judging: every judge says of every pair which response is better on each axis, in both orders, and rates each response.

On a share of the pairs it is asked more, with known right answers: to compare a response with itself, and with itself and a
sentence said again; the same question once more; and a rating beside another picture. The audit reads these.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from safe_rlhf_v.construct.grounding import other_pictures
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.construct.responses import Pair, read_pairs
from safe_rlhf_v.construct.stage import AskingStage, Planned, Workspace, add_usage
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import digest
from safe_rlhf_v.scoring.judge import Asked, Axis, Judge, Opinion

Probe = Literal["compare", "rate", "repeat", "repeat_rate", "identical", "padded", "swapped"]
"""What is asked. ``rate`` and ``compare`` make labels; the others are asked on a share of the pairs and make none."""
_ENDS = ".!?\u3002\uff01\uff1f"
"""What sentences end with."""


class Judgement(NamedTuple):
    """One stored opinion.

    Attributes:
        pair: Key of the pair.
        judge: Name of the judge.
        probe: What was asked.
        axis: On which axis.
        order: Numbers of the responses in the order shown; 2 is the first response with a sentence said again.
        value: Rating of one response, or 1, -1 or 0 of two as an opinion has it; ``None`` without a label.
        reply: The judge's own words.
        fault: Why there is no value.
    """

    pair: str
    judge: str
    probe: Probe
    axis: Axis
    order: tuple[int, ...]
    value: float | None
    reply: str
    fault: str


class JudgeResponses(AskingStage):
    """Asks every judge about every pair.

    YAML::

        class_path: safe_rlhf_v.construct.JudgeResponses
        init_args:
          judges:
            qwen:
              class_path: safe_rlhf_v.construct.EndpointJudge
              init_args: {endpoint: {model: qwen2.5-vl-7b, base_url: http://127.0.0.1:8000/v1}}
            reward: {class_path: safe_rlhf_v.construct.RewardJudge, init_args: {run: runs/mine/reward}}
    """

    name = "judgements"

    def __init__(
        self,
        judges: dict[str, Judge],
        probes: float = 0.25,
        on_failure: Literal["stop", "keep"] = "stop",
        batch_size: int = 16,
    ) -> None:
        """Choose the judges.

        Args:
            judges: Judges by name; the name stands in the audit.
            probes: Share of the pairs on which every judge is tested.
            on_failure: Where no reply came: stop, so that a later run asks again, or keep no label.
            batch_size: Pairs at a time.
        """
        if not judges:
            raise ValueError("judges: name at least one")
        if not 0 <= probes <= 1:
            raise ValueError(f"probes is {probes}; it is a share, 0..1")
        self.judges = judges
        self.probes = probes
        self.on_failure = on_failure
        self.batch_size = batch_size

    def tasks(self, work: Workspace) -> list[Row]:
        self._pairs = read_pairs(work).usable
        self._items = read_items(work)
        others = other_pictures(self._items, work.seed, same_category=False)
        return [
            {"judge": judge, "pair": key, "responses": digest(pair.texts), "prompt": self._prompt(pair), **probe}
            for judge in self.judges
            for key, pair in self._pairs.items()
            for probe in ({"probed": True, "other": others[pair.item.key]} if self._probed(work, key) else {},)
        ]

    def _prompt(self, pair: Pair) -> str:
        return digest([pair.item.question, pair.item.image["sha256"]])

    def _probed(self, work: Workspace, key: str) -> bool:
        return random.Random(f"{work.seed}/probe/{key}").random() < self.probes

    def do(self, work: Workspace, tasks: Sequence[Row]) -> list[Row]:
        rows: list[Row] = []
        for name, group in itertools.groupby(tasks, lambda task: str(task["judge"])):
            asked = [self._questions(work, task) for task in group]
            opinions = iter(self.judges[name].ask([one.asked for several in asked for one in several]))
            for several in asked:
                answered = opinion_row(several, [next(opinions) for _ in several])
                rows.append({"judge": name, "pair": several[0].pair, **answered})
        return rows

    def _questions(self, work: Workspace, task: Row) -> list["Question"]:
        pair = self._pairs[task["pair"]]
        record = pair.item.record(work)
        other = self._items[task["other"]].record(work) if task.get("other") else None
        judge = self.judges[task["judge"]]
        return questions(judge, pair.key, pair.texts, record, bool(task.get("probed")), other, rated=judge.rates)

    def summary(self, work: Workspace) -> dict[str, Any]:
        opinions = read_opinions(work)
        faults = Counter(opinion.fault for opinion in opinions if opinion.fault)
        return {"opinions": len(opinions), **faults}

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        pairs = counts.get("pairs", 0)
        plans: list[Planned] = []
        for name, judge in self.judges.items():
            who = f"{name} ({type(judge).__name__})"
            axes = len(judge.axes)
            plans.append(Planned(self.name, who, "comparisons, both orders and every axis", 2 * axes * pairs))
            if judge.rates:
                plans.append(Planned(self.name, who, "ratings of every response on every axis", 2 * axes * pairs))
            most = axes * (4 + 2 * judge.rates) * math.ceil(self.probes * pairs)
            plans.append(Planned(self.name, who, f"probes, of about {self.probes:.0%} of the pairs", most))
        return plans


class Question(NamedTuple):
    """One question about a pair.

    Attributes:
        pair: Key of the pair.
        probe: Why it is asked.
        order: Numbers of the responses in the order shown.
        asked: What the judge is asked.
    """

    pair: str
    probe: Probe
    order: tuple[int, ...]
    asked: Asked


def questions(
    judge: Judge, key: str, pair: tuple[str, str], record: Record, probed: bool, other: Record | None, rated: bool
) -> list[Question]:
    """Everything that a judge is asked about a pair, always in the same order.

    Args:
        judge: The judge.
        key: Of the pair.
        pair: Both responses.
        record: Its prompt.
        probed: Whether the judge is tested on it, too.
        other: A record with another picture, for the test.
        rated: Whether it rates each response, too.
    """
    texts = (*pair, padded(pair[0]))
    exchanged = None if other is None else replace(record.with_images(other.images), truth=other.truth)
    asked: list[Question] = []
    for axis in judge.axes:

        def put(probe: Probe, *order: int, draw: int = 0, prompt: Record = record, axis: Axis = axis) -> None:
            question = Asked(prompt, tuple(texts[i] for i in order), axis, draw)
            asked.append(Question(key, probe, order, question))

        put("compare", 0, 1)
        put("compare", 1, 0)
        if rated:
            put("rate", 0)
            put("rate", 1)
        if not probed:
            continue
        put("repeat", 0, 1, draw=1)
        put("identical", 0, 0)
        put("padded", 0, 2)
        put("padded", 2, 0)
        if rated:
            put("repeat_rate", 0, draw=1)
        if rated and exchanged is not None:
            put("swapped", 0, draw=2, prompt=exchanged)
    return asked


def opinion_row(asked: Sequence[Question], opinions: Sequence[Opinion]) -> Row:
    """The opinions of one judge about one pair, as a part of a row.

    Args:
        asked: What the judge was asked.
        opinions: What it said.
    """
    row: Row = {"opinions": []}
    for question, opinion in zip(asked, opinions, strict=True):
        about = {"probe": question.probe, "axis": question.asked.axis, "order": list(question.order)}
        words = {"reply": opinion.reply} if opinion.reply else {}
        fault = {"fault": opinion.fault} if opinion.fault else {}
        row["opinions"].append({**about, "value": opinion.value, **words, **fault})
        if opinion.fault == "failed":
            row |= {"fault": "failed", "reply": opinion.reply}
    return row | add_usage([opinion.usage for opinion in opinions])


def padded(text: str) -> str:
    """The text with its first sentence said once more at the end: longer, with nothing new."""
    text = text.strip()
    first = re.match(rf".*?[{_ENDS}](?=\s|$)", text, re.DOTALL)
    return f"{text}{'' if text.endswith(tuple(_ENDS)) else '.'} {first[0] if first else text}"


def read_opinions(work: Workspace) -> list[Judgement]:
    """Every stored opinion."""
    return opinions_in(work.rows("judgements"))


def opinions_in(rows: Iterable[Row]) -> list[Judgement]:
    """The opinions in rows of :class:`JudgeResponses`."""
    return [
        Judgement(
            row["pair"],
            row["judge"],
            one["probe"],
            one["axis"],
            tuple(one["order"]),
            one["value"],
            one.get("reply", ""),
            one.get("fault", ""),
        )
        for row in rows
        for one in row["opinions"]
    ]
