"""Every published configuration, through the same ``main`` that users call."""

from pathlib import Path

import pytest

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.runs import open_run
from safe_rlhf_v.world import WORLD

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart"


def fit(config: Path, world: Path, out: Path, *extra: str, tiny: bool = True):
    from safe_rlhf_v.commands.fit import main

    options = [f"--data.init_args.path={world}", f"--trainer.default_root_dir={out}"]
    if tiny:
        options += [
            f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}",
            f"--trainer.logger.init_args.save_dir={out}",
        ]
    options += ["--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=4"]
    return main(["fit", f"--config={config}", *options, *extra])


STEPS = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.callbacks.every_n_train_steps=2"]


@pytest.fixture(scope="module")
def stages(world, tmp_path_factory):
    """Vision and supervised stages of the quickstart, two steps each."""
    out = tmp_path_factory.mktemp("runs")
    checkpoint = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    fit(QUICKSTART / "vision.yaml", world, out, checkpoint, *STEPS)
    fit(QUICKSTART / "supervised.yaml", world, out, f"--model.init_args.init_from={out / 'vision'}", checkpoint, *STEPS)
    return out


@pytest.mark.parametrize(
    "stage",
    [
        "reward",
        "cost",
        "safe_dpo",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("dpo_helpful", "dpo_safe", "sacpo")),
    ],
)
def test_the_quickstart_trains_tests_and_reloads(stage, stages, world):
    import torch

    from safe_rlhf_v.commands.fit import main
    from safe_rlhf_v.demo.runs import Run
    from safe_rlhf_v.demo.tables import SCORES

    init = f"--model.init_args.init_from={stages / 'supervised'}"
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    cli = fit(QUICKSTART / f"{stage}.yaml", world, stages, init, *steps)
    assert cli.trainer.global_step == 2
    assert 0 <= cli.trainer.callback_metrics["validation/true_accuracy"] <= 1
    cli.trainer.save_checkpoint(stages / stage / "version_9" / "end.ckpt")
    kept = torch.load(stages / stage / "version_9" / "end.ckpt", weights_only=True)
    assert "config_yaml" in kept and "fingerprint" in kept

    run = Run(world, stages)
    tested = main(run.test(stage))  # no --config: the newest checkpoint of the run folder carries it
    again = dict(tested.model.state_dict())
    assert all(torch.equal(value, again[name]) for name, value in kept["state_dict"].items())
    wanted = {metric for model, metric, _, _ in SCORES if model == stage}
    assert wanted <= set(run.metrics(stage))


def test_an_outside_subclass_trains_by_its_class_path(stages, world, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "downstream"))
    init = [
        f"--model.init_args.init_from={stages / 'supervised'}",
        "--model.init_args.objective=hinge_objective.HingeBradleyTerry",
        "--model.init_args.objective.init_args.lead=2.0",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
    ]
    cli = fit(QUICKSTART / "reward.yaml", world, stages, *init)
    assert type(cli.model.objective).__name__ == "HingeBradleyTerry" and cli.model.objective.lead == 2.0
    assert "train/shortfall" in cli.trainer.callback_metrics


@pytest.fixture(scope="module")
def tiny_vlms(tmp_path_factory):
    from safe_rlhf_v.models.tiny import write_tiny_vlm

    root = tmp_path_factory.mktemp("vlms")
    for family in ("llava", "qwen2_5_vl"):
        write_tiny_vlm(family, root / family)
    return root


STAGES = ("supervised", "reward", "cost", "guard")
"""Of LLaVA they run on conversations in the fast suite (``test_two_turns.py``)."""


@pytest.mark.parametrize(
    ("folder", "family", "stage"),
    [
        *(("qwen2_5_vl_7b", "qwen2_5_vl", stage) for stage in (*STAGES, "safe_dpo")),
        *(pytest.param("llava_1_5_7b", "llava", stage, marks=pytest.mark.slow) for stage in STAGES),
        ("llava_1_5_7b", "llava", "safe_dpo"),
    ],
)
def test_real_model_configs_train_two_steps_on_a_tiny_model(folder, family, stage, tiny_vlms, world, tmp_path):
    """The same modules and the same shards; only the model's path and the hardware differ from the published file."""
    extra = [
        f"--model.init_args.backbone.init_args.model={tiny_vlms / family}",
        f"--config={ROOT / 'configs' / 'trainer' / 'cpu.yaml'}",
        "--data.init_args.batch_size=2",
        "--data.init_args.eval_batch_size=2",
        "--data.init_args.num_workers=0",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.logger=false",
        "--trainer.callbacks=null",
        "--trainer.enable_checkpointing=false",
    ]
    if stage == "supervised":
        extra.append("--data.init_args.train_split=supervised")
    if stage == "guard":
        extra.append(f"--model.init_args.categories=[{','.join(WORLD.categories)}]")
    cli = fit(ROOT / "configs" / folder / f"{stage}.yaml", world, tmp_path, *extra, tiny=False)
    assert cli.trainer.global_step == 2


@pytest.mark.parametrize(
    ("folder", "family"),
    [("llava_1_5_7b", "llava"), pytest.param("qwen2_5_vl_7b", "qwen2_5_vl", marks=pytest.mark.slow)],
)
def test_real_model_policies_train_three_steps_on_a_tiny_model(folder, family, tiny_vlms, world, tmp_path):
    """All roles on one base: reward and cost model come from their own published files."""

    def go(stage, steps, *extra):
        options = [
            f"--model.init_args.backbone.init_args.model={tiny_vlms / family}",
            f"--config={ROOT / 'configs' / 'trainer' / 'cpu.yaml'}",
            "--data.init_args.num_workers=0",
            f"--trainer.max_steps={steps}",
            "--trainer.limit_val_batches=1",
            f"--trainer.val_check_interval={steps}",
            "--trainer.check_val_every_n_epoch=null",
            "--trainer.accumulate_grad_batches=1",
            "--trainer.logger=false",
        ]
        return fit(ROOT / "configs" / folder / f"{stage}.yaml", world, tmp_path / stage, *options, *extra, tiny=False)

    for stage in ("reward", "cost"):
        go(stage, 2)
    roles = [f"--model.init_args.roles.init_args.{stage}={tmp_path / stage}" for stage in ("reward", "cost")]
    shorter = ["sampling.max_new_tokens=6", "start.prompts=4", "start.labelled=4", "start.min_sign_accuracy=0.0"]
    for stage in ("ppo_lag", "grpo_lag"):
        cli = go(stage, 3, *roles, *(f"--model.init_args.{option}" for option in shorter))
        assert cli.trainer.global_step == 3
        seen = cli.trainer.callback_metrics
        assert {"validation/cost", "constraint/cost", "constraint/lambda", "policy/loss"} <= set(seen)
        assert ("critic/cost_loss" in seen) == (stage == "ppo_lag")
        assert all(value.isfinite() for value in seen.values())


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_config_is_yaml_with_comments(config):
    import yaml

    text = config.read_text()
    assert yaml.safe_load(text)
    assert text.startswith("#"), "say in the first line what the file is for"


def test_the_guard_of_the_quickstart_draws_its_pictures(stages, world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    init = f"--model.init_args.init_from={stages / 'supervised'}"
    cli = fit(
        QUICKSTART / "guard.yaml", world, tmp_path, init, "--trainer.max_steps=2", "--trainer.val_check_interval=2"
    )
    assert 0 <= cli.trainer.callback_metrics["validation/level_accuracy"] <= 1
    events = EventAccumulator(str(next(tmp_path.rglob("events.*"))))
    events.Reload()
    assert {"1_confusion/validation", "3_reliability/validation", "4_risk_coverage/validation"} <= set(
        events.Tags()["images"]
    )


def test_a_run_of_an_outside_subclass_is_read_where_its_package_is_trusted(stages, world, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    out = f"--trainer.logger.init_args.save_dir={tmp_path}"
    short = ("--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.callbacks=null", out)
    init = f"--model.init_args.init_from={stages / 'supervised'}"
    (tmp_path / "outside_reward.py").write_text(
        "from safe_rlhf_v.modules import RewardModule\n\n\nclass OutsideReward(RewardModule):\n    pass\n"
    )
    fit(QUICKSTART / "reward.yaml", world, stages, init, "--model=outside_reward.OutsideReward", *short)
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__")
    for trust in ((), ("outside_rewards",)):
        with pytest.raises(CheckpointError, match="--trust outside_reward"):
            open_run(run, "reward model", ("reward",), trust=trust)
    assert open_run(run, "reward model", ("reward",), trust=("outside_reward",)).cls.trains == "reward"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu"]
    args = ["test", f"--ckpt_path={run}", f"--data.init_args.path={world}", "--trust", "outside_reward", *quiet]
    assert type(main(args).model).__name__ == "OutsideReward"
