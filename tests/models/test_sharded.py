"""FSDP2 on two CPU processes: networks in pieces learn what whole ones learn, also after an interruption."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.shared_runs import command, policy, shared, train, vlm
from torch import Tensor, nn

from safe_rlhf_v.models.sharding import shard
from safe_rlhf_v.models.tiny import write_tiny_vlm

pytestmark = pytest.mark.slow

FSDP2 = Path(__file__).parents[2] / "configs" / "trainer" / "fsdp2.yaml"
SHARDED = (
    f"--config={FSDP2}",
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.precision=32-true",
    "--trainer.strategy.init_args.data_parallel_size=2",
    "--trainer.strategy.init_args.process_group_backend=gloo",
)
REPLICATED = (
    "--trainer.devices=2",
    "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
    "--trainer.strategy.process_group_backend=gloo",
)
# Adam's first steps would hide a wrong scale.
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a reward and a cost model on it."""
    root = tmp_path_factory.mktemp("llava")
    write_tiny_vlm("llava", root / "base")
    for name in ("reward", "cost"):
        train(f"{name.title()}Module", world, root / name, vlm(root / "base"))
    return root


def settings(kind: str, runs: Path) -> tuple[str, dict[str, Any]]:
    """Module and options of a run; all but ``SharedRoles`` train whole networks, the LM head with them."""
    if kind == "DPO":
        return "PreferenceOptimisationModule", {"objective": {"class_path": "safe_rlhf_v.objectives.DPO"}}
    roles = {**shared(runs), "class_path": f"safe_rlhf_v.policy.{kind}"}
    return "ConstrainedPolicyModule", policy(roles, update={"micro_batch_size": 1})


def execute(*line: str) -> subprocess.CompletedProcess[str]:
    """Run a command as users do."""
    command_line = [sys.executable, "-m", "safe_rlhf_v", *line]
    return subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False)


def weights(
    strategy: tuple[str, ...], runs: Path, world: Path, out: Path, kind: str, steps: int = 2, resume: Path | None = None
) -> dict[str, Tensor]:
    """What two ranks have learned in the end, as their checkpoint says."""
    module, options = settings(kind, runs)
    backbone = vlm(runs / "base", lora={"r": 2, "alpha": 4} if kind == "SharedRoles" else None)
    line = command(module, world, out, backbone, steps, resume, optimizer=SGD, **options)
    validate = ("--trainer.limit_val_batches=1", "--trainer.val_check_interval=1")
    done = execute(*line, *strategy, *validate)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(next(out.glob("*.ckpt")), weights_only=True)
    assert found["global_step"] == steps
    return found["state_dict"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["SharedRoles", "SeparateRoles", "DPO"])
def test_sharded_networks_learn_what_whole_ones_learn(kind: str, runs: Path, world: Path, tmp_path: Path) -> None:
    """The sharded run is interrupted after its first step."""
    whole = weights(REPLICATED, runs, world, tmp_path / "whole", kind)
    before = weights(SHARDED, runs, world, tmp_path / "before", kind, steps=1)
    pieces = weights(SHARDED, runs, world, tmp_path / "pieces", kind, resume=tmp_path / "before")
    assert pieces.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    critics = ("reward_critic", "cost_critic", "reward_value", "cost_value")
    for part in ("backbone.", *(critics if kind != "DPO" else ())):
        assert any(part in name and not torch.equal(before[name], value) for name, value in pieces.items()), part


def test_accumulated_windows_are_the_same_whole_and_in_pieces(runs: Path, world: Path, tmp_path: Path) -> None:
    window = "--trainer.accumulate_grad_batches=2"
    whole = weights((*REPLICATED, window), runs, world, tmp_path / "whole", "DPO")
    pieces = weights((*SHARDED, window), runs, world, tmp_path / "pieces", "DPO")
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_checkpoints_in_pieces_are_refused_before_anything_is_learned(runs: Path, world: Path, tmp_path: Path) -> None:
    line = command("SupervisedModule", world, tmp_path, vlm(runs / "base"))
    done = execute(*line, *SHARDED, "--trainer.strategy.init_args.save_distributed_checkpoint=true")
    assert done.returncode == 2 and "save_distributed_checkpoint: false" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_cannot_be_sharded_is_refused() -> None:
    class Axis:
        def __init__(self, size: int) -> None:
            self.sizes = size

        def size(self) -> int:
            return self.sizes

    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(ValueError, match="tensor_parallel_size: 1"):
        shard(tied, {"tensor_parallel": Axis(2), "data_parallel": Axis(1)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share a trained tensor"):
        shard(tied, {"tensor_parallel": Axis(1), "data_parallel": Axis(2)})  # type: ignore[arg-type]
