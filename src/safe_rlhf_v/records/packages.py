"""Optional packages: imported when they are needed, by one rule."""

from importlib import import_module
from typing import Any


class PackageError(ImportError, ValueError):
    """An optional package is not installed; the message names it and the extra that brings it."""


def package(name: str, extra: str) -> Any:
    """A package, or a module of ours that needs one.

    Args:
        name: Name of the module.
        extra: The extra of this library that brings it.

    Raises:
        PackageError: If it, or a package that it needs, is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise PackageError(
            f"this needs the package {error.name}: pip install '.[{extra}]' in a clone of safe_rlhf_v"
        ) from None
