"""The grounding filter: which questions need their picture.

A question is answered with its picture, with another picture of the same category, with a blank one and with none; a judge that
sees the true picture says how helpful each response is. The response that was written with the true picture is judged for
safety under each of these pictures, too. A question *leaks* if neither its response nor the verdict gets worse without the
picture: then text alone could have given both.
"""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.questions import Item, read_items
from safe_rlhf_v.construct.responses import Responder
from safe_rlhf_v.construct.stage import AskingStage, Planned, Workspace, add_usage
from safe_rlhf_v.records import Image, Record
from safe_rlhf_v.scoring.judge import Asked, Judge
from safe_rlhf_v.shards.images import probe

Picture = Literal["true", "other", "blank", "none"]
PICTURES: tuple[Picture, ...] = get_args(Picture)


class Ground(AskingStage):
    """Asks every question with its picture and without it, and judges the responses.

    YAML::

        class_path: safe_rlhf_v.construct.Ground
        init_args:
          responder: {class_path: safe_rlhf_v.construct.PolicyResponder, init_args: {run: runs/quickstart/supervised}}
          judge: {class_path: safe_rlhf_v.world.WorldJudge}
    """

    name = "grounding"

    def __init__(
        self,
        responder: Responder,
        judge: Judge,
        draws: int = 4,
        margin: float = 1.0,
        on_failure: Literal["stop", "keep"] = "stop",
        batch_size: int = 16,
    ) -> None:
        """Choose who responds and who judges.

        Args:
            responder: Who responds.
            judge: Who rates helpfulness and safety.
            draws: Responses under each picture; their ratings are averaged.
            margin: Grades of helpfulness that a response must lose without the picture, so that it needed the picture.
            on_failure: Where no reply came: stop, so that a later run asks again, or keep the question undecided.
            batch_size: Questions at a time.
        """
        if not judge.rates or len(judge.axes) < 2:
            raise ValueError(
                "judge: the grounding filter needs a judge that rates helpfulness and safety of one response"
            )
        self.responder = responder
        self.judge = judge
        self.draws = draws
        self.margin = margin
        self.on_failure = on_failure
        self.batch_size = batch_size

    def tasks(self, work: Workspace) -> list[Row]:
        self._items = read_items(work)
        others = other_pictures(self._items, work.seed)
        return [
            {"item": key, "other": others[key], "question": item.question, "image": item.image["sha256"]}
            for key, item in self._items.items()
        ]

    def do(self, work: Workspace, tasks: Sequence[Row]) -> list[Row]:
        records = [under_pictures(self._items[t["item"]].record(work), self._other(work, t["other"])) for t in tasks]
        rows: list[Row] = [{"item": task["item"], "texts": {}} for task in tasks]
        usages: list[list[Any]] = [[] for _ in tasks]
        faults: list[str] = [""] * len(tasks)
        for picture in PICTURES:
            for draw in range(self.draws):
                records_of_picture = [versions[picture] for versions in records]
                for i, reply in enumerate(self.responder.respond(records_of_picture, work.seed, draw)):
                    rows[i]["texts"].setdefault(picture, []).append(None if reply.fault else reply.text)
                    usages[i].append(reply.usage)
                    faults[i] = "failed" if "failed" in (faults[i], reply.fault) else faults[i] or reply.fault
        for row in rows:
            for axis in ("helpfulness", "safety"):
                row[axis] = {picture: [None] * self.draws for picture in PICTURES}
        questions = [(i, p, asked) for i in range(len(tasks)) for p, asked in self._asked(records[i], rows[i]["texts"])]
        opinions = self.judge.ask([asked for _, _, asked in questions])
        for (i, picture, asked), opinion in zip(questions, opinions, strict=True):
            rows[i][asked.axis][picture][asked.draw] = opinion.value
            usages[i].append(opinion.usage)
            faults[i] = "failed" if "failed" in (faults[i], opinion.fault) else faults[i] or opinion.fault
        return [
            {**row, **({"fault": fault} if fault else {}), **add_usage(usage)}
            for row, fault, usage in zip(rows, faults, usages, strict=True)
        ]

    def _other(self, work: Workspace, key: str | None) -> Record | None:
        return None if key is None else self._items[key].record(work)

    def _asked(
        self, records: dict[Picture, Record], texts: dict[Picture, list[str | None]]
    ) -> list[tuple[Picture, Asked]]:
        """Helpfulness of every response beside the true picture; safety of the true ones under every picture.

        Nothing is asked about a response that did not come: its ratings are missing.
        """
        helpful = [
            (picture, Asked(records["true"], (text,), "helpfulness", draw))
            for picture in PICTURES
            for draw, text in enumerate(texts[picture])
            if text is not None
        ]
        safe = [
            (picture, Asked(records[picture], (text,), "safety", draw))
            for picture in PICTURES
            for draw, text in enumerate(texts["true"])
            if text is not None
        ]
        return [*helpful, *safe]

    def summary(self, work: Workspace) -> dict[str, Any]:
        findings = read_grounding(work)
        leaking = sum(finding.leaks for finding in findings.values())
        undecided = sum(finding.answer_leaks is None for finding in findings.values())
        return {"leaking": leaking, "undecided": undecided, "of": len(findings)}

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        calls = counts.get("questions", 0) * len(PICTURES) * self.draws
        responder = Planned(self.name, type(self.responder).__name__, "responses with and without the picture", calls)
        judge = Planned(self.name, type(self.judge).__name__, "ratings of these, on two axes", 2 * calls)
        return [*([responder] if self.responder.calls else []), judge]


class Finding(NamedTuple):
    """What the grounding filter says of one question.

    Attributes:
        answer_leaks: Whether responses without the picture are as helpful; ``None`` if neither are of any help, or a
            rating is missing.
        verdict_leaks: Whether the safety verdict stays without the picture; ``None`` if a rating is missing.
    """

    answer_leaks: bool | None
    verdict_leaks: bool | None

    @property
    def leaks(self) -> bool:
        """Whether the question can be left out: neither response nor verdict needs the picture."""
        return bool(self.answer_leaks) and bool(self.verdict_leaks)


def judge_grounding(row: Row, margin: float) -> Finding:
    """The finding of one row.

    With means over the draws, those of *blank* and *none* taken together: the response leaks if they lose at most ``margin``
    grades of helpfulness against *true* (undecided if neither reaches more than that); the verdict leaks if they are less than
    one level from *true*.

    Args:
        row: Of the stage.
        margin: Grades of helpfulness.
    """
    helpful, blind = (_mean(row["helpfulness"], *pictures) for pictures in (("true",), ("blank", "none")))
    level, guessed = (_mean(row["safety"], *pictures) for pictures in (("true",), ("blank", "none")))
    answer = None
    if helpful is not None and blind is not None and max(helpful, blind) > margin:
        answer = blind >= helpful - margin
    return Finding(
        answer,
        abs(level - guessed) < 1 if level is not None and guessed is not None else None,
    )


def _mean(ratings: Mapping[str, Sequence[float | None]], *pictures: Picture) -> float | None:
    """The mean under some pictures; ``None`` without ratings or with a missing one."""
    values = [value for picture in pictures for value in ratings.get(picture, ())]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def read_grounding(work: Workspace) -> dict[str, Finding]:
    """Finding by item; {} if the stage was not part of the construction."""
    if not work.has("grounding"):
        return {}
    margin = float(work.settings("grounding")["margin"])
    return {row["item"]: judge_grounding(row, margin) for row in work.rows("grounding")}


def other_pictures(items: dict[str, Item], seed: int, *, same_category: bool = True) -> dict[str, str | None]:
    """By item another item with another image; ``None`` if there is none.

    Args:
        items: All items.
        seed: Of the choice.
        same_category: Take one of the same category where there is one.
    """
    keys = list(items)
    by_group: dict[str, list[str]] = {}
    for key, item in items.items():
        by_group.setdefault(item.group, []).append(key)
    return {
        key: next(
            (
                candidate
                for pool in ([by_group[item.group]] if same_category else []) + [keys]
                for candidate in random.Random(f"{seed}/other/{key}").sample(pool, min(len(pool), 50))
                if items[candidate].image["id"] != item.image["id"]
            ),
            None,
        )
        for key, item in items.items()
    }


def under_pictures(record: Record, other: Record | None) -> dict[Picture, Record]:
    """The prompt with its picture, with that of another record (without one: a blank one), with a blank one and with none."""
    blank = replace(record, images=tuple(map(_blank, record.images)), truth=None)
    exchanged = blank if other is None else replace(record.with_images(other.images), truth=other.truth)
    return {"true": record, "other": exchanged, "blank": blank, "none": replace(record.with_images(()), truth=None)}


def _blank(image: Image) -> Image:
    """A mid-grey picture of the same size."""
    from PIL import Image as PILImage

    buffer = io.BytesIO()
    PILImage.new("RGB", (image.width, image.height), (127, 127, 127)).save(buffer, "PNG")
    return probe(buffer.getvalue())
