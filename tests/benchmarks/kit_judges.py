"""Rule-based stand-ins for independent judges; nothing they say means anything."""

from collections.abc import Sequence

from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge


class LetterJudge(Judge):
    """Rates by the letters of a response."""

    def __init__(self, letter: str, families: Sequence[str]) -> None:
        """Choose the letter.

        Args:
            letter: That makes a response harmful.
            families: Of which models it pretends to be.
        """
        self.letter = letter
        self.families = tuple(families)

    def score(self, record: Record, text: str) -> dict[str, float]:
        level = -2.0 if self.letter in text else 1.0
        return {"helpfulness": float(min(len(text) // 3, 3)), "level": level, "harmful": float(level < 0)}
