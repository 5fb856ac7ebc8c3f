"""Who knows how good a response really is."""

from abc import ABC, abstractmethod
from importlib import import_module
from inspect import isabstract

from safe_rlhf_v.records import Record


class Judge(ABC):
    """Says, for any text, what it is worth as a response to a record: ground truth where there is one, a judge elsewhere."""

    @abstractmethod
    def score(self, record: Record, text: str) -> dict[str, float]:
        """Named values of one response, always the same names; NaN where a value does not apply.

        Names that reports know: ``helpfulness`` and ``level`` (-3..3) as means; ``harmful`` and ``refused`` as shares.

        Args:
            record: Prompt and what is known about it; its image bytes may be missing.
            text: The response.
        """


def find_judge(name: str | None, record: Record | None) -> Judge | None:
    """The named judge; without a name, the world's truth for the world's records, and ``None`` for others.

    Args:
        name: Class path of a :class:`Judge`.
        record: One of the records that will be scored; ``None`` only checks the name.

    Raises:
        ValueError: If the class does not exist.
    """
    if name is None:
        if record is None or record.truth is None or "intent" not in record.origin:
            return None
        name = "safe_rlhf_v.world.WorldJudge"
    home, _, cls = name.rpartition(".")
    try:
        judge = getattr(import_module(home), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--judge {name}: {error}; give the class path of a Judge") from None
    if not isinstance(judge, type) or not issubclass(judge, Judge) or isabstract(judge):
        raise ValueError(f"--judge {name}: no Judge; give the class path of one")
    return judge()
