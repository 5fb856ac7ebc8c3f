"""Does the constrained policy keep its promise? Three seeds of world, weights, order and sampling; one JSON file.

    python benchmarks/policy_evidence.py --root runs/evidence --out docs/evidence/policy.json
    python benchmarks/policy_evidence.py --seeds 3 4 5 6 7 8 --groups confirm --out docs/evidence/policy_confirm.json

Every run is a public command. Finished runs are kept and not repeated. Groups: every method of ``compare``; PPO-Lagrangian
without PTX; four budgets; the dual controllers at one budget (two of them on the first seed only). ``confirm``: the
settings chosen by looking at seeds 0 to 2, unchanged, on seeds that nobody had looked at.
"""

import argparse
import json
import time
from pathlib import Path

from evidence import summary

from safe_rlhf_v.demo.compare import METHODS, method_steps, start_steps, with_dual
from safe_rlhf_v.demo.processes import cpu_seconds
from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.demo.steps import run_steps
from safe_rlhf_v.demo.tables import BUDGET, Method, cost_spread

PID = with_dual("PIDDual", budget=BUDGET)
ABLATIONS = (Method("ppo_no_ptx", "PPO-Lagrangian without PTX", "ppo_lag", ("--model.init_args.update.ptx_weight=0",)),)
BUDGET_RUNS = tuple(
    Method(f"budget_{abs(b):.1f}", f"budget {b}", "ppo_lag", (f"--model.init_args.dual.init_args.budget={b}",))
    for b in (-0.3, -0.7, -0.9)
)
RELEASED = with_dual("LogSpaceDual", budget=BUDGET, initial=10.0, maximum=20.0, rate=0.1, delay=1)
CONTROLLERS = (  # the default, log-space at rate 0.1, is ppo_lag
    Method("dual_pid", "PID", "ppo_lag", PID),
    Method("dual_fast", "log-space, rate 0.3", "ppo_lag", ("--model.init_args.dual.init_args.rate=0.3",)),
    Method("dual_released", "log-space as released", "ppo_lag", RELEASED),
    Method("dual_projected", "projected", "ppo_lag", with_dual("ProjectedDual", budget=BUDGET, rate=0.1)),
)
STEPS = (
    "--trainer.max_steps=90",
    "--trainer.val_check_interval=90",
    "--model.init_args.scheduler.init_args.total_steps=90",
)
LONG = Method(
    "long", "log-space, rate 0.2, 90 iterations", "ppo_lag", ("--model.init_args.dual.init_args.rate=0.2", *STEPS)
)
FIRST_SEED_ONLY = (
    Method("dual_exact", "exact penalty", "ppo_lag", with_dual("ExactPenalty", budget=BUDGET, weight=2.0, window=64)),
    Method("dual_rectified", "rectified per prompt", "ppo_lag", with_dual("RectifiedDual", budget=0.0, decay=0.05)),
)


PARTS = (  # split, mode, and what the part is called
    ("test", "sampled", "test"),
    ("test", "greedy", "test-greedy"),
    ("compositional", "sampled", "compositional"),
)


def curves(run: Run, name: str) -> dict[str, list[float]]:
    """Windowed cost and multiplier of every iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    newest = max((run.root / name).glob("version_*/events.*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(newest), size_guidance={"scalars": 0})
    events.Reload()
    return {
        short: [event.value for event in events.Scalars(f"constraint/{long}")]
        for short, long in (("cost", "cost"), ("windowed", "windowed_cost"), ("lam", "lambda"))
    }


def control(run: Run, name: str) -> dict[str, float]:
    """How well a controller steered.

    The values: iterations until the windowed cost met the budget, the mean cost of the last 15 iterations minus the budget, the
    largest excess of the windowed cost after the budget was met, and the largest and the last multiplier.
    """
    found = curves(run, name)
    windowed, lam = found["windowed"], found["lam"]
    first = next((i for i, cost in enumerate(windowed) if cost <= BUDGET), len(windowed))
    tail = found["cost"][-15:]
    return {
        "iterations_to_budget": float(first),
        "final_gap": sum(tail) / len(tail) - BUDGET,
        "overshoot": max([cost - BUDGET for cost in windowed[first:]] or [0.0]),
        "largest_lambda": max(lam),
        "last_lambda": lam[-1],
    }


def one_seed(root: Path, seed: int, groups: list[str]) -> dict[str, dict]:
    run = Run(root / f"world-{seed}", root / f"seed-{seed}", seed)
    run_steps(start_steps(run, seed), run.root)
    chosen: tuple[Method, ...] = ()
    first = FIRST_SEED_ONLY if seed == 0 else ()
    known = {
        "methods": METHODS + ABLATIONS,
        "budgets": BUDGET_RUNS,
        "controllers": CONTROLLERS + first,
        "confirm": (*METHODS[:4], *CONTROLLERS[:2], LONG),
    }
    for name, methods in known.items():
        if name in groups:
            chosen += methods
            splits = ("test", "compositional") if name == "methods" else ("test",)
            run_steps(method_steps(run, methods, f"--splits={json.dumps(splits)}"), run.root)
    spread = cost_spread(run, next(method.name for method in chosen if method.config == "ppo_lag"))
    found: dict[str, dict] = {}
    for method in chosen:
        row = {}
        for split, mode, name in PARTS:
            try:
                values = run.evaluation(method.name, split, mode)
            except ValueError:  # not every method responds in every way
                continue
            row[name] = {value: estimate.mean for value, estimate in values.items()}
            row[name]["cost"] /= spread
            row[name]["cost_error"] = values["cost"].error / spread
        if method.config in ("ppo_lag", "grpo_lag"):
            row["control"] = control(run, method.name)
        found[method.name] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/policy.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=["methods", "budgets", "controllers"])
    options = parser.parse_args()
    start, seeds = time.time(), []
    for seed in options.seeds:
        print(f"== seed {seed}", flush=True)
        seeds.append(one_seed(options.root, seed, options.groups))
    for seed in seeds:  # falls and gains are relative to the seed's own start
        start_row = seed["supervised"]["test"]
        for parts in seed.values():
            parts["test"]["harm_fall"] = 1 - parts["test"]["harmful"] / start_row["harmful"]
            parts["test"]["helpfulness_gain"] = parts["test"]["helpfulness"] - start_row["helpfulness"]
    rows = {
        name: {
            part: {
                metric: summary([s[name][part][metric] for s in seeds if part in s.get(name, {})]) for metric in metrics
            }
            for part, metrics in parts.items()
        }
        for name, parts in seeds[0].items()
    }
    about = {
        "what": "policies on the embedded world (synthetic data), 1,000 held-out and 600 compositional prompts, one response "
        "each at temperature 1 (-greedy: the likeliest), by ground truth; cost and KL by the learned models, cost in spreads of "
        "the start's",
        "budget": BUDGET,
        "seeds": options.seeds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "runs": rows}, indent=1) + "\n")
    for name, parts in rows.items():
        shown = ("helpfulness", "harmful", "harm_fall", "refused", "cost", "kl")
        cells = "  ".join(f"{m} {parts['test'][m]['mean']:.3f} {parts['test'][m]['values']}" for m in shown)
        print(f"{name:<20}{cells}")
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds in this call")


if __name__ == "__main__":
    main()
