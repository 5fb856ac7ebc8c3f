"""Tiny runs for tests of roles that share a base: trained by the public command, a few steps with a large rate."""

from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_v.commands.fit import CLI, main

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
