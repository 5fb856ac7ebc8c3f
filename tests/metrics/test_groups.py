"""Accuracies per category and per counterfactual rule."""

import math

import pytest
import torch

from safe_rlhf_v.metrics import CounterfactualAccuracy, GroupedAccuracy


def test_grouped_by_hand() -> None:
    metric = GroupedAccuracy(("fire", "water", "air"))
    correct = torch.tensor([True, False, True, True, False, False])
    group = torch.tensor([0, 0, 1, -1, 1, 0])
    metric.update(correct, group, torch.tensor([True, True, True, True, False, True]))
    values = {name: accuracy.item() for name, accuracy in metric.compute().items()}
    assert values["fire"] == pytest.approx(1 / 3) and values["water"] == 1.0 and math.isnan(values["air"])
    assert list(values) == ["fire", "water", "air"]


def test_counterfactual_by_rule() -> None:
    metric = CounterfactualAccuracy(("misuse", "refusal"))
    rules = [("misuse", "misuse"), ("misuse", "refusal"), ("", "refusal"), ("", ""), ("misuse", "misuse")]
    correct = torch.tensor([True, False, True, True, False])
    metric.update(correct, rules, torch.tensor([True, True, True, True, False]))
    values = {name: accuracy.item() for name, accuracy in metric.compute().items()}
    assert values == pytest.approx({"all": 3 / 4, "misuse": 1 / 2, "refusal": 1 / 2})


def test_a_model_that_ignores_the_picture_has_half_on_twins() -> None:
    """Twins flip the response, a blind model gives both the same: one right, one wrong."""
    metric = CounterfactualAccuracy(("misuse",))
    scores = torch.randn(10, 2).repeat_interleave(2, 0)
    target = torch.tensor([0, 1] * 10)
    correct = scores.argmax(1) == target
    metric.update(correct, [("misuse",) * 2] * 20, torch.ones(20, dtype=torch.bool))
    assert metric.compute()["all"].item() == 0.5


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_empty_is_nan() -> None:
    nothing = torch.zeros(0, dtype=torch.bool)
    grouped, twins = GroupedAccuracy(("a",)), CounterfactualAccuracy(("a",))
    grouped.update(nothing, torch.zeros(0, dtype=torch.int64), nothing)
    twins.update(nothing, (), nothing)
    assert grouped.compute()["a"].isnan() and all(v.isnan() for v in twins.compute().values())


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match=r"groups are \['a', 'a'\], expected each name once"):
        GroupedAccuracy(("a", "a"))
    with pytest.raises(ValueError, match="unknown rule 'theft', expected one of: misuse"):
        CounterfactualAccuracy(("misuse",)).update(
            torch.ones(1, dtype=torch.bool), [("theft", "misuse")], torch.ones(1, dtype=torch.bool)
        )
