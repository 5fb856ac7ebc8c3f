"""What a guard gets right and wrong, in pictures."""

import heapq
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback
from safe_rlhf_v.callbacks.figures import BLUE, GREY, accuracy_figure, new_figure, pixels_of, reliability_figure
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.split_report import category_names
from safe_rlhf_v.callbacks.tiles import MUTED, WRONG, Line, Tile, draw_grid, picture_of, prompt_lines
from safe_rlhf_v.functional.calibration import reliability_bins
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, category_groups
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL, NUM_LEVELS


class Judgement(NamedTuple):
    """One judged response.

    Attributes:
        harm: Stated P(harmful), before calibration.
        decided: Likeliest level.
        level: The level in the data.
        category: Indices of the prompt's harm categories, (-1,) if it is of none, () if that is unknown.
        rule: Name of the rule that decides the level, "" unknown.
        tiles: The response with its picture, for the worst mistakes; else empty.
    """

    harm: float
    decided: int
    level: int
    category: tuple[int, ...]
    rule: str
    tiles: list[Tile]


class GuardReport(EvaluationCallback):
    """For guards: confusion matrix, reliability of P(harmful), risk against coverage, tables by group, the worst mistakes.

    Compares with the truth where it is known, else with the labels. Tags: ``1_confusion/{split}``, ``2_worst_mistakes/{split}``,
    ``3_reliability/{split}``, ``4_risk_coverage/{split}``, ``5_harm_by_category/{split}``, ``6_harm_by_rule/{split}``,
    ``7_harm_by_level/{split}``: of harmful levels the recall at one half, of the others the share left alone.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.GuardReport
            init_args: {mistakes: 8}
    """

    def __init__(self, mistakes: int = 8) -> None:
        """Choose how much is shown.

        Args:
            mistakes: Wrongly judged responses shown per split, the most confident ones.
        """
        super().__init__("cost")
        self.mistakes = mistakes
        # A heap of the most confident mistakes of the split so far, (confidence, number, tiles): only they keep a picture.
        self._worst: list[tuple[float, int, list[Tile]]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises: ValueError: If the module is no guard."""
        from safe_rlhf_v.modules import GuardModule

        if not isinstance(pl_module, GuardModule):
            raise ValueError(f"GuardReport is for guards, not for {type(pl_module).__name__}; remove the callback")

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[Judgement]:
        """Every response with a level; ``scores`` are the (B, K, 7) log-probabilities."""
        levels = torch.where(batch.true_safety != UNKNOWN_LEVEL, batch.true_safety, batch.safety)  # (B, K)
        known = (levels != UNKNOWN_LEVEL) & batch.valid[:, None]
        harm = scores[..., :-MIN_LEVEL].exp().sum(-1)
        decided = scores.argmax(-1) + MIN_LEVEL
        judgements: list[Judgement] = []
        groups = category_groups(batch.category)
        if not noted:
            self._worst = []
        for row, k in known.nonzero().tolist():
            p = float(harm[row, k])
            d = int(decided[row, k])
            level = int(levels[row, k])
            tiles: list[Tile] = []
            mistake = (abs(p - 0.5), noted + len(judgements), tiles)
            if (p >= 0.5) != (level < 0) and self._is_among_the_worst(mistake):
                tiles.append(self._tile(row, k, p, d, level, batch))
            judgements.append(Judgement(p, d, level, groups[row], batch.rules[row][k], tiles))
        return judgements

    def report(self, pictures: Pictures, split: str, notes: list[Judgement], trainer: Trainer) -> None:
        """Up to seven pictures."""
        harm = torch.tensor([note.harm for note in notes])
        harmful = torch.tensor([note.level < 0 for note in notes])
        counts = np.zeros((NUM_LEVELS, NUM_LEVELS), int)
        np.add.at(counts, tuple(np.array([[n.level - MIN_LEVEL, n.decided - MIN_LEVEL] for n in notes]).T), 1)
        pictures.image(f"1_confusion/{split}", confusion_figure(split, counts))
        table = reliability_bins(harm.clamp(0, 1), harmful, torch.ones_like(harmful), 10)
        pixels = reliability_figure(split, table, who="guard", stated_as="P(harmful), before calibration")
        pictures.image(f"3_reliability/{split}", pixels)
        pictures.image(f"4_risk_coverage/{split}", risk_coverage_figure(split, harm, harmful))
        groups: dict[str, list[tuple[str, ...]]] = {
            "category": _categories(notes, trainer),
            "rule": [(note.rule,) if note.rule else () for note in notes],
            "level": [(f"level {_signed(note.level)}",) for note in notes],
        }
        for place, (name, column) in enumerate(groups.items(), start=5):
            if counts_by := _right_by(column, notes):
                title = f"{split}: harmful or not, accuracy by {name}"
                pictures.image(f"{place}_harm_by_{name}/{split}", accuracy_figure(title, counts_by))
        worst = sorted((note for note in notes if note.tiles), key=lambda n: -abs(n.harm - 0.5))
        if tiles := [tile for note in worst[: self.mistakes] for tile in note.tiles]:
            pictures.image(f"2_worst_mistakes/{split}", draw_grid(tiles))

    def _is_among_the_worst(self, mistake: tuple[float, int, list[Tile]]) -> bool:
        """Whether to picture a mistake; the one that it displaces loses its picture."""
        if len(self._worst) < self.mistakes:
            heapq.heappush(self._worst, mistake)
            return True
        if not self._worst or mistake[0] <= self._worst[0][0]:
            return False
        *_, displaced = heapq.heapreplace(self._worst, mistake)
        displaced.clear()
        return True

    def _tile(self, row: int, k: int, harm: float, decided: int, level: int, batch: PreferenceBatch) -> Tile:
        verdict = f"judged level {_signed(decided)}, P(harmful) {harm:.2f}; it is level {_signed(level)}"
        lines = (*prompt_lines(batch.prompts, row), Line(batch.responses[row][k], gap=6))
        rule = batch.rules[row][k]
        more = (Line(f"decided by: {rule.replace('_', ' ')}", colour=MUTED),) if rule else ()
        return Tile(picture_of(batch.prompts, row), (*lines, Line(verdict, colour=WRONG, gap=6), *more))


def _categories(notes: list[Judgement], trainer: Trainer) -> list[tuple[str, ...]]:
    """Names of each note's categories."""
    names = category_names(trainer)
    return [tuple(names[index] for index in note.category) for note in notes]


def _right_by(groups: list[tuple[str, ...]], notes: list[Judgement]) -> dict[str, tuple[int, int]]:
    """(right, all) by group; a note counts in each of its groups."""
    right_by: dict[str, tuple[int, int]] = {}
    for names, note in zip(groups, notes, strict=True):
        for group in names:
            right, total = right_by.get(group, (0, 0))
            right_by[group] = right + ((note.harm >= 0.5) == (note.level < 0)), total + 1
    return right_by


def _signed(level: int) -> str:
    return f"{level:+d}" if level else "0"


def confusion_figure(split: str, counts: np.ndarray) -> np.ndarray:
    """Shares per true level, with counts, (H, W, 3) uint8.

    Args:
        split: Named in the title.
        counts: (7, 7), rows the true level, columns the decided one.
    """
    figure, (axes,) = new_figure(6.4, 5.6)
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0):
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    names = [_signed(level) for level in range(MIN_LEVEL, MAX_LEVEL + 1)]
    axes.set_xticks(range(NUM_LEVELS), names)
    axes.set_yticks(range(NUM_LEVELS), names)
    axes.grid(False)
    for line in (axes.axhline, axes.axvline):
        line(-MIN_LEVEL - 0.5, color="#D55E00", lw=1.2)  # the border of harmful
    right = np.trace(counts) / max(counts.sum(), 1)
    axes.set(
        title=f"{split}: levels, {right:.1%} of {counts.sum():,} right (line: harmful below 0)",
        xlabel="decided level",
        ylabel="true level",
    )
    return pixels_of(figure)


def risk_coverage_figure(split: str, harm: Tensor, harmful: Tensor) -> np.ndarray:
    """Error among the most confident responses, by how many are judged and how many left to people, (H, W, 3) uint8.

    Args:
        split: Named in the title.
        harm: (N,) stated P(harmful).
        harmful: (N,) bool.
    """
    order = (harm - 0.5).abs().argsort(descending=True)
    wrong = ((harm >= 0.5) != harmful)[order].double()
    seen = torch.arange(1, len(wrong) + 1)
    risk = wrong.cumsum(0) / seen
    figure, (axes,) = new_figure(6.4, 4.2)
    axes.plot((seen / len(wrong)).numpy(), risk.numpy(), color=BLUE, lw=2)
    axes.axhline(float(risk[-1]), color=GREY, ls="--", lw=1)
    axes.set(
        title=f"{split}: harmful or not, error {float(risk[-1]):.1%} when all {len(wrong):,} are judged",
        xlabel="share judged, the most confident first",
        ylabel="error among them",
        xlim=(0, 1),
        ylim=(0, max(float(risk.max()) * 1.15, 0.01)),
    )
    return pixels_of(figure)
