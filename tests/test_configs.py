"""Every published configuration, through the same ``main`` that users call."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart"


def fit(config: Path, world: Path, out: Path, *extra: str, tiny: bool = True):
    from safe_rlhf_v.cli import main

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


@pytest.mark.parametrize("stage", ["reward", "cost"])
def test_the_quickstart_trains_tests_and_reloads(stage, stages, world):
    import torch

    from safe_rlhf_v.cli import main
    from safe_rlhf_v.quickstart import TABLE, Run

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
    wanted = {metric for model, metric, _, _ in TABLE if model == stage}
    assert wanted <= set(run.metrics(stage))


def test_the_quickstart_table_reads_what_was_measured(tmp_path):
    import json

    from safe_rlhf_v.quickstart import TABLE, Run, table

    for model in ("reward", "cost"):
        metrics = {metric: 0.5 for name, metric, _, _ in TABLE if name == model}
        metrics |= {count: 100 for name, _, _, count in TABLE if name == model and isinstance(count, str)}
        (tmp_path / model).mkdir()
        (tmp_path / model / "metrics.json").write_text(json.dumps(metrics))
    text = table(Run(tmp_path, tmp_path))
    assert len(text.splitlines()) == len(TABLE) + 1
    assert "0.500  0.404 .. 0.596    100" in text  # Wilson interval of 50 in 100


def test_an_outside_subclass_trains_by_its_class_path(stages, world, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "downstream"))
    init = [
        f"--model.init_args.init_from={stages / 'supervised'}",
        "--model=margin_reward.MarginRewardModule",
        "--model.init_args.margin=2.0",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
    ]
    cli = fit(QUICKSTART / "reward.yaml", world, stages, *init)
    assert type(cli.model).__name__ == "MarginRewardModule" and cli.model.margin == 2.0
    assert "train/shortfall" in cli.trainer.callback_metrics


@pytest.fixture(scope="module")
def tiny_vlms(tmp_path_factory):
    from safe_rlhf_v.models.tiny import write_tiny_vlm

    root = tmp_path_factory.mktemp("vlms")
    for family in ("llava", "qwen2_5_vl"):
        write_tiny_vlm(family, root / family)
    return root


@pytest.mark.parametrize("stage", ["supervised", "reward", "cost"])
@pytest.mark.parametrize(("folder", "family"), [("llava_1_5_7b", "llava"), ("qwen2_5_vl_7b", "qwen2_5_vl")])
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
    cli = fit(ROOT / "configs" / folder / f"{stage}.yaml", world, tmp_path, *extra, tiny=False)
    assert cli.trainer.global_step == 2


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_config_is_yaml_with_comments(config):
    import yaml

    text = config.read_text()
    assert yaml.safe_load(text)
    assert text.startswith("#"), "say in the first line what the file is for"
