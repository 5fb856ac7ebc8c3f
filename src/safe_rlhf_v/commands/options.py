"""Types of the commands' options: a value that makes no sense is refused by its option, before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jsonargparse import typing

AnyPath: TypeAlias = str | Path

if TYPE_CHECKING:  # for type checkers they are plain numbers
    NonNegativeFloat: TypeAlias = float
    NonNegativeInt: TypeAlias = int
    PositiveInt: TypeAlias = int
    Share: TypeAlias = float
else:
    NonNegativeInt = typing.NonNegativeInt
    PositiveInt = typing.PositiveInt
    Share = typing.ClosedUnitInterval
    NonNegativeFloat = typing.restricted_number_type("FiniteFloat", float, [(">=", 0), ("<", float("inf"))])


def check_splits(names: Sequence[str]) -> None:
    """Refuse a list of splits with which nothing would be done, or something twice.

    Raises:
        ValueError: If it is empty, or names a split twice.
    """
    if not names:
        raise ValueError("--splits: is empty; name at least one split, or leave the option out")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--splits: {twice[0]} is named twice; name it once")
