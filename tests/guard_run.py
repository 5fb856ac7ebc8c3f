"""A small trained guard: weights of two steps, calibrated by hand so that all three decisions occur."""

from pathlib import Path

import pytest

from safe_rlhf_v.guard.limits import Limits

WIDE = Limits("by hand", 10**6, 10**6, 10**6, 64, {}, 1, 1.0, 0.0, 64)
"""Limits that leave a guard in training of two steps something to judge."""
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart" / "guard.yaml"


@pytest.fixture(scope="session")
def guard_run(world, tmp_path_factory):
    """The run folder of a guard trained for two steps, not calibrated."""
    from safe_rlhf_v.commands.fit import main

    out = tmp_path_factory.mktemp("guard")
    main([
        "fit",
        f"--config={CONFIG}",
        f"--data.init_args.path={world}",
        "--data.init_args.batch_size=4",
        f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}",
        "--model.init_args.init_from=null",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=1",
        "--trainer.callbacks=null",
        f"--trainer.logger.init_args.save_dir={out}",
        "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    return out / "guard"


@pytest.fixture(scope="session")
def calibrated_run(guard_run):
    """The same run with a calibration beside it."""
    from safe_rlhf_v.guard.calibration import Calibration
    from safe_rlhf_v.guard.moderation import load_module

    _, identity = load_module(guard_run)
    Calibration(identity, "by hand", 1.0, 1.0, 0.9, 0.2, 0.9, 0.1, WIDE, {}).save(guard_run)
    return guard_run


@pytest.fixture(scope="session")
def guard(calibrated_run):
    """The guard, loaded."""
    from safe_rlhf_v.guard.moderation import Guard

    return Guard.from_pretrained(calibrated_run)
