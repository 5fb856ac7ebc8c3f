"""Low-rank adapters (LoRA, arXiv 2106.09685), added to a module in place.

No wrapper is added: a targeted linear layer is replaced by peft's layer, which holds the old one.
Shapes: a target (out, in) gets A (r, in) and B (out, r); its output grows by ``alpha / r`` x B A x.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.adapters import activate, active_adapter
from safe_rlhf_v.models.quantization import plain_state


@dataclass(frozen=True)
class LoraSettings:
    """How adapters look; plain data for YAML.

    YAML::

        lora: {r: 64, alpha: 128, dropout: 0.05, target_modules: [q_proj, v_proj]}

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: Probability of dropping an input of A, in training mode only.
        target_modules: Names, or ends of dotted names, of the layers to adapt; ``None`` for every linear layer.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


def apply_lora(module: nn.Module, settings: LoraSettings, adapter: str = "default") -> None:
    """Add an adapter to ``module``; only adapters stay trainable in it.

    B starts at zero, so the module's output does not change. Adapters are float32 whatever the dtype of the weights
    (a step of 1e-3 on a bfloat16 weight near 1 would be rounded away). Several adapters may be added under different
    names; the active one stays active.

    Args:
        module: Changed in place.
        settings: Rank, scale, targets.
        adapter: Name of the adapter.

    Raises:
        ValueError: If no linear layer matches ``target_modules``, or the adapter exists already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from safe_rlhf_v.models.lora_layer import LoraLinear

    names = linear_names(module)
    ends = settings.target_modules
    targets = [n for n in names if ends is None or any(n == end or n.endswith(f".{end}") for end in ends)]
    if not targets:
        available = sorted({name.rpartition(".")[2] for name in names})
        raise ValueError(f"lora.target_modules {list(ends or [])} match no linear layer; available: {available}")
    if any(f"lora_A.{adapter}." in name for name, _ in module.named_parameters()):
        raise ValueError(f"an adapter named {adapter!r} exists already; choose another name")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, targets)),  # a list would match by name endings once more
    )
    config._register_custom_module({nn.Linear: LoraLinear})
    active = active_adapter(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is intended
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")  # merging is ours
        inject_adapter_in_model(config, module, adapter_name=adapter)
    activate(module, active or adapter)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


def linear_names(module: nn.Module) -> list[str]:
    """Dotted names of the linear layers in ``module``: adapted ones are included, the adapters' own matrices are not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [name for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in adapted)
    plain = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith(inside) and name not in adapted
    ]
    return [*adapted, *plain]


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of ``module`` with the names it had before :func:`apply_lora`, active adapters added to the weights.

    The module itself is not changed. Without adapters the result is the ordinary state dict. Of quantised weights it holds the
    numbers that they compute with.
    """
    from peft.tuners.lora import LoraLayer

    state = {
        name.replace(".base_layer.", "."): value
        for name, value in plain_state(module, module.state_dict()).items()
        if ".lora_" not in name and not name.startswith("lora_")
    }
    for name, part in module.named_modules():
        if isinstance(part, LoraLayer):
            key = f"{name}.weight"
            with torch.no_grad():
                layer: Any = part  # peft's subclasses add the method
                delta = sum(layer.get_delta_weight(active).float() for active in layer.active_adapters)
                state[key] = (state[key].float() + delta).to(state[key].dtype)
    return state


def merge_adapters(module: nn.Module) -> None:
    """Add the active adapters to the weights and take the adapters out: :func:`apply_lora` undone, with their effect kept."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = merged_state(module)
    for name, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            layer: Any = part  # peft's base class has no type for it
            module.set_submodule(name, layer.base_layer)
    module.load_state_dict(merged)
