"""Types of the commands' options: a value that makes no sense is refused by its option, before anything is loaded."""

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
