"""How the multiplier and the cost chase one another."""

import re
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from safe_rlhf_v.callbacks.figures import BLUE, VERMILLION, new_figure, pixels_of
from safe_rlhf_v.callbacks.pictures import Pictures, draws

COLUMNS = ("constraint/windowed_cost", "constraint/lambda", "constraint/budget")
MOST_POINTS = 2000  # of one picture


class ConstraintMonitor(Callback):
    """Curves that belong together in one chart (tab *Custom Scalars*), and the run as a path of multiplier against cost.

    The path turns anticlockwise while the controller works: cost above the budget lifts the multiplier, a high multiplier
    brings the cost down, a low cost lets the multiplier fall. It is drawn at every validation and at the end; on resume it
    goes on where it was. Tag: ``3_trajectory/constraint``, with ``_NAME`` for each of several constraints.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.ConstraintMonitor
    """

    def __init__(self) -> None:
        """Start without points."""
        self.points: dict[str, list[list[float]]] = {}
        self._declared = False
        self._drawn_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new event file needs the charts again; the path goes on from the step where training does."""
        self._declared = False
        self._drawn_step = 0
        done = trainer.global_step
        self.points = {name: [point for point in points if point[0] <= done] for name, points in self.points.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note where the run stands.

        Raises:
            ValueError: If the module logs no constraint.
        """
        logged = trainer.callback_metrics
        names = [name.removeprefix(COLUMNS[2]) for name in logged if name.startswith(COLUMNS[2])]
        if not names:
            raise ValueError(
                f"ConstraintMonitor: {type(pl_module).__name__} logs no {COLUMNS[2]}; it is for constrained policies, "
                "remove the callback"
            )
        for name in names:
            numbers = [float(logged[column + name]) for column in COLUMNS]
            self.points.setdefault(name, []).append([float(trainer.global_step), *numbers])
        if not self._declared and draws(trainer):
            Pictures(trainer).charts(layout(names))
            self._declared = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if this is a validation of a run."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what has come since."""
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The path so far, as plain data."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.points = dict(state_dict["points"])

    def _draw(self, trainer: Trainer) -> None:
        done = trainer.global_step
        if done == self._drawn_step or not draws(trainer) or not trainer.is_global_zero:
            return
        self._drawn_step = done
        pictures = Pictures(trainer)
        pictures.step = done - 1  # at the end of training the counter is one ahead
        for name, points in self.points.items():
            pictures.image(
                f"3_trajectory/constraint{name}", trajectory_figure(name.removeprefix("_"), np.array(points))
            )


def layout(names: list[str]) -> dict[str, dict[str, list[Any]]]:
    """Charts of the tab *Custom Scalars*.

    Args:
        names: Suffix of each constraint's curves, "" for the only one.
    """

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]

    charts = {}
    for name in names:
        cost = [COLUMNS[0] + name, *(["constraint/cost"] if not name else []), COLUMNS[2] + name]
        charts[f"cost and budget{name.replace('_', ' ', 1)}"] = chart(*cost)
    charts["multiplier"] = chart(*(COLUMNS[1] + name for name in names))
    charts["drift"] = chart("policy/kl", "policy/entropy")
    return {"constraint": charts}


def trajectory_figure(name: str, points: np.ndarray) -> np.ndarray:
    """The path of a run, and both coordinates over time below it, (H, W, 3) uint8.

    Args:
        name: Of the constraint, "" for the only one.
        points: (n, 4) iteration, windowed cost, multiplier and budget; NaN where no cost has come yet.
    """
    points = points[np.isfinite(points).all(1)]
    figure, (axes, cost_axes, lam_axes) = new_figure(6.6, 8.0, heights=(10, 4, 4))
    title = "multiplier against cost" + (f": {name}" if name else "")
    axes.set(xlabel="windowed cost", ylabel="multiplier λ")
    cost_axes.set(ylabel="windowed cost")
    lam_axes.set(xlabel="iteration (colours as above)", ylabel="multiplier λ")
    if not len(points):
        axes.set_title(f"{title}\nno cost yet")
        return pixels_of(figure)
    step = max(len(points) // MOST_POINTS, 1)
    plotted = np.concatenate([points[:-1:step], points[-1:]])
    iteration, cost, lam, budget = plotted.T
    state = "within" if cost[-1] <= budget[-1] else "above"
    axes.set_title(f"{title}\nnow {cost[-1]:+.2f}, {state} the budget {budget[-1]:+.2f}; λ {lam[-1]:.2f}")
    for panel, x, y in ((axes, cost, lam), (cost_axes, iteration, cost), (lam_axes, iteration, lam)):
        _path(panel, x, y)
        panel.plot(x[-1], y[-1], "o", ms=10 if panel is axes else 5, c="black", zorder=3)
    both = np.append(cost, budget[-1])
    aside = 0.3 * np.ptp(both) * np.array([-1, 1])  # each side of the budget is wide enough for its name
    _frame(axes, np.append(both, budget[-1] + aside), lam)
    axes.axvspan(axes.get_xlim()[0], budget[-1], color=BLUE, alpha=0.07, lw=0, zorder=0)
    axes.axvline(budget[-1], color=VERMILLION, ls="--", lw=1.5)
    side = {"transform": axes.transAxes, "va": "top", "fontsize": 9}
    axes.text(0.015, 0.985, "within the budget", color=BLUE, **side)
    axes.text(0.985, 0.985, "above the budget", color=VERMILLION, ha="right", **side)
    axes.plot(cost[0], lam[0], "o", ms=10, mfc="white", mec="black", mew=1.6)
    axes.set_xlabel(f"windowed cost  (○ iteration {iteration[0]:,.0f},  ● iteration {iteration[-1]:,.0f})")
    cost_axes.plot(iteration, budget, color=VERMILLION, ls="--", lw=1.5)
    cost_axes.tick_params(labelbottom=False)
    for panel, values in ((cost_axes, np.append(cost, budget)), (lam_axes, lam)):
        _frame(panel, iteration, values, room=0.08)
    return pixels_of(figure)


def _path(axes: Any, x: np.ndarray, y: np.ndarray) -> None:
    """A line that darkens from its first point to its last."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    shades = colormaps["viridis_r"](np.linspace(0.12, 1.0, max(len(x) - 1, 1)))
    knots = np.column_stack([x, y])
    pieces = np.stack([knots[:-1], knots[1:]], 1)  # (n - 1, 2, 2)
    axes.add_collection(LineCollection(list(pieces), colors=shades, linewidths=2.2, capstyle="round"))


def _frame(axes: Any, x: np.ndarray, y: np.ndarray, room: float = 0.14) -> None:
    """Limits with room around the data, also where they do not vary."""
    for values, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low = float(values.min())
        high = float(values.max())
        pad = room * (high - low) or 0.5
        set_limits(low - pad, high + pad)
