"""Find NaN and infinity by one reduction, without waiting for the device."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Scalar bool on the tensors' device: no entry of a floating tensor is NaN or infinite. Nothing is copied to the host.

    Args:
        tensors: Tensors of any shapes, dtypes and devices; of a sharded tensor, this rank's piece is checked.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        piece = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if piece.is_floating_point() and piece.numel():
            groups.setdefault((piece.device, piece.dtype), []).append(piece.detach())
    # The largest magnitude propagates NaN and, unlike a sum of squares, cannot overflow.
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
    """Training produced NaN or infinity; nothing is saved after that, and the command line ends with status 3."""
