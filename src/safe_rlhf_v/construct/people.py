"""From people's votes to labels: every vote is kept, and a rule that can be chosen says what they mean together."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from safe_rlhf_v.construct.label_studio_export import Annotation
from safe_rlhf_v.records import PairVotes, Record, Response, Votes
from safe_rlhf_v.records.packages import package
from safe_rlhf_v.records.taxonomy import is_harmful
from safe_rlhf_v.records.votes import TIE

Ballots = Mapping[str, Mapping[str, int]]
"""Item to person to value."""


class Consensus(NamedTuple):
    """What ballots mean together.

    Attributes:
        values: Value of each item.
        certainty: Probability of each value, as far as the rule estimates one.
        people: Share of right votes per person, likewise.
    """

    values: dict[str, int]
    certainty: dict[str, float] = {}
    people: dict[str, float] = {}


class Aggregation(ABC):
    """A rule that makes one value of several people's votes.

    YAML::

        aggregation: {class_path: safe_rlhf_v.construct.people.Majority}
    """

    assumption: str
    """What must hold for its values to be right, in one sentence; it stands beside them in reports."""

    @abstractmethod
    def choices(self, ballots: Ballots) -> Consensus:
        """What was chosen: 0, 1, or -1 for a tie.

        Args:
            ballots: Choices of the people who made one.
        """

    @abstractmethod
    def levels(self, ballots: Ballots) -> Consensus:
        """A level on an ordered scale.

        Args:
            ballots: Levels of the people who gave one.
        """


class Majority(Aggregation):
    """Most votes for a choice, else a tie; for a level the median, of two middle levels the lower one.

    The median says at every threshold what more than half of the people say, so a response is harmful if at least half of them
    find it harmful.

    YAML::

        aggregation: {class_path: safe_rlhf_v.construct.people.Majority}
    """

    assumption = "More people are right than wrong about each item."

    def choices(self, ballots: Ballots) -> Consensus:
        return Consensus({item: _most(votes.values()) for item, votes in ballots.items()})

    def levels(self, ballots: Ballots) -> Consensus:
        return Consensus({item: sorted(votes.values())[(len(votes) - 1) // 2] for item, votes in ballots.items()})


class DawidSkene(Aggregation):
    """Estimates how often each person errs, and weighs their votes by it (Dawid and Skene 1979), through ``crowd-kit``.

    Each person has a table of probabilities of what they say for each true value; tables and true values are estimated together
    by expectation maximisation. **It assumes that people err independently, given the true value.** People who share a
    misunderstanding of the rubric, or who copy, look reliable to it and outvote the others; it also takes the levels of a scale
    for mere names. With few votes per person :class:`Majority` is the safer choice. Install the extra ``crowd``.

    YAML::

        aggregation: {class_path: safe_rlhf_v.construct.people.DawidSkene, init_args: {iterations: 200}}
    """

    assumption = "People err independently of each other, given the true value."

    def __init__(self, iterations: int = 100) -> None:
        """Choose the length of the estimation.

        Args:
            iterations: Most rounds of expectation maximisation.
        """
        if iterations < 1:
            raise ValueError(f"iterations is {iterations}; it must be at least 1")
        self.iterations = iterations

    def choices(self, ballots: Ballots) -> Consensus:
        return self._estimate(ballots)

    def levels(self, ballots: Ballots) -> Consensus:
        return self._estimate(ballots)

    def _estimate(self, ballots: Ballots) -> Consensus:
        rows = [(item, who, value) for item in sorted(ballots) for who, value in sorted(ballots[item].items())]
        if not rows:
            return Consensus({})
        pandas = package("pandas", "crowd")
        crowdkit = package("crowdkit.aggregation", "crowd")
        table = pandas.DataFrame(rows, columns=["task", "worker", "label"])
        model = crowdkit.DawidSkene(n_iter=self.iterations).fit(table)
        values = {item: int(value) for item, value in model.labels_.items()}
        certainty = {item: float(model.probas_.loc[item, value]) for item, value in values.items()}
        return Consensus(values, certainty, _right_shares(rows, values))


def _right_shares(rows: Iterable[tuple[str, str, int]], values: Mapping[str, int]) -> dict[str, float]:
    """Per person the share of votes that equal the estimated value."""
    votes: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for item, who, value in rows:
        votes[who] += 1
        right[who] += value == values[item]
    return {who: right[who] / count for who, count in sorted(votes.items())}


def _most(votes: Iterable[int]) -> int:
    """The value with the most votes, a tie if two have as many."""
    ranked = Counter(votes).most_common(2)
    return TIE if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


class Labelled(NamedTuple):
    """Records with people's votes and the labels made of them.

    Attributes:
        records: All records, in their order.
        report: The rule, its assumption, its certainty per label and the people's shares, for the report.
    """

    records: list[Record]
    report: dict[str, Any]


def with_votes(
    records: Iterable[Record], annotations: Iterable[Annotation], aggregation: Aggregation | None = None
) -> Labelled:
    """Put people's votes and their consensus into the records; what nobody voted on stays as it is.

    A choice that ends in a tie leaves no preference. ``is_safe`` follows from the level, so that the two never contradict.

    Args:
        records: The records that people labelled, and any others.
        annotations: What people said.
        aggregation: What votes mean together; :class:`Majority` if none.
    """
    rule = aggregation or Majority()
    stored = list(records)
    by_key: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        by_key.setdefault(annotation.key, []).append(annotation)
    consensus = {
        **{name: rule.choices(_choice_ballots(by_key, name)) for name in ("more_helpful", "safer")},
        **{name: rule.levels(_level_ballots(by_key, name)) for name in ("safety", "helpfulness")},
    }
    labelled = [
        _labelled(record, by_key[record.key], consensus) if record.key in by_key else record for record in stored
    ]
    report = {
        "aggregation": type(rule).__name__,
        "assumption": rule.assumption,
        "labels": {name: one._asdict() for name, one in consensus.items()},
    }
    return Labelled(labelled, report)


def _choice_ballots(by_key: Mapping[str, list[Annotation]], name: str) -> Ballots:
    """Per record who chose what."""
    ballots = {
        key: {one.annotator: getattr(one, name) for one in several if getattr(one, name) is not None}
        for key, several in by_key.items()
    }
    return {key: votes for key, votes in ballots.items() if votes}


def _level_ballots(by_key: Mapping[str, list[Annotation]], name: str) -> Ballots:
    """Per response, named ``KEY/INDEX``, who gave which level."""
    ballots = {
        f"{key}/{i}": {one.annotator: getattr(one, name)[i] for one in several if getattr(one, name)[i] is not None}
        for key, several in by_key.items()
        for i in (0, 1)
    }
    return {key: votes for key, votes in ballots.items() if votes}


def _labelled(record: Record, annotations: list[Annotation], consensus: Mapping[str, Consensus]) -> Record:
    """One record with its votes and labels."""
    several = sorted(annotations, key=lambda one: one.annotator)
    responses = tuple(_response(record, i, several, consensus) for i in range(len(record.responses)))

    def choice(name: str, stored: int | None) -> int | None:
        value = consensus[name].values.get(record.key, stored)
        return None if value == TIE else value

    votes = PairVotes(
        tuple(one.more_helpful for one in several if one.more_helpful is not None),
        tuple(one.safer for one in several if one.safer is not None),
    )
    return replace(
        record,
        responses=responses,
        votes=votes,
        more_helpful=choice("more_helpful", record.more_helpful),
        safer=choice("safer", record.safer),
        helpfulness_tie=_equal([response.helpfulness for response in responses]),
        safety_tie=_equal([response.safety for response in responses]),
    ).validate()


def _response(
    record: Record, index: int, annotations: list[Annotation], consensus: Mapping[str, Consensus]
) -> Response:
    """One response with its votes and labels."""
    response = record.responses[index]
    safety = tuple(vote for one in annotations if (vote := one.safety[index]) is not None)
    helpfulness = tuple(float(vote) for one in annotations if (vote := one.helpfulness[index]) is not None)
    name = f"{record.key}/{index}"
    level = consensus["safety"].values.get(name, response.safety)
    grade = consensus["helpfulness"].values.get(name, response.helpfulness)
    return replace(
        response,
        safety=level,
        is_safe=response.is_safe if not safety or level is None else not is_harmful(level),
        helpfulness=None if grade is None else float(grade),
        votes=Votes(safety, tuple(not is_harmful(vote) for vote in safety), helpfulness),
    )


def _equal(ratings: list[Any]) -> bool:
    """Whether both ratings are known and equal."""
    return None not in ratings and len(set(ratings)) == 1
