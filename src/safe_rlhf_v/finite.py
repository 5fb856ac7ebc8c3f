"""Whether numbers are numbers: NaN and infinity found by one reduction, without waiting for the device."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Scalar bool on the tensors' device: no entry of a floating tensor is NaN or infinite. Nothing is copied to the host.

    Args:
        tensors: Of any shapes, dtypes and devices; of a sharded one, this rank's piece counts.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        piece = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if piece.is_floating_point() and piece.numel():
            groups.setdefault((piece.device, piece.dtype), []).append(piece.detach())
    # The largest magnitude keeps NaN and, unlike a sum of squares, never overflows by itself.
    largest = [torch.stack(torch._foreach_norm(group, float("inf"))) for group in groups.values()]
    if not largest:
        return torch.ones((), dtype=torch.bool)
    return torch.cat([values.float().to(largest[0].device) for values in largest]).isfinite().all()


def non_finite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order; usually one reduction."""
    if bool(all_finite(tensors.values())):
        return []
    return [name for name, tensor in tensors.items() if not bool(all_finite([tensor]))]


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity; nothing is saved from then on. The command line ends with status 3."""


def refuse_broken_state(module: "LightningModule") -> None:
    """Keep a state that no training can go on from out of the files. A collective: every rank must call it.

    Args:
        module: Attached to a trainer. Trained weights and the optimizers' moments count; buffers may hold infinity.

    Raises:
        NonFiniteError: On every rank, if any rank holds NaN or infinity.
    """
    trainer = module.trainer
    tensors = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for optimizer in trainer.optimizers:
        for i, state in enumerate(optimizer.state.values()):
            tensors |= {f"optimizer state {i} {k}": v for k, v in state.items() if isinstance(v, Tensor)}
    names = non_finite_names(tensors)
    if trainer.strategy.reduce_boolean_decision(not names, all=True):
        return
    more = f" (+{len(names) - 3})" if len(names) > 3 else ""
    raise NonFiniteError(
        f"step {trainer.global_step}: NaN or infinity in {', '.join(names[:3]) or 'the weights of another rank'}{more}; "
        "not saved: go on from an earlier checkpoint, with a smaller learning rate"
    )
