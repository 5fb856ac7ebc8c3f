"""Dual controllers on a problem with a known solution: min (x - 3)^2 subject to x <= d."""

import numpy as np
import pytest
import torch
from tests.dual.controllers import Make
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


def solve(controller: DualController, steps: int, rate: float = 0.15, noise: float = 0.1) -> Tensor:
    """(T, 2) x and lambda over the last fifth of the steps."""
    rng, x, trace = np.random.default_rng(0), 3.0, []
    for _ in range(steps):
        costs = torch.tensor(x + noise * rng.normal(size=(32, 1)), dtype=torch.float32)
        lam = controller.update(costs, torch.ones(32, dtype=torch.bool)).item()
        x += rate * (2 * (3 - x) - lam) / (1 + lam)
        trace.append([x, lam])
    return torch.tensor(trace[-steps // 5 :])


SOLVERS: dict[str, Make] = {
    "log": lambda budget, **options: LogSpaceDual(budget, 0.03, window=32, **options),
    "projected": lambda budget, **options: ProjectedDual(budget, 0.15, window=32, **options),
    "pid": lambda budget, **options: PIDDual(budget, 1.0, 0.15, 0.5, window=32, **options),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("budget", [1.0, 2.0])
@pytest.mark.parametrize("initial", [0.5, 8.0])
def test_adaptive_rules_find_the_optimal_multiplier(name: str, budget: float, initial: float) -> None:
    trace = solve(SOLVERS[name](budget, initial=initial), 1200)
    torch.testing.assert_close(trace.mean(0), torch.tensor([budget, 2 * (3 - budget)]), rtol=0, atol=0.05)
    assert (trace - trace.mean(0)).abs().amax(0).le(torch.tensor([0.1, 0.3])).all()  # it rests there, it does not swing


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_that_does_not_bind_needs_no_multiplier(name: str) -> None:
    x, lam = solve(SOLVERS[name](4.0), 1200).mean(0).tolist()
    assert x == pytest.approx(3.0, abs=0.05) and lam == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_infeasible_budget_ends_at_the_cap(name: str) -> None:
    """X <= 1 needs lambda 4; with a cap of 2 lambda stands there and x where the penalised optimum is."""
    x, lam = solve(SOLVERS[name](1.0, maximum=2.0), 1200).mean(0).tolist()
    assert lam == 2.0 and x == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_a_fixed_weight_ends_at_the_penalised_optimum(weight: float) -> None:
    x, lam = solve(FixedDual(1.0, weight), 500).mean(0).tolist()
    assert lam == weight and x == pytest.approx(3 - weight / 2, abs=0.01)


def test_the_exact_penalty_is_exact_above_the_optimal_multiplier() -> None:
    """Above lambda* = 4 it holds the budget, at whatever weight; below, x stays at the penalised optimum 3 - w / 2."""
    for weight in (5.0, 9.0):
        x, lam = solve(ExactPenalty(1.0, weight, window=32), 1000, rate=0.02).T
        assert x.mean().item() == pytest.approx(1.0, abs=0.1) and x.sub(1).abs().max().item() < 0.15
        assert set(lam.tolist()) == {0.0, weight}
    x, lam = solve(ExactPenalty(1.0, 2.0, window=32), 500).T
    assert x.mean().item() == pytest.approx(2.0, abs=0.01) and set(lam.tolist()) == {2.0}


def test_rectified_holds_every_prompt_to_the_budget_where_the_mean_lets_one_pay_for_another() -> None:
    """Two prompts that would cost -2 and 4, budget 1: the mean is met at once, the second prompt is not."""

    def ends(controller: DualController) -> tuple[list[float], float]:
        best = torch.tensor([[-2.0], [4.0]])
        x = best.clone().requires_grad_()
        for _ in range(600):
            lam = controller.update(x.detach(), torch.tensor([True, True]))
            objective = (-(x - best).square() - lam * controller.penalty(x)).sum() / (1 + lam.item())
            (gradient,) = torch.autograd.grad(objective, x)
            x = (x + 0.05 * gradient).detach().requires_grad_()
        return x.flatten().tolist(), lam.item()

    mean, _ = ends(ProjectedDual(1.0, 0.05, initial=0.0, window=2))
    assert mean == pytest.approx([-2.0, 4.0], abs=0.01)
    rectified, lam = ends(RectifiedDual(1.0, 0.05, initial=0.0, window=2))
    assert rectified == pytest.approx([-2.0, 1.0], abs=0.05) and lam >= 6.0  # lambda* = 2 (4 - 1)
