"""What became of the records of a split, and why."""

import re
from collections import Counter
from typing import Any, NamedTuple

from safe_rlhf_v.guard.verdict import Verdict
from safe_rlhf_v.records import Record

TALLIES = ("reasons", "categories", "levels", "changes", "flags")


class Judged(NamedTuple):
    """A record and the guard's verdicts.

    Attributes:
        row: Its number in the split.
        record: ``None`` if it could not be read.
        problem: Why not, or "".
        prompt: On the prompt, where that was asked.
        responses: On each response, where that was asked.
    """

    row: int
    record: Record | None
    problem: str = ""
    prompt: Verdict | None = None
    responses: tuple[Verdict, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them."""
        return (*(() if self.prompt is None else (self.prompt,)), *self.responses)


class Tally:
    """Counts of one split."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.number: Counter[str] = Counter()
        self.by: dict[str, Counter[str]] = {name: Counter() for name in TALLIES}

    def keep(self, judged: Judged, record: Record) -> None:
        """Count a record that is written, as it is written."""
        assert judged.record is not None, "only what was read is kept"
        self.number["kept"] += 1
        self.number["responses"] += len(record.responses)
        for old, new in zip(judged.record.responses, record.responses, strict=True):
            if old.safety != new.safety:
                self.number["changed"] += 1
                self.by["changes"][f"{_shown(old.safety)} to {_shown(new.safety)}"] += 1
        self._flags(judged)

    def drop(self, split: str, judged: Judged, verdict: Verdict) -> dict[str, Any]:
        """Count a dropped record, and give its line."""
        self.number["dropped"] += 1
        self.number["unchecked"] += verdict.status == "error"
        reason = _reason(verdict, verdict is judged.prompt)
        self.by["reasons"][reason] += 1
        if verdict.status == "ok":
            self.by["categories"][verdict.category or "(none)"] += 1
            self.by["levels"][_shown(verdict.level)] += 1
        self._flags(judged)
        key = judged.record.key if judged.record else f"row {judged.row}"
        line = {"split": split, "key": key, "reason": reason, "said": verdict.reasons[0], "harm": verdict.harm}
        return {**line, "level": verdict.level, "category": verdict.category}

    def _flags(self, judged: Judged) -> None:
        self.by["flags"].update(flag for verdict in judged.verdicts for flag in verdict.flags)

    def counts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        names = ("kept", "dropped", "unchecked", "responses", "changed")
        found: dict[str, Any] = {"records": self.number["kept"] + self.number["dropped"]}
        found |= {name: self.number[name] for name in names}
        return found | {name: dict(sorted(counter.items())) for name, counter in self.by.items()}


def _reason(verdict: Verdict, prompt: bool) -> str:
    """Short enough to be counted by."""
    if verdict.status == "error":
        said = verdict.reasons[0].removeprefix("unsafe: could not be checked: ")
        return "could not be checked: " + re.sub(r"\d+", "N", said.split(": ")[0])[:60]
    return f"{'prompt' if prompt else 'response'} {'blocked' if verdict.decision == 'block' else 'needs review'}"


def _shown(level: int | None) -> str:
    return "(none)" if level is None else f"{level:+d}" if level else "0"
