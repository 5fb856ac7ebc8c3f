"""Padded grids of numbers for tests of the policy's functions."""

import pytest
import torch
from hypothesis import strategies as st

JUNK = [1e30, -1e30, torch.nan, torch.inf, -torch.inf]


LENGTHS = (1, 4, 0, 6, 3)  # a one-token response and an empty row among others


SEEDS = st.integers(0, 2**31)


def left(lengths: tuple[int, ...], width: int = 6) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_rows(got: torch.Tensor, mask: torch.Tensor, expected: list[list[float]], tolerance: float = 1e-12) -> None:
    """The real entries of each row are the expected ones and everything else is exactly 0."""
    assert bool((got[~mask] == 0).all())
    for row, real, wanted in zip(got, mask, expected, strict=True):
        assert row[real].tolist() == pytest.approx(wanted, rel=tolerance, abs=tolerance)
