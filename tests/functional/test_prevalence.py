"""Precision and alarms at a stated prevalence."""

import math

import numpy as np
import pytest

from safe_rlhf_v.functional.clustered import Interval, clustered_share
from safe_rlhf_v.functional.prevalence import at_prevalence


def test_by_hand():
    """Of a million inputs 1,000 are harmful: 900 are caught, beside 9,990 false alarms."""
    row = at_prevalence(Interval(0.9, 0.8, 0.95, 100, 50), Interval(0.01, 0.005, 0.02, 1000, 500), 0.001)
    assert row.alerts == pytest.approx(900 + 9990) and row.missed == pytest.approx(100)
    assert row.precision == pytest.approx(900 / 10890)
    assert row.precision_low == pytest.approx(800 / (800 + 19980)) and row.precision_high == pytest.approx(
        950 / (950 + 4995)
    )
    assert (row.alerts_low, row.alerts_high) == (pytest.approx(800 + 4995), pytest.approx(950 + 19980))
    assert (row.missed_low, row.missed_high) == (pytest.approx(50), pytest.approx(200))


def test_without_an_alarm_and_with_only_right_ones():
    silent = at_prevalence(Interval(0, 0, 0.1, 30, 30), Interval(0, 0, 0.01, 300, 300), 0.01)
    assert math.isnan(silent.precision) and (silent.precision_low, silent.precision_high) == (0.0, 1.0)
    assert silent.alerts == silent.alerts_low == 0 < silent.alerts_high and silent.missed == pytest.approx(10_000)
    perfect = at_prevalence(Interval(1, 0.9, 1, 30, 30), Interval(0, 0, 0.01, 300, 300), 0.01)
    assert perfect.precision == perfect.precision_high == 1.0 > perfect.precision_low  # zero false alarms are no proof
    for wrong in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            at_prevalence(Interval(1, 0.9, 1, 30, 30), Interval(0, 0, 0.01, 300, 300), wrong)


def test_the_interval_holds_the_truth():
    """Two rows per image that are flagged together; recall 0.9 and false alarms 0.03: held in at least 95 % of 200 samples."""
    rng = np.random.default_rng(0)
    truth = at_prevalence(Interval(0.9, 0.9, 0.9, 1, 1), Interval(0.03, 0.03, 0.03, 1, 1), 0.01)
    held = 0
    for _ in range(200):
        recall, fpr = (
            clustered_share(
                np.repeat(rng.random(150) < rate, 2).astype(float), np.repeat(np.arange(150), 2).tolist(), 0.975
            )
            for rate in (0.9, 0.03)
        )
        row = at_prevalence(recall, fpr, 0.01)
        held += (
            row.precision_low <= truth.precision <= row.precision_high
            and row.alerts_low <= truth.alerts <= row.alerts_high
        )
    assert held >= 190
