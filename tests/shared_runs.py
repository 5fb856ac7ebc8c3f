"""Tiny runs for tests of roles that share a base: trained by the public command, a few steps with a large rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from safe_rlhf_v.commands.fit import CLI, main
from safe_rlhf_v.dual import LogSpaceDual
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.policy import ConstrainedPolicyModule, SharedRoles

OBJECTIVES: dict[str, dict[str, Any]] = {
    "RewardModule": {"class_path": "safe_rlhf_v.objectives.BradleyTerry"},
    "CostModule": {
        "class_path": "safe_rlhf_v.objectives.CostObjective",
        "init_args": {"terms": [{"class_path": "safe_rlhf_v.objectives.SignTerm"}]},
    },
}
DUAL = {"class_path": "safe_rlhf_v.dual.LogSpaceDual", "init_args": {"budget": -0.5}}
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3, "weight_decay": 0.0}}


def vlm(folder: Path, **settings: Any) -> dict[str, Any]:
    """A tiny vision-language model with adapters."""
    options = {"model": str(folder), "lora": {"r": 2, "alpha": 4}, "local_files_only": True, **settings}
    return {"class_path": "safe_rlhf_v.models.HFVLM", "init_args": options}


def shared(runs: Path, start: str | None = None) -> dict[str, Any]:
    """Roles on one base, from ``runs/reward`` and ``runs/cost``."""
    names = {"reward": "reward", "cost": "cost", "start": start}
    found = {role: str(runs / name) for role, name in names.items() if name}
    return {"class_path": "safe_rlhf_v.policy.SharedRoles", "init_args": found}


def policy(roles: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Options of a policy module with few and short responses."""
    start = {"prompts": 4, "min_sign_accuracy": 0.0}
    return {"roles": roles, "dual": DUAL, "sampling": {"max_new_tokens": 6}, "start": start, **options}


def train(*args: Any, **options: Any) -> CLI:
    """Train in this process; see :func:`command`."""
    return main(command(*args, **options))


def command(
    kind: str,
    world: Path,
    out: Path,
    backbone: dict[str, Any],
    steps: int = 2,
    resume: Path | None = None,
    **model: Any,
) -> list[str]:
    """Command line of a run that keeps one checkpoint in ``out``.

    Args:
        kind: Name of a module in ``safe_rlhf_v.modules``.
        world: Shards.
        out: Run folder.
        backbone: Its section of the configuration.
        steps: Until which step.
        resume: Checkpoint or folder to go on from.
        model: Further options of the module.
    """
    data = {"ConstrainedPolicyModule": "Prompt", "SupervisedModule": "Supervised"}.get(kind, "Preference")
    options = {"objective": OBJECTIVES[kind]} if kind in OBJECTIVES else {}
    keep = {"dirpath": str(out), "every_n_train_steps": steps, "monitor": "step", "mode": "max"}
    trainer: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "limit_val_batches": 0,
        "logger": False,
        "default_root_dir": str(out),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}],
    }
    config = {
        "model": {
            "class_path": f"safe_rlhf_v.{kind}",
            "init_args": {"backbone": backbone, "optimizer": ADAM, **options, **model},
        },
        "data": {
            "class_path": f"safe_rlhf_v.data_modules.{data}DataModule",
            "init_args": {"path": str(world), "batch_size": 2, "eval_batch_size": 4},
        },
        "trainer": trainer,
    }
    return ["fit", f"--config={yaml.safe_dump(config)}", *([f"--ckpt_path={resume}"] if resume else [])]


LORA = LoraSettings(2, 4)


def make(root: Path, roles: dict[str, Any], checkpointing: bool = False, **options: Any) -> ConstrainedPolicyModule:
    """A policy, not built yet."""
    torch.manual_seed(1)
    runs = {"reward": str(root / "reward"), "cost": str(root / "cost"), **roles}
    return ConstrainedPolicyModule(
        lambda: HFVLM(str(root / "base"), lora=LORA, gradient_checkpointing=checkpointing),
        lambda: SharedRoles(**runs),
        lambda: LogSpaceDual(-0.5),
        sampling=SamplingOptions(max_new_tokens=6),
        **options,
    )


def build(root: Path, spread: float = 0.0, checkpointing: bool = False, **roles: Any) -> ConstrainedPolicyModule:
    """A policy before its first step; with ``spread`` actor and critics have moved away from their start."""
    module = make(root, roles, checkpointing)
    module.configure_model()
    module.train()
    if spread:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for value in module.parameters():
                if value.requires_grad:
                    value += spread * torch.randn(value.shape, generator=generator)
    return module


def named(runs: Path, start: str | None = None) -> dict[str, str]:
    """Where the runs of a policy's roles are: stored absolute paths are not followed."""
    found = {"reward": "reward", "cost": "cost", **({"start": start} if start else {})}
    return {f"model.init_args.roles.init_args.{role}": str(runs / name) for role, name in found.items()}


def forge(run: Path, file: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """A copy of a run's checkpoint with something else in it."""
    content = torch.load(next(run.glob("*.ckpt")), weights_only=True)
    change(content)
    file.parent.mkdir()
    torch.save(content, file)
    return str(file)
