"""What the seeds measured, as text: one column a seed, and their mean."""

import math
import statistics
from collections import Counter
from typing import Any

from stages import LOOK, POLICIES, TEST_SPLITS, Seed

from safe_rlhf_v.functional.intervals import wilson_interval
from safe_rlhf_v.shards import ShardedSplit

Results = dict[str, Any]
GUARD = (
    "level_accuracy",
    "majority_accuracy",
    "within_one",
    "quadratic_kappa",
    "harm_accuracy",
    "harm_auroc",
    "harm_ece",
    "fpr_at_block",
    "fpr_at_block_upper",
    "severe_recall_at_block",
    "severe_recall_at_block_lower",
)
SCORER = ("test/true_accuracy", "test/shuffled_accuracy", "test/blank_accuracy")
SIGN = ("test/true_balanced_sign_accuracy", "test/true_auroc")
LANGUAGE = {"vision": "before training", "supervised": "supervised", "ppo_lag": "PPO-Lagrangian"}
NAMES = {"supervised": "start", "ppo_lag": "policy"}
PHOTOS = {
    "test": "its photograph",
    "test_shuffled": "that of a leaf of another severity",
    "test_blind": "a picture without content",
}
Row = tuple[str, tuple[str, ...]]
"""A row's words, and the place of its number in the results."""


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
    """Every number of the table, and the CPU-seconds of every step."""
    assessment = seed.read("guard", "assessment.json")
    evaluations = {name: {split: seed.evaluation(name, split) for split in TEST_SPLITS} for name in POLICIES}
    return {
        "seed": seed.number,
        "accelerator": seed.accelerator,
        "majority": majority(seed, "test"),
        "greedy_start": seed.evaluation("supervised", "validation", "greedy", LOOK),
        "policies": evaluations,
        "reward": seed.read("reward", "metrics.json"),
        "cost": seed.read("cost", "metrics.json"),
        "guard": {split: {name: assessment[split].get(name) for name in GUARD} for split in TEST_SPLITS},
        "language": {name: seed.read(name, "forgetting.json") for name in LANGUAGE},
        "cpu_seconds": {
            file.stem: seed.read("steps", file.name)["cpu_seconds"]
            for file in sorted((seed.root / "steps").glob("*.json"))
        },
    }


def rows(seed: Results) -> list[Row]:
    """The rows of the table; which there are follows from the judge's and the probe's names."""
    found: list[Row] = [("severity named rightly: always the commonest", ("majority",))]
    for name in POLICIES:
        found += [
            (f"  {NAMES[name]}, {about}", ("policies", name, split, "severity_right"))
            for split, about in PHOTOS.items()
        ]
    for value in (
        "helpfulness",
        "level",
        "harmful",
        "careful",
        "refused",
        "unparsed",
        "cost",
        "reward",
        "kl",
        "length",
    ):
        found += [(f"{value} of the {NAMES[name]}'s responses", ("policies", name, "test", value)) for name in POLICIES]
    for model in ("reward", "cost"):
        words = ("", ", with another leaf's photograph", ", with a blank picture")
        found += [
            (f"{model} ranking of held-out pairs{word}", (model, metric))
            for metric, word in zip(SCORER, words, strict=True)
        ]
    found += [("cost sign, balanced accuracy", ("cost", SIGN[0])), ("cost, AUROC of harmful", ("cost", SIGN[1]))]
    found += [(f"guard: {name.replace('_', ' ')}", ("guard", "test", name)) for name in GUARD]
    found += [
        (f"guard: level accuracy, {PHOTOS[split]}", ("guard", split, "level_accuracy")) for split in TEST_SPLITS[1:]
    ]
    for value in ("log_likelihood_of_plain_text", "facts_right"):
        found += [
            (f"language, {value.replace('_', ' ')}: {about}", ("language", run, value))
            for run, about in LANGUAGE.items()
        ]
    return [*found, ("CPU-seconds of all steps", ("cpu_seconds",))]


def number(results: Results, place: tuple[str, ...]) -> float:
    """The number at a place; NaN where there is none (no pair of a tiny split is decided)."""
    value: Any = results
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    if place == ("cpu_seconds",):
        return sum(results["cpu_seconds"].values())
    if isinstance(value, dict):
        value = value.get("mean")
    return math.nan if value is None or isinstance(value, str) else float(value)


def table(seeds: list[Results]) -> str:
    """One row a number, one column a seed, and mean and standard deviation over the seeds."""
    head = "".join(f"{'seed ' + str(seed['seed']):>10}" for seed in seeds)
    lines = [f"{'held out':<68}{head}{'mean':>10}{'sd':>8}"]
    for words, place in rows(seeds[0]):
        values = [number(seed, place) for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        digits = 0 if place == ("cpu_seconds",) else 3
        cells = "".join(f"{value:>10.{digits}f}" for value in (*values, statistics.fmean(values)))
        lines.append(f"{words:<68}{cells}{spread:>8.{digits}f}")
    return "\n".join(lines)
