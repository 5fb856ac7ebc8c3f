"""Reliability bins: hand-computed, against torchmetrics, additive over batches."""

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from safe_rlhf_v.functional.calibration import calibration_error, reliability_bins


def test_by_hand() -> None:
    probabilities = torch.tensor([0.0, 0.1, 0.6, 0.9, 1.0, 0.7])
    outcomes = torch.tensor([False, True, True, True, True, False])
    mask = torch.tensor([True, True, True, True, True, False])
    table = reliability_bins(probabilities, outcomes, mask, bins=2)
    torch.testing.assert_close(table, torch.tensor([[2, 3], [0.1, 2.5], [1, 3]], dtype=torch.float64))
    # (2 |0.05 - 0.5| + 3 |2.5/3 - 1|) / 5 = (0.9 + 0.5) / 5
    assert calibration_error(table).item() == pytest.approx(0.28)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equals_torchmetrics(bins: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    probabilities = torch.rand(500, generator=generator, dtype=torch.float64)
    outcomes = torch.rand(500, generator=generator) < probabilities.square()
    mask = torch.rand(500, generator=generator) < 0.8
    expected = binary_calibration_error(probabilities[mask], outcomes[mask].long(), n_bins=bins)
    got = calibration_error(reliability_bins(probabilities, outcomes, mask, bins))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_batches_add_up_and_junk_behind_the_mask_is_ignored() -> None:
    probabilities, outcomes, mask = torch.rand(40), torch.rand(40) < 0.3, torch.rand(40) < 0.7
    whole = reliability_bins(probabilities, outcomes, mask)
    halves = [reliability_bins(probabilities[i::2], outcomes[i::2], mask[i::2]) for i in (0, 1)]
    torch.testing.assert_close(whole, halves[0] + halves[1])
    junk = torch.where(mask, probabilities, torch.nan)
    torch.testing.assert_close(whole, reliability_bins(junk, outcomes, mask))


def test_perfect_and_opposite_forecasts() -> None:
    outcomes, everything = torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool)
    assert calibration_error(reliability_bins(outcomes.float(), outcomes, everything)).item() == 0.0
    assert calibration_error(reliability_bins((~outcomes).float(), outcomes, everything)).item() == 1.0


def test_empty_is_nan() -> None:
    table = reliability_bins(torch.rand(3), torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert calibration_error(table).isnan()
