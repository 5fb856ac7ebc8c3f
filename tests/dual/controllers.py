"""Controllers under test, and costs to feed them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_v.dual import (
    DualController,
    ExactPenalty,
    FixedDual,
    LogSpaceDual,
    PIDDual,
    ProjectedDual,
    RectifiedDual,
)

Make = Callable[..., DualController]
ADAPTIVE: list[Make] = [LogSpaceDual, ProjectedDual, PIDDual]


EVERY: list[Make] = [*ADAPTIVE, FixedDual, ExactPenalty, RectifiedDual]


def feed(controller: DualController, *rollouts: list[float]) -> list[float]:
    """Lambda of the only constraint after each rollout."""
    found = []
    for costs in rollouts:
        rows = torch.tensor(costs)[:, None]
        found.append(controller.update(rows, torch.ones(len(rows), dtype=torch.bool)).item())
    return found


def rollouts(count: int, rows: int, constraints: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random costs and masks; invalid entries hold NaN and infinity."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        costs, valid = rng.normal(0.2, 1.0, (rows, constraints)), rng.random((rows, constraints)) < 0.7
        costs[~valid] = rng.choice([np.nan, np.inf, -np.inf, 1e30], (~valid).sum())
        found.append((torch.tensor(costs, dtype=torch.float32), torch.tensor(valid)))
    return found


def state(controller: DualController) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in controller.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
