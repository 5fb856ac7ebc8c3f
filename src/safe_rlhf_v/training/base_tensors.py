"""Digests of tensors, by which a checkpoint recognises the pretrained base that it leaves out."""

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.adapters import adapter_of
from safe_rlhf_v.models.quantization import quantized_layers
from safe_rlhf_v.models.sharding import full_tensor

_NUMBERS = 256
"""Numbers of a tensor that its digest reads, evenly spread over it."""


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's bytes; for a sharded tensor every rank must call it."""
    data = full_tensor(tensor).detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def base_digests(backbone: Any) -> str:
    """Digest of every frozen tensor by its name, as JSON; for sharded tensors every rank must call it.

    Adapters and weights that are stored in blocks are left out: the first are not the base's, the second differ between devices.
    """
    stored = {f"{name}.weight" for name in quantized_layers(backbone)}
    frozen = {
        name: value
        for name, value in backbone.named_parameters()
        if not value.requires_grad and name not in stored and adapter_of(name) is None
    }
    return json.dumps({name: _digest(value) for name, value in frozen.items()}, sort_keys=True)


def other_tensor(old: Any, new: Any, left_out: Collection[str]) -> str:
    """Name of the first tensor that two results of :func:`base_digests` both have and that differs; "" if there is none.

    Args:
        old: Of a checkpoint; what is no such text, as in older checkpoints, differs in nothing.
        new: Of the newly built backbone.
        left_out: Names of the tensors that the checkpoint leaves out; what it holds may differ from the base.
    """
    try:
        stored = json.loads(old)
        own = json.loads(new)
        return next((name for name in left_out if name in stored and stored[name] != own.get(name, stored[name])), "")
    except (TypeError, ValueError, RecursionError):
        return ""


def rebuilt_names(stored: Iterable[str]) -> set[str]:
    """The backbone's names of the tensors that a checkpoint omits.

    Args:
        stored: As the checkpoint lists them, with those of other parts.
    """
    return {name.removeprefix("backbone.") for name in stored if name.startswith("backbone.")}


def _digest(tensor: Tensor) -> str:
    """Of shape and of some numbers, rounded to bfloat16: a base may be loaded in another dtype than it was trained on."""
    flat = full_tensor(tensor).detach().reshape(-1)
    at = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), _NUMBERS), dtype=torch.float64).round().long()
    numbers = flat[at.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + numbers).hexdigest()[:12]
