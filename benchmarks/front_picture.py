"""The picture of the README: responses before and after, and the frontier of fixed penalties. Everything on it is synthetic.

    python benchmarks/front_picture.py collect --data data/world --runs runs/quickstart   # writes docs/evidence/before_after.json
    python benchmarks/front_picture.py draw                                               # writes docs/figures/front.png

``collect`` takes the first held-out prompts whose response before training is at level -2 or worse, in the order of the split:
nothing is chosen by how the response after training looks. The right half is drawn from docs/evidence/claims.
"""

import argparse
import base64
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

EVIDENCE = Path("docs/evidence")
SHOWN, WORST = 3, -2
NOTE = (
    "Synthetic data, judged by exact ground truth. Safety levels: -3 severe harm to +3 a good warning. "
    "Helpfulness ignores danger by design."
)
BAD, GOOD, GREY, BLUE = "#b3400a", "#0b6b73", "#5a5a5a", "#1f5fa8"
MODES = {"sampled": "sampled at temperature 1", "greedy": "greedy"}


def collect(data: Path, runs: Path, out: Path) -> None:
    """Pick the examples from what ``evaluate`` wrote for the start and for the trained policy."""
    from safe_rlhf_v.demo.runs import Run
    from safe_rlhf_v.shards import ShardedSplit

    run = Run(data, runs)
    before = run.responses("supervised")
    after = run.responses("ppo_lag")
    split = ShardedSplit(data, "test")
    records = {record.key: record for record in (split[i] for i in range(len(split)))}
    examples = []
    for old, new in zip(before, after, strict=True):
        assert old["key"] == new["key"]
        if old["level"] > WORST or len(examples) == SHOWN:
            continue
        record = records[old["key"]]
        shown = {
            name: {"response": row["response"], "level": int(row["level"]), "helpfulness": row["helpfulness"]}
            for name, row in (("before", old), ("after", new))
        }
        picture = base64.b64encode(record.images[0].data).decode()
        examples.append({"key": record.key, "question": record.question, **shown, "image": picture})
    totals = {
        name: {what: sum(row[what] for row in rows) / len(rows) for what in ("harmful", "helpfulness", "refused")}
        for name, rows in (("before", before), ("after", after))
    }
    about = (
        f"the quickstart's policy before and after training (seed 0, synthetic data), by ground truth: the first {SHOWN} of "
        f"{len(before)} held-out prompts whose response before training is at level {WORST} or worse, and means over all"
    )
    found = {"about": about, "prompts": len(before), "totals": totals, "examples": examples}
    out.write_text(json.dumps(found, indent=1) + "\n")


def draw(out: Path) -> None:
    """Draw the picture from the evidence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = json.loads((EVIDENCE / "before_after.json").read_text())
    seeds = [json.loads(file.read_text()) for file in sorted((EVIDENCE / "claims").glob("seed-*.json"))]
    figure = plt.figure(figsize=(13.4, 5.0), dpi=110)
    grid = figure.add_gridspec(SHOWN, 6, width_ratios=[1.15, 4.1, 0.45, 2.6, 0.25, 2.6], wspace=0.05, hspace=0.1)
    for i, example in enumerate(found["examples"]):
        draw_example(figure.add_subplot(grid[i, 0]), figure.add_subplot(grid[i, 1]), example)
    planes = [figure.add_subplot(grid[:, column]) for column in (3, 5)]
    for plane, mode in zip(planes, MODES, strict=True):
        draw_plane(plane, seeds, mode)
    planes[1].legend(*planes[0].get_legend_handles_labels(), fontsize=8, loc="lower right")  # where there is room
    figure.text(0.012, 0.965, "Responses before and after (quickstart, seed 0)", weight="bold", size=11)
    figure.text(0.535, 0.965, f"Helpfulness against harm, means of {len(seeds)} seeds", weight="bold", size=11)
    figure.text(0.012, 0.012, NOTE,
                size=8, color=GREY)  # fmt: skip
    figure.subplots_adjust(left=0.012, right=0.988, top=0.9, bottom=0.11)
    figure.savefig(out)


def draw_example(picture: Any, text: Any, example: dict[str, Any]) -> None:
    from PIL import Image

    picture.imshow(Image.open(io.BytesIO(base64.b64decode(example["image"]))), interpolation="nearest")
    picture.set_axis_off()
    text.set_axis_off()
    text.set(xlim=(0, 1), ylim=(0, 1))
    text.text(0.0, 0.93, f"“{plain(example['question'])}”", size=9.5, va="top", weight="bold")
    height = 0.73
    for name in ("before", "after"):
        said = example[name]
        colour = BAD if said["level"] < 0 else GOOD
        text.text(0.0, height, f"{name}: level {said['level']:+d}, helpfulness {said['helpfulness']:.1f}",
                  size=8.5, va="top", color=colour, weight="bold")  # fmt: skip
        lines = textwrap.wrap(plain(said["response"]), 78)
        text.text(0.0, height - 0.13, "\n".join(lines), size=8.5, va="top")
        height -= 0.17 + 0.14 * len(lines)


def plain(text: str) -> str:
    """The world's words stand apart from their full stops; here they need not."""
    return text.replace(" .", ".").replace(" ?", "?").replace(" ,", ",")


def draw_plane(axes: Any, seeds: Sequence[dict[str, Any]], mode: str) -> None:
    """The start, the frontier of fixed penalties by weight, PPO-Lagrangian by budget, and the best of K samples of the start."""
    methods = seeds[0]["methods"]
    start = mean_point(seeds, "supervised", mode)
    axes.scatter(*start, s=70, color=GREY, marker="s", zorder=3)
    axes.annotate(
        "start", start, xytext=(-7, -3), textcoords="offset points", color=GREY, size=9, weight="bold", ha="right"
    )
    for family, colour, marker, shift, words in (
        ("fixed penalty", BAD, "o", (8, -10), "PPO on R - w C, by w"),
        ("PPO-Lagrangian", GOOD, "s", (0, 7), "PPO-Lagrangian, by budget d"),
        ("best of K", BLUE, "^", (0, 7), "best of K samples of the start, by K"),
    ):
        names = sorted((n for n, one in methods.items() if one["family"] == family), key=lambda n: methods[n]["knob"])
        names = [name for name in names if mode in methods[name]]
        points = [mean_point(seeds, name, mode) for name in names]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.2, label=words)
        labelled = zip(names, points, strict=True) if family != "PPO-Lagrangian" else [(names[-1], points[-1])]
        for name, point in labelled:
            text = f"{methods[name]['knob']:g}"
            axes.annotate(text, point, xytext=shift, textcoords="offset points", color=colour, size=7.5, ha="center")
    axes.set_title(MODES[mode], size=9.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("harmful responses", size=9)
    if mode == "sampled":
        axes.set_ylabel("helpfulness", size=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for side_name in ("top", "right"):
        axes.spines[side_name].set_visible(False)


def mean_point(seeds: Sequence[dict[str, Any]], name: str, mode: str) -> tuple[float, float]:
    """Harm and helpfulness."""
    cells = [seed["methods"][name][mode] for seed in seeds]
    harm, helpfulness = (fmean(cell[value]["value"] for cell in cells) for value in ("harmful", "helpfulness"))
    return harm, helpfulness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "draw"))
    parser.add_argument("--data", type=Path, default=Path("data/world"))
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.what == "collect":
        collect(options.data, options.runs, options.out or EVIDENCE / "before_after.json")
    else:
        draw(options.out or Path("docs/figures/front.png"))


if __name__ == "__main__":
    main()
