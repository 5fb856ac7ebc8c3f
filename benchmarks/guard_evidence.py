"""Does the guard judge well, are its probabilities true, and what do rounds of regeneration bring? Three seeds, one JSON file.

    python benchmarks/guard_evidence.py --root runs/guard_evidence --out docs/evidence/guard.json

Links are compared at one budget, beside a guard that sees blank pictures and one that only knows how frequent the levels are.
Every run is a public command; finished runs are kept and not repeated.
"""

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from evidence import summary

from safe_rlhf_v.demo.processes import cpu_seconds, execute
from safe_rlhf_v.demo.runs import GUARD_SPLITS, Run
from safe_rlhf_v.demo.steps import run_steps
from safe_rlhf_v.guard.assessment import MEASURED, assess
from safe_rlhf_v.guard.calibration import Calibration, LabelledOutputs
from safe_rlhf_v.guard.limits import UNCOUNTED
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.world.judge import judge
from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, COUNTS, OBJECTS, Scene
from safe_rlhf_v.world.truth import rule

LINKS = "safe_rlhf_v.models"
VARIANTS = {
    "guard": [],  # what configs/quickstart/guard.yaml says
    "guard_softmax": [f"--model.init_args.link={LINKS}.SoftmaxLink"],
    "guard_cumulative": [f"--model.init_args.link={LINKS}.CumulativeLink",
                         "--model.init_args.lr_scale={head: 3.0, link: 10.0}"],
    "guard_cumulative_one_scale": [f"--model.init_args.link={LINKS}.CumulativeLink",
                                   "--model.init_args.link.init_args.scale=false",
                                   "--model.init_args.lr_scale={head: 3.0, link: 10.0}"],
    "guard_text_only": ["--model.init_args.images=blank"],
}  # fmt: skip
STRATEGIES = {
    "resample": "Strategy",
    "hotter": "HigherTemperature",
    "reminder": "SafetyReminder",
    "best-of-4": "BestOfK",
}
"""Names in the figures, and the classes."""
CHECKED = "best-of-4, prompts checked"


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    run = Run(root / f"world-{seed}", root / f"seed-{seed}", seed)
    log = run.root / "output"
    run_steps([*run.world_steps(seed=seed), *map(run.stage_step, ("vision", "supervised", "cost"))], run.root)
    for names in (list(VARIANTS)[i : i + 2] for i in range(0, len(VARIANTS), 2)):
        untrained = [name for name in names if not (run.root / f"{name}.done").exists()]
        execute(*(run.fit("guard", *VARIANTS[name], name=name) for name in untrained), logs=log)
        for name in untrained:
            (run.root / f"{name}.done").touch()
        unmeasured = [name for name in names if not (run.root / name / "assessment.json").exists()]
        execute(*(run.calibrate(name) for name in unmeasured), logs=log)
        print(f"   {', '.join(names)} done", flush=True)
    commands = {strategy: run.generate("guard", cls) for strategy, cls in STRATEGIES.items()}
    checked = run.root / "guard" / "checked-best-of-4.jsonl"
    commands[CHECKED] = [*run.generate("guard", "BestOfK")[:-1], f"--output={checked}", "--check_prompts"]
    files = {s: run.root / "guard" / f"responses-{cls}.json" for s, cls in STRATEGIES.items()} | {
        CHECKED: checked.with_suffix(".json")
    }
    waiting = [command for strategy, command in commands.items() if not files[strategy].exists()]
    for i in range(0, len(waiting), 2):
        execute(*waiting[i : i + 2], logs=log)
    guards = {name: json.loads((run.root / name / "assessment.json").read_text()) for name in VARIANTS}
    return {
        "guards": {"prior": prior(run.data), **guards},
        "generation": {strategy: json.loads(path.read_text()) for strategy, path in files.items()},
        "fooled": fooled(run, files["resample"].with_suffix(".drafts.jsonl")),
    }


def prior(data: Path) -> dict[str, dict[str, float]]:
    """A guard that states the levels' frequencies in training whatever it is shown: its likeliest level is the majority class."""
    counts = Manifest.load(data).splits["train"].histograms["safety"]
    frequencies = torch.tensor([counts.get(str(level), 0) for level in range(MIN_LEVEL, MAX_LEVEL + 1)]).double()
    stated = (frequencies / frequencies.sum()).log().float()
    found = {}
    for name in GUARD_SPLITS:
        split = ShardedSplit(data, name)
        records = [split[i] for i in range(len(split))]
        levels = torch.tensor([r.safety - MIN_LEVEL for record in records for r in record.responses])
        hazardous = torch.tensor([bool(record.category) for record in records])
        risk = torch.zeros(len(records))
        clusters = torch.tensor([i for i, record in enumerate(records) for _ in record.responses])
        rows = (stated.expand(len(levels), -1), levels, risk, hazardous, risk.bool())
        outputs = LabelledOutputs(*rows, {}, clusters, torch.arange(len(records)))
        measured = assess(outputs, Calibration("prior", "", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, UNCOUNTED, {}))
        kept = (
            "majority_accuracy",
            "macro_mae_balanced",
            "harm_ece_before",
            "exceedance_ece_before",
            "responses",
            *MEASURED,
        )
        found[name] = {m: v for m, v in measured.items() if m in kept}
    return found


def fooled(run: Run, drafts: Path) -> dict[str, Counter]:
    """How the guard judges what the policy says (texts it never saw), by true level and by the rule that decides it."""
    split = ShardedSplit(run.data, "test")
    records = {(record := split[i]).key: record for i in range(len(split))}
    found: dict[str, Counter] = {}
    for line in map(json.loads, drafts.read_text().splitlines()):
        if line["round"]:
            continue  # later rounds are drawn where the guard said no
        record, text = records[line["key"]], line["draft"]
        level = judge(record, text)[1]
        a = record.truth.attributes
        scene = Scene(OBJECTS[a["object"]], COLOURS[a["colour"]], CONTEXTS[a["context"]], COUNTS[a["count"]], seed=0)
        seen = any(text == response.text for response in record.responses)
        kind = ("harmful" if level < 0 else "harmless") + (" passed" if line["decision"] == "allow" else " stopped")
        groups = ("all", f"level {level}", rule(text, scene), "same text in the data" if seen else "another text")
        for group in groups:
            found.setdefault(group, Counter())[kind] += 1
    return found


def combined(values: list[Any]) -> Any:
    """Numbers of several seeds as mean, interval and values, through nested dicts and named rows."""
    if isinstance(values[0], dict):
        return {key: combined([v[key] for v in values if key in v]) for key in values[0] if key != "name"}
    if isinstance(values[0], list):
        return {row["name"]: combined([v[i] for v in values]) for i, row in enumerate(values[0])}
    kept = [value for value in values if not math.isnan(value)]  # a group may have no harmful response in a seed
    return summary(kept) if kept else None


def show(report: dict[str, Any]) -> None:
    for name, splits in report["guards"].items():
        for split, metrics in splits.items():
            for metric, v in metrics.items():
                if metric != "groups":
                    print(
                        f"{name:<28}{split:<24}{metric:<26}{v['mean']:.3f} +- {v['half_width_95']:.3f}  {v['values']}"
                    )
    for strategy, rows in report["generation"].items():
        for name, metrics in rows.items():
            print(f"{strategy:<28}{name:<22}" + "  ".join(f"{m} {v['mean']:.3f}" for m, v in metrics.items()))
    for group, counts in report["fooled"].items():
        print(f"policy samples, {group:<24}{counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/guard_evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/guard.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    start, found = time.time(), []
    for seed in options.seeds:
        print(f"== seed {seed}", flush=True)
        found.append(one_seed(options.root, seed))
    pooled: dict[str, Counter] = {}
    for seed in found:
        for group, counts in seed["fooled"].items():
            pooled.setdefault(group, Counter()).update(counts)
    about = {
        "what": "held-out results on the embedded world (synthetic data), against exact labels; seeds vary world, weights, "
        "training order and sampling; 'fooled' counts first drafts of the supervised policy, all seeds together",
        "seeds": options.seeds,
    }
    report = {
        "about": about,
        "guards": combined([seed["guards"] for seed in found]),
        "generation": combined([seed["generation"] for seed in found]),
        "fooled": {group: dict(sorted(pooled[group].items())) for group in sorted(pooled)},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds in this call")


if __name__ == "__main__":
    main()
