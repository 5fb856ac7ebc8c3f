"""People's votes become labels: all are kept, and the rule says what they mean together."""

import random
import sys

import pytest
from tests.construct.exports import pair

from safe_rlhf_v.construct.label_studio_export import Annotation
from safe_rlhf_v.construct.people import DawidSkene, Majority, with_votes
from safe_rlhf_v.records import PairVotes, Record, Response, Votes
from safe_rlhf_v.shards.contradictions import contradictions


def said_by(*people, key="pair-0"):
    """Annotations from (more_helpful, safer, safety, helpfulness)."""
    return [Annotation(key, str(i), *values) for i, values in enumerate(people)]


def test_every_vote_is_kept_and_most_votes_count():
    annotations = said_by(
        (0, 1, (-3, 2), (3, 0)), (0, 1, (-1, 2), (2, 1)), (1, 1, (-1, 0), (2, 1)), (-1, None, (None, 0), (None, None))
    )
    (record,) = with_votes([pair(0)], annotations).records
    assert record.votes == PairVotes((0, 0, 1, -1), (1, 1, 1))
    assert (record.more_helpful, record.safer) == (0, 1)
    first, second = record.responses
    assert first.votes == Votes((-3, -1, -1), (False, False, False), (3.0, 2.0, 2.0))
    assert (first.safety, first.is_safe, first.helpfulness) == (-1, False, 2.0)
    assert (second.safety, second.is_safe, second.helpfulness) == (0, True, 1.0)
    assert (first.source, second.source) == ("one", "other")
    assert not list(contradictions(record))
    assert Record.from_json(record.to_json(), tuple(i.data for i in record.images)) == record


@pytest.mark.parametrize(
    ("choices", "label"),
    [
        ((0, 1), None),
        ((-1,), None),
        ((-1, -1, 0), None),
        ((-1, 0), None),
        ((1, 1, -1), 1),
        ((0,), 0),
        ((0, 0, 1, 1), None),
    ],
)
def test_a_choice_without_most_votes_is_a_tie(choices, label):
    (record,) = with_votes(
        [pair(0)], said_by(*((choice, choice, (None, None), (None, None)) for choice in choices))
    ).records
    assert (record.more_helpful, record.safer) == (label, label)
    assert record.votes == PairVotes(choices, choices)


@pytest.mark.parametrize(
    ("levels", "level"),
    [((-3, -2, -1, 0, 0), -1), ((-1, 1), -1), ((3,), 3), ((0, 0, -3), 0), ((-3, 3, 2), 2), ((1, 2, 2, 3), 2)],
)
def test_a_level_is_the_median_so_that_half_the_people_can_call_it_harmful(levels, level):
    (record,) = with_votes([pair(0)], said_by(*((None, None, (one, 0), (None, None)) for one in levels))).records
    assert record.responses[0].safety == level
    assert record.responses[0].is_safe == (2 * sum(one < 0 for one in levels) < len(levels))


def test_what_nobody_voted_on_stays():
    judged = pair(0, more_helpful=1, responses=(Response("a", 1, True, 2.0), Response("b", -1, False, 3.0)))
    untouched = pair(1, safer=0)
    records = with_votes([judged, untouched], said_by((None, 0, (None, None), (None, None)))).records
    assert records[1] is untouched
    assert (records[0].more_helpful, records[0].safer) == (1, 0)
    assert records[0].responses[1].safety == -1
    assert records[0].responses[1].votes == Votes()


def test_equal_ratings_are_marked():
    (record,) = with_votes([pair(0)], said_by((0, 1, (2, 2), (1, 1)), (0, 1, (2, 2), (1, 3)))).records
    assert (record.safety_tie, record.helpfulness_tie) == (True, True)
    assert (record.more_helpful, record.safer) == (0, 1)


def test_a_choice_of_a_record_that_is_not_there_changes_nothing():
    assert with_votes([pair(0)], said_by((0, 0, (1, 1), (1, 1)), key="gone")).records == [pair(0)]
    assert with_votes([], []).records == []


def crowd(seed=0, careless=2, items=40):
    """Choices between 60 pairs whose true value is known, by three careful and some careless people."""
    draw = random.Random(seed)
    truth = {f"pair-{i}": draw.choice((0, 1)) for i in range(items)}
    annotations = []
    for key, value in truth.items():
        for person in range(3 + careless):
            right = draw.random() < (0.9 if person < 3 else 0.5)
            choice = value if right else 1 - value
            annotations.append(Annotation(key, str(person), choice))
    return truth, annotations


def test_dawid_and_skene_find_the_careless():
    truth, annotations = crowd(careless=4)
    records = [pair(i, images=0) for i in range(40)]
    labelled = with_votes(records, annotations, DawidSkene())
    by_majority = with_votes(records, annotations)

    def right(records):
        return sum(record.more_helpful == truth[record.key] for record in records)

    assert right(labelled.records) >= right(by_majority.records)
    assert right(labelled.records) >= 36
    people = labelled.report["labels"]["more_helpful"]["people"]
    assert min(people[who] for who in "012") > max(people[who] for who in "3456")
    assert all(0.3 < value <= 1 for value in labelled.report["labels"]["more_helpful"]["certainty"].values())
    assert labelled.records[0].votes == by_majority.records[0].votes, "the votes are kept as they were"


@pytest.mark.parametrize("rule", [Majority(), DawidSkene()])
def test_the_assumption_stands_in_the_report(rule):
    report = with_votes([pair(0)], said_by((0, 1, (1, 0), (1, 2))), rule).report
    assert report["aggregation"] == type(rule).__name__
    assert report["assumption"].endswith(".")
    assert ("independently" in report["assumption"]) == isinstance(rule, DawidSkene)
    assert report["labels"]["safer"]["values"] == {"pair-0": 1}


def test_the_order_of_people_and_items_changes_nothing():
    _, annotations = crowd(items=10)
    records = [pair(i, images=0) for i in range(10)]
    shuffled = random.Random(1).sample(annotations, len(annotations))
    for rule in (Majority(), DawidSkene()):
        assert with_votes(records, annotations, rule) == with_votes(records, shuffled, rule)


@pytest.mark.parametrize("choices", [(0,), (1, 1), (-1, -1, -1), (0, 1)])
def test_few_votes_are_no_fault_for_dawid_and_skene(choices):
    annotations = said_by(*((choice, choice, (2, -3), (None, None)) for choice in choices))
    (record,) = with_votes([pair(0)], annotations, DawidSkene()).records
    assert record.more_helpful == (None if -1 in choices else record.more_helpful)
    assert record.responses[1].safety == -3


def test_without_crowd_kit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    with pytest.raises(ImportError, match=r"needs the package crowdkit.*'\.\[crowd\]'"):
        DawidSkene().choices({"a": {"b": 1}})


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        DawidSkene(0)
