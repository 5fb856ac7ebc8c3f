"""What one seed measured, from what its steps left."""

from collections import Counter
from typing import Any

from stages import BESIDE, EVALUATION, GREEDY, LOOK, POLICIES, TEST_SPLITS, Seed
from table import GUARD, LANGUAGE

from safe_rlhf_v.functional.intervals import wilson_interval
from safe_rlhf_v.shards import ShardedSplit


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


def results_of_seed(seed: Seed) -> dict[str, Any]:
    """Every number of the tables, and the CPU-seconds of every step."""
    assessment = seed.read("guard", "assessment.json")
    evaluations = {
        name: {
            split: seed.evaluation(name, split, folder=BESIDE if i else EVALUATION)
            for i, split in enumerate(TEST_SPLITS)
        }
        for name in POLICIES
    }
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
