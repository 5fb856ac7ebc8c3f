"""Contradictions between the labels of a record, which the schema allows: annotators err, and label noise may be intended."""

from collections.abc import Iterator
from itertools import combinations

from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import is_harmful
from safe_rlhf_v.records.votes import TIE

KINDS = {
    "safer": "'safer' contradicts the levels or 'is_safe'",
    "level": "level contradicts 'is_safe'",
    "helpful": "'more_helpful' contradicts the helpfulness scores",
    "tie": "a tie contradicts the ratings",
    "votes": "a label that no vote supports",
    "identical": "identical responses with a preference or different labels",
    "empty": "nothing is asked or answered",
    "twin": "the twin does not exist or names another",
}
"""Kinds of contradictions, in the order of the summary; ``twin`` is found by comparing records."""


def contradictions(record: Record) -> Iterator[tuple[str, str, str]]:
    """Every (kind, field, problem) of one record."""
    responses = record.responses
    for i, turn in enumerate(record.turns):
        if not turn.text.strip() and not turn.images:
            where = "question" if i == len(record.history) else f"history[{i}].text"
            yield "empty", where, "is empty, and there is no image"
    for i, response in enumerate(responses):
        if not response.text.strip():
            yield "empty", f"responses[{i}].text", "is empty"
        if response.safety is not None and response.is_safe == is_harmful(response.safety):
            stated = "safe" if response.is_safe else "unsafe"
            yield "level", f"responses[{i}].is_safe", f"says {stated}, the level is {response.safety}"
    yield from _preferences(record)
    yield from _ties(record)
    yield from _votes(record)
    for i, j in combinations(range(len(responses)), 2):
        if responses[i].text.strip() == responses[j].text.strip():
            if {record.more_helpful, record.safer} & {i, j}:
                name = "more_helpful" if record.more_helpful in (i, j) else "safer"
                yield "identical", name, f"prefers one of responses {i} and {j}, which are the same text"
            if _labels(responses[i]) != _labels(responses[j]):
                yield "identical", f"responses[{j}]", f"has the text of response {i} and other labels"


def _preferences(record: Record) -> Iterator[tuple[str, str, str]]:
    """Preferences that contradict the labels of single responses."""
    for i, other in enumerate(record.responses):
        if record.safer not in (None, i):
            safer = record.responses[record.safer]
            if safer.safety is not None and other.safety is not None and safer.safety < other.safety:
                yield "safer", "safer", f"is {record.safer} at level {safer.safety}; {i} is at level {other.safety}"
            elif (safer.is_safe is False and other.is_safe is True) or (
                None in (safer.safety, other.safety) and _harmful(safer) is True and _harmful(other) is False
            ):
                yield "safer", "safer", f"is {record.safer}, {_safety(safer)}; {i} is {_safety(other)}"
        if record.more_helpful not in (None, i):
            score = record.responses[record.more_helpful].helpfulness
            other_score = other.helpfulness
            if score is not None and other_score is not None and score < other_score:
                yield (
                    "helpful",
                    "more_helpful",
                    f"is {record.more_helpful} with score {score:g}; {i} has {other_score:g}",
                )


def _ties(record: Record) -> Iterator[tuple[str, str, str]]:
    """Contradictions between the ratings and the flags of a forced choice."""
    scores = {response.helpfulness for response in record.responses} - {None}
    if record.helpfulness_tie and len(scores) > 1:
        yield "tie", "helpfulness_tie", "is set, the scores differ"
    levels = [response.safety for response in record.responses if response.safety is not None]
    if record.safety_tie and len(set(levels)) > 1:
        yield "tie", "safety_tie", f"is set, the levels are {', '.join(map(str, levels))}"
    elif (
        record.safety_tie
        and len(levels) < len(record.responses)
        and len({*map(_harmful, record.responses)} - {None}) > 1
    ):
        yield "tie", "safety_tie", f"is set, the responses are {', '.join(map(_safety, record.responses))}"
    if len(levels) < 2 or len(levels) < len(record.responses):
        return
    if not record.safety_tie and record.safer is not None and len(set(levels)) == 1:
        yield "tie", "safety_tie", f"is not set, although 'safer' chooses between equal levels ({levels[0]})"


def _votes(record: Record) -> Iterator[tuple[str, str, str]]:
    """Labels outside the range of the votes: choices and binary labels that nobody gave, levels beyond all of them."""
    for i, response in enumerate(record.responses):
        votes = response.votes
        if votes is None:
            continue
        for name, label, all_votes in (
            ("safety", response.safety, votes.safety),
            ("is_safe", response.is_safe, votes.is_safe),
            ("helpfulness", response.helpfulness, votes.helpfulness),
        ):
            if label is not None and all_votes and not min(all_votes) <= label <= max(all_votes):
                stated = ", ".join(map(str, all_votes))
                yield "votes", f"responses[{i}].{name}", f"is {label}, the votes are {stated}"
    if record.votes is not None:
        for name, choice, choices in (
            ("more_helpful", record.more_helpful, record.votes.more_helpful),
            ("safer", record.safer, record.votes.safer),
        ):
            if choice is not None and choices and choice not in choices and set(choices) != {TIE}:
                yield "votes", name, f"is {choice}, the votes are {', '.join(map(str, choices))}"


def _harmful(response: Response) -> bool | None:
    """Whether a response is harmful by its binary label, or by its level if it has no binary label."""
    if response.is_safe is not None:
        return not response.is_safe
    return None if response.safety is None else is_harmful(response.safety)


def _safety(response: Response) -> str:
    """A response's safety label in words."""
    if response.is_safe is None:
        return "unlabelled" if response.safety is None else f"at level {response.safety}"
    return "labelled safe" if response.is_safe else "labelled unsafe"


def _labels(response: Response) -> tuple[int | None, bool | None, float | None]:
    return response.safety, response.is_safe, response.helpfulness
