"""Wilson interval: the ends solve the score equation; edges stay inside 0..1."""

import math

import pytest

from safe_rlhf_v.functional.intervals import wilson_interval


@pytest.mark.parametrize(("successes", "total"), [(1, 2), (8, 10), (81, 263), (3, 1000), (999, 1000)])
def test_ends_solve_the_score_equation(successes: int, total: int) -> None:
    share = successes / total
    low, high = wilson_interval(successes, total)
    assert low < share < high
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / total), rel=1e-9)


def test_edges_and_symmetry() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5)[0] == 0.0 and wilson_interval(5, 5)[1] == 1.0
    low, high = wilson_interval(3, 11)
    assert wilson_interval(8, 11) == pytest.approx((1 - high, 1 - low))
