"""The tables of docs/howto/pretrained.md: in every cell mean ± half width of the 95 % t interval, and the seeds.

python benchmarks/pretrained/table.py docs/evidence/pretrained.json
"""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from safe_rlhf_v.records.markdown import marked_table

Results = dict[str, Any]
LANGUAGE = {"vision": "before training", "supervised": "supervised start", "ppo_lag": "PPO-Lagrangian"}
PHOTOS = {
    "test": "its photograph",
    "test_shuffled": "that of a leaf of another severity",
    "test_blind": "a picture without content",
}
RESPONSES = {
    "helpfulness": "helpfulness, 0 to 3",
    "harmful": "harmful, of those that claim something",
    "level": "level, -3 to 3",
    "careful": "asks for care",
    "refused": "refused",
    "unparsed": "claims nothing",
    "length": "tokens",
    "cost": "learned cost",
    "reward": "learned reward",
    "kl": "KL from the start, nats",
}
GUARD = {
    "level_accuracy": "level named rightly",
    "majority_accuracy": "always the commonest level",
    "within_one": "level missed by at most one",
    "quadratic_kappa": "quadratic kappa",
    "harm_accuracy": "harmful or not, named rightly",
    "harm_auroc": "AUROC of harmful",
    "harm_ece": "calibration error of harmful",
    "fpr_at_block": "harmless ones blocked",
    "fpr_at_block_upper": "at most (95 %)",
    "severe_recall_at_block": "severe ones blocked",
    "severe_recall_at_block_lower": "at least (95 %)",
}
STAGES = ("vision", "supervised", "base", "reward", "cost", "guard", "ppo_lag")
Row = tuple[str, list[tuple[str, ...]]]
"""A row's words, and the places of its numbers in a seed's results, one a column; an empty place stays empty."""


def responses(found: Results) -> str:
    """What the policies say, by the judge that knows the human label; beside it what the learned models think of it."""
    policies = ("supervised", "ppo_lag")
    sampled = [[("policies", name, split) for name in policies] for split in PHOTOS]
    greedy = [("greedy", name) for name in policies]
    rows: list[Row] = [("severity named rightly: always the commonest", [("majority",)] * 4)]
    for about, places in zip(PHOTOS.values(), sampled, strict=True):
        beside = greedy if places is sampled[0] else []
        words = f"severity named rightly, shown {about}"
        rows.append((words, [(*place, "severity_right") for place in (*places, *beside)]))
    for value, words in RESPONSES.items():
        rows.append((words, [(*place, value) for place in (*sampled[0], *greedy)]))
    titles = [f"{LANGUAGE[name]}, {mode}" for mode in ("sampled", "greedy") for name in policies]
    return markdown(["Responses", *titles], rows, found)


def scorers(found: Results) -> str:
    """What the reward and cost models rank and decide rightly."""
    ranked = ("test/true_accuracy", "test/shuffled_accuracy", "test/blank_accuracy")
    rows: list[Row] = [
        (f"held-out pairs ranked rightly, shown {about}", [("reward", metric), ("cost", metric)])
        for metric, about in zip(ranked, PHOTOS.values(), strict=True)
    ]
    rows.append(("harmful or not, balanced accuracy", [(), ("cost", "test/true_balanced_sign_accuracy")]))
    rows.append(("AUROC of harmful", [(), ("cost", "test/true_auroc")]))
    return markdown(["Model", "reward", "cost"], rows, found)


def guard(found: Results) -> str:
    """What the guard says of given responses beside each picture."""
    rows: list[Row] = [(words, [("guard", split, name) for split in PHOTOS]) for name, words in GUARD.items()]
    return markdown(["Guard, of given responses beside", *PHOTOS.values()], rows, found)


def language(found: Results) -> str:
    """What the language model still knows."""
    values = {
        "log_likelihood_of_plain_text": "log-probability of a token of plain text, nats",
        "facts_right": "facts answered rightly",
    }
    rows: list[Row] = [(words, [("language", run, value) for run in LANGUAGE]) for value, words in values.items()]
    return markdown(["Language", *LANGUAGE.values()], rows, found)


def markdown(titles: Sequence[str], rows: Sequence[Row], found: Results) -> str:
    """A table of the numbers at these places, over seeds."""
    values = ([cell([number(seed, place) for seed in found["seeds"]]) for place in places] for _, places in rows)
    return marked_table(titles, ([words, *cells] for (words, _), cells in zip(rows, values, strict=True)))


def number(results: Results, place: tuple[str, ...]) -> float:
    """The number at a place; NaN where there is none (no pair of a tiny split is decided)."""
    value: Any = results
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("mean")
    return math.nan if value is None or isinstance(value, str) else float(value)


def cell(values: Sequence[float]) -> str:
    """Mean ± half width (the seeds), or what all seeds have; empty if a seed has no such number."""
    if any(math.isnan(value) for value in values):
        return ""
    digits = 1 if max(map(abs, values)) >= 10 else 3
    if len(set(values)) == 1:
        return f"{values[0]:.{digits}f}"
    each = " / ".join(f"{value:.{digits}f}" for value in values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f} ({each})"


def seconds(found: Results) -> str:
    """CPU-seconds of every stage, of what is measured, and of the whole."""
    spent = [seed["cpu_seconds"] for seed in found["seeds"]]
    rows = [[stage, *(f"{one.get(stage, 0):,.0f}" for one in spent)] for stage in STAGES]
    whole = [sum(one.values()) for one in spent]
    trained = [sum(one.get(stage, 0) for stage in STAGES) for one in spent]
    rows.append(["calibration and tests", *(f"{a - b:,.0f}" for a, b in zip(whole, trained, strict=True))])
    rows.append(["together", *(f"{value:,.0f}" for value in whole)])
    return marked_table(["CPU-seconds", *(f"seed {seed['seed']}" for seed in found["seeds"])], rows)


def tables(found: Results) -> str:
    """All five tables."""
    return "\n\n".join(table(found) for table in (responses, scorers, guard, language, seconds))


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text())))
