"""No metric depends on how the rows were cut into batches."""

import importlib
import math
import pkgutil

import pytest
import torch
from torchmetrics import Metric

import safe_rlhf_v.metrics as package
from safe_rlhf_v.metrics import harm, ordinal, signs

N, K = 61, 7
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def pick(low, high, *shape):
    return torch.randint(low, high, shape, generator=GENERATOR)


# Scores in and out of 0..1, large and equal ones; unknown labels; rows that do not count, all of them at the start.
SCORES, OTHER = 40 * draw(N, 2).round(decimals=2), draw(N, 2)
SCORES[::5] = torch.rand(len(SCORES[::5]), 2, generator=GENERATOR)
VALID = torch.rand(N, generator=GENERATOR) < 0.8
VALID[:4] = False
TARGET, IS_SAFE, GROUP, LEVELS = pick(-1, 2, N), pick(-1, 2, N, 2), pick(-1, 3, N), pick(-1, K, N)
LOG_PROBS, CORRECT = torch.log_softmax(3 * draw(N, K), -1), torch.rand(N, generator=GENERATOR) < 0.6
RULES = [[("", "a", "b")[i % 3], ("a", "b")[i % 2]] for i in range(N)]

PAIR = (SCORES, TARGET, VALID)
SIGN = (SCORES, IS_SAFE, VALID)
LEVEL = (LOG_PROBS, LEVELS, VALID)
CASES = {
    "PairwiseAccuracy": ((), PAIR),
    "GroundingGap": ((), (SCORES, OTHER, TARGET, VALID)),
    "SignAccuracy": ((), SIGN),
    "BalancedSignAccuracy": ((), SIGN),
    "HarmAUROC": ((), SIGN),
    "CalibrationError": ((), SIGN),
    "GroupedAccuracy": ((("a", "b", "c"),), (CORRECT, GROUP, VALID)),
    "CounterfactualAccuracy": ((("a", "b"),), (CORRECT, RULES, VALID)),
    "HarmTable": ((("a", "b", "c"), 3), (*LEVEL, GROUP)),
    **{name: ((3,), LEVEL) for name, value in vars(harm).items() if isinstance(value, type) and value.__module__ == harm.__name__},
    **{name: ((K,), LEVEL) for name, value in vars(ordinal).items() if isinstance(value, type) and value.__module__ == ordinal.__name__},
}  # fmt: skip
BASES = {"LevelMetric", "_HarmDetection"}
LOSSES = {"LossMean"}  # takes the shares of a loss: tests/modules/test_batch_size.py


def metrics():
    """Every metric of the package, by name."""
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    ours = {n: v for n, v in found.items() if issubclass(v, Metric) and v.__module__.startswith(package.__name__)}
    return {name: value for name, value in ours.items() if name not in BASES | LOSSES}


def measured(metric, columns, sizes):
    """Value over batches of these sizes, as numbers by name."""
    start = 0
    for size in sizes:
        metric.update(*(column[start : start + size] for column in columns))
        start += size
    assert start >= N
    return flat(metric.compute())


def flat(value, name=""):
    if isinstance(value, dict):
        return {key: number for part in value for key, number in flat(value[part], f"{name}/{part}").items()}
    return {f"{name}/{i}": number for i, number in enumerate(value.flatten().tolist())}


@pytest.mark.parametrize("name", sorted(metrics()))
def test_the_value_is_that_of_one_batch(name):
    options, columns = CASES[name]
    whole = measured(metrics()[name](*options), columns, [N])
    assert any(not math.isnan(value) for value in whole.values())
    for sizes in ([1] * N, [2] * (N // 2 + 1), [7] * (N // 7 + 1), [3, 30, 1, 27], [N, 0, 0]):
        assert measured(metrics()[name](*options), columns, sizes) == pytest.approx(whole, rel=1e-6, nan_ok=True)


def test_the_area_under_the_curve_is_exact_for_large_scores():
    """A sigmoid would tie them: ranks decide, whatever the scale."""
    costs = torch.tensor([[5000.0], [5001.0], [-9000.0], [-8999.0], [30.0], [29.5]])
    labels = torch.tensor([[1], [0], [1], [0], [1], [0]])
    metric = signs.HarmAUROC()
    for row in range(6):
        metric.update(costs[row : row + 1], labels[row : row + 1], torch.ones(1, dtype=torch.bool))
    pairs = [(h > s) for h in (5001.0, -8999.0, 29.5) for s in (5000.0, -9000.0, 30.0)]
    assert float(metric.compute()) == pytest.approx(sum(pairs) / 9)
