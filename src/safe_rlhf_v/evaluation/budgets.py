"""The budget of a policy's run, in the unit in which its cost model scores."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from safe_rlhf_v.scoring.judge import Judge


class Budget(NamedTuple):
    """The constraint on mean cost.

    Attributes:
        limit: Largest mean cost that is allowed.
        judge: Name of the judge in whose unit it is; ``None`` for the first that gives a cost, or if ``run`` has none here.
        run: The run that it is of, in the unit of that run's cost model; ``None`` for a number in the judge's own unit.
    """

    limit: float
    judge: str | None = None
    run: str | None = None


def judge_of_run(run: str, judges: Mapping[str, Judge]) -> str | None:
    """Name of the judge that is the cost model which a policy was trained against; ``None`` if there is none.

    Args:
        run: Run folder or checkpoint of the policy.
        judges: By name.
    """
    from safe_rlhf_v.construct.models import CostJudge
    from safe_rlhf_v.training.lineage import marks, trained_against

    against = trained_against(run)
    return next((name for name, one in judges.items() if isinstance(one, CostJudge) and marks(one.run) & against), None)


def budget_of_run(run: str) -> float:
    """Budget d of a constrained policy in the cost model's own unit.

    Training states d in spreads of the starting policy's cost and stores the spread that it measured; with
    ``scores.normalise: false`` d is in the cost model's unit already.

    Args:
        run: Run folder or checkpoint of the policy.

    Raises:
        ValueError: If it is no such run, or has several constraints.
    """
    from safe_rlhf_v.training.checkpoints import CheckpointError, read_stage
    from safe_rlhf_v.training.stored_config import stored_options

    try:
        stage = read_stage(run)
        options = stored_options(stage, "model")
    except CheckpointError as error:
        raise ValueError(f"--budget {run}: {error}; name a number, or the run of a policy with a budget") from None
    budgets = _entries(options.get("dual")).get("budget")
    budgets = budgets if isinstance(budgets, list) else [budgets]
    spread = stage["state_dict"].get("scale.spread")
    if len(budgets) != 1:
        raise ValueError(f"--budget {run}: has {len(budgets)} constraints; name the number of one")
    if spread is None or type(budgets[0]) not in (int, float) or not math.isfinite(budgets[0]):
        raise ValueError(f"--budget {run}: is no run of a policy with a budget; name a number")
    scores: Any = options.get("scores") or {}
    unit = float(spread[1]) if scores.get("normalise", True) else 1.0
    return float(budgets[0]) * unit


def _entries(component: Any) -> dict[str, Any]:
    entries = component.get("init_args") if isinstance(component, dict) else None
    return entries if isinstance(entries, dict) else {}
