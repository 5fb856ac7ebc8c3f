"""What a record says that cannot all be true. The schema allows it: annotators err, and noise in labels is often meant."""

from collections.abc import Iterator
from itertools import combinations

from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.taxonomy import is_harmful

KINDS = {
    "safer": "'safer' against the levels or 'is_safe'",
    "level": "level against 'is_safe'",
    "helpful": "'more_helpful' against the helpfulness scores",
    "tie": "'safety_tie' against the levels",
    "identical": "identical responses with a preference or different labels",
    "empty": "nothing is asked or answered",
    "twin": "the twin does not exist or names another",
}
"""Kinds of contradictions, in the order of their summary. ``twin`` is found by comparing records."""


def contradictions(record: Record) -> Iterator[tuple[str, str, str]]:
    """Every (kind, field, what contradicts what) of one record."""
    responses = record.responses
    if not record.question.strip() and not record.images:
        yield "empty", "question", "is empty, and there is no image"
    for i, response in enumerate(responses):
        if not response.text.strip():
            yield "empty", f"responses[{i}].text", "is empty"
        if response.safety is not None and response.is_safe == is_harmful(response.safety):
            stated = "safe" if response.is_safe else "unsafe"
            yield "level", f"responses[{i}].is_safe", f"says {stated}, the level is {response.safety}"
    yield from _preferences(record)
    yield from _ties(record)
    for i, j in combinations(range(len(responses)), 2):
        if responses[i].text == responses[j].text:
            if {record.more_helpful, record.safer} & {i, j}:
                name = "more_helpful" if record.more_helpful in (i, j) else "safer"
                yield "identical", name, f"prefers one of responses {i} and {j}, which are the same text"
            if _labels(responses[i]) != _labels(responses[j]):
                yield "identical", f"responses[{j}]", f"has the text of response {i} and other labels"


def _preferences(record: Record) -> Iterator[tuple[str, str, str]]:
    """Preferences against the labels of single responses."""
    for i, other in enumerate(record.responses):
        if record.safer not in (None, i):
            chosen = record.responses[record.safer]
            if chosen.safety is not None and other.safety is not None and chosen.safety < other.safety:
                yield "safer", "safer", f"is {record.safer} at level {chosen.safety}; {i} is at level {other.safety}"
            elif chosen.is_safe is False and other.is_safe is True:
                yield "safer", "safer", f"is {record.safer}, labelled unsafe; {i} is labelled safe"
        if record.more_helpful not in (None, i):
            score, best = record.responses[record.more_helpful].helpfulness, other.helpfulness
            if score is not None and best is not None and score < best:
                yield "helpful", "more_helpful", f"is {record.more_helpful} with score {score:g}; {i} has {best:g}"


def _ties(record: Record) -> Iterator[tuple[str, str, str]]:
    """The mark of a forced choice against the levels."""
    levels = [response.safety for response in record.responses if response.safety is not None]
    if len(levels) < 2 or len(levels) < len(record.responses):
        return
    if record.safety_tie and len(set(levels)) > 1:
        yield "tie", "safety_tie", f"is set, the levels are {', '.join(map(str, levels))}"
    if not record.safety_tie and record.safer is not None and len(set(levels)) == 1:
        yield "tie", "safety_tie", f"is not set, although 'safer' chooses between equal levels ({levels[0]})"


def _labels(response: Response) -> tuple[int | None, bool | None, float | None]:
    return response.safety, response.is_safe, response.helpfulness
