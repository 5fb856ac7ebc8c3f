r"""Bounds on a mean that hold for every distribution at a stated error: no normal theory, no sample size from which on they hold.

Shapes: N independent units (one response of each group), in an order that does not depend on their values. Errors: a bound on
the wrong side of the mean has a probability of at most ``delta``, for each of the functions alone.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_v.functional.intervals import clopper_pearson_upper

Floats = NDArray[np.float64]
_LARGEST_BET = 0.9
"""Share of the capital that one observation can lose; below 1, so that none ends the game."""
MOST_PROMPTS = 100_000
"""Up to how many values :func:`needed_prompts` looks."""


class Values(NamedTuple):
    """What a bound is computed from.

    Attributes:
        x: (N,) independent values in low..high, in an order that does not depend on them.
        low: Least possible value.
        high: Largest possible value.
        binary: Every value is one of these two, by its nature and not by chance: the exact binomial bound holds.
    """

    x: Floats
    low: float = 0.0
    high: float = 1.0
    binary: bool = False


def order_by(*names: str) -> bytes:
    """What units are sorted by: a hash of their names, since an order that depends on values or sizes would favour some.

    Args:
        names: Of the unit: all units of one order have as many.
    """
    return hashlib.sha256("\0".join(names).encode()).digest()


def look_error(delta: float, look: int) -> float:
    r"""Error of the k-th look at one claim, :math:`\delta \, 6 / (\pi^2 k^2)`: over all looks, however many, they sum to delta.

    Args:
        delta: Error of all looks together.
        look: k, from 1.
    """
    return delta * 6 / (math.pi * look) ** 2


def upper_bound(values: Values, delta: float) -> float:
    """Upper bound of the mean: Clopper-Pearson for binary values, which is exact; otherwise :func:`betting_upper_bound`.

    Korn-Graubard's interval of :mod:`~safe_rlhf_v.functional.clustered` is not exact, and none of these.

    Args:
        values: Without a value the bound is the largest possible one.
        delta: In (0, 1).

    Raises:
        ValueError: If delta or a value is outside its range.
    """
    x, low, high, binary = values
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    if not low < high or not ((x >= low) & (x <= high)).all():  # NaN, too
        raise ValueError(
            f"values must lie in {low:g}..{high:g}, one is {next((v for v in x if not low <= v <= high), 'none')}"
        )
    if binary and not np.isin(x, (low, high)).all():
        raise ValueError(f"binary values must be {low:g} or {high:g}")
    if binary:
        return low + clopper_pearson_upper(int((x == high).sum()), len(x), 1 - delta) * (high - low)
    return betting_upper_bound(x, low, high, delta)


def lower_bound(values: Values, delta: float) -> float:
    """Lower bound of the mean: the upper one of what is missing to the top."""
    total = values.low + values.high
    return total - upper_bound(values._replace(x=np.clip(total - values.x, values.low, values.high)), delta)


def betting_upper_bound(x: Floats, low: float, high: float, delta: float) -> float:
    r"""Upper bound of the mean of values in low..high, by betting against larger means (Waudby-Smith & Ramdas, JRSS B 86, 2024).

    Scaled to 0..1, a capital of 1 grows by :math:`1 + \lambda_i (m - x_i)` with each value. If the mean is m or more it
    does not grow on average, so that it reaches 1 / delta with probability at most delta (Markov); means at which it did are
    ruled out. The bets :math:`\lambda_i = \sqrt{2 \ln(1/\delta) / (n \hat\sigma_{i-1}^2)}` are their predictable plug-in for a
    sample of fixed size n (arXiv 2010.09686, equation 15), at most 0.9 / (1 - m). The bound is narrow where the values have
    little variance, whatever their range.

    Args:
        x: (N,) independent values.
        low: Least possible value.
        high: Largest possible value.
        delta: In (0, 1).
    """
    if not len(x):
        return high
    scaled = (x - low) / (high - low)
    bound = _least(lambda mean: _log_capital(scaled, mean, delta), 0.0, 1.0, math.log(1 / delta))
    return low + bound * (high - low)


def needed_prompts(values: Values, budget: float, delta: float) -> int | None:
    """About how many values would bring the upper bound to the budget, if further ones are like these.

    The sample is repeated. ``None`` if its mean is not below the budget, or more than 100,000 are needed.

    Args:
        values: The sample.
        budget: What the mean must not exceed.
        delta: Error of the bound.
    """
    n = len(values.x)
    if not n or float(values.x.mean()) >= budget:
        return None

    def passes(size: int) -> bool:
        repeated = values._replace(x=np.resize(values.x, size))
        if values.binary:
            return upper_bound(repeated, delta) <= budget
        scaled = (repeated.x - values.low) / (
            values.high - values.low
        )  # one bet against the budget, not the search for the bound
        return _log_capital(scaled, (budget - values.low) / (values.high - values.low), delta) >= math.log(1 / delta)

    size = n
    while not passes(size):
        if size >= MOST_PROMPTS:
            return None
        size = min(size * 2, MOST_PROMPTS)
    below = size // 2 if size > n else 0
    while size - below > max(size // 100, 1):  # "about": to a hundredth
        middle = (size + below) // 2
        size, below = (middle, below) if passes(middle) else (size, middle)
    return size


def _log_capital(x: Floats, mean: float, delta: float) -> float:
    """Logarithm of what betting against a mean of ``mean`` or more has won on values in 0..1."""
    n = len(x)
    count = np.arange(1, n + 1)
    running = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - running) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * before)), _LARGEST_BET / max(1 - mean, 1e-12))
    return float(np.log1p(bets * (mean - x)).sum())


def _least(log_capital: Callable[[float], float], low: float, high: float, enough: float) -> float:
    """The least mean at which the capital, which grows with it, is enough; the upper of two neighbours."""
    below = low
    above = high
    for _ in range(60):
        middle = (below + above) / 2
        if middle in (below, above):
            break
        below, above = (below, middle) if log_capital(middle) >= enough else (middle, above)
    return above
