"""Figures say what they are given: text is checked on the axes, pixels for being drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from safe_rlhf_v.callbacks import figures
from safe_rlhf_v.callbacks.constraint_monitor import trajectory_figure
from safe_rlhf_v.callbacks.guard_report import confusion_figure, risk_coverage_figure
from safe_rlhf_v.callbacks.reward_cost_plane import Cloud, plane_figure
from safe_rlhf_v.functional.calibration import reliability_bins


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures that were turned into pixels."""
    kept: list[Any] = []
    pixels = figures.pixels_of

    def spy(figure: Any) -> np.ndarray:
        kept.append(figure)
        return pixels(figure)

    monkeypatch.setattr(figures, "pixels_of", spy)
    return kept


def test_accuracy_figure_sorts_and_counts(drawn: list[Any]) -> None:
    pixels = figures.accuracy_figure("title", {"low": (1, 4), "high": (9, 10), "mid": (500, 1000)})
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["low", "mid", "high"]  # best on top
    assert [text.get_text() for text in axes.texts] == ["0.25  (n = 4)", "0.50  (n = 1,000)", "0.90  (n = 10)"]
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 5


def test_names_that_differ_in_an_underscore_are_two_rows(drawn: list[Any]) -> None:
    figures.accuracy_figure("t", {"animal_harm": (1, 4), "animal harm": (3, 4)})
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["animal harm"] * 2


DOLLARS = [r"$50% off$ scams", "US$ and C$ fraud", r"bribes $\euros$ 5", "a $ {x $", r"\$1 $2 $"]


@pytest.mark.parametrize("name", DOLLARS)
def test_names_from_data_are_no_formulas(name: str, drawn: list[Any]) -> None:
    table = reliability_bins(torch.tensor([0.1, 0.9]), torch.tensor([False, True]), torch.ones(2).bool(), bins=2)
    figures.accuracy_figure(name, {name: (1, 2)})
    figures.reliability_figure(name, table, who=name, stated_as=name)
    figures.histogram_figure(name, name, {name: np.array([1.0]), f"{name}.": np.array([2.0])})
    for figure in drawn:
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts and not any(text.get_parse_math() for text in texts)
    plane_figure(name, [Cloud(name, np.zeros((2, 2)))], [0.0])
    confusion_figure(name, np.eye(7, dtype=int))
    risk_coverage_figure(name, torch.tensor([0.9]), torch.tensor([True]))
    trajectory_figure(name, np.array([[1, 0.0, 1, 0.1], [2, 0.1, 1, 0.1]]))


def test_reliability_figure_plots_the_table(drawn: list[Any]) -> None:
    probabilities, outcomes = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, True, True])
    table = reliability_bins(probabilities, outcomes, torch.ones(3, dtype=torch.bool), bins=2)
    figures.reliability_figure("test", table)
    above, below = drawn[0].axes
    points = above.lines[1]
    np.testing.assert_allclose(points.get_xdata(), [0.15, 0.9], rtol=1e-6)
    np.testing.assert_allclose(points.get_ydata(), [0.5, 1.0])
    assert [bar.get_height() for bar in below.patches] == [2, 1]
    # ECE: (2 * |0.15 - 0.5| + |0.9 - 1|) / 3 = 0.267
    assert above.get_title() == "test: calibration of P(harmful)\nECE 0.267, n = 3"


@pytest.mark.parametrize("values", [np.array([1.0]), np.array([0.0, 0.0]), np.array([-1.0, 5.0, 2.0])])
def test_histogram_figure_takes_any_group(values: np.ndarray, drawn: list[Any]) -> None:
    figures.histogram_figure("title", "cost", {"unsafe": values, "safe": np.array([])})
    labels = [text.get_text() for text in drawn[0].legends[0].texts]
    assert labels == [f"unsafe  (n = {len(values)}, median {np.median(values):.2f})", "safe  (n = 0)"]
    heights = [bar.get_height() for bar in drawn[0].axes[0].containers[0]]
    assert sum(heights) == pytest.approx(1.0)
