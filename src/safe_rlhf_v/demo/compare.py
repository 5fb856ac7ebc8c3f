"""``python -m safe_rlhf_v compare``: every method from one start, judged by the world's ground truth."""

import time
from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_v.commands.options import AnyPath, NonNegativeInt
from safe_rlhf_v.commands.runner import run as run_command
from safe_rlhf_v.demo.processes import cpu_seconds
from safe_rlhf_v.demo.runs import CONFIGS, Run
from safe_rlhf_v.demo.samples import best_of, imitation_steps
from safe_rlhf_v.demo.steps import Step, cores, run_steps
from safe_rlhf_v.demo.tables import BUDGET, PPO_LAG, START, Method, policy_rows

EXAMPLES = ("compare", "compare --methods grpo_lag safe_dpo")
NEEDS = """Every policy method from one supervised start, with one reward and one cost model, judged by the world's ground truth.
{steps} steps behind the quickstart, minutes on two cores; {cores} at a time; data: {data}, runs: {root}.
"""
_DUAL = "--model.init_args.dual=safe_rlhf_v.dual."


def with_dual(rule: str, **options: float) -> tuple[str, ...]:
    """Command line for another dual controller."""
    return (f"{_DUAL}{rule}", *(f"--model.init_args.dual.{name}={value}" for name, value in options.items()))


METHODS = (
    START,
    Method("ppo_reward", "PPO, reward only", "ppo_lag", with_dual("FixedDual", budget=BUDGET, weight=0.0)),
    Method("ppo_fixed", "PPO, reward - 1 x cost", "ppo_lag", with_dual("FixedDual", budget=BUDGET, weight=1.0)),
    PPO_LAG,
    Method("grpo_lag", "constrained GRPO", "grpo_lag"),
    Method("dpo_helpful", "DPO, helpful", "dpo_helpful"),
    Method("dpo_safe", "DPO, safe", "dpo_safe"),
    Method("safe_dpo", "SafeDPO", "safe_dpo"),
    Method("sacpo", "SACPO (helpful, then safe)", "sacpo", after="dpo_helpful"),
    Method("sft_safe", "SFT on helpful and safe", "sft_safe"),
    Method("rejection", "rejection sampling, best of 4", "sft_safe", draws=4),
    Method("best_of_8", "best of 8, untrained", None, draws=8),
)


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run_command(compare, args, name="compare", show=str, examples=EXAMPLES)


def compare(
    data: AnyPath = "data/world",
    root: AnyPath = "runs/quickstart",
    seed: NonNegativeInt = 0,
    configs: AnyPath = CONFIGS,
    methods: Sequence[str] = (),
) -> str:
    """Train every policy method on the embedded world (synthetic) from one supervised start, and print one table.

    All use one reward and one cost model and are judged by ground truth. Steps that the quickstart has finished with the same
    options are not repeated. Minutes on two cores after the quickstart.

    Args:
        data: Shard folder.
        root: Runs of the quickstart.
        seed: Seed of weights, training order and sampling.
        configs: Folder of the stages' configurations: a copy of configs/quickstart with changes of your own.
        methods: Which to train beside PPO-Lagrangian, which gives the unit of cost; all of them if left out.

    Returns:
        The table.

    Raises:
        CommandError: If a step fails.
        FileError: If another process is running a pipeline in the folder of runs.
        ValueError: If a folder cannot be used, or there is no such method.
    """
    run = Run(Path(data), Path(root), seed, Path(configs))
    chosen = choose(methods)
    run.check()
    began = time.monotonic()
    steps = [*start_steps(run), *method_steps(run, chosen)]
    print(NEEDS.format(steps=len(steps), cores=cores(), data=data, root=root), flush=True)
    run_steps(steps, run.root)
    used = f"{time.monotonic() - began:.0f} s on the clock, {cpu_seconds():.0f} CPU-seconds, imports included"
    return "\n".join(["", *policy_rows(run, chosen), "", used])


def choose(names: Sequence[str]) -> tuple[Method, ...]:
    """The named methods, those they start from, the start and PPO-Lagrangian, in the order of the table.

    Raises:
        ValueError: If there is no such method.
    """
    known = {method.name: method for method in METHODS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--methods {unknown[0]}: there is no such method; there are: {', '.join(known)}")
    chosen = {START.name, PPO_LAG.name, *(names or known)}
    chosen |= {known[name].after for name in chosen}
    return tuple(method for method in METHODS if method.name in chosen)


def start_steps(run: Run, world: int = 0) -> list[Step]:
    """World, vision, supervised, reward and cost models.

    Args:
        run: Where they are written.
        world: Seed of the world.
    """
    return [*run.world_steps(seed=world), *map(run.stage_step, ("vision", "supervised", "cost", "reward"))]


def method_steps(run: Run, methods: Sequence[Method], *extra: str) -> list[Step]:
    """Training and evaluation of methods.

    Args:
        run: Where the earlier stages are.
        methods: Those to run.
        extra: Further options of the evaluations.
    """
    steps: list[Step] = []
    for method in methods:
        before = (method.after or "supervised", "reward", "cost")
        if method.config and method.draws:
            steps += imitation_steps(run, method)
        elif method.config:
            command = run.fit(method.config, *method.options, name=method.name)
            steps.append(Step(method.name, f"train: {method.about}", command, before))
    for method in methods:
        policy = best_of(run, method) if method.untrained else None
        command = run.evaluate(method.name, *extra, policy=policy)
        after = (method.name, "reward", "cost")
        steps.append(Step(f"evaluate_{method.name}", f"judge: {method.about}", command, after))
    return steps
