"""From the configuration of a training to what its memory depends on."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v.commands.fit import CLI
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.planning.network import BackboneOptions, read_config
from safe_rlhf_v.planning.settings import RunSettings
from safe_rlhf_v.planning.vision import vision_size
from safe_rlhf_v.policy import SharedRoles
from safe_rlhf_v.training.stored_config import find_class

STAGES = {
    "SupervisedModule": "supervised",
    "RewardModule": "reward",
    "CostModule": "cost",
    "GuardModule": "guard",
    "PreferenceOptimisationModule": "preference_optimisation",
    "ConstrainedPolicyModule": "policy",
}
"""Class of a module, or of what it is built on, to its stage."""

_OPTIONS = ("dtype", "freeze_tower", "freeze_projector", "freeze_language", "quantization", "gradient_checkpointing")


class _Reader(CLI):
    """Parses a training's command line as ``fit`` does, and builds nothing."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def before_instantiate_classes(self) -> None:
        """Nothing is checked: runs and data need not be there yet."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def read_settings(
    training: Sequence[str],
    prompt_tokens: int,
    response_tokens: int | None,
    image_tokens: int | None,
    ranks: int | None,
    model_config: str | None,
) -> RunSettings:
    """The settings of a training; see :func:`safe_rlhf_v.commands.plan.plan` for the arguments.

    Raises:
        ValueError: If there is no backbone or stage that can be planned for.
    """
    from lightning.pytorch import LightningDataModule, LightningModule

    reader = _Reader(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=False,
        args=["fit", *training],
    )
    config = reader.config.fit
    module = plain(config.model)
    data = (plain(config.get("data")) or {}).get("init_args", {})
    model = module["init_args"]
    stage = stage_of(module["class_path"])
    backbone = model["backbone"]
    if not issubclass(find_class(backbone["class_path"]), HFVLM):
        raise ValueError(
            f"plan: reads Hugging Face backbones (HFVLM) only, not {backbone['class_path'].rpartition('.')[2]}"
        )
    own = backbone["init_args"]
    hub = {"revision": own["revision"], "local_files_only": own["local_files_only"]}
    source = config_file(model_config) if model_config else own["config"]
    known = read_config(None if source else own["model"], source, **hub)
    silent = stage in ("policy", "preference_optimisation")  # they switch dropout off
    options = BackboneOptions(
        known,
        **{name: getattr(torch, own[name]) if name == "dtype" else own[name] for name in _OPTIONS},
        lora=lora_settings(own["lora"], silent),
    )
    sampled = (model.get("sampling") or {}).get("max_new_tokens", 64) if stage == "policy" else 512
    return RunSettings(
        stage,
        options,
        vision_size(known, own["max_pixels"], image_tokens),
        text=prompt_tokens,
        response=response_tokens or sampled,
        max_length=own["max_length"],
        batch=data.get("batch_size") or 1,
        evaluated=data.get("eval_batch_size") or 0,
        feature_cache=own["feature_cache"],
        optimizer_states=states_per_number(model["optimizer"]),
        **of_trainer(config.trainer, ranks),
        **of_stage(stage, model, data),
    )


def plain(section: Any) -> Any:
    """A parsed section as plain data."""
    return section.as_dict() if hasattr(section, "as_dict") else section


def config_file(path: str) -> str:
    """The ``config.json`` of a folder, or the file itself. Raises: ValueError: If there is none."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"--model_config {path}: no such file or folder with a config.json")
    return path if Path(path).is_dir() else str(file)


def stage_of(class_path: str) -> Any:
    """The stage of a module. Raises: ValueError: If it is none of ours, nor built on one."""
    for cls in find_class(class_path).__mro__:
        if cls.__name__ in STAGES and cls.__module__.startswith("safe_rlhf_v."):
            return STAGES[cls.__name__]
    raise ValueError(f"plan: does not know the passes of {class_path}; it plans for {', '.join(STAGES)}")


def lora_settings(settings: Any, silent: bool) -> LoraSettings | None:
    """Settings of the adapters, without dropout where a stage switches it off."""
    if settings is None:
        return None
    options = dict(plain(settings))
    targets = options.get("target_modules")
    options["target_modules"] = tuple(targets) if targets else None
    return LoraSettings(**{**options, "dropout": 0.0} if silent else options)


def of_stage(stage: str, model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """What only some stages have."""
    if stage == "supervised":
        return {}
    head = plain(model.get("head")) or {}
    reads_tokens = bool(head) and getattr(find_class(head["class_path"]), "needs_log_probs", False)
    if stage == "guard":
        return {"responses": 2, "joined": model["response_mixing"] > 0, "reads_tokens": reads_tokens}
    if stage != "policy":
        return {"responses": 2, "packed": model["packed"], "reads_tokens": reads_tokens}
    update = model.get("update") or {}
    learns_demonstrations = data.get("demonstrations") is not None and update.get("ptx_weight", 0.5) > 0
    roles = model["roles"]
    return {
        "responses": model["samples"],
        "sorts": (model.get("sampling") or {}).get("top_p", 1.0) < 1,
        "critics": getattr(find_class(model["advantages"]["class_path"]), "critics", True)
        if model.get("advantages")
        else True,
        "shared": issubclass(find_class(roles["class_path"]), SharedRoles),
        "started": bool(roles["init_args"].get("start")),
        "minibatch": update.get("minibatch_size"),
        "micro_batch": update.get("micro_batch_size"),
        "demonstrations": data.get("demonstration_batch_size", 0) if learns_demonstrations else 0,
    }


def of_trainer(trainer: Any, ranks: int | None) -> dict[str, Any]:
    """What the Trainer decides."""
    strategy = plain(trainer.strategy)
    name = strategy["class_path"] if isinstance(strategy, dict) else str(strategy)
    devices = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    if isinstance(trainer.devices, list):
        devices = len(trainer.devices)
    count = ranks or devices * int(trainer.num_nodes or 1)
    precision = str(trainer.precision or "32-true")
    if precision not in ("32-true", "32", "bf16-mixed", "bf16"):
        raise ValueError(f"plan: trainer.precision {precision} is not planned for; use 32-true or bf16-mixed")
    return {
        "mixed": precision.startswith("bf16"),
        "accumulated": int(trainer.accumulate_grad_batches or 1),
        "ranks": count,
        "sharded": "ModelParallel" in name and count > 1,
        "cpu": trainer.accelerator == "cpu",
    }


def states_per_number(optimizer: Any) -> float:
    """How many numbers an optimizer keeps for each that it trains, found by one step on a small tensor."""
    options = plain(optimizer) or {}
    module, _, name = options.get("class_path", "torch.optim.AdamW").rpartition(".")
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    instance = getattr(import_module(module), name)([parameter], **options.get("init_args", {}))
    parameter.grad = torch.zeros_like(parameter)
    instance.step()
    states = instance.state[parameter].values()
    return sum(value.numel() for value in states if isinstance(value, torch.Tensor) and value.dim() > 0) / 64
