"""Several named adapters on one base: which of them is active, and which module owns their tensors.

Adapters are switched by a context manager and not by peft's own methods, which change ``requires_grad``. Only this file uses
the two private attributes of peft that hold a layer's state (``_active_adapter``, ``_disable_adapters``).

Shapes: an adapted layer (out, in) has per adapter A (r, in) and B (out, r).
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from torch import Tensor, nn

DEFAULT = "default"
"""The adapter that belongs to the backbone itself; the others belong to the module that added them."""

_NAME = re.compile(r"(?:^|\.)lora_[AB]\.(\w+)\.")


def adapter_of(name: str) -> str | None:
    """The adapter that a tensor of that name belongs to, ``None`` for a tensor of the base."""
    match = _NAME.search(name)
    return match.group(1) if match else None


def adapter_layers(module: nn.Module) -> dict[str, Any]:
    """Layers with adapters, by their dotted names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)}


def active_adapter(module: nn.Module) -> str | None:
    """Name of the active adapter, ``None`` if the base runs alone."""
    return _active(list(adapter_layers(module).values()))


def activate(module: nn.Module, name: str) -> None:
    """Make one adapter the active one, until another is activated."""
    for layer in adapter_layers(module).values():
        layer._active_adapter = [name]
        layer._disable_adapters = False


def adapter(module: nn.Module, name: str | None) -> "ActiveAdapter":
    """A context in which one adapter is active; ``requires_grad`` is not changed.

    Args:
        module: Holds layers with adapters.
        name: The adapter; ``None`` for the base alone.

    Raises:
        ValueError: If there is no such adapter.
    """
    layers = list(adapter_layers(module).values())
    if name is not None and not any(name in layer.lora_A for layer in layers):
        raise ValueError(f"no adapter is named {name!r}")
    return ActiveAdapter(layers, name)


class ActiveAdapter(AbstractContextManager[None]):
    """The context of :func:`adapter`; it can be entered several times, also inside itself."""

    def __init__(self, layers: Sequence[Any], name: str | None) -> None:
        """Store what to switch.

        Args:
            layers: Layers with adapters.
            name: The adapter to switch on; ``None`` runs the base alone.
        """
        self.layers = layers
        self.name = name
        self._before: list[list[tuple[Any, bool]]] = []

    def __enter__(self) -> None:
        """Switch, and remember the active adapters."""
        self._before.append([(layer._active_adapter, layer._disable_adapters) for layer in self.layers])
        for layer in self.layers:
            layer._disable_adapters = self.name is None
            if self.name is not None:
                layer._active_adapter = [self.name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Switch back."""
        for layer, (active, disabled) in zip(self.layers, self._before.pop(), strict=True):
            layer._active_adapter = active
            layer._disable_adapters = disabled


class RememberAdapter:
    """``context_fn`` of ``torch.utils.checkpoint``: the backward pass recomputes with the adapter of the forward pass.

    Another role may be active by then, and gradients would be silently wrong.
    """

    def __init__(self, module: nn.Module) -> None:
        """Store the module.

        Args:
            module: May hold layers with adapters.
        """
        self.module = module
        self._layers: list[Any] = []  # listed once: this runs for every checkpointed block

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of the forward pass and of its recomputation."""
        if not self._layers:
            self._layers = list(adapter_layers(self.module).values())
        return nullcontext(), ActiveAdapter(self._layers, _active(self._layers)) if self._layers else nullcontext()


class Adapter(nn.Module):
    """The matrices of one adapter, under the names of the layers they belong to: ``q_proj.lora_A.weight``.

    They are shared with the layers; as a module they can be trained, frozen, stored and hashed separately.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """Collect the matrices.

        Args:
            module: Holds the layers with adapters.
            name: Name of the adapter.
        """
        super().__init__()
        for path, layer in adapter_layers(module).items():
            node: nn.Module = self
            for part in path.split("."):
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.lora_A = layer.lora_A[name]
            node.lora_B = layer.lora_B[name]


def adapter_tensors(state: dict[str, Tensor], name: str = DEFAULT) -> dict[str, Tensor]:
    """The tensors of one adapter in a backbone's state dict, under the names that :class:`Adapter` gives them."""
    own = {key: value for key, value in state.items() if adapter_of(key) == name}
    return {re.sub(rf"(lora_[AB])\.{name}\.", r"\1.", key): value for key, value in own.items()}


def keep_to_default(module: nn.Module) -> None:
    """Restrict a module's state dict to the base and the adapter ``default``."""
    module.register_state_dict_post_hook(_drop_others)
    module.register_load_state_dict_post_hook(_miss_no_others)


def _active(layers: list[Any]) -> str | None:
    if not layers or layers[0]._disable_adapters:
        return None
    name: str = layers[0].active_adapters[0]
    return name


def _others(names: list[str]) -> list[str]:
    return [name for name in names if adapter_of(name) not in (None, DEFAULT)]


def _drop_others(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in _others([name for name in state if name.startswith(prefix)]):
        del state[name]


def _miss_no_others(module: nn.Module, keys: Any) -> None:
    others = set(_others(keys.missing_keys))
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in others]
