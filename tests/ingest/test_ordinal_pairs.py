"""Pairs from one ordered label per picture: every label of a pair by hand, ties included."""

import itertools
import random

import pytest

from safe_rlhf_v.ingest.ordinal import Template, pair
from safe_rlhf_v.records import Image
from safe_rlhf_v.shards.contradictions import contradictions

TEMPLATE = Template(("how ill is the leaf ?",), tuple((f"level {level}",) for level in range(5)))
PICTURE = Image(b"", "jpg", "a" * 64, "b" * 64, 4, 4)


class Chosen(random.Random):
    """Draws these claims, in this order."""

    def __init__(self, *claims):
        self.claims = [*claims]

    def random(self):
        return 1.0  # the first claim is drawn, too

    def choice(self, options):
        return self.claims.pop(0) if self.claims else options[0]

    def shuffle(self, values):
        pass


@pytest.mark.parametrize(
    ("label", "claims", "helpful", "safety", "more_helpful", "safer"),
    [
        # one too low and one too high are equally far; too low is harmful by one level, too high is harmless
        (2, (1, 3), (-1.0, -1.0), (-1, 0), None, 1),
        (2, (4, 0), (-2.0, -2.0), (0, -2), None, 0),
        # both too high: equally safe, the nearer one is more helpful
        (1, (4, 2), (-3.0, -1.0), (0, 0), 1, None),
        # exact: preventive
        (3, (3, 4), (0.0, -1.0), (1, 0), 0, 0),
        # both too low: -3 is the lowest level
        (4, (0, 1), (-4.0, -3.0), (-3, -3), 1, None),
        (4, (3, 1), (-1.0, -3.0), (-1, -3), 0, 0),
    ],
)
def test_labels_follow_from_the_distance(label, claims, helpful, safety, more_helpful, safer):
    record = pair("key", PICTURE, label, TEMPLATE, Chosen(*claims))
    assert [r.text for r in record.responses] == [f"level {claim}" for claim in claims]
    assert tuple(r.helpfulness for r in record.responses) == record.truth.helpfulness == helpful
    assert tuple(r.safety for r in record.responses) == record.truth.safety == safety
    assert [r.is_safe for r in record.responses] == [level >= 0 for level in safety]
    assert (record.more_helpful, record.safer, record.image_severity) == (more_helpful, safer, label)
    assert (record.helpfulness_tie, record.safety_tie) == (more_helpful is None, safer is None)


def test_no_pair_contradicts_itself():
    ties = 0
    for label, first, second in itertools.product(range(5), repeat=3):
        if first != second:
            record = pair("key", PICTURE, label, TEMPLATE, Chosen(first, second))
            assert not [*contradictions(record)]
            ties += record.helpfulness_tie
    assert ties == 8  # labels 1 and 3 have one pair of equally far neighbours, label 2 two; in either order
