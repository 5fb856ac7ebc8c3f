"""Where a policy's responses lie between help and harm, before and after training."""

from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Trainer

from safe_rlhf_v.callbacks.figures import BLUE, GREY, VERMILLION, new_figure, pixels_of
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.responses import ResponseCallback, moment
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.rows import Row


class Cloud(NamedTuple):
    """Responses of one policy.

    Attributes:
        when: When it responded, in words.
        points: (n, 2) learned cost and reward, finite.
    """

    when: str
    points: np.ndarray

    def described(self) -> str:
        """One line for the legend."""
        if not len(self.points):
            return f"{self.when}: no response has finite scores"
        cost, reward = self.points.mean(0)
        share = (self.points[:, 0] > 0).mean()
        return (
            f"{self.when}: {share:.0%} right of 0, mean cost {cost:+.2f}, mean reward {reward:+.2f} "
            f"(n = {len(self.points):,})"
        )


class RewardCostPlane(ResponseCallback):
    """Held-out responses by learned cost and reward: the first cloud of the run, the cloud now, and where the mean went.

    Up is more helpful, right is more harmful. The first cloud stays the same on resume. Tag: ``2_reward_cost_plane/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.RewardCostPlane
            init_args: {prompts: 200}
    """

    def __init__(self, prompts: int = 200, before: bool = True) -> None:
        """Choose how much is shown.

        Args:
            prompts: Responses per cloud, at most.
            before: Answer the first validation split before the first step; else, and for other splits, the first
                evaluation is what later ones are compared with.
        """
        super().__init__(prompts, before)

    def observe(self, row: Row, batch: PolicyBatch, i: int) -> tuple[float, float]:
        """Cost and reward."""
        return float(row["cost"]), float(row["reward"])

    def report(self, pictures: Pictures, split: str, notes: list[tuple[float, float]], trainer: Trainer) -> None:
        """One picture."""
        points = np.array(notes)
        now = Cloud(moment(trainer), points[np.isfinite(points).all(1)])
        clouds = [now]
        if first := self.earlier.get(split):
            clouds.insert(0, Cloud(first["when"], np.array(first["points"]).reshape(-1, 2)))
        else:
            self.earlier[split] = {"when": now.when, "points": now.points.tolist()}
        policy: Any = trainer.lightning_module
        budgets: list[float] = policy.dual.budget.tolist()
        pictures.image(f"2_reward_cost_plane/{split}", plane_figure(split, clouds, budgets))


def plane_figure(split: str, clouds: list[Cloud], budgets: list[float]) -> np.ndarray:
    """One or two clouds, (H, W, 3) uint8.

    Args:
        split: Named in the title.
        clouds: The first one, and the one now.
        budgets: Of every constraint.
    """
    figure, (axes,) = new_figure(7.0, 5.8)
    looks = [(GREY, "s", 14), (BLUE, "o", 18)][-len(clouds) :]
    for cloud, (colour, marker, size) in zip(clouds, looks, strict=True):
        label = cloud.described()
        axes.scatter(*cloud.points.T, s=size, c=colour, marker=marker, alpha=0.4, lw=0, label=label)
    means = [cloud.points.mean(0) for cloud in clouds if len(cloud.points)]
    if len(means) == 2:
        arrow = {"arrowstyle": "-|>", "lw": 2.5, "color": "black", "mutation_scale": 18, "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", means[1], means[0], arrowprops=arrow, zorder=4)
    for cloud, (colour, marker, _) in zip(clouds, looks, strict=True):
        if len(cloud.points):
            axes.scatter(*cloud.points.mean(0), s=150, c=colour, marker=marker, ec="white", lw=1.8, zorder=5)
    _mark_sides(axes, budgets)
    axes.set_title(f"{split}: what the policy responds to the same {len(clouds[-1].points):,} prompts", pad=24)
    axes.set(xlabel="learned cost (above 0: judged harmful)", ylabel="learned reward")
    legend = figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[40])
    return pixels_of(figure)


def _mark_sides(axes: Any, budgets: list[float]) -> None:
    """Lines at the budgets and at 0, named above the axes, each on its own side; the harmful side is shaded."""
    low, high = axes.get_xlim()
    low = min(low, *budgets, -0.1)
    high = max(high, *budgets, 0.1)
    pad = 0.02 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.axvspan(0, high + pad, color=VERMILLION, alpha=0.06, lw=0, zorder=0)
    axes.axvline(0, color=VERMILLION, lw=1.3, ls=":")
    for budget in budgets:
        axes.axvline(budget, color="black", lw=1.3, ls="--")
    values = sorted({f"{budget:+.2f}" for budget in budgets}, key=float)
    name = f"budget {values[0]}" if len(values) == 1 else f"budgets {values[0]} .. {values[-1]}"
    left = min(budgets) <= 0
    above = {"transform": axes.get_xaxis_transform(), "va": "bottom", "fontsize": 9}
    axes.text(min(budgets) if left else max(budgets), 1.01, name, ha="right" if left else "left", **above)
    axes.text(0, 1.01, " judged harmful" if left else "0 ", ha="left" if left else "right", color=VERMILLION, **above)
