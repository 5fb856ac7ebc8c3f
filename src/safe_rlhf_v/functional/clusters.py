"""Rows that belong to clusters, as questions to images: checked columns, and the variance of their mean.

:mod:`~safe_rlhf_v.functional.clustered` and :mod:`~safe_rlhf_v.functional.win_rates` stand on it.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def rows_of(clusters: Sequence[Hashable], confidence: float, **columns: Any) -> tuple[tuple[Floats, ...], Codes]:
    """The columns without rows that hold a NaN, and the number of each row's cluster.

    Args:
        clusters: (N,) what groups the rows: names or numbers.
        confidence: In (0, 1); it is only checked.
        **columns: (N,) numbers each, by the name that an error gives.

    Returns:
        (M,) float64 each, and (M,) int64 in 0..G-1.

    Raises:
        ValueError: If lengths differ, or a value, cluster or the confidence cannot be used.
    """
    arrays = {name: _floats(values, name) for name, values in columns.items()}
    codes = _codes(clusters, confidence, arrays)
    used = ~np.isnan(np.stack(list(arrays.values()))).any(axis=0)
    _, numbers = np.unique(codes[used], return_inverse=True)
    return tuple(array[used] for array in arrays.values()), numbers.astype(np.int64)


def audited_rows(
    clusters: Sequence[Hashable], confidence: float, judged: Any, truth: Any
) -> tuple[Floats, Codes, Floats]:
    """Rows that the judge scored: its values, clusters and the truth, which may be NaN.

    Args:
        clusters: (N,) what groups the rows.
        confidence: In (0, 1); it is only checked.
        judged: (N,) the judge's values; rows with NaN are left out.
        truth: (N,) NaN where a row was not audited.

    Returns:
        (M,) float64, (M,) int64 in 0..G-1 and (M,) float64.

    Raises:
        ValueError: See :func:`rows_of`.
    """
    scores = _floats(judged, "judged")
    audit = _floats(truth, "truth")
    codes = _codes(clusters, confidence, {"judged": scores, "truth": audit})
    used = ~np.isnan(scores)
    return scores[used], np.unique(codes[used], return_inverse=True)[1].astype(np.int64), audit[used]


def _floats(values: Any, name: str) -> Floats:
    raw = np.asarray(values)
    text = raw.dtype.kind in "USmMcV" or (raw.dtype == object and any(isinstance(v, (str, bytes)) for v in raw.flat))
    try:
        array = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        text = True
    if text or array.ndim != 1:
        raise ValueError(f"{name} must be one number a row (NaN or None where there is none)")
    if len(large := np.flatnonzero(np.abs(array) > 1e100)):
        raise ValueError(f"{name} of row {large[0]} is infinite or beyond 1e100; clip it or leave it out (NaN)")
    return array


def _codes(clusters: Sequence[Hashable], confidence: float, arrays: dict[str, Floats]) -> Codes:
    """A number for each cluster, in the order of their first rows."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    names = clusters.tolist() if hasattr(clusters, "tolist") else list(clusters)  # arrays and tensors
    for name, array in arrays.items():
        if len(array) != len(names):
            raise ValueError(f"{name} has {len(array)} rows, clusters has {len(names)}")
    numbers: dict[Hashable, int] = {}
    codes = np.empty(len(names), dtype=np.int64)
    for row, cluster in enumerate(names):
        if cluster is None or cluster != cluster:
            raise ValueError(f"row {row} has no cluster; give a row that stands alone a name of its own")
        if not isinstance(cluster, (str, bytes, int, float, tuple, np.generic)):  # a tensor is compared by identity
            raise ValueError(f"the cluster of row {row} is a {type(cluster).__name__}; it must be a name or number")
        codes[row] = numbers.setdefault(cluster, len(numbers))
    return codes


def check_range(x: Floats, name: str) -> None:
    """Refuse a value outside 0..1. Raises: ValueError: With the name and the first such value."""
    outside = (x < 0) | (x > 1)
    if outside.any():
        raise ValueError(f"{name} must lie in 0..1, one is {x[outside][0]:g}")


def by_cluster(x: Floats, codes: Codes) -> tuple[Floats, Floats, Floats]:
    """Sum, rows and sum of squares of each cluster, (G,) float64 each; ``x`` and ``codes`` are (N,)."""
    sums, sizes, squares = (np.bincount(codes, weights).astype(np.float64) for weights in (x, None, x**2))
    return sums, sizes, squares


def t_quantile(confidence: float, freedom: float) -> float:
    """Upper end of the central t interval."""
    return float(student_t.ppf(0.5 + confidence / 2, freedom))


def effective_clusters(sizes: Floats) -> float:
    """As how many clusters of one size these count: N^2 / sum of n_g^2; 0 for none.

    Args:
        sizes: (G,) rows of each cluster.
    """
    return float(sizes.sum()) ** 2 / max(float(sizes @ sizes), 1e-300)


def few_clusters(sizes: Floats, confidence: float = 0.95) -> bool:
    """Whether so few clusters decide nothing even where all agree, by the sign test: below 6 of one size at 95 %.

    Of several sizes they count by :func:`effective_clusters`.

    Args:
        sizes: (G,) rows of each cluster.
        confidence: In (0, 1).
    """
    return bool(2 * 0.5 ** effective_clusters(sizes) > (1 - confidence) * (1 + 1e-9))


def mean_variance(sums: Floats, sizes: Floats, squares: Floats) -> tuple[float, float]:
    r"""Variance of the mean of all rows, and its degrees of freedom; NaN for one cluster.

    The larger of two estimates. CR2 (Bell & McCaffrey, Survey Methodology 28, 2002), with the sums :math:`s_g` of a cluster's
    deviations from the mean and its rows :math:`n_g`, is :math:`\frac{1}{N^2} \sum_g s_g^2 / (1 - n_g/N)`. It is too small where
    none of the few large clusters has a rare value. There more is told by the other one, of one correlation :math:`\rho` within
    all clusters, :math:`\frac{\sigma^2}{N^2} \sum_g n_g (1 + (n_g - 1) \rho)`. In :math:`\rho` each row counts by the square of
    its deviation, so that rare rows and those beside them decide; one pair of rows that agree is added. The degrees of freedom
    are Satterthwaite's of CR2 under the correlation of all pairs alike (Imbens & Kolesar, Rev. Econ. Stat. 98, 2016): G - 1 where
    all clusters are of one size, fewer where a few large ones decide.

    Args:
        sums: (G,) sum of each cluster.
        sizes: (G,) its rows.
        squares: (G,) its sum of squares.
    """
    if len(sums) < 2:
        return float("nan"), float("nan")
    total = float(sizes.sum())
    mean = float(sums.sum()) / total
    deviations = sums - sizes * mean
    own = np.maximum(squares - 2 * mean * sums + sizes * mean**2, 0.0)  # squared deviations of its rows
    spread = float(own.sum()) / total
    weights = 1 / (1 - sizes / total)
    robust = float((weights * deviations**2).sum()) / total**2
    pairs = float(((sizes - 1) * own).sum()) + spread
    alike = float((deviations**2 - own).sum()) + spread
    modelled = spread / total**2 * float(_of_sums(sizes, alike, pairs).sum())
    freedom = _freedom(sizes, _of_sums(sizes, alike - spread, float((sizes * (sizes - 1)).sum()) * spread), weights)
    return max(robust, modelled), freedom


def _of_sums(sizes: Floats, alike: float, pairs: float) -> Floats:
    """Variance of each cluster's sum, up to a factor, where rows of a cluster have the correlation alike / pairs, in 0..1."""
    rho = min(max(alike / pairs, 0.0), 1.0) if pairs > 0 else 1.0
    return sizes * (1 + (sizes - 1) * rho)


def _freedom(sizes: Floats, variances: Floats, weights: Floats) -> float:
    """Squared trace of W C over the trace of (W C)^2, with the covariance C = diag(c) + A of the deviations from the mean."""
    total = float(sizes.sum())
    k = float(variances.sum()) / total**2
    diagonal = variances + k * sizes**2 - 2 * variances * sizes / total  # A_gh = k n_g n_h - (c_g n_h + n_g c_h) / N
    a, b, d = (float((weights * x).sum()) for x in (sizes**2, variances * sizes, variances**2))
    squared = float((weights**2 * (2 * variances * diagonal - variances**2)).sum())
    squared += (k * a) ** 2 + 2 * (d * a + b**2) / total**2 - 4 * k * a * b / total
    return float((weights * diagonal).sum()) ** 2 / squared
