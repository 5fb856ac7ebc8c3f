"""What each annotator said, beside the label that was made of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from safe_rlhf_v.records.parsing import Fields, check_finite, check_level
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL, NUM_LEVELS

TIE = -1
"""An annotator's choice between responses that prefers none."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Every annotator's labels of one response; ``()`` where nobody gave this label.

    Attributes:
        safety: Safety levels -3..3.
        is_safe: Binary safety labels.
        helpfulness: Helpfulness scores.
    """

    safety: tuple[int, ...] = ()
    is_safe: tuple[bool, ...] = ()
    helpfulness: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PairVotes:
    """Every annotator's choice between the responses; ``()`` where nobody chose.

    Attributes:
        more_helpful: Index of the response that each annotator found more helpful, -1 for a tie.
        safer: Index of the response that each annotator found safer, -1 for a tie.
    """

    more_helpful: tuple[int, ...] = ()
    safer: tuple[int, ...] = ()


def second_share(choices: Sequence[int]) -> float:
    """Share of the annotators who chose response 1 of two, a tie counting half; NaN if nobody chose.

    Args:
        choices: Index 0 or 1 that each annotator chose, -1 for a tie.
    """
    return sum(0.5 if choice == TIE else choice for choice in choices) / len(choices) if choices else math.nan


def level_shares(levels: Sequence[int]) -> tuple[float, ...]:
    """Share of the annotators who gave each safety level, -3 first; NaN if nobody rated.

    Args:
        levels: Level that each annotator gave.
    """
    if not levels:
        return (math.nan,) * NUM_LEVELS
    return tuple(levels.count(level) / len(levels) for level in range(MIN_LEVEL, MAX_LEVEL + 1))


def parse_votes(fields: Fields) -> Votes | None:
    """The field ``votes`` of a response; ``None`` if it is absent or null.

    Raises:
        RecordError: If it is no object of lists, or has another field.
    """
    if (inner := _inner(fields)) is None:
        return None
    votes = Votes(_list(inner, "safety"), _list(inner, "is_safe"), _list(inner, "helpfulness"))
    inner.done()
    return votes


def parse_pair_votes(fields: Fields) -> PairVotes | None:
    """The field ``votes`` of a record; ``None`` if it is absent or null.

    Raises:
        RecordError: If it is no object of lists, or has another field.
    """
    if (inner := _inner(fields)) is None:
        return None
    votes = PairVotes(_list(inner, "more_helpful"), _list(inner, "safer"))
    inner.done()
    return votes


def _inner(fields: Fields) -> Fields | None:
    body = fields.take("votes", dict, optional=True) if "votes" in fields.body else None
    return None if body is None else Fields(body, fields.key, fields.path("votes"))


def _list(fields: Fields, name: str) -> tuple[Any, ...]:
    return tuple(fields.take(name, list)) if name in fields.body else ()


def vote_problems(votes: Votes | None) -> Iterator[tuple[str, str]]:
    """Every (field, problem) of the votes of one response.

    Args:
        votes: Votes, from anywhere.
    """
    if votes is None:
        return
    if not isinstance(votes, Votes):
        yield "votes", f"must be Votes, not {votes!r:.80}"
        return
    yield from _entries("votes.safety", votes.safety, (int,), check_level)
    yield from _entries("votes.is_safe", votes.is_safe, (bool,), lambda value: None)
    yield from _entries("votes.helpfulness", votes.helpfulness, (float, int), check_finite)


def pair_vote_problems(votes: PairVotes | None, responses: int) -> Iterator[tuple[str, str]]:
    """Every (field, problem) of the votes of one record.

    Args:
        votes: Votes, from anywhere.
        responses: Number of responses of the record.
    """

    def check_choice(value: int) -> str | None:
        if TIE <= value < responses:
            return None
        return f"{value} is neither {TIE} (a tie) nor the 0-based index of one of the {responses} responses"

    if votes is None:
        return
    if not isinstance(votes, PairVotes):
        yield "votes", f"must be PairVotes, not {votes!r:.80}"
        return
    yield from _entries("votes.more_helpful", votes.more_helpful, (int,), check_choice)
    yield from _entries("votes.safer", votes.safer, (int,), check_choice)


def _entries(
    name: str, values: Any, kinds: tuple[type, ...], check: Callable[[Any], str | None]
) -> Iterator[tuple[str, str]]:
    """Every wrong entry of one list."""
    if not isinstance(values, tuple):
        yield name, f"must be a tuple, not {values!r:.80}"
        return
    for i, value in enumerate(values):
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            yield f"{name}[{i}]", f"must be {kinds[0].__name__}, not {value!r:.80}"
        elif problem := check(value):
            yield f"{name}[{i}]", problem
