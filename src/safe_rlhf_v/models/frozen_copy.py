"""The reference of a policy: its backbone as it was at the start, at the cost of the tensors that training changes."""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor, nn

from safe_rlhf_v.models.backbone import Backbone


class FrozenCopy(nn.Module):
    """A copy of a backbone that is never trained, always in evaluation mode, and shares tensors with the original.

    Only tensors that are frozen in the original may be shared: a tower, or under LoRA everything but the adapters. Shared
    tensors are left out of the copy's state dict, so checkpoints hold each tensor once. If all frozen tensors are shared,
    so is the feature cache: a picture is then encoded once for both.

    Attributes:
        network: The copy.
        shared: Names of the parameters that are the original's own.
    """

    def __init__(self, original: Backbone, shared: Iterable[str] | None = None) -> None:
        """Copy.

        Args:
            original: What to copy.
            shared: Names of frozen parameters to share; ``None`` shares all of them.
        """
        super().__init__()
        self.shared = frozen_names(original) if shared is None else set(shared)
        assert self.shared <= frozen_names(original), "a trainable tensor would change under the copy"
        named = dict(original.named_parameters(remove_duplicate=False))
        memo = {id(named[name]): named[name] for name in self.shared}  # deepcopy takes what it finds here
        self.network: Backbone = copy.deepcopy(original, memo).requires_grad_(False)
        self._share_cache(original)
        module: nn.Module = self
        module.register_state_dict_post_hook(_drop_shared)
        module.register_load_state_dict_post_hook(_miss_nothing_shared)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def follow(self, stored: set[str], original: Backbone) -> None:
        """Share what a checkpoint left out and nothing else, before its tensors are loaded into both.

        Trainable tensors are never shared: without them the checkpoint is refused as incomplete.

        Args:
            stored: Names of the copy's tensors that the checkpoint holds.
            original: As at construction.
        """
        unstored = frozen_names(original) - stored
        for name in self.shared ^ unstored:
            source = original.get_parameter(name)
            value = source if name in unstored else nn.Parameter(source.detach().clone(), requires_grad=False)
            place, _, leaf = name.rpartition(".")
            setattr(self.network.get_submodule(place), leaf, value)
        self.shared = unstored
        self._share_cache(original)

    def _share_cache(self, original: Backbone) -> None:
        """Features are the same where all that a frozen tower is made of is the same."""
        self.network._cache = original._cache if self.shared == frozen_names(original) else OrderedDict()


def frozen_names(module: nn.Module) -> set[str]:
    """Names of the parameters that are not trained; one that has several names counts under each."""
    return {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}


def _drop_shared(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    assert isinstance(module, FrozenCopy)
    for name in module.shared:
        state.pop(f"{prefix}network.{name}", None)


def _miss_nothing_shared(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, FrozenCopy)
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.partition("network.")[2] not in module.shared]
