"""Networks sharded over the ranks with FSDP2 (``ModelParallelStrategy``), so that no rank holds all of them.

The blocks of every language model are sharded, frozen or not, and so is everything that is trained. A frozen tower and other
frozen tensors outside the blocks (embeddings, LM head, norms) are replicated on every rank: ranks see different pictures and
numbers of tokens, and replicated tensors need no communication. For the same reason sampling gathers the actor once and keeps
it gathered until it ends. FSDP pairs the ranks' forward passes by their order, so every rank must run the same number of them:
a trained tower needs pictures in every batch.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.quantization import quantized_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(module: nn.Module, mesh: "DeviceMesh") -> None:
    """Shard the networks below ``module`` in place.

    Args:
        module: Holds backbones and heads.
        mesh: The mesh of ``ModelParallelStrategy``: data parallel x tensor parallel.

    Raises:
        ValueError: If tensor parallelism is asked for, a weight is quantised, or two modules share a trained tensor.
    """
    from torch.distributed.fsdp import fully_shard

    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            "tensor parallelism is not supported: set tensor_parallel_size: 1, data_parallel_size: all ranks"
        )
    if quantized_layers(module):
        raise ValueError(
            "quantised weights are not sharded over ranks: use DDP (each rank holds them), or no quantization"
        )
    mesh = mesh["data_parallel"]
    # Sharded units return views (a linear layer's output); nothing here writes into one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    inside: set[nn.Module] = set()
    blocks = []
    for block in _blocks(module):
        if block not in inside:
            inside |= set(block.modules())
            blocks.append(block)
    outside = list(_trained_outside(module, inside))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    for part, frozen in outside:
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Entries of module lists that are trained or belong to a language model."""
    from safe_rlhf_v.models.backbone import Backbone

    networks = [part.language_model for part in module.modules() if isinstance(part, Backbone)]
    language = {part for network in networks if network is not None for part in network.modules()}
    entries = [part for stack in module.modules() if isinstance(stack, nn.ModuleList) for part in stack]
    return [part for part in entries if part in language or any(p.requires_grad for p in part.parameters())]


def _trained_outside(module: nn.Module, inside: set[nn.Module]) -> Iterator[tuple[nn.Module, set[nn.Parameter]]]:
    """Modules outside the blocks that directly hold trained tensors, each with its frozen parameters."""
    owners: dict[nn.Parameter, str] = {}
    for name, part in list(module.named_modules()):
        trained = [p for p in part.parameters(recurse=False) if p.requires_grad]
        if part in inside or not trained:
            continue
        for parameter in trained:
            if other := owners.get(parameter):
                raise ValueError(
                    f"{name} and {other} share a trained tensor, which cannot be sharded: freeze it (lora settings do), or "
                    "use DDP"
                )
            owners[parameter] = name
        yield part, {p for p in part.parameters() if not p.requires_grad}


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are gathered from all ranks when it runs."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A context in which every sharded part of ``module`` is gathered on every rank: forward passes communicate nothing.

    Args:
        module: Sharded or not. It must not be trained inside the context.
    """
    parts: list[Any] = [part for part in module.modules() if is_sharded(part)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The complete tensor, gathered if it is sharded; in that case every rank must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assign(tensor: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, or this rank's piece of a sharded one, with a complete value."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = tensor
        value = distribute_tensor(value, sharded.device_mesh, sharded.placements)
    tensor.copy_(value)
