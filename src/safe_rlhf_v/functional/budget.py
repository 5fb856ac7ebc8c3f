"""Whether a budget is kept, as far as the responses that were looked at can tell."""

import math
from typing import Literal

BudgetVerdict = Literal["met", "broken", "undecided"]


def budget_verdict(low: float, high: float, budget: float) -> BudgetVerdict:
    """``met``, ``broken`` or ``undecided``; fewer prompts never make a budget easier to meet.

    *Met* means that the upper 95 % bound of the mean cost is at most d, *broken* that the lower one is above d. What lies
    between is *undecided*, and so is what has no interval, as a mean of one image group.

    Args:
        low: Lower end of the 95 % interval of the mean cost, clustered by image group; NaN if unknown.
        high: Upper end.
        budget: d, in the unit of the costs.

    Raises:
        ValueError: If the budget is NaN, or the ends are in the wrong order.
    """
    if math.isnan(budget):
        raise ValueError("the budget is NaN")
    if low > high:
        raise ValueError(f"the interval ends at {high} before it begins at {low}")
    if high <= budget:
        return "met"
    return "broken" if low > budget else "undecided"
