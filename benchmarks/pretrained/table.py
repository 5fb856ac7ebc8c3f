"""What the seeds measured, as Markdown: in every cell mean ± half width of the 95 % t interval, and the seeds."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t
from stages import GREEDY, LOOK, POLICIES, TEST_SPLITS, Seed

from safe_rlhf_v.functional.intervals import wilson_interval
from safe_rlhf_v.shards import ShardedSplit

Results = dict[str, Any]
SCORER = ("test/true_accuracy", "test/shuffled_accuracy", "test/blank_accuracy")
SIGN = ("test/true_balanced_sign_accuracy", "test/true_auroc")
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
Row = tuple[str, list[tuple[str, ...]]]
"""A row's words, and the places of its numbers in the results, one a column."""


def majority(seed: Seed, split: str) -> float:
    """Share of the commonest severity: what naming it always would reach."""
    records = ShardedSplit(seed.data, split)
    truths = [record.truth for record in map(records.__getitem__, range(len(records))) if record.images]
    counts = Counter(truth.attributes["severity"] for truth in truths if truth is not None)
    return max(counts.values()) / counts.total()


def learned(seed: Seed) -> tuple[str, bool]:
    """In words, and as a verdict: does the start name severities better than always the commonest one would?"""
    right = seed.evaluation("supervised", "validation", "greedy", LOOK)["severity_right"]
    low, high = wilson_interval(round(right["mean"] * right["prompts"]), right["prompts"])
    common = majority(seed, "validation")
    enough = low > common
    verdict = "the picture is learned" if enough else "THE PICTURE IS NOT LEARNED, and the seed ends here"
    counted = f"{right['mean']:.3f} of {right['prompts']} held-out photographs (95 % interval {low:.3f} .. {high:.3f})"
    return f"severity named rightly for {counted}; the commonest one is right for {common:.3f}: {verdict}", enough


def results_of_seed(seed: Seed) -> Results:
    """Every number of the tables, and the CPU-seconds of every step."""
    assessment = seed.read("guard", "assessment.json")
    evaluations = {name: {split: seed.evaluation(name, split) for split in TEST_SPLITS} for name in POLICIES}
    return {
        "seed": seed.number,
        "accelerator": seed.accelerator,
        "majority": majority(seed, "test"),
        "greedy_start": seed.evaluation("supervised", "validation", "greedy", LOOK),
        "policies": evaluations,
        "greedy": {name: seed.evaluation(name, TEST_SPLITS[0], "greedy", GREEDY) for name in POLICIES},
        "reward": seed.read("reward", "metrics.json"),
        "cost": seed.read("cost", "metrics.json"),
        "guard": {split: {name: assessment[split].get(name) for name in GUARD} for split in TEST_SPLITS},
        "language": {name: seed.read(name, "forgetting.json") for name in LANGUAGE},
        "cpu_seconds": {
            file.stem: seed.read("steps", file.name)["cpu_seconds"]
            for file in sorted((seed.root / "steps").glob("*.json"))
        },
    }


def responses() -> tuple[str, list[Row]]:
    """What the policies say, by the judge that knows the human label; beside it what the learned models think of it."""
    rows: list[Row] = [("severity named rightly: always the commonest", [("majority",)] * 4)]
    rows += [
        (
            f"severity named rightly, shown {about}",
            [("policies", name, split, "severity_right") for name in POLICIES]
            + [("greedy", name, "severity_right") for name in POLICIES if split == TEST_SPLITS[0]],
        )
        for split, about in PHOTOS.items()
    ]
    for value, words in RESPONSES.items():
        places = [("policies", name, TEST_SPLITS[0], value) for name in POLICIES]
        rows.append((words, places + [("greedy", name, value) for name in POLICIES]))
    titles = [f"{LANGUAGE[name]}, {mode}" for mode in ("sampled", "greedy") for name in POLICIES]
    return "|".join(["Responses", *titles]), rows


def scorers() -> tuple[str, list[Row]]:
    """What the reward and cost models rank and decide rightly."""
    pictures = PHOTOS.values()
    rows: list[Row] = [
        (f"held-out pairs ranked rightly, shown {about}", [("reward", metric), ("cost", metric)])
        for metric, about in zip(SCORER, pictures, strict=True)
    ]
    signs = ("harmful or not, balanced accuracy", "AUROC of harmful")
    rows += [(words, [(), ("cost", metric)]) for metric, words in zip(SIGN, signs, strict=True)]
    return "Model|reward|cost", rows


def guard() -> tuple[str, list[Row]]:
    """What the guard says of given responses beside each picture."""
    rows: list[Row] = [(words, [("guard", split, name) for split in PHOTOS]) for name, words in GUARD.items()]
    return "|".join(["Guard, of given responses beside", *PHOTOS.values()]), rows


def language() -> tuple[str, list[Row]]:
    """What the language model still knows."""
    values = {"log_likelihood_of_plain_text": "log-probability of a token of plain text, nats", "facts_right": "facts"}
    rows: list[Row] = [(words, [("language", run, value) for run in LANGUAGE]) for value, words in values.items()]
    return "|".join(["Language", *LANGUAGE.values()]), rows


def number(results: Results, place: tuple[str, ...]) -> float:
    """The number at a place; NaN where there is none (no pair of a tiny split is decided)."""
    value: Any = results
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("mean")
    return math.nan if value is None or isinstance(value, str) else float(value)


def cell(values: Sequence[float]) -> str:
    """Mean ± half width (the seeds); empty if a seed has no such number."""
    if any(math.isnan(value) for value in values):
        return ""
    digits = 1 if max(map(abs, values)) >= 10 else 3
    each = " / ".join(f"{value:.{digits}f}" for value in values)
    if len(values) == 1:
        return each
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f} ({each})"


def table(seeds: Sequence[Results]) -> str:
    """Four tables, of responses, reward and cost model, guard, and language, and what the seeds took."""
    blocks = []
    for head, rows in (responses(), scorers(), guard(), language()):
        titles = head.split("|")
        lines = [titles, ["---"] * len(titles)]
        for words, places in rows:
            cells = [cell([number(seed, place) for seed in seeds]) if place else "" for place in places]
            lines.append([words, *cells, *[""] * (len(titles) - 1 - len(cells))])
        blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    seconds = " / ".join(f"{sum(seed['cpu_seconds'].values()):,.0f}" for seed in seeds)
    return "\n\n".join([*blocks, f"CPU-seconds of all steps: {seconds}"])
