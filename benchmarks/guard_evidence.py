"""Does the guard judge well, are its probabilities true, and what do rounds of regeneration bring? Three seeds, one JSON file.

    python benchmarks/guard_evidence.py --root runs/guard_evidence --out docs/evidence/guard.json

Links are compared at one budget, beside a guard that sees blank pictures. Every run is a public command; finished runs are
kept and not repeated.
"""

import argparse
import json
import time
from pathlib import Path

from evidence import summary

from safe_rlhf_v.quickstart import Run, cpu_seconds, execute, make_world

VARIANTS = {
    "guard": [],
    "guard_softmax": ["--model.init_args.link=safe_rlhf_v.models.SoftmaxLink"],
    "guard_cumulative": ["--model.init_args.link=safe_rlhf_v.models.CumulativeLink",
                         "--model.init_args.lr_scale={head: 3.0, link: 10.0}"],
    "guard_text_only": ["--model.init_args.images=blank"],
}  # fmt: skip
STRATEGIES = ("resample", "hotter", "best-of-4")


def one_seed(root: Path, seed: int) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    run = Run(root / f"world-{seed}", root / f"seed-{seed}", seed)
    make_world(run.data, seed)
    log = run.root / "output"
    for stage in ("vision", "supervised", "cost"):
        if not (run.root / f"{stage}.done").exists():
            execute(run.fit(stage), quiet=log)
            (run.root / f"{stage}.done").touch()
    todo = [name for name in VARIANTS if not (run.root / name / "assessment.json").exists()]
    for i in range(0, len(todo), 2):
        names = todo[i : i + 2]
        execute(*(run.fit("guard", *VARIANTS[name], name=name) for name in names), quiet=log)
        execute(*(run.calibrate(name) for name in names), quiet=log)
        print(f"   {', '.join(names)} done", flush=True)
    answers = {strategy: run.root / "guard" / f"answers-{strategy}.json" for strategy in STRATEGIES}
    execute(*(run.generate("guard", s) for s, path in answers.items() if not path.exists()), quiet=log)
    found = {name: json.loads((run.root / name / "assessment.json").read_text()) for name in VARIANTS}
    return found, {strategy: json.loads(path.read_text()) for strategy, path in answers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/guard_evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/guard.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    start, assessed, answered = time.time(), [], []
    for seed in options.seeds:
        print(f"== seed {seed}", flush=True)
        guards, answers = one_seed(options.root, seed)
        assessed.append(guards)
        answered.append(answers)
    guards = {
        name: {
            split: {metric: summary([seed[name][split][metric] for seed in assessed]) for metric in metrics}
            for split, metrics in splits.items()
        }
        for name, splits in assessed[0].items()
    }
    rounds = {
        strategy: {
            row["name"]: {
                metric: summary([seed[strategy][i][metric] for seed in answered]) for metric in row if metric != "name"
            }
            for i, row in enumerate(rows)
        }
        for strategy, rows in answered[0].items()
    }
    about = {
        "what": "held-out results on the embedded world (synthetic data), against exact labels; seeds vary world, weights, "
        "training order and sampling",
        "seeds": options.seeds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "guards": guards, "generation": rounds}, indent=1) + "\n")
    for name, splits in guards.items():
        for split, metrics in splits.items():
            for metric, value in metrics.items():
                print(
                    f"{name:<18}{split:<24}{metric:<24}{value['mean']:.3f} +- {value['half_width_95']:.3f}  {value['values']}"
                )
    for strategy, rows in rounds.items():
        for name, metrics in rows.items():
            print(
                f"{strategy:<12}{name:<10}"
                + "  ".join(f"{m} {v['mean']:.3f} {v['values']}" for m, v in metrics.items())
            )
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds in this call")


if __name__ == "__main__":
    main()
