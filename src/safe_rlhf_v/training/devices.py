"""Where networks run that are not trained: one rule for commands and for Python."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> "torch.device":
    """The device of a name.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: If there is no such device here.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise ValueError(f"device {name!r}: no device; give auto, cpu, cuda, or cuda:N for the GPU of that number")
    if kind == "cuda" and int(number or 0) >= count:
        here = f"there are {count} GPUs, cuda:0 to cuda:{count - 1}" if count else "there is no GPU that torch can use"
        raise ValueError(f"device {name!r}: {here}; use another device, or cpu")
    return torch.device(name)
