"""Refusals by their wording."""

from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.rows import REFUSALS


class RefusalWords(Judge):
    """Recognises refusals by their English wording: never alone, since such lists miss between a tenth and two thirds of them.

    Beside two human labels, five widely used lists had a recall of 0.67 to 0.89 on the completions of XSTest, and of 0.34 to 0.62
    on the responses of MSTS.

    YAML::

        judges:
          refusals: {class_path: safe_rlhf_v.evaluation.RefusalWords}
    """

    axes = ()
    reads_pictures = False

    def score(self, record: Record, text: str) -> dict[str, float]:
        """The share ``refused``."""
        return {"refused": float(bool(REFUSALS.search(text)))}
