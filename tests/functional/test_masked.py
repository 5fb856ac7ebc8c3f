"""Masked reductions against NumPy in float64, and against every kind of junk in the padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.masked import (
    full_precision,
    last_valid_index,
    masked_mean,
    masked_median,
    masked_sum,
    masked_var,
)

VALUES = torch.tensor([[1.0, 2.0, 6.0, 9.0], [4.0, -1.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def test_by_hand() -> None:
    assert masked_sum(VALUES, MASK).item() == 12.0
    assert masked_sum(VALUES, MASK, 1).tolist() == [9.0, 3.0]
    assert masked_mean(VALUES, MASK).item() == pytest.approx(12 / 5)
    assert masked_mean(VALUES, MASK, 1).tolist() == [3.0, 1.5]
    # row 0: (4 + 1 + 9) / 2 = 7; row 1: (6.25 + 6.25) / 1
    assert masked_var(VALUES, MASK, 1).tolist() == [7.0, 12.5]
    assert masked_var(VALUES, MASK, 1, unbiased=False).tolist() == pytest.approx([14 / 3, 6.25])


def test_weights_are_a_weighted_mean() -> None:
    weights = torch.tensor([0.5, 0.25, 0.0])
    assert masked_sum(torch.tensor([2.0, 4.0, torch.nan]), weights).item() == 2.0
    assert masked_mean(torch.tensor([2.0, 4.0, torch.nan]), weights).item() == pytest.approx(2.0 / 0.75)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9))
def test_numpy_reference(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(3.0, 5.0, (rows, columns)), rng.random((rows, columns)) < 0.6
    mask[0, :2] = True  # at least two real entries, so that a variance exists
    got, real = torch.tensor(values, dtype=torch.float32), torch.tensor(mask)
    kept = values[mask]
    torch.testing.assert_close(masked_mean(got, real).item(), kept.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked_var(got, real).item(), kept.var(ddof=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(masked_var(got, real, unbiased=False).item(), kept.var(), rtol=1e-4, atol=1e-6)
    medians = [np.median(v[m]) if m.any() else 0.0 for v, m in zip(values.T, mask.T, strict=True)]
    assert masked_median(got, real).tolist() == pytest.approx(medians, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("junk", [0.0, 1e30, torch.nan, torch.inf, -torch.inf])
def test_median_by_hand(junk: float) -> None:
    values = torch.tensor([[1.0, 5.0, junk], [2.0, 7.0, junk], [9.0, junk, junk], [junk, junk, junk]])
    mask = torch.tensor([[True, True, False], [True, True, False], [True, False, False], [False, False, False]])
    assert masked_median(values, mask).tolist() == [2.0, 6.0, 0.0]


@pytest.mark.parametrize("junk", [0.0, 1e30, torch.nan, torch.inf, -torch.inf])
def test_junk_in_the_padding_changes_neither_value_nor_gradient(junk: float) -> None:
    def run(values: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        leaf = values.clone().requires_grad_()
        outs = [f(leaf, MASK) for f in (masked_sum, masked_mean, masked_var)]
        torch.stack([out.square().sum() for out in outs]).sum().backward()
        assert leaf.grad is not None
        return [out.detach() for out in outs], leaf.grad

    (clean, clean_grad), (dirty, dirty_grad) = run(VALUES), run(VALUES.masked_fill(~MASK, junk))
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(clean_grad[MASK], dirty_grad[MASK], rtol=1e-6, atol=0)


def test_nothing_real_is_zero_with_a_graph() -> None:
    values = torch.full((2, 3), torch.nan, requires_grad=True)
    for function in (masked_sum, masked_mean, masked_var):
        out = function(values, torch.zeros(2, 3, dtype=torch.bool))
        assert bool((out == 0).all()) and out.requires_grad
    masked_mean(values, torch.zeros(2, 3, dtype=torch.bool)).backward()
    assert values.grad is not None and bool((values.grad == 0).all())


def test_one_real_value_has_no_variance() -> None:
    one = torch.tensor([True, False])
    assert masked_var(torch.tensor([3.0, 8.0]), one).item() == 0.0


def test_half_precision_is_summed_in_float32() -> None:
    values, mask = torch.full((4096,), 1.0, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bool)
    assert masked_sum(values, mask).item() == 4096.0  # bf16 accumulation would stop at 256
    assert masked_mean(values, mask).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("mask", "index"),
    [([1, 1, 1, 0, 0], 2), ([0, 0, 1, 1, 1], 4), ([1, 0, 1, 0, 0], 2), ([1, 0, 0, 0, 0], 0), ([1, 1, 1, 1, 1], 4)],
)
def test_last_valid_on_either_side(mask: list[int], index: int) -> None:
    real = torch.tensor([mask], dtype=torch.bool)
    assert last_valid_index(real).item() == index


def test_padded_batch_equals_rows_alone_on_both_sides() -> None:
    rows = [torch.randn(n, 3) for n in (1, 4, 6)]
    for left in (False, True):
        values, mask = torch.randn(3, 6, 3), torch.zeros(3, 6, dtype=torch.bool)
        for i, row in enumerate(rows):
            place = slice(6 - len(row), 6) if left else slice(0, len(row))
            values[i, place], mask[i, place] = row, True
        means = masked_mean(values, mask[..., None].expand(-1, -1, 3), dim=1)
        torch.testing.assert_close(means, torch.stack([row.mean(0) for row in rows]), rtol=1e-5, atol=1e-6)
