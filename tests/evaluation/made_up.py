"""A made-up evaluation with known answers: policies with known harm and helpfulness, judges with planted faults."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_v.construct.lines import Lines as File
from safe_rlhf_v.evaluation.evidence import Evidence, Lines
from safe_rlhf_v.evaluation.scores import score_task

CATEGORIES = ("arson", "self <b>harm</b>", "weapons")
HOSTILE = "<script>alert(1)</script> \N{RIGHT-TO-LEFT OVERRIDE} </p><img src=x onerror=alert(2)>"


def store(folder: Path, **files: Sequence[dict[str, Any]]) -> None:
    """Write lines as an evaluation does: those of scores and of the audit belong to the responses, which come first."""
    for name, rows in files.items():
        tasks: list[dict[str, Any]] = [{"row": i} for i in range(len(rows))]
        if name in ("scores", "audit"):
            own = {_place(row): row for row in File(folder, "responses").rows()}
            rows = [{"judge": "audit", "mode": "sampled", "picture": "real", **row} for row in rows]
            tasks = [score_task(row["judge"], own[_place(row)]) for row in rows]
        rest = iter(rows)
        if rows:
            File(folder, name).write(tasks, {}, 500, lambda some, rest=rest: [next(rest) for _ in some], lambda _: None)  # type: ignore[misc]


def _place(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("policy", "split", "mode", "picture", "key"))


@dataclass
class Simulated:
    """A judge.

    Attributes:
        errors: Share of its verdicts of harm that are wrong, and of its choices; by policy, "" for all others.
        position: Share of comparisons in which it takes the first response, whatever it is.
        length: Share of comparisons in which it takes the longer response, whatever it is.
        unreadable: Share of its replies that cannot be read.
        families: Its families.
        truth: Whether it is the ground truth.
    """

    errors: dict[str, float] = field(default_factory=dict)
    position: float = 0.0
    length: float = 0.0
    unreadable: float = 0.0
    families: tuple[str, ...] = ()
    truth: bool = False

    def wrong(self, policy: str) -> float:
        return self.errors.get(policy, self.errors.get("", 0.0))


@dataclass
class World:
    """What is evaluated.

    Attributes:
        harm: True share of harmful responses by policy; the first one is the start.
        help: True mean helpfulness by policy.
        judges: By name.
        prompts: How many.
        per_image: Prompts of one image.
        audited: Responses of each policy whose truth is known; 0 for no audit.
        modes: In which every policy is asked.
        pictures: What the policies see beside the real picture.
        seed: Of everything.
    """

    harm: dict[str, float]
    help: dict[str, float]
    judges: dict[str, Simulated]
    prompts: int = 200
    per_image: int = 2
    audited: int = 0
    modes: tuple[str, ...] = ("sampled", "greedy")
    pictures: tuple[str, ...] = ()
    seed: int = 0
    text: str = ""

    def about(self) -> dict[str, Any]:
        policies = [
            {"name": name, "class": "ModelPolicy", "about": f"runs/{name}", "families": ["tiny"], "samples": True}
            for name in self.harm
        ]
        judges = [
            {
                "name": name,
                "class": "SimulatedJudge",
                "about": "",
                "families": list(judge.families),
                "truth": judge.truth,
            }
            for name, judge in self.judges.items()
        ]
        audit = (
            {"name": "audit", "class": "PeopleRatings", "about": "", "samples": self.audited} if self.audited else None
        )
        return {
            "version": 1, "start": next(iter(self.harm)), "data": "data", "splits": ["test"], "budget": None,
            "audit": audit, "policies": policies, "judges": judges,
        }  # fmt: skip

    def evidence(self) -> Evidence:
        return Evidence(self.lines(), self.about())

    def lines(self) -> Lines:
        rng = np.random.default_rng(self.seed)
        keys = [f"k{i:04d}" for i in range(self.prompts)]
        prompts = [
            {"split": "test", "key": key, "group": f"image{i // self.per_image}", "category": CATEGORIES[i % 3],
             "intent": ("use", "describe")[i % 2], "question": f"How ? {self.text}", "image_severity": 0,
             "prompt_safety": -1 if i % 2 else 0}
            for i, key in enumerate(keys)
        ]  # fmt: skip
        lines = Lines([], [], [], [], prompts, [])
        truth: dict[tuple[str, ...], dict[str, float]] = {}
        image = rng.normal(0, 0.5, self.prompts // self.per_image + 1)
        for policy, harm in self.harm.items():
            for mode in self.modes:
                for picture in ("real", *self.pictures):
                    for i, key in enumerate(keys):
                        harmful = rng.random() < np.clip(harm + 0.2 * image[i // self.per_image] * harm, 0, 1)
                        blind = 1.0 if picture != "real" else 0.0
                        level = float(rng.integers(-3, 0) if harmful else rng.integers(0, 4))
                        helpful = self.help[policy] + rng.normal(0, 1) - blind
                        at = (policy, mode, picture, key)
                        truth[at] = {"harmful": float(harmful), "level": level, "helpfulness": round(helpful, 3)}
                        lines.responses.append(self._response(rng, *at))
                        for name, judge in self.judges.items():
                            lines.scores.append(self._score(rng, name, judge, truth[at], *at))
        self._audit(rng, lines, truth, keys)
        self._compare(rng, lines, truth, keys)
        return lines

    def _response(self, rng: Any, policy: str, mode: str, picture: str, key: str) -> dict[str, Any]:
        length = int(rng.integers(5, 40))
        text = f"{policy} {mode} {key} " + "word " * length + self.text
        values = {"length": float(length), "unfinished": 0.0, "kl": None if policy == "start" else 1.5}
        at = {"policy": policy, "split": "test", "mode": mode, "picture": picture, "key": key}
        return {**at, "response": text, "fault": "", "values": values}

    def _score(self, rng: Any, name: str, judge: Simulated, right: dict[str, float], *at: str) -> dict[str, Any]:
        policy, mode, picture, key = at
        row = {"judge": name, "policy": policy, "split": "test", "mode": mode, "picture": picture, "key": key}
        if rng.random() < judge.unreadable:
            return {**row, "values": {}, "fault": "unparsable", "reply": self.text}
        wrong = rng.random() < judge.wrong(policy)
        level = right["level"] if not wrong else (1.0 if right["level"] < 0 else -2.0)
        values = {"helpfulness": right["helpfulness"], "level": level, "harmful": float(level < 0)}
        return {**row, "values": values, "fault": "", "reply": ""}

    def _audit(self, rng: Any, lines: Lines, truth: Any, keys: list[str]) -> None:
        if self.audited:
            for policy in self.harm:
                for mode in self.modes:
                    for key in sorted(rng.choice(keys, self.audited, replace=False)):
                        at = {"policy": policy, "split": "test", "mode": mode, "key": str(key)}
                        lines.audit.append({**at, "values": truth[policy, mode, "real", key], "fault": ""})

    def _compare(self, rng: Any, lines: Lines, truth: Any, keys: list[str]) -> None:
        start, *others = self.harm
        responses = {(r["policy"], r["mode"], r["picture"], r["key"]): r["response"] for r in lines.responses}
        for name, judge in self.judges.items():
            for policy in others:
                for mode in self.modes:
                    for key in keys:
                        pair = [(p, mode, "real", key) for p in (policy, start)]
                        rows = self._opinions(
                            rng, judge, [truth[at] for at in pair], [responses[at] for at in pair], policy
                        )
                        about = {
                            "judge": name,
                            "policy": policy,
                            "against": start,
                            "split": "test",
                            "mode": mode,
                            "key": key,
                        }
                        lines.comparisons.append({**about, "opinions": rows})

    def _opinions(self, rng: Any, judge: Simulated, right: Any, texts: list[str], policy: str) -> list[dict[str, Any]]:
        rows = []
        for axis in ("helpfulness", "safety"):
            score = [one["helpfulness" if axis == "helpfulness" else "level"] for one in right]
            better = float(np.sign(score[0] - score[1]))
            better = -better if rng.random() < judge.wrong(policy) else better
            for order in ((0, 1), (1, 0)):
                sign = 1.0 if order == (0, 1) else -1.0
                value: float | None = sign * better
                if rng.random() < judge.position:
                    value = 1.0
                if rng.random() < judge.length:
                    value = sign * float(np.sign(len(texts[0]) - len(texts[1])))
                fault = "unparsable" if rng.random() < judge.unreadable else ""
                rows.append({"probe": "compare", "axis": axis, "order": list(order), "value": None if fault else value,
                             **({"fault": fault} if fault else {})})  # fmt: skip
            if rng.random() < 0.25:
                again = rows[-2]["value"]
                rows.append({"probe": "repeat", "axis": axis, "order": [0, 1], "value": again})
                rows.append(
                    {"probe": "identical", "axis": axis, "order": [0, 0], "value": float(rng.random() < judge.position)}
                )
                padded = float(rng.random() < judge.length)
                rows.append({"probe": "padded", "axis": axis, "order": [0, 2], "value": -padded})
                rows.append({"probe": "padded", "axis": axis, "order": [2, 0], "value": padded})
        return rows
