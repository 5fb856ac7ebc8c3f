"""Shared fixtures: a tiny world on disk, written once per session."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.guard_run import calibrated_run, guard, guard_run  # noqa: F401  fixtures; torch reads the environment

TINY = {
    "supervised": 64, "train": 48, "validation": 12, "calibration": 4, "test": 12, "compositional": 6,
    "counterfactual_helpfulness": 8, "counterfactual_safety": 8, "counterfactual_verdict": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A shard folder of the embedded world with its tokenizer."""
    from safe_rlhf_v.commands.tokenizer import main as tokenizer
    from safe_rlhf_v.world import write_world

    root = tmp_path_factory.mktemp("data") / "world"
    write_world(root, sizes=TINY, progress=False)
    tokenizer(["--shards", str(root), "--out", str(root / "tokenizer")])
    return root


QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart"


def stage_command(stage: str, world: Path, root: Path, *extra: str, steps: int = 2) -> list[str]:
    """Command line of a quickstart stage on the tiny world, with runs below ``root``; a later flag wins."""
    from safe_rlhf_v.demo.runs import Run

    # Untrained judges differ by little and lie anywhere, also far from the configured budget.
    unlimited = ("--model.init_args.scores.clip=1000.0",) if stage in ("ppo_lag", "grpo_lag") else ()
    return Run(world, root).fit(
        stage,
        *unlimited,
        "--data.init_args.batch_size=4",
        "--data.init_args.eval_batch_size=4",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={steps}",
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.every_n_train_steps={steps}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *extra,
    )


@pytest.fixture(scope="session")
def policy_stages(world, tmp_path_factory):
    """Runs that a policy starts from: vision, supervised, reward and cost, two steps each."""
    from safe_rlhf_v.commands.fit import main

    root = tmp_path_factory.mktemp("policy") / "runs"
    for stage in ("vision", "supervised", "reward", "cost"):
        main(stage_command(stage, world, root))
    return root
