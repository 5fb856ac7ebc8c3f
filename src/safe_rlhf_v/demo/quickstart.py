"""The whole pipeline on the embedded world: every step is a public command, run as a user would run it."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_v.commands.argument_types import path, whole
from safe_rlhf_v.functional.intervals import wilson_interval

CONFIGS = Path(__file__).parents[1] / "configs" / "quickstart"
TABLE = (  # model, metric, what it is, how many it is a share of: a number, the metric that says, or 0 for no share
    ("reward", "test/true_accuracy", "reward ranking, against the truth", "test/decided_pairs"),
    ("reward", "test/accuracy", "reward ranking, against noisy labels", 1000),
    ("reward", "test/label_ceiling", "  noisy labels against the truth (their ceiling)", "test/decided_pairs"),
    ("reward", "test/shuffled_accuracy", "  ranking with shuffled pictures", "test/decided_pairs"),
    ("reward", "test/blank_accuracy", "  ranking with blank pictures", "test/decided_pairs"),
    ("reward", "compositional/true_accuracy", "reward ranking, unseen combinations", "compositional/decided_pairs"),
    ("reward", "counterfactual_helpfulness/true_accuracy", "reward, counterfactual pictures (blind: 0.50)", 600),
    ("cost", "test/true_accuracy", "cost ranking, against the truth", "test/decided_pairs"),
    ("cost", "test/accuracy", "cost ranking, against noisy labels, ties included", 1000),
    ("cost", "test/label_ceiling", "  noisy labels against the truth (their ceiling)", "test/decided_pairs"),
    ("cost", "test/shuffled_accuracy", "  ranking with shuffled pictures", "test/decided_pairs"),
    ("cost", "test/blank_accuracy", "  ranking with blank pictures", "test/decided_pairs"),
    ("cost", "test/true_balanced_sign_accuracy", "cost sign: harmful or not, balanced", 2000),
    ("cost", "test/true_auroc", "cost, AUROC of harmful", 0),
    ("cost", "compositional/true_accuracy", "cost ranking, unseen combinations", "compositional/decided_pairs"),
    ("cost", "counterfactual_safety/true_accuracy", "cost, counterfactual pictures (blind: 0.50)", 600),
    ("cost", "counterfactual_verdict/true_sign_accuracy", "cost, counterfactual verdicts (blind: 0.50)", 600),
)
BEFORE = {  # what a stage starts from
    "supervised": "vision",
    "reward": "supervised",
    "cost": "supervised",
    "guard": "cost",
    "dpo_helpful": "supervised",
    "dpo_safe": "supervised",
    "safe_dpo": "supervised",
    "sacpo": "dpo_helpful",
}
ROLES = {"start": "supervised", "reward": "reward", "cost": "cost"}
GUARD_SPLITS = ("test", "compositional", "counterfactual_verdict")
GUARD_TABLE = (
    ("level_accuracy", "seven levels, accuracy"),
    ("within_one", "  within one level"),
    ("quadratic_kappa", "  quadratic weighted kappa"),
    ("majority_accuracy", "  (accuracy of the commonest level)"),
    ("harm_accuracy", "harmful or not, accuracy"),
    ("harm_auroc", "  AUROC"),
    ("harm_ece", "  calibration error of P(harmful)"),
    ("fpr_at_block", "harmless responses blocked (budget 0.05)"),
    ("recall_at_block", "harmful responses blocked"),
)


@dataclass
class Run:
    """Where one pipeline reads and writes.

    Attributes:
        data: Shard folder of the world, with its tokenizer.
        root: Folder of logs and checkpoints.
        seed: Seed of weights and training order.
    """

    data: Path
    root: Path
    seed: int = 0

    def marker(self, stage: str) -> Path:
        """File that says that a stage has been trained to its end."""
        return self.root / f"{stage}.done"

    def fit(self, stage: str, *extra: str, name: str = "") -> list[str]:
        """Command that trains a stage of ``configs/quickstart``; ``name`` is its folder below ``root``."""
        before = BEFORE.get(stage)
        options = [
            f"--config={CONFIGS / stage}.yaml",
            f"--seed_everything={self.seed}",
            f"--data.init_args.path={self.data}",
            f"--data.init_args.seed={self.seed}",
            f"--model.init_args.backbone.init_args.tokenizer={self.data / 'tokenizer'}",
            f"--trainer.logger.init_args.save_dir={self.root}",
            f"--trainer.logger.init_args.name={name or stage}",
        ]
        if before:
            options.append(f"--model.init_args.init_from={self.root / before}")
        for role, run in ROLES.items() if stage in ("ppo_lag", "grpo_lag") else ():
            options.append(f"--model.init_args.roles.init_args.{role}={self.root / run}")
        return ["fit", *options, *extra]

    def test(self, name: str) -> list[str]:
        """Command that measures a stage's newest checkpoint and writes ``metrics.json``."""
        return [
            "test",
            f"--ckpt_path={self.root / name}",
            f"--data.init_args.path={self.data}",
            "--trainer.accelerator=cpu",
            "--trainer.callbacks+=safe_rlhf_v.callbacks.MetricsFile",
            f"--trainer.callbacks.path={self.root / name / 'metrics.json'}",
        ]

    def evaluate(self, name: str, *extra: str) -> list[str]:
        """Command that lets a policy answer the test prompts and writes ``evaluation.json``."""
        judges = [f"--{role}={self.root / run}" for role, run in ROLES.items()]
        return [
            "evaluate",
            f"--policy={self.root / name}",
            f"--data={self.data}",
            f"--seed={self.seed}",
            *judges,
            *extra,
        ]

    def calibrate(self, name: str) -> list[str]:
        """Command that calibrates a guard and writes ``assessment.json``."""
        data = (f"--data={self.data}", f"--train_data={self.data}")
        return ["calibrate", f"--guard={self.root / name}", *data, "--report", *GUARD_SPLITS]

    def generate(self, guard: str, strategy: str) -> list[str]:
        """Command that lets the supervised policy answer behind a guard and writes ``responses-STRATEGY.json``."""
        output = self.root / guard / f"responses-{strategy}.jsonl"
        return [
            "generate",
            f"--policy={self.root / 'supervised'}",
            f"--guard={self.root / guard}",
            f"--data={self.data}",
            f"--strategy={strategy}",
            f"--seed={self.seed}",
            f"--output={output}",
        ]

    def metrics(self, name: str) -> dict[str, float]:
        """What :meth:`test` measured."""
        found: dict[str, float] = json.loads((self.root / name / "metrics.json").read_text())
        return found


def execute(*commands: Sequence[str], quiet: Path | None = None) -> None:
    """Run ``python -m safe_rlhf_v`` commands side by side, one thread each.

    More threads bring a model this small little, and on a busy machine they wait for one another.

    Args:
        commands: Command lines without the program.
        quiet: Folder for the output of each command; ``None`` shows it.

    Raises:
        SystemExit: If one of them fails, after showing the end of its output.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    running: list[tuple[subprocess.Popen[bytes], Path | None]] = []
    for i, command in enumerate(commands):
        line = [sys.executable, "-m", "safe_rlhf_v", *command]
        if quiet is None:
            running.append((subprocess.Popen(line, env=environment), None))
            continue
        quiet.mkdir(parents=True, exist_ok=True)
        log = quiet / f"{command[0]}-{i}-{time.time_ns()}.log"
        with log.open("w") as file:
            running.append((subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT), log))
    for process, output in running:
        if process.wait() != 0:
            tail = "\n".join(output.read_text().splitlines()[-20:]) if output else "see above"
            raise SystemExit(f"a step failed (exit status {process.returncode}):\n{tail}")


def cpu_seconds() -> float:
    """CPU seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_folders(run: Run) -> None:
    """Raises: ValueError: If results could not be written, which would be found out after minutes."""
    for option, folder in (("--root", run.root), ("--data", run.data)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{option} {folder}: {str(error.strerror).lower()}; choose another folder") from None


def make_world(data: Path, seed: int = 0, size: str = "default") -> None:
    """Write world and tokenizer unless they are there."""
    if not (data / "manifest.json").exists():
        execute(["world", f"--out={data}", f"--seed={seed}", f"--size={size}"])
    if not (data / "tokenizer" / "tokenizer.json").exists():
        execute(["tokenizer", f"--shards={data}", f"--out={data / 'tokenizer'}"])


def table(run: Run) -> str:
    """Held-out results with 95 % Wilson intervals (twins and pairs are not quite independent: a guide, not a test)."""
    lines = [f"{'held out':<52}{'value':>7}  95 % interval      n"]
    for model, metric, about, count in TABLE:
        metrics = run.metrics(model)
        n = count if isinstance(count, int) else round(metrics[count])
        low, high = wilson_interval(round(metrics[metric] * n), n)
        interval = f"  {low:.3f} .. {high:.3f} {n:>6}" if n else ""
        lines.append(f"{about:<52}{metrics[metric]:>7.3f}{interval}")
    return "\n".join([*lines, *guard_table(run), "", policy_table(run)])


def policy_table(run: Run) -> str:
    """The policy before and after constrained training."""
    from safe_rlhf_v.demo import compare as comparison  # it builds on this module

    names = ("supervised", "ppo_lag")
    return comparison.table(run, tuple(method for method in comparison.METHODS if method.name in names))


def guard_table(run: Run) -> list[str]:
    """The guard's rows, and what it does to the supervised policy's responses."""
    lines = ["", f"{'the guard, held out (calibrated)':<52}{'test':>10}{'unseen comb.':>14}{'counterfactual':>16}"]
    measured = json.loads((run.root / "guard" / "assessment.json").read_text())
    for metric, about in GUARD_TABLE:
        values = [measured[split][metric] for split in GUARD_SPLITS]
        lines.append(f"{about:<52}{values[0]:>10.3f}{values[1]:>14.3f}{values[2]:>16.3f}")
    rows = json.loads((run.root / "guard" / "responses-BestOfK.json").read_text())
    lines += ["", f"{'the supervised policy, by ground truth':<52}{'harmful':>10}{'refused':>14}{'helpfulness':>16}"]
    for row in (rows[0], rows[1], rows[-1]):
        name = {"no guard": "without a guard", "round 0": "filtered"}.get(
            row["name"], "filtered and regenerated, 5 rounds"
        )
        lines.append(f"{name:<52}{row['harm']:>10.3f}{row['refused']:>14.3f}{row['helpfulness']:>16.2f}")
    return lines


def main(argv: list[str]) -> int:
    """``python -m safe_rlhf_v quickstart``."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v quickstart",
        description="Write the embedded world (synthetic), train vision -> supervised -> reward and cost -> guard -> "
        "constrained policy by the public commands, and print held-out results. About 8 minutes on two cores.",
    )
    parser.add_argument("--data", type=path, default=Path("data/world"), help="shard folder (default: %(default)s)")
    parser.add_argument("--root", type=path, default=Path("runs/quickstart"), help="logs and checkpoints (%(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of weights and training order")
    options = parser.parse_args(argv)
    run = Run(options.data, options.root, options.seed)
    try:
        check_folders(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    start = time.time()
    steps: list[tuple[str, list[list[str]]]] = [
        ("vision: teach the tower what pictures show", [run.fit("vision")]),
        ("supervised: imitate the demonstrator", [run.fit("supervised")]),
        ("reward and cost models, side by side", [run.fit("reward"), run.fit("cost")]),
        ("guard: levels, prompt risk and categories", [run.fit("guard")]),
        ("calibration and held-out tests", [run.calibrate("guard"), run.test("reward"), run.test("cost")]),
        ("constrained policy: PPO-Lagrangian", [run.fit("ppo_lag")]),
        (
            "responses: behind the guard, and of the policy before and after",
            [run.generate("guard", "BestOfK"), run.evaluate("supervised"), run.evaluate("ppo_lag")],
        ),
    ]
    print("== world: write the synthetic shards and their tokenizer")
    make_world(run.data)
    for i, (about, commands) in enumerate(steps, start=1):
        print(f"== {i}/{len(steps)} {about}", flush=True)
        for command in commands:
            print(
                f"   python -m safe_rlhf_v {command[0]} {' '.join(c for c in command[1:] if 'config=' in c or 'ckpt' in c)}"
            )
        shown = commands[0][0] == "fit"
        execute(*commands, quiet=None if shown else run.root / "output")
        if shown:
            for command in commands:
                run.marker(Path(command[1]).stem).touch()
    print(f"\n{table(run)}\n")
    print(f"{time.time() - start:.0f} s on the clock, {cpu_seconds():.0f} CPU seconds, imports included")
    print(f"checkpoints and TensorBoard files: {run.root}    watch: tensorboard --logdir {run.root}")
    return 0
