"""The run as a path: which charts are declared, where points come from, what is drawn, what survives a resume."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.plugins.custom_scalar import layout_pb2
from tests.callbacks.scripted import PromptData, Scripted

from safe_rlhf_v.callbacks import ConstraintMonitor, constraint_monitor
from safe_rlhf_v.callbacks.constraint_monitor import MOST_POINTS, trajectory_figure

EVERY_TWO: dict[str, Any] = {"max_steps": 5, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None}


def charts(events: Any) -> dict[str, list[str]]:
    """Titles and regular expressions of the declared charts."""
    (event,) = events.Tensors("custom_scalars__config__")  # once
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    return {chart.title: list(chart.multiline.tag) for chart in category.chart}


def matched(patterns: list[str], tags: list[str]) -> list[str]:
    """The curves a chart shows, as TensorBoard finds them."""
    return [tag for pattern in patterns for tag in tags if re.match(pattern, tag)]


def test_charts_are_declared_once_in_the_one_event_file(trainer: Any, board: Any, tmp_path: Path) -> None:
    trainer([ConstraintMonitor()], **EVERY_TWO).fit(Scripted(), datamodule=PromptData())
    files = [path for path in (tmp_path / "board").rglob("*") if path.is_dir() or "tfevents" in path.name]
    assert len(files) == 1 and files[0].is_file()  # a folder would be a run of its own
    tags = board().Tags()["scalars"]
    shown = {title: matched(patterns, tags) for title, patterns in charts(board()).items()}
    assert shown == {
        "cost and budget": ["constraint/windowed_cost", "constraint/cost", "constraint/budget"],
        "multiplier": ["constraint/lambda"],  # not lambda_step
        "drift": ["policy/kl", "policy/entropy"],
    }


def test_several_constraints_have_their_own_charts_and_pictures(trainer: Any, board: Any) -> None:
    names = ("_fire", "_a.c (x)", "_step")
    monitor = ConstraintMonitor()
    trainer([monitor], **EVERY_TWO).fit(Scripted(constraints=names), datamodule=PromptData())
    tags = board().Tags()["scalars"]
    shown = {title: matched(patterns, tags) for title, patterns in charts(board()).items()}
    for name in names:
        wanted = [f"constraint/windowed_cost{name}", f"constraint/budget{name}"]
        assert shown[f"cost and budget {name[1:]}"] == wanted
    assert shown["multiplier"][:2] == ["constraint/lambda_fire", "constraint/lambda_a.c (x)"]
    assert sorted(board().Tags()["images"]) == sorted(f"3_trajectory/constraint{name}" for name in names)
    assert monitor.points["_a.c (x)"][1] == [2.0, pytest.approx(1.5), 4.0, -0.5]  # 1 - 2/4 + 1, 1 + 2 + 1


def test_the_path_is_drawn_at_each_validation_and_once_at_the_end(trainer: Any, board: Any) -> None:
    monitor = ConstraintMonitor()
    trainer([monitor], **EVERY_TWO).fit(Scripted(), datamodule=PromptData())
    # i, 1 - i/4, 1 + i, budget
    assert monitor.points == {"": [[i, 1 - i / 4, 1 + i, -0.5] for i in (1.0, 2.0, 3.0, 4.0, 5.0)]}
    steps = [event.step for event in board().Images("3_trajectory/constraint")]
    assert steps == [1, 3, 4]  # validations after 2 and 4 iterations, the end after 5: the x axis of the curves
    assert {event.step for event in board().Scalars("constraint/lambda")} == {0, 1, 2, 3, 4}


def test_an_end_that_was_just_validated_is_not_drawn_twice(trainer: Any, board: Any) -> None:
    trainer([ConstraintMonitor()], **{**EVERY_TWO, "max_steps": 4}).fit(Scripted(), datamodule=PromptData())
    assert [event.step for event in board().Images("3_trajectory/constraint")] == [1, 3]


@pytest.mark.slow
def test_the_path_survives_a_resume(trainer: Any, tmp_path: Path) -> None:
    straight, second = ConstraintMonitor(), ConstraintMonitor()
    trainer([straight], **EVERY_TWO).fit(Scripted(), datamodule=PromptData())
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3)
    options = {**EVERY_TWO, "enable_checkpointing": True}
    trainer([ConstraintMonitor(), saver], **{**options, "max_steps": 3}).fit(Scripted(), datamodule=PromptData())
    assert torch.load(saver.best_model_path, weights_only=True)  # plain data only
    run = trainer([second], **{**options, "enable_checkpointing": False})
    run.fit(Scripted(), datamodule=PromptData(), ckpt_path=saver.best_model_path, weights_only=True)
    assert second.points == straight.points
    trainer([second], **EVERY_TWO).fit(Scripted(), datamodule=PromptData())  # a new run with the same callback
    assert second.points == straight.points


def test_a_module_without_a_constraint_is_refused(trainer: Any, toy: Any) -> None:
    run = trainer([ConstraintMonitor()])
    with pytest.raises(ValueError, match=r"ToyModule logs no constraint/budget; .* remove the callback"):
        run.fit(toy.module(), datamodule=toy.data({"validation": [toy.batch(4)]}))


def test_silent_in_a_trial_run_and_outside_training(trainer: Any, board: Any, tmp_path: Path) -> None:
    trainer([ConstraintMonitor()], fast_dev_run=True).fit(Scripted(), datamodule=PromptData())
    assert not (tmp_path / "board").exists()
    trainer([ConstraintMonitor()]).validate(Scripted(), datamodule=PromptData())
    assert board().Tags()["images"] == []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures that were turned into pixels."""
    kept: list[Any] = []
    pixels = constraint_monitor.pixels_of
    monkeypatch.setattr(constraint_monitor, "pixels_of", lambda figure: (kept.append(figure), pixels(figure))[1])
    return kept


def test_the_picture_shows_path_budget_and_feasible_side(drawn: list[Any]) -> None:
    points = np.array([[1, np.nan, 1.0, -0.5], [2, 0.5, 1.5, -0.5], [3, 0.0, 2.0, -0.5], [4, -0.75, 1.75, -0.5]])
    pixels = trajectory_figure("fire", points)
    assert pixels.dtype == np.uint8 and pixels.std() > 5
    axes, cost, lam = drawn[0].axes
    np.testing.assert_allclose(axes.collections[0].get_segments(), [[[0.5, 1.5], [0, 2]], [[0, 2], [-0.75, 1.75]]])
    np.testing.assert_allclose(cost.collections[0].get_segments(), [[[2, 0.5], [3, 0]], [[3, 0], [4, -0.75]]])
    np.testing.assert_allclose(lam.collections[0].get_segments(), [[[2, 1.5], [3, 2]], [[3, 2], [4, 1.75]]])
    shades = axes.collections[0].get_colors()[:, :3].sum(1)
    assert shades[0] > shades[-1]  # darker with time
    (shaded,) = axes.patches
    extent = shaded.get_window_extent().transformed(axes.transData.inverted())
    assert extent.x1 == pytest.approx(-0.5)  # ends at the budget
    assert axes.get_title() == "multiplier against cost: fire\nnow -0.75, within the budget -0.50; λ 1.75"
    assert "○ iteration 2,  ● iteration 4" in axes.get_xlabel()


@pytest.mark.parametrize("left", [1e-3, 0.3, 40.0])
def test_names_of_the_sides_stay_on_their_sides(drawn: list[Any], left: float) -> None:
    """Also where nearly all of the path is on one side of the budget."""
    for sign in (1, -1):
        cost = -0.5 + sign * np.array([left, left + 1.0, left + 0.5])
        trajectory_figure("", np.column_stack([[1, 2, 3], cost, [1, 2, 1], [-0.5] * 3]))
        axes = drawn[-1].axes[0]
        within, above = (text.get_window_extent() for text in axes.texts)
        border = axes.transData.transform((-0.5, 0))[0]
        assert within.x1 < border < above.x0


@pytest.mark.parametrize("count", [0, 1, 3 * MOST_POINTS + 7])
def test_any_number_of_points_can_be_drawn(drawn: list[Any], count: int) -> None:
    time = np.arange(1, count + 1)
    points = np.column_stack([time, np.sin(time), np.ones(count), np.full(count, np.nan if count == 0 else 0.0)])
    trajectory_figure("", points)
    if count > MOST_POINTS:
        segments = drawn[0].axes[1].collections[0].get_segments()
        assert len(segments) < 1.6 * MOST_POINTS and segments[-1][-1][0] == count  # thinned, but up to now
