"""The policy claims on seeds that nobody has looked at: see docs/results/protocol.md, which was written before.

    python benchmarks/claims/run.py --tune                      # once: SafeDPO's setting, on seeds of its own
    python benchmarks/claims/run.py --seeds 20 21 22 23 24 25   # hours on two cores
    python benchmarks/claims/run.py --first                     # afterwards: the supplement at equal divergence
    python benchmarks/claims/table.py docs/evidence/claims      # tables and figures

Every step is a public command. What is done is not repeated: an interrupted call goes on where it stopped. What a seed measured
is kept in ``seed-N.json`` as soon as it is done, and such a seed is not run again. What differs from the protocol is a trial.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from measured import MODES, Seed
from methods import (
    BEGINNING,
    FIRST,
    KEPT,
    SAFE_DPO_GRID,
    SEEDS,
    Claimed,
    Commands,
    first_iterations,
    protocol,
    safe_dpo_method,
)

from safe_rlhf_v import __version__
from safe_rlhf_v.commands.runner import refuse
from safe_rlhf_v.demo.compare import METHODS, start_steps
from safe_rlhf_v.demo.processes import CommandError, cpu_seconds
from safe_rlhf_v.demo.runs import CONFIGS, Run
from safe_rlhf_v.demo.steps import Step, run_steps
from safe_rlhf_v.records.user_files import write_whole

CHOICE = "safe_dpo.json"
TUNING_SEEDS = (10, 11, 12)
EVIDENCE = Path("docs/evidence/claims")
PROMPTS = 720
SPENT = range(9)
"""Seeds that were looked at while defaults were chosen."""


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, help="folder of worlds and runs (default: runs/claims, of a trial claims_trial)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON files (default: docs/evidence/claims, of a trial in --root)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="of world, weights, order and sampling")
    parser.add_argument("--tune", action="store_true", help="choose SafeDPO's setting instead")
    parser.add_argument(
        "--first",
        action="store_true",
        help="measure policies of the first iterations of seeds that have run, too",
    )
    parser.add_argument(
        "--again", action="store_true", help="only measure seeds that have run once more, by the code of now"
    )
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of the stages' configurations")
    parser.add_argument("--methods", nargs="+", help="some of them only, for a trial; with the start and ppo_lag")
    parser.add_argument("--sizes", default="", help="records of single splits, for a trial, as test=40,train=200")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="training prompts answered for rejection sampling")
    parser.add_argument(
        "--kept", type=int, nargs="+", help="iterations whose policies are kept (without --first evenly spaced)"
    )
    chosen = parser.parse_args(args)
    chosen.seeds = chosen.seeds or list(TUNING_SEEDS if chosen.tune else SEEDS)
    protocols = FIRST if chosen.first else KEPT
    chosen.kept = tuple(chosen.kept or protocols)
    other_seeds = {*chosen.seeds} != {*TUNING_SEEDS} if chosen.tune else not {*chosen.seeds} <= {*SEEDS}
    other_training = chosen.prompts != PROMPTS or chosen.kept != protocols or hashes(chosen.configs) != hashes(CONFIGS)
    # What a trial wrote would be taken for the results of a run, so it goes elsewhere.
    chosen.trial = bool(chosen.sizes or chosen.methods or other_seeds or other_training)
    chosen.root = chosen.root or Path("runs/claims_trial" if chosen.trial else "runs/claims")
    chosen.out = chosen.out or (chosen.root / "results" if chosen.trial else EVIDENCE)
    if chosen.trial and chosen.out.resolve() == (Path(__file__).parents[2] / EVIDENCE).resolve():
        parser.error(f"--out {chosen.out}: is for runs by the protocol; these options are a trial, name another folder")
    if spent := sorted({*chosen.seeds} & {*SPENT}):
        parser.error(f"--seeds: {spent[0]} was looked at while defaults were chosen; 0 to 8 prove nothing any more")
    if len({*chosen.seeds}) < len(chosen.seeds):
        parser.error("--seeds: one is named twice")
    return chosen


def hashes(configs: Path) -> dict[str, str]:
    """Hash of every configuration's settings; comments and layout may change."""
    settings = {file.name: yaml.safe_load(file.read_text()) for file in sorted(configs.glob("*.yaml"))}
    texts = {name: json.dumps(values, sort_keys=True) for name, values in settings.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def commit() -> str:
    """The code's commit; "" outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_all(steps: Sequence[Step], root: Path) -> list[str]:
    """Run the steps; a training that ended itself counts as it stands. Gives the names of these."""
    stopped: list[str] = []
    while True:
        try:
            run_steps([step for step in steps if step.name not in stopped], root)
            return stopped
        except CommandError as error:
            names = [step.name for step in steps if str(root / "output" / f"{step.name}.log") in str(error)]
            if not names or not any("stopped after iteration" in line for line in error.problems):
                raise
            print(f"{names[0]} stopped itself; it counts as it stands", flush=True)
            stopped += names


def run_of(chosen: argparse.Namespace, seed: int) -> Run:
    return Run(chosen.root / f"world-{seed}", chosen.root / f"seed-{seed}", seed, chosen.configs)


def starts(run: Run, sizes: str) -> list[Step]:
    """Everything up to reward and cost model."""
    first, *others = start_steps(run, run.seed)
    return [first._replace(command=[*first.command, *([f"--sizes={sizes}"] if sizes else [])]), *others]


def spreads(run: Run) -> tuple[float, float]:
    """Spread of the start's raw reward and raw cost, as ``ppo_lag`` measured it before its first step."""
    from safe_rlhf_v.training.checkpoints import read_checkpoint

    reward, cost = read_checkpoint(run.root / "ppo_lag")["state_dict"]["scale.spread"].tolist()
    return float(reward), float(cost)


def chosen_methods(methods: Sequence[Claimed], names: Sequence[str] | None) -> list[Claimed]:
    """Those that are named, those that they start from, the start and ``ppo_lag``.

    Raises:
        ValueError: If there is no such method.
    """
    known = {one.name: one for one in methods}
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"--methods {unknown[0]}: there is no such method; there are: {', '.join(known)}")
    kept = {"supervised", "ppo_lag", *(names or known)}
    kept |= {known[name].method.after for name in kept}
    return [one for one in methods if one.name in kept]


def one_seed(chosen: argparse.Namespace, seed: int, methods: Sequence[Claimed]) -> dict[str, Any]:
    """Run and measure one seed."""
    run = run_of(chosen, seed)
    run.check()
    commands = Commands(run, chosen.prompts, chosen.kept)
    stopped = run_all([*starts(run, chosen.sizes), *commands.training(methods)], run.root)
    reward, cost = spreads(run)
    weight = round(reward / cost, 6)  # of the raw cost where the raw reward has 1
    stopped += run_all([*commands.imitation(methods, weight), *commands.evaluations(methods, weight)], run.root)
    seed_measured = Seed(run, commands)
    return {
        "seed": seed,
        "version": __version__,
        "configs": hashes(chosen.configs),
        "commit": commit(),
        "trial": chosen.trial,
        "spread": {"reward": reward, "cost": cost},
        "stopped": stopped,
        "methods": {one.name: seed_measured.method(one, cost) for one in methods},
    }


def that_ran(chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The file of a seed that has run.

    Raises:
        ValueError: If there is none.
    """
    file = chosen.out / f"seed-{seed}.json"
    if not file.exists():
        raise ValueError(f"{file} is not there: run the seed without --first and --again before")
    before: dict[str, Any] = json.loads(file.read_text())
    return before


def measured_again(chosen: argparse.Namespace, seed: int, methods: Sequence[Claimed]) -> dict[str, Any]:
    """A seed that has run, measured once more from the lines of its evaluations, by the code of now."""
    before = that_ran(chosen, seed)
    run = run_of(chosen, seed)
    seed_measured = Seed(run, Commands(run, chosen.prompts, chosen.kept))
    cost = before["spread"]["cost"]
    again = {one.name: seed_measured.method(one, cost) for one in methods if one.name in before["methods"]}
    return before | {"methods": before["methods"] | again, "measured_by": commit()}


def with_first(chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """A seed that has run, with what policies of the first iterations do, by method and iteration."""
    before = that_ran(chosen, seed)
    seconds = cpu_seconds()
    *middle, last = chosen.kept
    run = run_of(chosen, seed)
    commands = Commands(run, chosen.prompts, middle)
    methods = [one for one in first_iterations(last) if one.name.removeprefix(BEGINNING) in before["methods"]]
    steps = [*starts(run, chosen.sizes), *commands.training(methods), *commands.evaluations(methods, 1.0)]
    stopped = run_all(steps, run.root)
    kept = {}
    for one in methods:
        measured = Seed(run, commands).method(one, before["spread"]["cost"])
        at_last = {str(last): {mode: measured[mode] for mode in MODES}}
        kept[one.name.removeprefix(BEGINNING)] = measured["kept"] | at_last
    first = {"version": __version__, "commit": commit(), "stopped": stopped, "kept": kept}
    if "first" in before and cpu_seconds() == seconds:  # no step ran: measured once more, from the responses of then
        first = before["first"] | {"kept": kept, "measured_by": commit()}
    return before | {"first": first}


def tuned(chosen: argparse.Namespace) -> dict[str, Any]:
    """SafeDPO's grid on its own seeds, and the setting that the protocol's rule chooses."""
    grid = [safe_dpo_method(f"safe_dpo_{i}", setting) for i, setting in enumerate(SAFE_DPO_GRID)]
    start = Claimed(METHODS[0])
    lag = Claimed(next(method for method in METHODS if method.name == "ppo_lag"))
    harm: dict[str, list[float]] = {}
    help: dict[str, list[float]] = {}
    for seed in chosen.seeds:
        run = run_of(chosen, seed)
        run.check()
        commands = Commands(run, chosen.prompts, chosen.kept)
        methods = [start, lag, *grid]
        steps = [*starts(run, chosen.sizes), *commands.training(methods), *commands.evaluations(methods, 1.0)]
        run_all(steps, run.root)
        seed_measured = Seed(run, commands)
        _, cost = spreads(run)
        for one in methods:
            sampled = seed_measured.method(one, cost)["sampled"]
            harm.setdefault(one.name, []).append(sampled["harmful"]["value"])
            help.setdefault(one.name, []).append(sampled["helpfulness"]["value"])
    mean_harm = {name: statistics.fmean(values) for name, values in harm.items()}
    mean_help = {name: statistics.fmean(values) for name, values in help.items()}
    names = [one.name for one in grid]
    best = choose(names, mean_help, mean_harm, mean_harm["ppo_lag"])
    tried = [
        {**setting, "helpfulness": help[name], "harmful": harm[name]}
        for name, setting in zip(names, SAFE_DPO_GRID, strict=True)
    ]
    chosen_setting = SAFE_DPO_GRID[names.index(best)]
    reference = {"helpfulness": help["ppo_lag"], "harmful": harm["ppo_lag"]}
    return {"seeds": chosen.seeds, "chosen": chosen_setting, "ppo_lag": reference, "tried": tried}


def choose(names: Sequence[str], helpfulness: dict[str, float], harm: dict[str, float], limit: float) -> str:
    """The most helpful of those whose harm is at most the limit; if there is none, the least harmful."""
    allowed = [name for name in names if harm[name] <= limit]
    return max(allowed, key=helpfulness.__getitem__) if allowed else min(names, key=harm.__getitem__)


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
    print(f"written: {file}", flush=True)


def main(args: Sequence[str] | None = None) -> int:
    chosen = options(args)
    began = time.monotonic()
    try:
        run_claims(chosen)
    except (ValueError, OSError, RuntimeError) as error:
        return refuse(error)
    print(f"{time.monotonic() - began:.0f} s on the clock, {cpu_seconds():.0f} CPU-seconds in this call")
    return 0


def run_claims(chosen: argparse.Namespace) -> None:
    """Tune, or run or measure every seed."""
    choice = chosen.out / CHOICE
    if chosen.tune:
        write(choice, tuned(chosen))
        return
    if not chosen.first and not choice.exists():
        raise ValueError(f"{choice} is not there: run --tune first; SafeDPO's setting is chosen before these seeds run")
    for seed in chosen.seeds:
        check_configs(chosen)
        file = chosen.out / f"seed-{seed}.json"
        if chosen.first:
            write(file, with_first(chosen, seed))
            continue
        methods = chosen_methods(protocol(json.loads(choice.read_text())["chosen"]), chosen.methods)
        print(f"== seed {seed}", flush=True)
        if chosen.again:
            write(file, measured_again(chosen, seed, methods))
        elif file.exists() and {one.name for one in methods} <= {*json.loads(file.read_text())["methods"]}:
            print(f"has run: {file}; --again measures it once more", flush=True)
        else:
            write(file, one_seed(chosen, seed, methods))


def check_configs(chosen: argparse.Namespace) -> None:
    """Raises: ValueError: If a seed that is there was run with other configurations: all of them have to run anew then."""
    for file in sorted(chosen.out.glob("seed-*.json")):
        earlier = json.loads(file.read_text())["configs"]
        now = hashes(chosen.configs)
        if different := sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name)):
            raise ValueError(
                f"{file} was made with another {different[0]}; move the JSON files away and run all seeds anew"
            )


if __name__ == "__main__":
    sys.exit(main())
