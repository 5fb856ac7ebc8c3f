"""Whether runs trained as adapters have one base: what is shared must be the same, tensor by tensor."""

from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.adapters import adapter_of, adapter_tensors
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.training.checkpoints import CheckpointError, compare_fingerprints, compare_names


def check_trained(actor: Backbone) -> None:
    """Raises: ValueError: If the actor trains anything but adapters: the other roles would change with it."""
    if actor.lora is None:
        raise ValueError("SharedRoles puts adapters on one base: give the backbone lora settings, or use SeparateRoles")
    other = [name for name, value in actor.named_parameters() if value.requires_grad and adapter_of(name) is None]
    if other:
        more = f" (+{len(other) - 1})" if len(other) > 1 else ""
        raise ValueError(
            f"the backbone trains {other[0]}{more} beside its adapters, under all roles of SharedRoles: freeze it "
            "(freeze_tower, freeze_projector: true), or use SeparateRoles"
        )


def check_adapters(stage: dict[str, Any], actor: Backbone, now: dict[str, str]) -> None:
    """Refuse a run whose adapters are not like the actor's.

    Args:
        stage: The run's checkpoint.
        actor: Freshly built.
        now: Its fingerprint.

    Raises:
        CheckpointError: If the run has no adapters, other settings or another base.
    """
    file, theirs = stage["file"], {"lora": "", **stage["fingerprint"]}
    layers = adapter_tensors(backbone_tensors(stage)).keys()
    if not layers:
        raise CheckpointError(
            f"{file}: was trained without adapters; give its backbone lora settings, or use SeparateRoles"
        )
    compare_fingerprints(file, theirs, now, base=bool(stage["rebuilt"]))
    for name in ("base", "lora"):  # the base by its name, too: all of it is shared, and only one tensor has a hash
        if theirs[name] != now[name]:
            raise CheckpointError(
                f"{file}: its {name} is {theirs[name]!r}, the policy's is {now[name]!r}; give both the same"
            )
    if other := layers ^ adapter_tensors(actor.state_dict()).keys():
        raise CheckpointError(
            f"{file}: adapts other layers than the policy ({min(other)}); give both the same lora.target_modules"
        )


def changed_by(start: dict[str, Any], actor: Backbone) -> set[str]:
    """Names of the base's tensors that a start run is going to change in an actor."""
    own = actor.state_dict()
    stored = backbone_tensors(start)
    return {name for name, value in stored.items() if adapter_of(name) is None and not _same(value, own.get(name))}


def adapter_of_run(stage: dict[str, Any], actor: Backbone, changed: set[str]) -> dict[str, Tensor]:
    """The adapter of a run on the actor's base.

    Args:
        stage: The run's checkpoint.
        actor: With the base as the policy has it.
        changed: Tensors of it that are not those of the pretrained base.

    Raises:
        CheckpointError: If the run's base is another one.
    """
    file, stored, own = stage["file"], backbone_tensors(stage), actor.state_dict()
    rebuilt = {name.removeprefix("backbone.") for name in stage["rebuilt"] if name.startswith("backbone.")}
    compare_names(file, set(own), set(stored), rebuilt)
    other = [name for name, value in stored.items() if adapter_of(name) is None and not _same(value, own[name])]
    if other := sorted([*other, *(changed & rebuilt)]):
        raise CheckpointError(
            f"{file}: its {other[0]} is not the policy's, so it has another base; start policy, reward and cost model from "
            "the same run, or use SeparateRoles"
        )
    return adapter_tensors(stored)


def backbone_tensors(stage: dict[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds of its backbone, under the backbone's own names."""
    own = {name: value for name, value in stage["state_dict"].items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): value for name, value in own.items()}


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.dtype == other.dtype and torch.equal(value.to(other.device), other)
