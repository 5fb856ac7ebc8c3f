"""Options and inputs of dual controllers: what is refused, rules of one's own, and configuration."""

import inspect
import math
import textwrap
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from tests.dual.controllers import EVERY, Make, feed, same, state
from torch import Tensor

from safe_rlhf_v import dual
from safe_rlhf_v.dual import (
    DualController,
    ExactPenalty,
    FixedDual,
    LogSpaceDual,
    PIDDual,
    ProjectedDual,
    RectifiedDual,
)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ProjectedDual, {"budget": []}, "budget is .*one finite number per constraint"),
        (ProjectedDual, {"budget": [0.0, math.nan]}, "budget is"),
        (ProjectedDual, {"rate": 0.0}, "rate is 0.0: give a finite number above 0"),
        (LogSpaceDual, {"rate": -1.0}, "rate is -1.0"),
        (LogSpaceDual, {"rate": math.nan}, "rate is nan"),
        (LogSpaceDual, {"minimum": 0.0}, "minimum is 0.0: log-space cannot leave 0"),
        (ProjectedDual, {"minimum": -1.0}, "minimum is -1.0"),
        (ProjectedDual, {"maximum": 1.0, "minimum": 2.0}, "maximum is 1.0: .*at least minimum, which is 2.0"),
        (ProjectedDual, {"maximum": math.inf}, "maximum is inf"),
        (ProjectedDual, {"initial": -0.5}, r"initial is -0.5: it must lie in .*\[0.0, 10.0\]"),
        (LogSpaceDual, {"initial": 20.0}, r"initial is 20.0: it must lie in .*\[0.001, 10.0\]"),
        (ProjectedDual, {"window": 0}, "window is 0: .*1 or more"),
        (ProjectedDual, {"smoothing": 1.0}, "smoothing is 1.0"),
        (ProjectedDual, {"deadband": -0.1}, "deadband is -0.1"),
        (ProjectedDual, {"delay": -1}, "delay is -1"),
        (PIDDual, {"proportional": -1.0}, "proportional is -1.0: .*0 switches the term off"),
        (PIDDual, {"integral": 0.0}, "integral is 0.0"),
        (PIDDual, {"derivative": math.nan}, "derivative is nan"),
        (FixedDual, {"weight": -1.0}, "weight is -1.0"),
        (ExactPenalty, {"weight": math.inf}, "weight is inf"),
        (RectifiedDual, {"rate": 0.0}, "rate is 0.0"),
        (RectifiedDual, {"decay": 1.0}, r"decay is 1.0: .*\[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"budget": 0.0, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", EVERY)
def test_a_valid_cost_that_is_no_number_is_refused_and_changes_nothing(make: Make, value: float) -> None:
    controller = make(0.0)
    feed(controller, [1.0])
    before = state(controller)
    with pytest.raises(ValueError, match=r"\[1\] valid costs .*NaN or infinite"):
        feed(controller, [1.0, value])
    assert same(before, state(controller))


@pytest.mark.parametrize(
    ("costs", "valid", "message"),
    [
        (torch.zeros(3), torch.ones(3, dtype=torch.bool), r"costs have shape \(3,\), expected .*\(3, 2\)"),
        (torch.zeros(3, 1), torch.ones(3, dtype=torch.bool), r"costs have shape \(3, 1\)"),
        (torch.zeros(()), torch.ones(1, dtype=torch.bool), r"costs have shape \(\)"),
        (torch.zeros(3, 2), torch.ones(4, dtype=torch.bool), r"valid is torch.bool of shape \(4,\)"),
        (torch.zeros(3, 2), torch.ones(3, 1, dtype=torch.bool), r"valid is torch.bool of shape \(3, 1\)"),
        (torch.zeros(3, 2), torch.ones(3), r"valid is torch.float32"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(costs: Tensor, valid: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectedDual([0.0, 0.0]).update(costs, valid)


def test_a_rule_of_ones_own_is_one_method() -> None:
    class Halfway(DualController):
        """Goes half of the way to the gap."""

        def step(self, error: Tensor, moves: Tensor) -> Tensor:
            return (self.lam + error) / 2

    assert feed(Halfway(1.0, window=1, deadband=0.5, maximum=2.0), [4.0], [1.25], [99.0]) == [2.0, 1.0, 2.0]


def parse(config: dict[str, Any]) -> DualController:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dual", type=DualController)
    built = parser.instantiate(parser.parse_object({"dual": config})).dual
    assert isinstance(built, DualController)
    return built


@pytest.mark.parametrize("make", EVERY)
def test_docstring_yaml_builds_the_class(make: type[DualController]) -> None:
    text = (inspect.getdoc(make) or "").split("YAML::")
    assert len(text) == 2, f"{make.__name__} has no YAML at the end of its docstring"
    built = parse(yaml.safe_load(textwrap.dedent(text[1]))["dual"])
    assert type(built) is make and make.__name__ in dual.__all__


def test_shared_options_reach_every_adaptive_rule_by_configuration() -> None:
    for name in ("LogSpaceDual", "ProjectedDual", "PIDDual"):
        options = {"budget": [-0.5, 1.0], "window": 3, "smoothing": 0.5, "deadband": 0.1, "delay": 2, "maximum": 5.0}
        built = parse({"class_path": f"safe_rlhf_v.dual.{name}", "init_args": options})
        assert built.budget.tolist() == [-0.5, 1.0] and built.window_costs.shape == (3, 2)
        assert (built.smoothing, built.deadband, built.delay, built.maximum) == (0.5, 0.1, 2, 5.0)
        with pytest.raises(Exception, match="windw"):
            parse({"class_path": f"safe_rlhf_v.dual.{name}", "init_args": {"budget": 0.0, "windw": 3}})
    for name in ("FixedDual", "ExactPenalty", "RectifiedDual"):  # no option that would do nothing
        with pytest.raises(Exception, match="deadband"):
            parse({"class_path": f"safe_rlhf_v.dual.{name}", "init_args": {"budget": 0.0, "deadband": 0.1}})
