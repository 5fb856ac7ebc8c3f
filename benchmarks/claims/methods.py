"""The methods of docs/results/protocol.md, and the commands that train and evaluate them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safe_rlhf_v.demo.compare import METHODS as COMPARED
from safe_rlhf_v.demo.compare import with_dual
from safe_rlhf_v.demo.runs import Run, component
from safe_rlhf_v.demo.samples import best_of, imitation_steps
from safe_rlhf_v.demo.steps import Step
from safe_rlhf_v.demo.tables import BUDGET, Method

SEEDS = (20, 21, 22, 23, 24, 25)
WEIGHTS = (0.25, 0.5, 2.0, 4.0, 8.0)
"""Beside 0 (``ppo_reward``) and 1 (``ppo_fixed``)."""
BUDGETS = (-0.3, -0.7, -0.9)
KEPT = (9, 18, 27, 36)
"""Iterations whose policies are kept beside the last one's; evenly spaced."""
FIRST = (1, 2, 3, 4, 6)
"""Iterations of the supplement: the divergence is past 1 at the first of the others."""
BEGINNING = "first_"
"""Begins their names."""
CHECKPOINTS = "--trainer.callbacks.init_args"
"""Of the last callback of the configurations, which writes checkpoints."""
DEMONSTRATIONS = "--data.init_args.demonstrations_from"
SAFE_DPO_GRID = tuple(
    {"beta": beta, "offset": offset, "lr": lr}
    for beta in (0.25, 0.5, 1.0)
    for offset in (0.0, 2.0)
    for lr in (2e-4, 6e-4)
)
"""What is tried on SafeDPO's own validation seeds."""


class Claimed(NamedTuple):
    """A method of the protocol.

    Attributes:
        method: How it is trained; a method without a configuration is not.
        family: Methods of one family are points of one curve.
        knob: Where on the curve.
        kept: Whether its policies are kept on the way.
    """

    method: Method
    family: str = ""
    knob: float | None = None
    kept: bool = False

    @property
    def name(self) -> str:
        """Of the method."""
        return self.method.name


def protocol(safe_dpo: dict[str, float]) -> tuple[Claimed, ...]:
    """Every method, those that others start from first.

    Args:
        safe_dpo: The setting chosen for SafeDPO.
    """
    families = {"ppo_reward": ("fixed penalty", 0.0), "ppo_fixed": ("fixed penalty", 1.0)}
    compared = [Claimed(method, *families.get(method.name, ("", None))) for method in COMPARED]
    compared = [
        one._replace(family="PPO-Lagrangian", knob=BUDGET, kept=True) if one.name == "ppo_lag" else one
        for one in compared
        if not one.method.draws or one.method.config
    ]
    return (*compared, *_imitating(), *_frontier(), *_rehearsing(), safe_dpo_method("safe_dpo_tuned", safe_dpo))


def safe_dpo_method(name: str, setting: dict[str, float]) -> Claimed:
    """SafeDPO with another setting."""
    options = tuple(f"--model.init_args.objective.init_args.{key}={setting[key]}" for key in ("beta", "offset"))
    rate = f"--model.init_args.optimizer.init_args.lr={setting['lr']}"
    about = f"SafeDPO, beta {setting['beta']:g}, offset {setting['offset']:g}, rate {setting['lr']:g}"
    return Claimed(Method(name, about, "safe_dpo", (*options, rate)))


def _imitating() -> list[Claimed]:
    helpful_and_safe = f"{DEMONSTRATIONS}=helpful_and_safe"
    full = Method("sft_safe_full", "SFT on helpful and safe, from the vision stage", "supervised", (helpful_and_safe,))
    rejection = Method("rejection_safe", "rejection sampling, R if safe", "sft_safe", draws=4, safe=True)
    several = [Method(f"best_of_{k}", f"best of {k}", None, draws=k) for k in (2, 4, 8, 16)]
    return [Claimed(full), Claimed(rejection), *(Claimed(one, "best of K", float(one.draws)) for one in several)]


def _frontier() -> list[Claimed]:
    fixed = [
        Claimed(
            Method(
                f"ppo_fixed_{w:g}",
                f"PPO, reward - {w:g} x cost",
                "ppo_lag",
                with_dual("FixedDual", budget=BUDGET, weight=w),
            ),
            "fixed penalty",
            w,
        )
        for w in WEIGHTS
    ]
    budgets = [
        Claimed(
            Method(
                f"budget_{abs(d)}",
                f"PPO-Lagrangian, d = {d}",
                "ppo_lag",
                (f"--model.init_args.dual.init_args.budget={d}",),
            ),
            "PPO-Lagrangian",
            d,
        )
        for d in BUDGETS
    ]
    return fixed + budgets


def _rehearsing() -> list[Claimed]:
    kinds = {
        "helpful": ("PPO-Lagrangian, rehearsing helpful", f"{DEMONSTRATIONS}=helpful"),
        "safe": ("PPO-Lagrangian, rehearsing safe", f"{DEMONSTRATIONS}=safe"),
        "nothing": ("PPO-Lagrangian, rehearsing nothing", "--model.init_args.update.ptx_weight=0"),
    }
    return [
        Claimed(Method(f"rehearse_{kind}", about, "ppo_lag", (option,)), kept=True)
        for kind, (about, option) in kinds.items()
    ]


def first_iterations(last: int) -> list[Claimed]:
    """The runs whose policies are kept, anew up to an iteration, with the learning rates of whole runs."""
    length = KEPT[0] * (len(KEPT) + 1)
    shorter = (f"--trainer.max_steps={last}", f"--model.init_args.scheduler.init_args.total_steps={length}")
    same = "rehearse_safe"  # as ppo_lag: a demonstration has one response
    return [
        one._replace(method=one.method._replace(name=f"{BEGINNING}{one.name}", options=(*one.method.options, *shorter)))
        for one in protocol(SAFE_DPO_GRID[0])
        if one.kept and one.name != same
    ]


def budget_of(claimed: Claimed) -> float:
    """The budget that its cost is compared with."""
    return claimed.knob if claimed.family == "PPO-Lagrangian" and claimed.knob is not None else BUDGET


# --- commands ---------------------------------------------------------------------------------------------------------


class Commands:
    """Commands of the methods on one seed."""

    def __init__(self, run: Run, prompts: int, kept: Sequence[int] = KEPT) -> None:
        """Choose the seed.

        Args:
            run: Where it is read and written.
            prompts: Training prompts that the start answers for rejection sampling.
            kept: Iterations whose policies are kept, evenly spaced.
        """
        self.run = run
        self.prompts = prompts
        self.kept = tuple(kept)

    def training(self, methods: Sequence[Claimed]) -> list[Step]:
        """Training of the methods that need no samples."""
        steps = []
        for one in methods:
            if one.method.config and not one.method.draws:
                checkpoints = f"{CHECKPOINTS}.every_n_train_steps={self.kept[0]}", f"{CHECKPOINTS}.save_top_k=-1"
                keeping = checkpoints if one.kept else ()
                command = self.run.fit(one.method.config, *one.method.options, *keeping, name=one.name)
                before = (one.method.after or "supervised", "reward", "cost")
                steps.append(Step(one.name, f"train: {one.method.about}", command, before))
        return steps

    def imitation(self, methods: Sequence[Claimed], weight: float) -> list[Step]:
        """Sampling, shards and training of the methods that imitate samples.

        Args:
            methods: Of the protocol.
            weight: Of the raw cost against the raw reward.
        """
        chosen = [one.method for one in methods if one.method.config and one.method.draws]
        return [step for method in chosen for step in imitation_steps(self.run, method, weight, self.prompts)]

    def evaluations(self, methods: Sequence[Claimed], weight: float) -> list[Step]:
        """Evaluation of every method, and of the policies kept on the way.

        Args:
            methods: Of the protocol.
            weight: Of the raw cost against the raw reward, for best-of-K.
        """
        steps = []
        for one in methods:
            policy = best_of(self.run, one.method, weight) if one.method.untrained else None
            command = self.run.evaluate(one.name, policy=policy, output=self.evaluated(one.name))
            steps.append(
                Step(f"evaluate_{one.name}", f"judge: {one.method.about}", command, (one.name, "reward", "cost"))
            )
            for iteration in self.kept if one.kept else ():
                name = f"{one.name}_at_{iteration}"
                policy = component("safe_rlhf_v.evaluation.ModelPolicy", run=self.checkpoint(one.name, iteration))
                command = self.run.evaluate(name, policy=policy, output=self.evaluated(name))
                about = f"judge: {one.method.about}, {iteration} iterations"
                steps.append(Step(f"evaluate_{name}", about, command, (one.name, "reward", "cost")))
        return steps

    def evaluated(self, name: str) -> Path:
        """Folder of an evaluation."""
        return self.run.root / "evaluated" / name

    def checkpoint(self, name: str, iteration: int) -> Path:
        """Checkpoint of an iteration, of the newest training: one that was interrupted leaves an older version."""
        versions = (self.run.root / name).glob("version_*")
        newest = max(versions, key=lambda path: int(path.name.removeprefix("version_")), default=Path("version_0"))
        return self.run.root / name / newest.name / "checkpoints" / f"epoch=0-step={iteration}.ckpt"
