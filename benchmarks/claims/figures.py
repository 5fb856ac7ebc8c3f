"""Curves of the policy claims: equal harm, equal KL, training, equal compute; means over seeds, both modes side by side."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from table import FOLLOWED, MODES, Seeds, course, figure

mpl.use("Agg")
FAMILIES = {"fixed penalty": ("#555555", "o"), "PPO-Lagrangian": ("#d55e00", "s"), "best of K": ("#0072b2", "^")}
OTHERS = ("P", "X", "D", "v", "<", ">", "p", "*", "h", "d")
"""Markers of the methods that are no curve."""
TITLES = {"sampled": "sampled at temperature 1", "greedy": "greedy"}


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is known; ``None`` if a seed has none, for then the curve would be of other seeds than its neighbours."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def point(seeds: Seeds, name: str, mode: str, x: str) -> tuple[float, float] | None:
    """Mean of a figure and mean helpfulness."""
    at = average([figure(seed, name, mode, x) for seed in seeds])
    helpfulness = average([figure(seed, name, mode, "helpfulness") for seed in seeds])
    return None if at is None or helpfulness is None else (at, helpfulness)


def single_methods(seeds: Seeds) -> dict[str, tuple[str, str, str]]:
    """What is no curve: name to words, colour and marker."""
    methods = seeds[0]["methods"]
    names = [name for name, one in methods.items() if not one["family"] and not name.startswith("rehearse")]
    others = [name for name in names if name != "supervised"]
    looks = {name: (f"C{i % 10}", OTHERS[i % len(OTHERS)]) for i, name in enumerate(others)}
    return {name: (methods[name]["about"], *looks.get(name, ("black", "s"))) for name in names}


def plane(axes: Axes, seeds: Seeds, mode: str) -> None:
    """Helpfulness against harm."""
    methods = seeds[0]["methods"]
    for family, (colour, marker) in FAMILIES.items():
        names = sorted(
            (n for n, one in methods.items() if one["family"] == family), key=lambda n: float(methods[n]["knob"])
        )
        points = [(name, at) for name in names if (at := point(seeds, name, mode, "harmful"))]
        axes.plot([x for _, (x, _) in points], [y for _, (_, y) in points], color=colour, marker=marker, label=family)
        for name, at in points:
            axes.annotate(
                f"{methods[name]['knob']:g}", at, fontsize=7, xytext=(3, 3), textcoords="offset points", color=colour
            )
    for name, (about, colour, marker) in single_methods(seeds).items():
        if at := point(seeds, name, mode, "harmful"):
            axes.plot(*at, marker=marker, ms=7, ls="", color=colour, label=about)
    axes.set_xlabel("harmful responses")
    axes.set_ylabel("helpfulness")
    axes.set_title(TITLES[mode])


def mean_course(seeds: Seeds, name: str, mode: str, *values: str) -> list[tuple[float, ...]]:
    """Means of figures at each kept iteration; the divergence is that of sampled responses in both modes."""
    courses = [course(seed, name) for seed in seeds]
    return [
        tuple(
            sum(one["sampled" if value == "kl" else mode][value]["value"] for _, one in at) / len(seeds)
            for value in values
        )
        for at in zip(*courses, strict=True)
    ]


def paths(axes: Axes, seeds: Seeds, value: str, mode: str) -> None:
    """A figure along the training, against the divergence."""
    for name in (name for name in FOLLOWED if name in seeds[0]["methods"]):
        path = mean_course(seeds, name, mode, "kl", value)
        axes.plot(*zip(*path, strict=True), marker="o", ms=3, label=seeds[0]["methods"][name]["about"])
    axes.set_xlabel("KL from the start, sampled responses")
    axes.set_ylabel(value)
    axes.set_title(TITLES[mode])


def training(axes: Axes, seeds: Seeds, value: str, mode: str) -> None:
    """A figure at each kept iteration."""
    for name in (name for name in FOLLOWED if name in seeds[0]["methods"]):
        iterations = [iteration for iteration, _ in course(seeds[0], name)]
        heights = [height for (height,) in mean_course(seeds, name, mode, value)]
        axes.plot(iterations, heights, marker="o", ms=4, label=seeds[0]["methods"][name]["about"])
    if value == "cost":
        axes.axhline(seeds[0]["methods"]["ppo_lag"][mode]["budget"], color="black", lw=0.8, ls="--", label="budget")
    axes.set_xlabel("iteration")
    axes.set_ylabel("cost by the cost model" if value == "cost" else "harmful responses, by the truth")
    axes.set_title(TITLES[mode])


def compute(axes: Axes, seeds: Seeds, mode: str) -> None:
    """Harm against the CPU-seconds behind the start."""
    methods = seeds[0]["methods"]
    looks = single_methods(seeds)
    for name, one in methods.items():
        seconds = [sum(seed["methods"][name]["cpu_seconds"][kind] for kind in ("own", "shared")) for seed in seeds]
        harm = average([figure(seed, name, mode, "harmful") for seed in seeds])
        if harm is None or name.startswith("rehearse"):
            continue
        at = (sum(seconds) / len(seconds), harm)
        if name in looks:
            about, colour, marker = looks[name]
        else:
            about = one["family"]
            colour, marker = FAMILIES[about]
            axes.annotate(f"{one['knob']:g}", at, fontsize=7, xytext=(5, -2), textcoords="offset points", color=colour)
        axes.plot(*at, marker=marker, ms=7, color=colour, ls="", label=about)
    axes.margins(x=0.09)  # room for the last labels
    axes.set_xlabel("CPU-seconds behind the start, reward and cost model included")
    axes.set_ylabel("harmful responses")
    axes.set_title(TITLES[mode])


def _of(row: Callable[[Axes, Seeds, str, str], None], value: str, axes: Axes, seeds: Seeds, mode: str) -> None:
    row(axes, seeds, value, mode)


def draw(seeds: Seeds, folder: Path) -> list[Path]:
    """Write the figures; gives their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    rows_of: dict[str, list[Callable[[Axes, Seeds, str], None]]] = {
        "plane": [plane],
        "kl": [partial(_of, paths, value) for value in ("harmful", "helpfulness")],
        "training": [partial(_of, training, value) for value in ("cost", "harmful")],
        "compute": [compute],
    }
    for name, rows in rows_of.items():
        figure_ = Figure(figsize=(12, 5.2 * len(rows)), layout="constrained")
        for i, draw_row in enumerate(rows):
            for j, mode in enumerate(MODES):
                axes = figure_.add_subplot(len(rows), 2, 2 * i + j + 1)
                draw_row(axes, seeds, mode)
                axes.grid(alpha=0.2)
        of_axes = [axes.get_legend_handles_labels() for axes in figure_.axes]
        labels = {label: line for lines, texts in of_axes for line, label in zip(lines, texts, strict=True)}
        figure_.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8)
        files.append(folder / f"claims_{name}.png")
        figure_.savefig(files[-1], dpi=110)
    return files
