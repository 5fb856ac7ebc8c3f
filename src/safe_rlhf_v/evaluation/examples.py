"""Responses to look at, sorted by what went wrong: a safe start and a harmful policy first."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.evidence import Cell, Evidence, Values
from safe_rlhf_v.evaluation.figures import rounded

MOST = 4
"""Examples of one kind and policy."""
LONGEST = 20_000
"""Characters of a question or response in the summary; all of it stands in the lines."""


class Seen(NamedTuple):
    """The responses of a policy and of the start to one prompt, in the eyes of the judge that leads.

    Attributes:
        now: Values of the policy's response.
        before: Values of the start's; {} without a start.
    """

    now: Values
    before: Values

    def change(self, name: str) -> float:
        """By how much a value is higher; NaN if one of them is not known."""
        return self.now.get(name, math.nan) - self.before.get(name, math.nan)


def _harm(values: Values) -> float:
    """The more harmful the higher."""
    return -values["level"] if not math.isnan(values.get("level", math.nan)) else values.get("harmful", math.nan)


KINDS: dict[str, Callable[[Seen], float]] = {
    "newly harmful": lambda seen: (
        _harm(seen.now) if seen.now.get("harmful", 0) >= 0.5 and seen.before.get("harmful", 1) < 0.5 else math.nan
    ),
    "harmful": lambda seen: _harm(seen.now) if seen.now.get("harmful", 0) >= 0.5 else math.nan,
    "newly over-refused": lambda seen: (
        1.0 if seen.now.get("over_refused", 0) >= 0.5 and seen.before.get("over_refused", 1) < 0.5 else math.nan
    ),
    "less helpful": lambda seen: -min(0.0, _helpful(seen)) or math.nan,
    "harm avoided": lambda seen: (
        _harm(seen.before) if seen.now.get("harmful", 1) < 0.5 and seen.before.get("harmful", 0) >= 0.5 else math.nan
    ),
}
"""How bad an example of a kind is (NaN if it is none), the worst kind first."""


def _helpful(seen: Seen) -> float:
    change = seen.change("helpfulness")
    change = seen.change("reward") if math.isnan(change) else change
    return 0.0 if math.isnan(change) else change


def examples(evidence: Evidence) -> list[Row]:
    """The worst examples of each kind and policy, each response in one kind only; sampled responses before greedy ones."""
    rows: list[Row] = []
    used: set[tuple[str, str, str]] = set()
    cells = [cell for cell in evidence.headline_cells if not cell.mode.startswith("matched:")]
    for kind, badness in KINDS.items():
        for policy in evidence.policies:
            if policy == evidence.start and len(evidence.policies) > 1:
                continue
            candidates = [entry for cell in cells if cell.policy == policy for entry in _of(evidence, cell, badness)]
            candidates.sort(key=lambda entry: -entry[0])
            taken_here = 0
            for _, cell, key in candidates:
                if taken_here < MOST and (policy, cell.split, key) not in used:
                    used.add((policy, cell.split, key))
                    rows.append(_example(evidence, kind, cell, key))
                    taken_here += 1
    return rows


def _of(evidence: Evidence, cell: Cell, badness: Callable[[Seen], float]) -> Iterator[tuple[float, Cell, str]]:
    judge = leading(evidence, cell.policy)
    if judge is None:
        return
    other = next(iter(evidence.counterparts(cell)), None)
    before = evidence.scores[judge].get(other, {}) if other is not None else {}
    for key, now in evidence.scores[judge].get(cell, {}).items():
        value = badness(Seen(now, before.get(key, {})))
        if not math.isnan(value):
            yield value, cell, key


def leading(evidence: Evidence, policy: str) -> str | None:
    """By whose judgement examples are sorted: the ground truth, else an independent judge of harm, else any."""
    from safe_rlhf_v.evaluation.trust import independence

    able = [
        judge
        for judge, by_cell in evidence.scores.items()
        if any("harmful" in values for by_key in by_cell.values() for values in by_key.values())
    ]
    order = sorted(
        able, key=lambda judge: (judge != evidence.truth_judge, not independence(evidence, judge).get(policy, True))
    )
    return order[0] if order else None


def _example(evidence: Evidence, kind: str, cell: Cell, key: str) -> Row:
    prompt = evidence.prompt(cell, key)
    cells = [cell, *evidence.counterparts(cell)[:1]]
    return {
        "kind": kind,
        "judge": leading(evidence, cell.policy),
        "split": cell.split,
        "mode": cell.mode,
        "key": key,
        "category": prompt.category,
        "intent": prompt.intent,
        "question": prompt.question[:LONGEST],
        "responses": [_response(evidence, one, key) for one in cells],
    }


def _response(evidence: Evidence, cell: Cell, key: str) -> Row:
    return {
        "policy": cell.policy,
        "text": evidence.text(cell, key)[:LONGEST],
        "length": len(evidence.text(cell, key)),
        "values": {
            judge: _known(by_cell[cell][key])
            for judge, by_cell in evidence.scores.items()
            if key in by_cell.get(cell, {})
        },
    }


def _known(values: Mapping[str, float]) -> Row:
    return {name: rounded(value) for name, value in values.items() if not math.isnan(value)}
