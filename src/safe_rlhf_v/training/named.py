"""What a library refuses while something is built from a user's settings becomes one line that names the setting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Made = TypeVar("Made")

_LIBRARIES = frozenset(
    ("accelerate", "bitsandbytes", "huggingface_hub", "lightning", "open_clip", "peft", "timm", "torch", "torchvision")
) | {"transformers", "tokenizers"}


@contextmanager
def named(setting: str) -> Iterator[None]:
    """Give errors of the libraries that components are built from the name of the setting that they are built from.

    Refusals of this package name their setting themselves, and errors that a user's own code takes part in keep their
    traceback: it is the user's to debug.

    Args:
        setting: ``optimizer``, ``backbone``, ...

    Raises:
        ValueError: In their place, caused by them.
    """
    try:
        yield
    except Exception as error:
        if not _by_library(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or "no reason given"
        raise ValueError(f"{setting}: cannot be built from its settings ({type(error).__name__}: {reason})") from error


def made(setting: str, make: Callable[..., Made] | None, *args: Any) -> Made:
    """``make(*args)``, with refusals that name the setting.

    Args:
        setting: See :func:`named`.
        make: The factory that the setting gives.
        args: Its arguments.

    Raises:
        ValueError: If there is no factory, or a library refuses its settings.
    """
    if make is None:
        raise ValueError(f"{setting}: is null; name a class (class_path)")
    with named(setting):
        return make(*args)


def _by_library(error: Exception) -> bool:
    """Whether a library raised it, called by nothing but libraries and this package."""
    trace = error.__traceback__
    homes = list[str]()
    while trace is not None:
        homes.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    known = _LIBRARIES | {"safe_rlhf_v", "contextlib", "functools", "jsonargparse"}
    return bool(homes) and homes[-1] in _LIBRARIES and known.issuperset(homes)
