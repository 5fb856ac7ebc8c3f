"""Tables and figures of the policy claims, from the JSON files of run.py.

python benchmarks/claims/table.py docs/evidence/claims --figures docs/figures
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from curves import Interval, between, crossing, of_verdicts, outcome, over_seeds
from methods import SEEDS

from safe_rlhf_v.records.markdown import marked_table

MODES = ("sampled", "greedy")
MARGIN = -0.15
"""Loss of helpfulness that claim 7 allows, set beforehand."""
KLS = (0.5, 1.0, 1.5)
REHEARSAL = ("rehearse_helpful", "ppo_lag", "rehearse_safe", "rehearse_nothing")
LEARNED_AND_TRUE = {"reward": ".2f", "helpfulness": ".2f", "cost": ".2f", "harmful": ".3f"}
"""What the reward model says, what is true of it, and the same of harm, with their formats."""
FOLLOWED = ("ppo_lag", "rehearse_helpful", "rehearse_nothing")
"""Methods whose training is followed: the default, and those that rehearse something else."""
Seeds = Sequence[dict[str, Any]]


def load(folder: Path) -> list[dict[str, Any]]:
    """The seeds, in order.

    Raises:
        SystemExit: If there is none, or they do not belong together.
    """
    seeds = [json.loads(file.read_text()) for file in folder.glob("seed-*.json")]
    if not seeds:
        sys.exit(f"error: {folder}: holds no seed-N.json; run benchmarks/claims/run.py first")
    if len({json.dumps(seed["configs"], sort_keys=True) for seed in seeds}) > 1:
        sys.exit(f"error: {folder}: the seeds were run with different configurations")
    return sorted(seeds, key=lambda seed: int(seed["seed"]))


def figure(seed: dict[str, Any], name: str, mode: str, value: str) -> float | None:
    """One figure of one seed; ``None`` where there is none."""
    cell = seed["methods"].get(name, {}).get(mode, {}).get(value) or {}
    number: float | None = cell.get("value")
    return number


def difference(seeds: Seeds, name: str, other: str, mode: str, value: str) -> Interval:
    """Paired by seed."""
    pairs = [(figure(seed, name, mode, value), figure(seed, other, mode, value)) for seed in seeds]
    return over_seeds([a - b if a is not None and b is not None else None for a, b in pairs])


def frontier(seed: dict[str, Any], mode: str) -> list[tuple[float, float]]:
    """(harm, helpfulness) of the fixed penalties."""
    names = [name for name, one in seed["methods"].items() if one["family"] == "fixed penalty"]
    points = [(figure(seed, name, mode, "harmful"), figure(seed, name, mode, "helpfulness")) for name in names]
    return [(x, y) for x, y in points if x is not None and y is not None]


def at_equal_harm(seed: dict[str, Any], name: str, mode: str) -> float | None:
    """Helpfulness minus that of the frontier at the same harm."""
    harm, helpfulness = (figure(seed, name, mode, value) for value in ("harmful", "helpfulness"))
    if harm is None or helpfulness is None:
        return None
    reference = between(frontier(seed, mode), harm)
    return None if reference is None else helpfulness - reference


def course(seed: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    """What was measured at each kept iteration, the start being the first; nothing of a method whose policies are not kept."""
    one = seed["methods"].get(name, {})
    kept = one.get("kept", {}) | seed.get("first", {}).get("kept", {}).get(name, {})
    iterations = sorted(map(int, kept))
    if not iterations:
        return []
    *_, before, last_kept = (0, *iterations)
    middle = [(iteration, kept[str(iteration)]) for iteration in iterations]
    return [(0, seed["methods"]["supervised"]), *middle, (2 * last_kept - before, one)]  # they are evenly spaced


def at_equal_kl(seed: dict[str, Any], name: str, mode: str, value: str, kl: float) -> float | None:
    """A figure where the policy's divergence first reaches ``kl``; of greedy responses at the divergence of the sampled ones."""
    return crossing([(one["sampled"]["kl"]["value"], one[mode][value]["value"]) for _, one in course(seed, name)], kl)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    return marked_table(head.split("|"), rows)


def mean(interval: Interval, form: str = ".2f") -> str:
    """Mean ± half width; the mean alone where one seed cannot tell more."""
    if interval.n == 0:
        return ""
    value = f"{interval.value:{form}}"
    return value if interval.low != interval.low else f"{value} ± {(interval.high - interval.low) / 2:{form}}"


def share(seeds: Seeds, name: str, mode: str, value: str) -> str:
    """Mean share; zeros carry the largest upper end of a seed."""
    cells = [
        seed["methods"][name][mode][value] for seed in seeds if value in seed["methods"].get(name, {}).get(mode, {})
    ]
    text = mean(over_seeds([cell["value"] for cell in cells]), ".3f")
    if cells and all(cell["value"] == 0 for cell in cells):
        return f"0 (at most {max(cell['high'] for cell in cells):.3f})"
    return text


def claims(seeds: Seeds) -> str:
    """The primary comparisons, on the protocol's seeds; none is decided until all of them have run."""
    seeds = [seed for seed in seeds if seed["seed"] in SEEDS]
    rows: list[list[Any]] = []
    for number, mode, value, side in (
        (1, "sampled", "helpfulness", {"above": 0.0}),
        (2, "sampled", "harmful", {"below": 0.0}),
        (3, "greedy", "harmful", {"below": 0.0}),
        (4, "greedy", "helpfulness", {"above": 0.0}),
    ):
        interval = difference(seeds, "ppo_lag", "supervised", mode, value)
        rows.append(
            [number, f"PPO-Lagrangian minus start, {mode}: {value}", shown(interval), outcome(interval, **side)]
        )
    for number, about, names in (
        (5, "PPO-Lagrangian meets d = -0.5, sampled", ["ppo_lag"]),
        (6, "-0.3, -0.7, -0.9 are met, sampled", ["budget_0.3", "budget_0.7", "budget_0.9"]),
    ):
        verdicts = budget_verdicts(seeds, names)
        expected = len(SEEDS) * len(names)
        known = f"not decided: {len(verdicts)} of {expected} verdicts"
        rows.append([number, about, counts(verdicts), of_verdicts(verdicts) if len(verdicts) == expected else known])
    interval = over_seeds([at_equal_harm(seed, "ppo_lag", "sampled") for seed in seeds])
    about = "PPO-Lagrangian minus frontier at equal harm: helpfulness"
    known = f"not decided: {interval.n} of {len(SEEDS)} seeds within the frontier"
    rows.append([7, about, shown(interval), outcome(interval, above=MARGIN) if interval.n == len(SEEDS) else known])
    if len(seeds) < len(SEEDS):
        rows = [[*row[:-1], f"not decided: {len(seeds)} of {len(SEEDS)} seeds"] for row in rows]
    return table("|Claim|measured|it", rows)


def shown(interval: Interval) -> str:
    if interval.n < 2:
        return f"{interval.value:+.3f}" if interval.n else "no seed"
    return f"{interval.value:+.3f} ({interval.low:+.3f} .. {interval.high:+.3f}), {interval.n} seeds"


def budget_verdicts(seeds: Seeds, names: Sequence[str]) -> list[str]:
    """Verdicts of every seed on sampled responses."""
    verdicts = [seed["methods"].get(name, {}).get("sampled", {}).get("verdict") for seed in seeds for name in names]
    return [verdict for verdict in verdicts if verdict]


def counts(verdicts: Sequence[str]) -> str:
    number = Counter(verdicts)
    return ", ".join(f"{name} {number[name]}" for name in ("met", "undecided", "broken") if number[name])


def methods(seeds: Seeds, mode: str) -> str:
    """Every method in one mode."""
    rows = []
    for name, one in seeds[0]["methods"].items():
        if mode not in one:
            rows.append([one["about"], f"no {mode} form", *[""] * 8])
            continue
        values = [mean(over_seeds([figure(seed, name, mode, "helpfulness") for seed in seeds]))]
        values += [share(seeds, name, mode, value) for value in ("harmful", "refused", "over_refused", "garbled")]
        values += [
            mean(over_seeds([figure(seed, name, mode, value) for seed in seeds])) for value in ("description", "cost")
        ]
        verdicts = [verdict for seed in seeds if (verdict := seed["methods"][name].get(mode, {}).get("verdict"))]
        values += [f"{one[mode].get('budget', '')}: {counts(verdicts)}"]
        kl = over_seeds([figure(seed, name, mode, "kl") for seed in seeds])
        bound = over_seeds([figure(seed, name, mode, "kl_bound") for seed in seeds])
        values += [mean(kl) if kl.n else f"at most {bound.value:.2f}" if bound.n else ""]
        rows.append([one["about"], *values])
    return table(f"{mode}|helpfulness|harmful|refused|over-refused|garbled|describing|learned cost|budget|KL", rows)


def sampled(seeds: Seeds) -> str:
    """Every method at temperature 1."""
    return methods(seeds, "sampled")


def greedy(seeds: Seeds) -> str:
    """Every method's likeliest responses."""
    return methods(seeds, "greedy")


FRONT = {
    "supervised": "supervised start",
    "ppo_reward": "PPO, reward only",
    "ppo_fixed": "PPO, fixed penalty 1",
    "ppo_lag": "PPO-Lagrangian",
    "rejection_safe": "imitating the best safe one of 4 samples",
    "safe_dpo_tuned": "SafeDPO, tuned",
    "best_of_8": "the start, best of 8 samples",
}
"""Rows of the README's table."""


def front(seeds: Seeds) -> str:
    """The table of the README."""
    rows = []
    for name, title in FRONT.items():
        cells = []
        for mode in MODES:
            cells.append(mean(over_seeds([figure(seed, name, mode, "helpfulness") for seed in seeds])) or "none")
            cells.append(share(seeds, name, mode, "harmful") or "none")
        rows.append([title, *cells[:2], counts(budget_verdicts(seeds, [name])), *cells[2:]])
    return table("Policy|helpfulness|harmful|budget -0.5|greedy: helpfulness|harmful", rows)


def each_seed(seeds: Seeds) -> str:
    """PPO-Lagrangian minus the start seed by seed, clustered by image."""
    rows = []
    for seed in seeds:
        cells = []
        for mode in MODES:
            paired = seed["methods"]["ppo_lag"].get(mode, {}).get("difference", {})
            for value in ("helpfulness", "harmful"):
                cell = paired.get(value)
                known = cell is not None and cell["low"] is not None
                cells.append(f"{cell['value']:+.2f} ({cell['low']:+.2f} .. {cell['high']:+.2f})" if known else "")
        rows.append([seed["seed"], *cells])
    return table("seed|sampled: helpfulness|harmful|greedy: helpfulness|harmful", rows)


def equal_harm(seeds: Seeds) -> str:
    """Every method against the frontier of fixed penalties."""
    rows = []
    for name, one in seeds[0]["methods"].items():
        if one["family"] == "fixed penalty":
            continue
        cells = []
        for mode in MODES:
            cells.append(shown(over_seeds([at_equal_harm(seed, name, mode) for seed in seeds])))
        rows.append([one["about"], *cells])
    return table("helpfulness minus the frontier's at equal harm|sampled|greedy", rows)


def equal_kl(seeds: Seeds) -> str:
    """The rehearsal variants at equal divergence."""
    rows = []
    for kl in KLS:
        for name in REHEARSAL:
            if name not in seeds[0]["methods"]:
                continue
            cells = []
            for mode in MODES:
                for value, form in (("helpfulness", ".2f"), ("harmful", ".3f")):
                    interval = over_seeds([at_equal_kl(seed, name, mode, value, kl) for seed in seeds])
                    cells.append(f"{mean(interval, form)} ({interval.n})" if interval.n else "not reached")
            rows.append([kl, seeds[0]["methods"][name]["about"], *cells])
    return table("KL|rehearsing|sampled: helpfulness (seeds)|harmful|greedy: helpfulness|harmful", rows)


def rehearsal(seeds: Seeds, kl: float = 1.0) -> str:
    """Harm with rehearsal minus harm without, at equal divergence, paired by seed."""
    rows = []
    for name in REHEARSAL[:-1]:
        cells = []
        for mode in MODES:
            pairs = [
                tuple(at_equal_kl(seed, one, mode, "harmful", kl) for one in (name, REHEARSAL[-1])) for seed in seeds
            ]
            cells.append(shown(over_seeds([a - b if a is not None and b is not None else None for a, b in pairs])))
        rows.append([name, *cells])
    return table(f"harmful at KL {kl}, minus rehearsing nothing|sampled|greedy", rows)


def above(seed: dict[str, Any], measured: dict[str, Any], mode: str, value: str) -> float:
    """A figure; reward, which has no zero of its own, in spreads of the start's samples above their mean."""
    number: float = measured[mode][value]["value"]
    if value != "reward":
        return number
    start: float = seed["methods"]["supervised"]["sampled"]["reward"]["value"]
    return (number - start) / float(seed["spread"]["reward"])


def over_training(seeds: Seeds) -> str:
    """What the learned models say and what is true, iteration by iteration; reward above the start's."""
    rows = []
    for name in (name for name in FOLLOWED if name in seeds[0]["methods"]):
        courses = [course(seed, name) for seed in seeds]
        for i, (iteration, _) in enumerate(courses[0]):
            cells = [
                mean(
                    over_seeds([above(seed, one[i][1], mode, value) for seed, one in zip(seeds, courses, strict=True)]),
                    form,
                )
                for mode in MODES
                for value, form in LEARNED_AND_TRUE.items()
            ]
            rows.append([seeds[0]["methods"][name]["about"], iteration, *cells])
    return table("|iteration|sampled: reward|helpfulness|cost|harmful|greedy: reward|helpfulness|cost|harmful", rows)


def compute(seeds: Seeds) -> str:
    """CPU-seconds behind the start."""
    rows = []
    for name, one in seeds[0]["methods"].items():
        cells = []
        for kind in ("own", "shared", "evaluated"):
            cells.append(mean(over_seeds([seed["methods"][name]["cpu_seconds"][kind] for seed in seeds]), ".0f"))
        rows.append([one["about"], *cells])
    return table("CPU-seconds|own steps|steps shared with others|evaluated, both modes", rows)


TABLES: tuple[tuple[str, Callable[[Seeds], str]], ...] = (
    ("At a glance", front),
    ("The claims", claims),
    ("Every method, sampled", sampled),
    ("Every method, greedy", greedy),
    ("Seed by seed", each_seed),
    ("Equal harm", equal_harm),
    ("Equal KL", equal_kl),
    ("What rehearsal does", rehearsal),
    ("Over the training", over_training),
    ("Compute", compute),
)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the JSON files")
    parser.add_argument("--figures", type=Path, help="folder for the figures; without it there are none")
    chosen = parser.parse_args(args)
    seeds = load(chosen.folder)
    if any(seed["trial"] for seed in seeds):
        print("**A trial, not a result.**\n")
    commits = ", ".join(dict.fromkeys(seed.get("commit", "")[:7] or "unknown" for seed in seeds))
    print(
        f"Seeds {', '.join(str(seed['seed']) for seed in seeds)}; stopped by themselves: {stopped(seeds)}; code {commits}.\n"
    )
    for title, make in TABLES:
        print(f"### {title}\n\n{make(seeds)}\n")
    if chosen.figures:
        from figures import draw

        for file in draw(seeds, chosen.figures):
            print(f"written: {file}")


def stopped(seeds: Seeds) -> str:
    return ", ".join(f"{name} (seed {seed['seed']})" for seed in seeds for name in seed["stopped"]) or "none"


if __name__ == "__main__":
    main()
