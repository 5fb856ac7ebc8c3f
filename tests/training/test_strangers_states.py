"""States that a checkpoint hands to callbacks name files, and a stranger may have written them: nothing is removed for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.stored_runs import copy_run

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.training.checkpoints import AtomicCheckpointIO, find_checkpoint

KEEPERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the command's own": ({"monitor": "step", "mode": "max", "save_top_k": 2, "save_last": "link"}, []),
    "without a metric": (
        {"every_n_train_steps": 1},
        [
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.every_n_train_steps=1",
        ],
    ),
}
NAMES: dict[str, Callable[[Path, Path], str]] = {
    "address": lambda victim, home: f"local://{victim}",
    "address of a file": lambda victim, home: f"file://{victim}/precious.txt",
    "way up": lambda victim, home: f"{home}/../../../{victim.name}",
    "checkpoint of another run": lambda victim, home: f"local://{victim}/step=5.ckpt",
    "link": lambda victim, home: f"{home.parents[1]}/link.ckpt",
}


ONCE = [("the command's own", "address"), ("the command's own", "way up"), ("without a metric", "address of a file")]
CASES = [
    pytest.param(keeper, name, marks=() if (keeper, name) in ONCE else pytest.mark.slow)
    for keeper in KEEPERS
    for name in NAMES
]


@pytest.mark.parametrize(("keeper", "name"), CASES)
def test_a_stored_state_removes_nothing_of_others(
    keeper: str, name: str, policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    for file in ("precious.txt", "step=5.ckpt"):
        (victim / file).write_text("mine")
    options, flags = KEEPERS[keeper]
    home = (run / "version_1" / "checkpoints").resolve()  # where the resumed run will write
    path = NAMES[name](victim, home)
    score = torch.tensor(1.0)
    state = {
        "best_model_path": path, "kth_best_model_path": path, "last_model_path": path, "dirpath": str(home),
        "best_k_models": {path: score, f"{path}/": score}, "best_model_score": score, "current_score": score, "kth_value": score,
    }  # fmt: skip

    def plant(content: dict[str, Any]) -> None:
        content["callbacks"] = {ModelCheckpoint(**options).state_key: state}

    copy_run(policy_stages / "reward", run, plant)
    (run / "link.ckpt").symlink_to(victim)
    args = ["fit", f"--ckpt_path={run}", f"--data.init_args.path={world}", "--trainer.max_steps=4", *flags]
    assert entry.main([*args, "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]) == 0
    assert sorted(path.name for path in victim.iterdir()) == ["precious.txt", "step=5.ckpt"]
    assert (run / "link.ckpt").is_symlink()
    assert torch.load(find_checkpoint(run), weights_only=True)["global_step"] == 4


def test_old_checkpoints_beside_new_ones_are_removed_and_folders_are_not(tmp_path: Path) -> None:
    keeper = AtomicCheckpointIO()
    old, new, folder, text = (tmp_path / name for name in ("a.ckpt", "b.ckpt", "c.ckpt", "a.txt"))
    folder.mkdir()
    text.write_text("mine")
    keeper.save_checkpoint({}, old)
    AtomicCheckpointIO().remove_checkpoint(old)  # of another process
    assert old.exists()
    for path in (old, folder, text):
        keeper.remove_checkpoint(path)
    assert not old.exists() and folder.is_dir() and text.exists()
    keeper.remove_checkpoint(new)  # is gone already
