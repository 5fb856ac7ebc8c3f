"""How far a measured share can be trusted."""

import math


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
