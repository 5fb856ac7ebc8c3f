"""Errors of libraries while a component is built from a user's settings, as one line that names the setting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Component = TypeVar("Component")

_LIBRARIES = frozenset(
    ("accelerate", "bitsandbytes", "huggingface_hub", "lightning", "open_clip", "peft", "timm", "torch", "torchvision")
) | {"transformers", "tokenizers"}


@contextmanager
def named(setting: str) -> Iterator[None]:
    """A context in which an error of a library becomes one line that names the setting.

    Refusals of this package name their setting themselves. Errors that involve a user's own code keep their traceback, for the
    user to debug.

    Args:
        setting: ``optimizer``, ``backbone``, ...

    Raises:
        ValueError: In place of the library's error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        if not _by_library(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or "no reason given"
        raise ValueError(f"{setting}: cannot be built from its settings ({type(error).__name__}: {reason})") from error


def build_component(setting: str, make: Callable[..., Component] | None, *args: Any) -> Component:
    """``make(*args)``, with errors of libraries as one line that names the setting.

    Args:
        setting: See :func:`named`.
        make: Factory of the component.
        args: Arguments of the factory.

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
