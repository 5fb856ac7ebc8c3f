"""Figures as pixel arrays, legible at the size loggers show them, in colours (Okabe & Ito) for colour-blind readers too."""

from typing import Any

import numpy as np
from torch import Tensor

from safe_rlhf_v.functional.calibration import calibration_error
from safe_rlhf_v.functional.intervals import wilson_interval

BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREY = "#595959"


def histogram_figure(title: str, xlabel: str, series: dict[str, np.ndarray]) -> np.ndarray:
    """Two overlaid distributions, (H, W, 3) uint8.

    Args:
        title: Above the figure.
        xlabel: Name of the score.
        series: Name of each group and its (n,) finite scores; a group may be empty.
    """
    figure, (axes,) = new_figure(7.0, 3.8)
    everything = np.concatenate(list(series.values()))
    low = everything.min()
    high = everything.max()
    edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)
    for (name, values), colour, hatch in zip(series.items(), (VERMILLION, BLUE), ("", "///"), strict=True):
        weights = np.full(len(values), 1 / max(len(values), 1))
        label = f"{name}  (n = {len(values):,}" + (f", median {np.median(values):.2f})" if len(values) else ")")
        axes.hist(values, edges, weights=weights, color=colour, alpha=0.35, hatch=hatch, ec=colour, lw=0, label=label)
        axes.hist(values, edges, weights=weights, color=colour, histtype="step", lw=1.8)
    if edges[0] < 0 < edges[-1]:
        axes.axvline(0, color="black", lw=1, ls=":")
    axes.set(title=title, xlabel=xlabel, ylabel="share of the group")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return pixels_of(figure)


def reliability_figure(
    split: str, table: Tensor, *, who: str = "cost model", stated_as: str = "P(harmful) = sigmoid(cost)"
) -> np.ndarray:
    """Stated against observed frequency above the number of responses per bin, (H, W, 3) uint8.

    Args:
        split: Named in the title.
        table: (3, bins) of :func:`~safe_rlhf_v.functional.calibration.reliability_bins`.
        who: Who states it.
        stated_as: What is stated.
    """
    figure, (axes, below) = new_figure(6.0, 6.2, heights=(3, 1))
    count, stated, happened = table.numpy()
    bins = table.shape[1]
    used = count > 0
    share = happened[used] / count[used]
    ends = np.array([wilson_interval(int(h), int(n)) for h, n in zip(happened[used], count[used], strict=True)])
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1, label="calibrated")
    axes.errorbar(
        stated[used] / count[used],
        share,
        yerr=np.abs(ends.T - share),
        fmt="o-",
        color=BLUE,
        capsize=3,
        label=f"{who} (95 % interval)",
    )
    error = float(calibration_error(table))
    total = int(count.sum())
    axes.set_title(f"{split}: calibration of P(harmful)\nECE {error:.3f}, n = {total:,}")
    axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share labelled unsafe")
    axes.legend(loc="upper left", frameon=False)
    bars = below.bar((np.arange(bins) + 0.5) / bins, count, width=0.92 / bins, color=BLUE)
    if bins <= 12:
        below.bar_label(bars, [f"{int(n):,}" for n in count], fontsize=8, padding=1)
    below.set(xlim=(0, 1), ylim=(0, 1.25 * count.max()), xlabel=f"stated {stated_as}", ylabel="responses")
    return pixels_of(figure)


def accuracy_figure(title: str, counts: dict[str, tuple[int, int]]) -> np.ndarray:
    """Shares with intervals and counts, best first, (H, W, 3) uint8.

    Args:
        title: Above the figure.
        counts: (right, all) by name, all above 0; underscores of a name are drawn as spaces.
    """
    order = sorted(counts, key=lambda name: (counts[name][0] / counts[name][1], name))
    figure, (axes,) = new_figure(8.0, 1.7 + 0.3 * len(order))
    for y, name in enumerate(order):
        right, total = counts[name]
        low, high = wilson_interval(right, total)
        axes.plot([low, high], [y, y], color=BLUE, lw=2, alpha=0.6)
        axes.plot(right / total, y, "o", color=BLUE, ms=6, clip_on=False)
        text = f"{right / total:.2f}  (n = {total:,})"
        axes.text(1.03, y, text, va="center", fontsize=10, transform=axes.get_yaxis_transform())
    axes.axvline(0.5, color=GREY, ls="--", lw=1)
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes.set(
        title=title, xlabel="accuracy, 95 % interval (dashed: one half)", xlim=(0, 1), ylim=(-0.6, len(order) - 0.4)
    )
    return pixels_of(figure)


def new_figure(width: float, height: float, heights: tuple[int, ...] = (1,)) -> tuple[Any, list[Any]]:
    """A figure of the given size in inches and its axes, from top to bottom."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="both", alpha=0.25)
        ax.set_axisbelow(True)
    return figure, list(axes)


def pixels_of(figure: Any) -> np.ndarray:
    """(H, W, 3) uint8; every text stands there as it is, because names from data may hold what looks like a formula ($)."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
