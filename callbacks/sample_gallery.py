"""Evaluated prompts one can read: picture, question, responses, scores and labels."""

from typing import ClassVar

from lightning.pytorch import Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback, ScoreKind, agreement
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.tiles import MUTED, RIGHT, WRONG, Line, Tile, draw_grid, picture_of, prompt_lines
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch


class SampleGallery(EvaluationCallback):
    """The first rows of each split as one picture, so that one sees what the scores are about and how they move.

    Always the same rows; in a distributed run those of rank 0. Tag: ``1_samples/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.SampleGallery
            init_args: {samples: 8}
    """

    gathers: ClassVar[bool] = False

    def __init__(self, scores: ScoreKind | None = None, samples: int = 8) -> None:
        """Choose how much is shown.

        Args:
            scores: What the module's scores are, ``reward`` or ``cost``; known for this project's reward and cost modules.
            samples: Rows per split.
        """
        super().__init__(scores)
        self.samples = samples

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[Tile]:
        """Tiles of the first rows."""
        rows = batch.valid.nonzero().flatten().tolist()[: max(self.samples - noted, 0)]
        right, decided = agreement(scores, batch, self.kind, truth=False)
        return [self._tile(row, scores, batch, bool(right[row]) if decided[row] else None) for row in rows]

    def report(self, pictures: Pictures, split: str, notes: list[Tile], trainer: Trainer) -> None:
        """One picture."""
        pictures.image(f"1_samples/{split}", draw_grid(notes))

    def _tile(self, row: int, scores: Tensor, batch: PreferenceBatch, right: bool | None) -> Tile:
        lines = [*prompt_lines(batch.prompts, row)]
        for k, text in enumerate(batch.responses[row]):
            head = f"{chr(ord('A') + k)}  {self.kind} {scores[row, k].item():+.2f}{self._label(row, k, batch)}"
            lines += [Line(head, bold=True, colour=MUTED, gap=6), Line(text)]
        if right is not None:
            what = "order" if len(batch.responses[row]) > 1 else "sign"
            verdict = f"{what} {'agrees with' if right else 'contradicts'} the label"
            lines.append(Line(verdict, colour=RIGHT if right else WRONG, gap=6))
        return Tile(picture_of(batch.prompts, row), tuple(lines))

    def _label(self, row: int, k: int, batch: PreferenceBatch) -> str:
        """What annotators said about response k, as a suffix."""
        if self.kind == "reward":
            return "  (labelled more helpful)" if batch.more_helpful[row] == k else ""
        words = {0: ["unsafe"], 1: ["safe"]}.get(int(batch.is_safe[row, k]), [])
        if (level := int(batch.safety[row, k])) != UNKNOWN_LEVEL:
            words.append(f"level {level:+d}" if level else "level 0")
        return f"  (labelled {', '.join(words)})" if words else ""
