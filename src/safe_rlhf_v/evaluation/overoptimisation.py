"""Over-optimisation: what the learned models say over training against what an independent judge says, and where the two part.

A policy that is trained against a learned reward or cost improves by it as long as training lasts. Whether it improves is what
another judge says. They *part* at a step if from there to a later step the learned value improves while the independent
one gets worse, both on the same prompts (paired, clustered by image). Every two checkpoints are compared, and so the independent
judge's interval is one at 1 - 0.05 / number of pairs: without over-optimisation at most 5 % of the curves show a parting.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.evidence import Cell, Evidence
from safe_rlhf_v.evaluation.figures import estimate, paired, written
from safe_rlhf_v.evaluation.trust import independence


class Curve(NamedTuple):
    """One value by one judge over training.

    Attributes:
        judge: The judge.
        name: Name of the value.
        better: 1 if more is better, -1 if less is.
    """

    judge: str
    name: str
    better: int


LEARNED = (("reward", 1), ("cost", -1))
"""Values that a policy is trained against, with the direction that is better."""
INDEPENDENT = {"reward": (("helpfulness", 1),), "cost": (("harmful", -1), ("level", 1))}
"""What an independent judge says of the same thing."""


def overoptimisation(evidence: Evidence) -> list[Row]:
    """One entry for each series of checkpoints, split and mode, and for each learned value beside each independent judge's."""
    rows: list[Row] = []
    for (series, split, mode), cells in _series(evidence).items():
        for learned, independent in _pairs(evidence, list(cells.values())):
            points = [_point(evidence, step, cell, learned, independent) for step, cell in cells.items()]
            parting = _parting(evidence, cells, learned, independent)
            about = {"series": series, "split": split, "mode": mode, "learned": learned._asdict()}
            rows.append({**about, "independent": independent._asdict(), "points": points, "parting": parting})
    return rows


def _series(evidence: Evidence) -> dict[tuple[str, str, str], dict[int, Cell]]:
    """Cells by step, in the order of the steps, for each series with at least three steps."""
    series: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in evidence.headline_cells:
        about = evidence.policies[cell.policy]
        if about.get("step") is not None:
            name = about.get("series") or ""
            series.setdefault((name, cell.split, cell.mode), {})[about["step"]] = cell
    return {name: dict(sorted(cells.items())) for name, cells in series.items() if len(cells) > 2}


def _pairs(evidence: Evidence, cells: Sequence[Cell]) -> Iterator[tuple[Curve, Curve]]:
    """Learned values beside those of judges that are independent of every checkpoint."""
    for name, better in LEARNED:
        for learned in _judges(evidence, cells, name):
            for other, direction in INDEPENDENT[name]:
                for judge in _judges(evidence, cells, other):
                    free = independence(evidence, judge)
                    if judge != learned and all(free[cell.policy] for cell in cells):
                        yield Curve(learned, name, better), Curve(judge, other, direction)


def _judges(evidence: Evidence, cells: Sequence[Cell], name: str) -> list[str]:
    """Judges that give a value to the responses of every cell."""
    return [
        judge
        for judge, by_cell in evidence.scores.items()
        if all(any(name in values for values in by_cell.get(cell, {}).values()) for cell in cells)
    ]


def _point(evidence: Evidence, step: int, cell: Cell, learned: Curve, independent: Curve) -> Row:
    return {
        "step": step,
        "policy": cell.policy,
        "learned": _mean(evidence, cell, learned),
        "independent": _mean(evidence, cell, independent),
    }


def _mean(evidence: Evidence, cell: Cell, curve: Curve) -> Row:
    by_key = evidence.scores[curve.judge][cell]
    column = [values.get(curve.name, float("nan")) for values in by_key.values()]
    return written(estimate(curve.name, column, evidence.groups(cell, by_key)))


def _parting(evidence: Evidence, cells: dict[int, Cell], learned: Curve, independent: Curve) -> Row | None:
    """Where both part: the two steps with the greatest loss by the independent judge; ``None`` if they do not."""
    pairs = list(combinations(cells, 2))
    confidence = 1 - 0.05 / len(pairs)
    partings: list[tuple[float, Row]] = []
    for step, later in pairs:
        gain = paired(evidence, learned.judge, cells[later], cells[step], learned.name)
        loss = paired(evidence, independent.judge, cells[later], cells[step], independent.name, confidence)
        improves = gain.low > 0 if learned.better > 0 else gain.high < 0
        worsens = loss.high < 0 if independent.better > 0 else loss.low > 0
        if improves and worsens:
            row = {"step": step, "later": later, "learned": written(gain), "independent": written(loss)}
            partings.append((independent.better * loss.value, row))
    return min(partings, key=lambda pair: pair[0])[1] if partings else None
