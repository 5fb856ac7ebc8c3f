"""What one seed measured, from the lines that its evaluations left: figures with intervals, budgets, differences to the start."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from methods import Claimed, Commands, budget_of

from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.functional.budget import budget_verdict
from safe_rlhf_v.functional.clustered import Interval, clustered_mean, clustered_share
from safe_rlhf_v.shards import ShardedSplit

NAMES = (
    "helpfulness",
    "level",
    "harmful",
    "refused",
    "over_refused",
    "garbled",
    "description",
    "cost",
    "reward",
    "kl",
    "kl_bound",
    "length",
    "entropy",
)
SHARES = ("harmful", "refused", "over_refused", "garbled")
PAIRED = ("helpfulness", "harmful")
MODES = ("sampled", "greedy")
Values = Mapping[str, Sequence[float]]
"""Column by name, one value for each prompt."""


def rounded(interval: Interval) -> dict[str, float | int | None]:
    """An interval as it stands in the file; ``None`` where it is not known."""
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    known: dict[str, float | int | None] = {k: round(v, 5) if math.isfinite(v) else None for k, v in ends.items()}
    return {**known, "n": interval.n, "clusters": interval.clusters}


def figures(values: Values, groups: Sequence[int], unit: float) -> dict[str, Any]:
    """Every figure with its interval; cost in spreads of the start's.

    Args:
        values: Of every response.
        groups: Image group of each prompt.
        unit: Spread of the start's raw cost.
    """
    measured = {}
    for name in NAMES:
        if name not in values:
            continue
        column = [value / unit for value in values[name]] if name == "cost" else list(values[name])
        if name in SHARES and all(math.isnan(x) or 0 <= x <= 1 for x in column):
            measured[name] = rounded(clustered_share(column, groups))
        else:
            measured[name] = rounded(clustered_mean(column, groups))
    return measured


def differences(values: Values, start: Values, groups: Sequence[int]) -> dict[str, Any]:
    """Paired by prompt: the method minus the start."""
    return {
        name: rounded(clustered_mean([a - b for a, b in zip(values[name], start[name], strict=True)], groups))
        for name in PAIRED
        if name in values and name in start
    }


class Seed:
    """The evaluations of one seed."""

    def __init__(self, run: Run, commands: Commands, split: str = "test") -> None:
        """Read the prompts' image groups.

        Args:
            run: Where they are.
            commands: That made them.
            split: Of the prompts.
        """
        self.run = run
        self.commands = commands
        self.split = split
        self.groups: list[int] = ShardedSplit(run.data, split).groups.tolist()

    def values(self, name: str, mode: str) -> Values | None:
        """Columns of a policy's responses; ``None`` if it was not evaluated so."""
        folder = self.commands.evaluated(name)
        if not (folder / "responses.jsonl").exists():
            return None
        try:
            rows = response_rows(folder, name, self.split, mode)
        except ValueError as error:
            if "holds no responses" in str(error):  # best-of-K has no greedy form
                return None
            raise
        return {column: [float(row[column]) for row in rows] for column in rows[0] if column not in ("key", "response")}

    def method(self, claimed: Claimed, unit: float) -> dict[str, Any]:
        """Everything about one method."""
        measured: dict[str, Any] = {"about": claimed.method.about, "family": claimed.family, "knob": claimed.knob}
        for mode in MODES:
            values = self.values(claimed.name, mode)
            if values is None:
                continue
            measured[mode] = figures(values, self.groups, unit)
            cost = measured[mode]["cost"]
            if cost["low"] is not None:
                measured[mode]["budget"] = budget_of(claimed)
                measured[mode]["verdict"] = budget_verdict(cost["low"], cost["high"], budget_of(claimed))
            start = self.values("supervised", mode)
            if start is not None and claimed.name != "supervised":
                measured[mode]["difference"] = differences(values, start, self.groups)
        if claimed.kept:
            measured["kept"] = {
                str(iteration): self._kept(claimed, iteration, unit) for iteration in self.commands.kept
            }
        measured["cpu_seconds"] = self.seconds(claimed)
        return measured

    def _kept(self, claimed: Claimed, iteration: int, unit: float) -> dict[str, Any]:
        measured = {}
        for mode in MODES:
            values = self.values(f"{claimed.name}_at_{iteration}", mode)
            if values is not None:
                measured[mode] = figures(values, self.groups, unit)
        return measured

    def seconds(self, claimed: Claimed) -> dict[str, float]:
        """CPU-seconds of its own steps, and of those that it shares with others."""
        own = [self._noted(f"{claimed.name}{ending}") for ending in ("_samples", "_data", "")]
        if claimed.name == "supervised" or claimed.method.config is None:
            own = [0.0]
        config = claimed.method.config or ""
        models = ("reward", "cost") if config in ("ppo_lag", "grpo_lag") or claimed.method.draws else ()
        shared = [self._noted(name) for name in models]
        if claimed.method.after:
            shared.append(self._noted(claimed.method.after))
        return {
            "own": round(sum(own), 1),
            "shared": round(sum(shared), 1),
            "evaluated": round(self._noted(f"evaluate_{claimed.name}"), 1),
        }

    def _noted(self, step: str) -> float:
        file = self.run.root / "steps" / f"{step}.json"
        return float(json.loads(file.read_text())["cpu_seconds"]) if file.exists() else 0.0
