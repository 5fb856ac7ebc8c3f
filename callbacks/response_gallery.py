"""Held-out prompts and what the policy says to them, to be read."""

import math
from typing import ClassVar, NamedTuple

import numpy as np
from lightning.pytorch import Trainer

from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.responses import ResponseCallback, moment
from safe_rlhf_v.callbacks.tiles import INK, MUTED, RIGHT, WRONG, Line, Tile, draw_grid, picture_of, prompt_lines
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.rows import Row


class GalleryEntry(NamedTuple):
    """One prompt with its response.

    Attributes:
        key: Of the record.
        picture: Pixels, uint8 (H, W, 3).
        prompt: What was asked, and the turns before it.
        row: The response and what is known about it.
    """

    key: str
    picture: np.ndarray
    prompt: tuple[Line, ...]
    row: Row


class ResponseGallery(ResponseCallback):
    """The first prompts of each split with the policy's responses now and at the evaluation before, as one picture.

    Always the same prompts; in a distributed run those of rank 0. Each response has its learned reward and cost (coloured
    where the cost says harmful) and what the module's judge knows (coloured by the level). Tag: ``1_responses/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.ResponseGallery
            init_args: {prompts: 8}
    """

    gathers: ClassVar[bool] = False

    def __init__(self, prompts: int = 8, before: bool = True, compare: bool = True) -> None:
        """Choose how much is shown.

        Args:
            prompts: Prompts per split.
            before: Show the first validation split before the first step, too.
            compare: Show the response of the evaluation before beside each response.
        """
        super().__init__(prompts, before)
        self.compare = compare

    def observe(self, row: Row, batch: PolicyBatch, i: int) -> GalleryEntry:
        """The prompt with its response."""
        return GalleryEntry(batch.keys[i], picture_of(batch.prompts, i), prompt_lines(batch.prompts, i), row)

    def report(self, pictures: Pictures, split: str, notes: list[GalleryEntry], trainer: Trainer) -> None:
        """One picture."""
        when = moment(trainer)
        before = self.earlier.get(split, {}) if self.compare else {}
        pictures.image(f"1_responses/{split}", draw_grid([tile(note, when, before.get(note.key)) for note in notes]))
        self.earlier[split] = {note.key: {**note.row, "when": when} for note in notes}


def tile(note: GalleryEntry, when: str, before: Row | None) -> Tile:
    """One prompt, its response, and the response before it.

    Args:
        note: The prompt with its response.
        when: When, in words.
        before: The earlier row with its ``when``, if there is one.
    """
    lines = [*note.prompt, *_answer(note.row, when, INK)]
    if before is not None and before["response"] == note.row["response"]:
        lines.append(Line(f"the same response {before['when']}", bold=True, colour=MUTED, gap=8))
    elif before is not None:
        lines += _answer(before, before["when"], MUTED)
    return Tile(note.picture, tuple(lines))


def _answer(row: Row, when: str, ink: str) -> list[Line]:
    """Heading, response, and what the judge says."""
    head = f"{when}: reward {row['reward']:+.2f}, cost {row['cost']:+.2f}"
    lines = [Line(head, bold=True, colour=WRONG if row["cost"] > 0 else MUTED, gap=8)]
    lines.append(Line(row["response"] or "(nothing)", colour=ink))
    if words := facts(row):
        judged = known(row.get("level")) or known(row.get("harmful"))
        lines.append(Line(", ".join(words), colour=WRONG if is_harmful(row) else RIGHT if judged else MUTED))
    return lines


def facts(row: Row) -> list[str]:
    """What is known about a response beyond the learned scores."""
    words = []
    if known(level := row.get("level")):
        words.append(f"level {level:+.0f}" if level else "level 0")
    elif known(row.get("harmful")):
        words.append("harmful" if is_harmful(row) else "harmless")
    if known(helpfulness := row.get("helpfulness")):
        words.append(f"helpfulness {helpfulness:.1f}")
    words += ["refuses"] if row.get("refused") == 1 else []
    words += ["cut off"] if row.get("unfinished") == 1 else []
    return words


def is_harmful(row: Row) -> bool:
    """Whether the judge calls a response harmful."""
    return bool(row.get("harmful") == 1 or (row.get("level") or 0) < 0)


def known(value: float | None) -> bool:
    """Whether a judge gave this value."""
    return value is not None and not math.isnan(value)
