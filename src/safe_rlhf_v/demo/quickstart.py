"""``python -m safe_rlhf_v quickstart``: the whole pipeline on the embedded world; every step is a public command."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from safe_rlhf_v.commands.options import AnyPath, NonNegativeInt
from safe_rlhf_v.commands.runner import run as run_command
from safe_rlhf_v.demo.processes import cpu_seconds
from safe_rlhf_v.demo.runs import CONFIGS, Run
from safe_rlhf_v.demo.steps import Step, cores, run_steps
from safe_rlhf_v.demo.tables import results

EXAMPLES = ("quickstart", "quickstart --seed 1 --data data/world-1 --root runs/seed-1")
NEEDS = """The whole method on a synthetic world: world -> vision -> supervised -> reward, cost, guard -> constrained policy.
{steps} steps: 635 CPU-seconds and ten minutes at most when last measured, on two cores that had other work, too.
It needs 4 GB of memory and 0.4 GB of disk, no GPU, no download. Steps at a time: {cores}.
Data: {data}; runs: {root}. Interrupted, the same command goes on where it stopped.
"""
SUMMARY = """
{clock:.0f} s on the clock, {cpu:.0f} CPU-seconds, imports included

where to look next
  curves and pictures     tensorboard --logdir {root}    (what each means: docs/curves.md)
  responses of a policy   {root}/ppo_lag/evaluation/responses.jsonl (its start: {root}/supervised/evaluation/responses.jsonl)
  the table above         {root}/results.txt
  each step's command     the first line of {root}/output/STEP.log, and what it printed
  every other method      python -m safe_rlhf_v compare --data {data} --root {root}
"""


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run_command(quickstart, args, name="quickstart", show=str, examples=EXAMPLES)


def quickstart(
    data: AnyPath = "data/world",
    root: AnyPath = "runs/quickstart",
    seed: NonNegativeInt = 0,
    configs: AnyPath = CONFIGS,
    size: Literal["default", "small"] = "default",
    sizes: str = "",
) -> str:
    """Write the embedded world (synthetic), train every model of the method on it, and print held-out results.

    Vision, supervised, reward and cost models, guard, constrained policy: each step is a public command, and the log of a step
    begins with its command line. What is done already is not repeated. 635 CPU-seconds when last measured.

    A script that calls it needs ``if __name__ == "__main__":``, because steps are processes of their own.

    Args:
        data: Shard folder; a world that is there is used.
        root: Folder of logs and checkpoints.
        seed: Seed of weights, training order and sampling.
        configs: Folder of the stages' configurations: a copy of configs/quickstart with changes of your own.
        size: Size of the world that is written; small is a tenth.
        sizes: Records of single splits of the world, as train=200,test=40.

    Returns:
        The results, and where to look.

    Raises:
        CommandError: If a step fails.
        FileError: If another process is running a pipeline in the folder of runs.
        ValueError: If a folder cannot be used.
    """
    run = Run(Path(data), Path(root), seed, Path(configs))
    run.check()
    began = time.monotonic()
    steps = quickstart_steps(run, f"--size={size}", *([f"--sizes={sizes}"] if sizes else []))
    print(NEEDS.format(steps=len(steps), cores=cores(), data=data, root=root), flush=True)
    run_steps(steps, run.root)
    text = f"{results(run)}\n"
    places = {name: shlex.quote(str(folder)) for name, folder in (("root", root), ("data", data))}
    (run.root / "results.txt").write_text(text)
    return f"\n{text}{SUMMARY.format(clock=time.monotonic() - began, cpu=cpu_seconds(), **places)}"


def quickstart_steps(run: Run, *world: str) -> list[Step]:
    """Every step behind those it reads from; of those that can run, the first ones run first: what the rest waits for.

    Args:
        run: Where they read and write.
        world: Options of the command ``world``.
    """
    return [
        *run.world_steps(*world),
        *map(run.stage_step, ("vision", "supervised", "cost", "reward")),
        Step("ppo_lag", "constrained policy: PPO-Lagrangian", run.fit("ppo_lag"), ("supervised", "reward", "cost")),
        run.stage_step("guard"),
        Step("calibrate", "calibrate the guard, and test it", run.calibrate("guard"), ("guard",)),
        Step("generate", "the start responds behind the guard", run.generate("guard", "BestOfK"), ("calibrate",)),
        Step("evaluate_ppo_lag", "responses of the policy, judged", run.evaluate("ppo_lag"), ("ppo_lag",)),
        Step("evaluate_supervised", "responses of its start, judged", run.evaluate("supervised"), ("reward", "cost")),
        Step("test_reward", "reward model on held-out pairs", run.test("reward"), ("reward",)),
        Step("test_cost", "cost model on held-out pairs", run.test("cost"), ("cost",)),
    ]
