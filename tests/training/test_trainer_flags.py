"""What an option of the Trainer does, module by module: the table in docs/reference/trainer_flags.md."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tests.conftest import stage_command

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.modules import RewardModule
from safe_rlhf_v.objectives import BradleyTerry
from safe_rlhf_v.training.trainer_flags import refuse_trainer_flags

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trainer_flags.md"
SHORT = {
    "ppo_lag": (
        "--model.init_args.sampling.max_new_tokens=5",
        "--model.init_args.start.prompts=4",
        "--model.init_args.start.min_sign_accuracy=0.0",
    )
}
REFUSED = {
    ("ppo_lag", "gradient_clip_val=0.5"): "model.init_args.update.max_grad_norm",
    ("ppo_lag", "accumulate_grad_batches=2"): "model.init_args.update.micro_batch_size",
    ("ppo_lag", "overfit_batches=1"): "data.init_args.max_samples",
    ("reward", "overfit_batches=1"): "data.init_args.max_samples",
    ("supervised", "overfit_batches=0.5"): "data.init_args.max_samples",
    ("reward", "precision=64-true"): "bf16-mixed",
    ("ppo_lag", "precision=64-true"): "bf16-mixed",
    ("reward", "strategy=ddp_find_unused_parameters_true"): "freeze what is not used",
}


def train(stage, world, runs, out, *flags, steps=2):
    """Two steps of a quickstart stage."""
    options = (f"--trainer.{flag}" for flag in flags)
    logs = f"--trainer.logger.init_args.save_dir={out}"
    return main(stage_command(stage, world, runs, logs, *SHORT.get(stage, ()), *options, steps=steps))


@pytest.mark.parametrize(("stage", "flag"), REFUSED, ids=lambda value: str(value))
def test_what_would_do_something_else_is_refused_with_our_setting(stage, flag, policy_stages, world, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train(stage, world, policy_stages, tmp_path, flag)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit.value.code == 2
    assert f"trainer.{flag.partition('=')[0]}" in line and REFUSED[stage, flag] in line


@pytest.mark.parametrize(
    ("stage", "flag"),
    [
        ("ppo_lag", "fast_dev_run=true"),
        ("reward", "fast_dev_run=true"),
        pytest.param("ppo_lag", "limit_train_batches=1", marks=pytest.mark.slow),
        ("reward", "limit_train_batches=1"),
        ("reward", "limit_val_batches=0"),
        ("reward", "gradient_clip_algorithm=value"),
        ("reward", "precision=bf16-true"),
        pytest.param("ppo_lag", "precision=bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_what_the_table_calls_supported_trains(stage, flag, policy_stages, world, tmp_path):
    try:
        trainer = train(stage, world, policy_stages, tmp_path, flag).trainer
    finally:
        torch.set_default_dtype(torch.float32)
    assert trainer.global_step == (1 if "fast_dev_run" in flag else 2)
    loss = trainer.callback_metrics["policy/loss" if stage == "ppo_lag" else "train/loss"]
    assert loss.isfinite()


def test_clipping_bounds_the_gradient_of_the_whole_step(policy_stages, world, tmp_path, monkeypatch):
    norms = []

    def note(self, optimizer):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    monkeypatch.setattr(RewardModule, "on_before_optimizer_step", note)
    train("reward", world, policy_stages, tmp_path, "gradient_clip_val=0.001", "accumulate_grad_batches=2")
    train("reward", world, policy_stages, tmp_path, "gradient_clip_val=0", "accumulate_grad_batches=2")
    assert len(norms) == 4 and min(norms[2:]) > 0.01


def test_an_epoch_that_is_cut_short_goes_on_with_other_records(world, tmp_path):
    """So ``limit_train_batches`` is for shorter epochs, not for learning few records by heart."""
    seen = []

    class Noting(RewardModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch.keys)
            return super().training_step(batch, batch_idx)

    folder = write_tiny_vlm("llava", tmp_path / "vlm")
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    for limited, options in ((False, {}), (True, {"max_samples": 2})):
        module = Noting(lambda: HFVLM(str(folder), local_files_only=True), BradleyTerry)
        data = PreferenceDataModule(str(world), batch_size=2, **options)
        limits = {"limit_train_batches": 1, "limit_val_batches": 0, "max_steps": 3, "max_epochs": -1}
        pl.Trainer(accelerator="cpu", **limits, **quiet).fit(module, data)
        keys = {frozenset(keys) for keys in seen}
        assert len(keys) == (1 if limited else 3)
        seen.clear()


def test_a_trainer_in_python_is_refused_alike(world, tmp_path):
    folder = write_tiny_vlm("llava", tmp_path / "vlm")
    module = RewardModule(lambda: HFVLM(str(folder), local_files_only=True), BradleyTerry)
    trainer = pl.Trainer(accelerator="cpu", overfit_batches=1, max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"overfit_batches.*max_samples"):
        trainer.fit(module, PreferenceDataModule(str(world), batch_size=2))


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_other_sharding_strategies_are_refused(name):
    trainer = SimpleNamespace(overfit_batches=0, precision="32-true", strategy=type(name, (), {})())
    with pytest.raises(ValueError, match=rf"{name}.*fsdp2\.yaml"):
        refuse_trainer_flags(trainer, {})


def test_the_page_tells_what_is_refused():
    text = PAGE.read_text()
    for (_, flag), setting in REFUSED.items():
        name = re.escape(flag.partition("=")[0])
        assert re.search(rf"`[^`]*{name}", text) and setting.removeprefix("model.init_args.") in text, flag
