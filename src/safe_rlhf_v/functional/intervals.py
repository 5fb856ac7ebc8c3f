"""How far a measured share can be trusted."""

import math

from scipy.stats import beta


def wilson_interval(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson, J. Am. Stat. Assoc. 22, 1927); (0, 1) if nothing was counted.

    Args:
        successes: How many of ``total`` succeeded.
        total: Independent trials.
        z: Normal quantile; 1.96 for 95 %.
    """
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    z2 = z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def clopper_pearson_upper(errors: float, total: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a binomial rate (Clopper & Pearson, Biometrika 26, 1934).

    The rate p at which as few as ``errors`` of ``total`` has probability 1 - ``confidence``: a quantile of a beta distribution.

    Args:
        errors: Count, 0..total; an effective one need not be whole.
        total: Independent trials; with none the bound is 1.
        confidence: In (0, 1).

    Raises:
        ValueError: If an argument is outside its range.
    """
    if not 0 <= errors <= total or not 0 < confidence < 1:
        raise ValueError(f"errors {errors} of {total} at confidence {confidence} make no sense")
    return 1.0 if errors == total else float(beta.ppf(confidence, errors + 1, total - errors))
