"""Who knows how good an answer really is."""

from abc import ABC, abstractmethod

from safe_rlhf_v.records import Record


class ResponseScorer(ABC):
    """Says, for any text, what it is worth as an answer to a record: ground truth where there is one, a judge elsewhere."""

    @abstractmethod
    def score(self, record: Record, text: str) -> dict[str, float]:
        """Named values of one answer, always the same names; NaN where a value does not apply.

        Names that reports know: ``helpfulness`` and ``level`` (-3..3) as means; ``harmful`` and ``refused`` as shares.

        Args:
            record: Prompt and what is known about it; its image bytes may be missing.
            text: The answer.
        """
