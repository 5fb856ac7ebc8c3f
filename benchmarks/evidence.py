"""Do reward and cost models really learn? Three seeds of world, weights and order; data sizes; ablations; one JSON file.

    python benchmarks/evidence.py --root runs/evidence --out docs/evidence/foundation.json

Every run is a public command. Finished runs are kept and not repeated, so an interrupted call goes on where it stopped.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

from safe_rlhf_v.demo.processes import cpu_seconds, execute
from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.demo.steps import run_steps

PASSES = {"reward": 2, "cost": 3}
BATCH = 32
SIZES = (500, 1500)  # 5,000 is the main run
ABLATIONS = {
    "reward_end_token": ("reward", ["--model.init_args.head=safe_rlhf_v.models.ScalarHead"]),
    "cost_end_token": ("cost", ["--model.init_args.head=safe_rlhf_v.models.ScalarHead"]),
    "cost_no_ordinal": ("cost", ["--model.init_args.objective.init_args.terms=[{class_path: safe_rlhf_v.objectives.SignTerm}]",
                                 "--model.init_args.lr_scale={head: 3.0}"]),
    "reward_text_only": ("reward", ["--model.init_args.images=blank"]),
    "cost_text_only": ("cost", ["--model.init_args.images=blank"]),
}  # fmt: skip
# Two-sided 95 % quantiles of Student's t, by number of seeds.
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}


def done(run: Run, name: str) -> bool:
    return (run.root / name / "metrics.json").exists()


def pair(run: Run, jobs: list[tuple[str, str, list[str]]]) -> None:
    """Train and test jobs (name, stage, options) two at a time."""
    todo = [job for job in jobs if not done(run, job[0])]
    for i in range(0, len(todo), 2):
        names = [name for name, _, _ in todo[i : i + 2]]
        log = run.root / "output"
        execute(*(run.fit(stage, *extra, name=name) for name, stage, extra in todo[i : i + 2]), logs=log)
        execute(*(run.test(name) for name in names), logs=log)
        print(f"   {', '.join(names)} done", flush=True)


def smaller(stage: str, size: int) -> list[str]:
    steps = PASSES[stage] * (size // BATCH)
    return [
        f"--data.init_args.max_samples={size}",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={steps}",
        f"--model.init_args.scheduler.init_args.total_steps={steps}",
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    ]


def one_seed(root: Path, seed: int, ablate: bool) -> dict[str, dict[str, float]]:
    run = Run(root / f"world-{seed}", root / f"seed-{seed}", seed)
    run_steps([*run.world_steps(seed=seed), *map(run.stage_step, ("vision", "supervised"))], run.root)
    jobs: list[tuple[str, str, list[str]]] = [("reward", "reward", []), ("cost", "cost", [])]
    jobs += [(f"{stage}_{size}", stage, smaller(stage, size)) for size in SIZES for stage in PASSES]
    if ablate:
        jobs += [(name, stage, extra) for name, (stage, extra) in ABLATIONS.items()]
    pair(run, jobs)
    return {name: run.metrics(name) for name, _, _ in jobs}


def summary(values: list[float]) -> dict[str, float | list[float] | None]:
    """Mean, half width of the 95 % t interval over seeds, and the values."""
    mean = statistics.fmean(values)
    several = len(values) > 1
    half = round(T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)), 4) if several else None
    return {"mean": round(mean, 4), "half_width_95": half, "values": [round(v, 4) for v in values]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/foundation.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    start, found = time.time(), []
    for seed in options.seeds:
        print(f"== seed {seed}", flush=True)
        found.append(one_seed(options.root, seed, ablate=seed == options.seeds[0]))
    runs = {
        name: {metric: summary([seed[name][metric] for seed in found if name in seed]) for metric in found[0][name]}
        for name in found[0]
    }
    about = {
        "what": "held-out results on the embedded world (synthetic data); seeds vary world, weights and training order",
        "seeds": options.seeds,
        "pairs": {
            "reward": 5000,
            "cost": 5000,
            "reward_500": 500,
            "reward_1500": 1500,
            "cost_500": 500,
            "cost_1500": 1500,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    for name, metrics in runs.items():
        for metric, value in metrics.items():
            if "true" in metric or "ceiling" in metric or "shuffled" in metric or "blank" in metric:
                print(f"{name:<18}{metric:<50}{value['mean']:.3f} +- {value['half_width_95']:.3f}  {value['values']}")
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds in this call")


if __name__ == "__main__":
    main()
