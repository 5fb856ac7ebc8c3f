"""From people's votes to labels: every vote is kept, and a component decides what they say together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from safe_rlhf_v.construct.label_studio import Annotation
from safe_rlhf_v.records import Record

Votes = Mapping[str, Mapping[str, int]]
"""Item to annotator to value."""


class Consensus(NamedTuple):
    """What the votes say together.

    Attributes:
        values: Item to value.
        assumption: What has to hold for the values to be right, in one sentence.
        certainty: Item to the probability of its value, as far as the rule gives one.
    """

    values: dict[str, int]
    assumption: str
    certainty: dict[str, float]


class Aggregation(ABC):
    """A rule that makes one value of several people's votes."""

    @abstractmethod
    def choices(self, votes: Votes) -> Consensus:
        """The response that people chose: 0, 1 or -1 for a tie."""

    @abstractmethod
    def levels(self, votes: Votes) -> Consensus:
        """The level on an ordered scale that people gave."""


class Majority(Aggregation):
    """Most votes for choices, the median for levels. The default."""


class DawidSkene(Aggregation):
    """Dawid and Skene (1979) through ``crowd-kit`` (extra ``crowd``): people who err more count less."""


def merge(
    records: Iterable[Record], annotations: Iterable[Annotation], aggregation: Aggregation | None = None
) -> tuple[list[Record], dict[str, str]]:
    """Records with every vote in ``Record.votes`` and ``Response.votes``, and labels by the rule.

    Args:
        records: The records that people labelled.
        annotations: What they said.
        aggregation: The rule; :class:`Majority` if none.
    """
    ...
