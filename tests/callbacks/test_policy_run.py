"""A real policy with the callbacks of the published configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import stage_command

from safe_rlhf_v.callbacks import RewardCostPlane
from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.demo.runs import Run

DOCS = Path(__file__).parents[2] / "docs" / "curves.md"
TINY = (
    "--data.init_args.batch_size=4",
    "--data.init_args.eval_batch_size=4",
    "--data.init_args.demonstration_batch_size=3",
    "--model.init_args.start.prompts=8",
    "--model.init_args.start.min_sign_accuracy=0",
    "--model.init_args.scores.clip=1000",  # untrained judges differ by little and lie anywhere
    "--model.init_args.sampling.max_new_tokens=8",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


@pytest.fixture(scope="module")
def watched(policy_stages: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, EventAccumulator]:
    """Two iterations of the quickstart's configuration with all its callbacks, and what reached TensorBoard."""
    out = tmp_path_factory.mktemp("watched")
    save = (f"--trainer.logger.init_args.save_dir={out}", "--trainer.callbacks.every_n_train_steps=2")
    cli = main(Run(world, policy_stages).fit("ppo_lag", *TINY, *save))
    (file,) = out.rglob("events.*")
    return cli, EventAccumulator(str(file), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_every_picture_is_there(watched: tuple[Any, EventAccumulator]) -> None:
    _, events = watched
    steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    before_and_after = [0, 1]
    assert steps == {
        "2_reward_cost_plane/validation": before_and_after,
        "1_responses/validation": before_and_after,
        "3_trajectory/constraint": [1],
    }
    assert "custom_scalars__config__" in events.Tags()["tensors"]


@pytest.mark.slow
def test_watching_does_not_change_the_run(
    watched: tuple[Any, EventAccumulator], policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    """Bit for bit, although the watched one answered validation prompts before its first step."""
    save = f"--trainer.logger.init_args.save_dir={tmp_path}"
    alone = main(stage_command("ppo_lag", world, policy_stages, *TINY, save))
    kept = watched[0].model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in alone.model.state_dict().items())
    assert torch.equal(
        alone.trainer.callback_metrics["validation/cost"], watched[0].trainer.callback_metrics["validation/cost"]
    )


@pytest.mark.slow
def test_the_start_is_asked_as_validation_asks(policy_stages: Path, world: Path, tmp_path: Path) -> None:
    """A policy that does not move gives the same numbers before and after: same prompts, random numbers and units."""
    save = f"--trainer.logger.init_args.save_dir={tmp_path}"
    watch = "--trainer.callbacks+=safe_rlhf_v.callbacks.RewardCostPlane"
    still = "--model.init_args.optimizer.init_args.lr=0"
    cli = main(stage_command("ppo_lag", world, policy_stages, *TINY, save, still, watch))
    (plane,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, RewardCostPlane))
    start = plane.earlier["validation"]
    assert start["when"] == "before training" and len(start["points"]) == 4
    cost, reward = torch.tensor(start["points"]).mean(0).tolist()
    logged = cli.trainer.callback_metrics
    assert [cost, reward] == pytest.approx(
        [float(logged["validation/cost"]), float(logged["validation/reward"])], abs=1e-5
    )


def test_every_curve_is_explained(watched: tuple[Any, EventAccumulator]) -> None:
    explained = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+)`", DOCS.read_text()))
    assert not {tag for tag in watched[1].Tags()["scalars"] if "/" in tag} - explained
