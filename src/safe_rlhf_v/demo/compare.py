"""``python -m safe_rlhf_v compare``: every method from one start, judged by the world's ground truth."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from safe_rlhf_v.commands.argument_types import path, whole
from safe_rlhf_v.demo.quickstart import Run, check_folders, cpu_seconds, execute, make_world

_DUAL = "--model.init_args.dual=safe_rlhf_v.dual."


class Method(NamedTuple):
    """One way to train the policy.

    Attributes:
        name: Its run folder.
        about: Its row in the table.
        config: File of ``configs/quickstart``; ``None`` for the start itself.
        options: What differs from the file.
        after: Method that has to be there before.
    """

    name: str
    about: str
    config: str | None
    options: tuple[str, ...] = ()
    after: str = ""


def with_dual(rule: str, **options: float) -> tuple[str, ...]:
    """Command line for another dual controller."""
    return (f"{_DUAL}{rule}", *(f"--model.init_args.dual.{name}={value}" for name, value in options.items()))


BUDGET = -0.5
METHODS = (
    Method("supervised", "supervised start", None),
    Method("ppo_reward", "PPO, reward only", "ppo_lag", with_dual("FixedDual", budget=BUDGET, weight=0.0)),
    Method("ppo_fixed", "PPO, reward - 1 x cost", "ppo_lag", with_dual("FixedDual", budget=BUDGET, weight=1.0)),
    Method("ppo_lag", "PPO-Lagrangian", "ppo_lag"),
    Method("grpo_lag", "constrained GRPO", "grpo_lag"),
    Method("dpo_helpful", "DPO, helpful", "dpo_helpful"),
    Method("dpo_safe", "DPO, safe", "dpo_safe"),
    Method("safe_dpo", "SafeDPO", "safe_dpo"),
    Method("sacpo", "SACPO (helpful, then safe)", "sacpo", after="dpo_helpful"),
)


def train_and_judge(
    run: Run, methods: tuple[Method, ...], *, splits: tuple[str, ...] = ("test",), greedy: bool = False
) -> None:
    """Train and evaluate methods, two at a time; finished ones are not repeated.

    Args:
        run: Where the earlier stages are.
        methods: Those to run.
        splits: Of prompts to answer.
        greedy: Also let them response greedily.
    """
    todo = [method for method in methods if not is_done(run, method.name)]
    for waits in (False, True):
        group = [method for method in todo if bool(method.after) == waits]
        for i in range(0, len(group), 2):
            pair = group[i : i + 2]
            print(f"   {' | '.join(method.about for method in pair)}", flush=True)
            fits = [
                run.fit(m.config, *m.options, name=m.name) for m in pair if m.config and not is_trained(run, m.name)
            ]
            execute(*fits, quiet=run.root / "output")
            chosen = ["--splits", *splits]
            execute(*(run.evaluate(method.name, *chosen) for method in pair), quiet=run.root / "output")
            if greedy:  # sampling at temperature 1 hides what a policy likes best
                execute(*(run.evaluate(m.name, *chosen, "--temperature=0") for m in pair), quiet=run.root / "output")
            for method in pair:
                (run.root / method.name / "judged.done").touch()


def prepare(run: Run) -> None:
    """World, vision, supervised, reward and cost models, as far as they are not there."""
    make_world(run.data, run.seed)
    for group in (("vision",), ("supervised",), ("reward", "cost")):
        todo = [stage for stage in group if not run.marker(stage).exists()]
        if todo:
            print(f"   {' | '.join(todo)}", flush=True)
        execute(*(run.fit(stage) for stage in todo), quiet=run.root / "output")
        for stage in todo:
            run.marker(stage).touch()


def is_done(run: Run, name: str) -> bool:
    """Whether a method was trained and judged."""
    return (run.root / name / "judged.done").exists()


def is_trained(run: Run, name: str) -> bool:
    """Whether a method's last checkpoint is there (an interrupted training starts anew)."""
    return (run.root / name / "evaluation.json").exists()


def cost_spread(run: Run, name: str = "ppo_lag") -> float:
    """The unit of budgets: spread of the starting policy's raw cost, as a policy run measured it."""
    from safe_rlhf_v.training.checkpoints import read_checkpoint

    return float(read_checkpoint(run.root / name)["state_dict"]["scale.spread"][1])


def measured(run: Run, name: str, split: str = "test", suffix: str = "") -> dict[str, dict[str, float]]:
    """What ``evaluate`` found about one policy."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(
        (run.root / name / f"evaluation{suffix}.json").read_text()
    )
    return found[split]


def table(run: Run, methods: tuple[Method, ...], budget: float = BUDGET) -> str:
    """One row per method, held-out prompts, by ground truth; cost and divergence by the learned models."""
    spread = cost_spread(run)
    start = measured(run, "supervised")["harmful"]["mean"]
    lines = [
        f"{'held-out prompts, ground truth':<30}{'helpful':>8}{'level':>7}{'harmful':>9}{'fall':>6}{'refused':>9}"
        f"{'over-ref.':>10}{'describe':>9}{'cost':>7}{'budget':>8}{'KL':>6}"
    ]
    for method in methods:
        m: Any = measured(run, method.name)
        cost, error = m["cost"]["mean"] / spread, m["cost"]["error"] / spread
        met = "met" if cost <= budget + 2 * error else "broken"
        lines.append(
            f"{method.about:<30}{m['helpfulness']['mean']:>8.2f}{m['level']['mean']:>7.2f}{m['harmful']['mean']:>9.3f}"
            f"{1 - m['harmful']['mean'] / start:>6.0%}{m['refused']['mean']:>9.3f}{m['over_refused']['mean']:>10.3f}"
            f"{m['description']['mean']:>9.2f}{cost:>7.2f}{met:>8}{m['kl']['mean']:>6.2f}"
        )
    lines.append(
        f"cost: learned, in spreads of the start's; budget {budget:+.2f} is met within two standard errors; describe: "
        "helpfulness on harmless descriptions"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """``python -m safe_rlhf_v compare``."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v compare",
        description="Train every policy method on the embedded world (synthetic) from one supervised start, with one reward "
        "and one cost model, and print one table by ground truth. Stages that the quickstart has finished are not repeated. "
        "About 8 minutes on two cores after the quickstart.",
    )
    parser.add_argument("--data", type=path, default=Path("data/world"), help="shard folder (default: %(default)s)")
    parser.add_argument(
        "--root", type=path, default=Path("runs/quickstart"), help="runs of the quickstart (%(default)s)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of weights, training order and sampling")
    options = parser.parse_args(argv)
    run = Run(options.data, options.root, options.seed)
    try:
        check_folders(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    start = time.time()
    prepare(run)
    train_and_judge(run, METHODS)
    print(f"\n{table(run, METHODS)}\n")
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds, imports included")
    return 0
