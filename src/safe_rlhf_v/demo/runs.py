"""Where a pipeline on the embedded world reads and writes, and the command of each of its steps."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_v.demo.steps import Step
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.functional.clustered import Interval, clustered_mean
from safe_rlhf_v.scoring.rows import Estimate, Row, summarise
from safe_rlhf_v.shards import ShardedSplit

CONFIGS = Path(__file__).parents[1] / "configs" / "quickstart"
GUARD_SPLITS = ("test", "compositional", "counterfactual_verdict")
EVALUATION = "evaluation"
"""Folder of a policy's evaluation, in its run folder."""
BEFORE = {  # what a stage starts from
    "supervised": "vision",
    "reward": "supervised",
    "cost": "supervised",
    "guard": "cost",
    "dpo_helpful": "supervised",
    "dpo_safe": "supervised",
    "safe_dpo": "supervised",
    "sacpo": "dpo_helpful",
    "sft_safe": "supervised",
}
ROLES = {"start": "supervised", "reward": "reward", "cost": "cost"}
WITH_ROLES = ("ppo_lag", "grpo_lag")
ABOUT = {
    "vision": "teach the tower what pictures show",
    "supervised": "imitate the demonstrator: the policy to start from",
    "reward": "reward model: which response is more helpful",
    "cost": "cost model: which response is more harmful",
    "guard": "guard: harm levels of responses, risk of prompts, categories",
}


@dataclass
class Run:
    """Where one pipeline reads and writes.

    Attributes:
        data: Shard folder of the world, with its tokenizer.
        root: Folder of logs and checkpoints.
        seed: Seed of weights, training order and sampling.
        configs: Folder of the stages' configurations.
    """

    data: Path
    root: Path
    seed: int = 0
    configs: Path = CONFIGS

    def check(self) -> None:
        """Look at the folders, which would fail after minutes otherwise.

        Raises:
            ValueError: If one of them cannot be used.
        """
        if not (self.configs / "supervised.yaml").is_file():
            raise ValueError(f"--configs {self.configs}: holds no supervised.yaml; copy configs/quickstart and edit it")
        for option, folder in (("--root", self.root), ("--data", self.data)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{option} {folder}: {str(error.strerror).lower()}; choose another folder") from None

    def fit(self, stage: str, *extra: str, name: str = "") -> list[str]:
        """Command that trains a stage; ``name`` is its folder below ``root``."""
        options = [
            f"--config={self.configs / stage}.yaml",
            f"--seed_everything={self.seed}",
            f"--data.init_args.path={self.data}",
            f"--data.init_args.seed={self.seed}",
            f"--model.init_args.backbone.init_args.tokenizer={self.data / 'tokenizer'}",
            f"--trainer.logger.init_args.save_dir={self.root}",
            f"--trainer.logger.init_args.name={name or stage}",
            "--trainer.enable_progress_bar=false",  # nobody watches the log file
        ]
        if before := BEFORE.get(stage):
            options.append(f"--model.init_args.init_from={self.root / before}")
        for role, run in ROLES.items() if stage in WITH_ROLES else ():
            options.append(f"--model.init_args.roles.init_args.{role}={self.root / run}")
        return ["fit", *options, *extra]

    def test(self, name: str) -> list[str]:
        """Command that measures a stage's newest checkpoint and writes ``metrics.json``."""
        return [
            "test",
            f"--ckpt_path={self.root / name}",
            f"--data.init_args.path={self.data}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=safe_rlhf_v.callbacks.MetricsFile",
            f"--trainer.callbacks.path={self.root / name / 'metrics.json'}",
        ]

    def evaluate(
        self,
        name: str,
        *extra: str,
        policy: dict[str, object] | None = None,
        output: Path | None = None,
        split: str = "test",
    ) -> list[str]:
        """Command that lets a policy respond to prompts, sampled and greedily, judged by the truth and by the learned models.

        Args:
            name: Of the policy.
            extra: Further options; of two for one thing the last counts.
            policy: The policy; left out, the run of that name.
            output: Where to write; left out, ``evaluation/`` in the folder of that name.
            split: Of the prompts.
        """
        judges = {"truth": {"class_path": "safe_rlhf_v.world.WorldJudge"}, **learned_judges(self.root)}
        start = component("safe_rlhf_v.evaluation.ModelPolicy", run=self.root / "supervised")
        return [
            "evaluate",
            f"--policies={json.dumps({name: policy or str(self.root / name)})}",
            f"--start={json.dumps(start)}",
            f"--judges={json.dumps(judges)}",
            f"--data={self.data}",
            f"--seed={self.seed}",
            f"--output={output or self.root / name / EVALUATION}",
            f"--splits=[{split}]",
            "--pictures=[real]",
            "--modes=[sampled,greedy]",
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

    def world_steps(self, *options: str, seed: int = 0) -> list[Step]:
        """World and tokenizer.

        Args:
            options: Of the command ``world``.
            seed: Of the world.
        """
        world = ("world", f"--out={self.data}", f"--seed={seed}", *options)
        folder = self.data / "tokenizer"
        tokenizer = ("tokenizer", f"--shards={self.data}", f"--out={folder}")
        return [
            Step("world", "write the synthetic shards", world, result=self.data / "manifest.json"),
            Step("tokenizer", "collect the words", tokenizer, ("world",), folder / "tokenizer.json"),
        ]

    def stage_step(self, stage: str) -> Step:
        """Training of a stage."""
        before = ROLES.values() if stage in WITH_ROLES else (BEFORE.get(stage, "tokenizer"),)
        return Step(stage, ABOUT[stage], self.fit(stage), tuple(before))

    def metrics(self, name: str) -> dict[str, float]:
        """What :meth:`test` measured."""
        stored = json.loads((self.root / name / "metrics.json").read_text())
        measured: dict[str, float] = {key: math.nan if value is None else value for key, value in stored.items()}
        return measured

    def cost_interval(self, name: str, split: str = "test") -> Interval:
        """Mean cost of a policy's sampled responses, in the cost model's unit, with its interval clustered by image group."""
        costs = [row["cost"] for row in self.responses(name, split)]
        return clustered_mean(costs, ShardedSplit(self.data, split).groups.tolist())

    def responses(self, name: str, split: str = "test", mode: str = "sampled") -> list[Row]:
        """What :meth:`evaluate` wrote about each response."""
        return response_rows(self.root / name / EVALUATION, name, split, mode)

    def evaluation(self, name: str, split: str = "test", mode: str = "sampled") -> dict[str, Estimate]:
        """What :meth:`evaluate` measured."""
        return summarise(self.responses(name, split, mode))


def component(class_path: str, **options: object) -> dict[str, object]:
    """A class and its options, as a configuration names them."""
    return {"class_path": class_path, "init_args": {name: str(value) for name, value in options.items()}}


def learned_judges(root: Path) -> dict[str, dict[str, object]]:
    """The reward and the cost model below a folder, as judges by name."""
    return {
        "reward": component("safe_rlhf_v.construct.RewardJudge", run=root / "reward"),
        "cost": component("safe_rlhf_v.construct.CostJudge", run=root / "cost"),
    }
