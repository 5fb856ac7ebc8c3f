"""The grounding filter: its rule by hand, and a planted share of leaking questions against truth."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct.grounding import (
    Finding,
    Ground,
    judge_grounding,
    other_pictures,
    read_grounding,
    under_pictures,
)
from safe_rlhf_v.construct.models import RewardJudge
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.construct.responses import Responded, Responder
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.world import SimulatedJudge, WorldResponder


def row(
    true: list[float | None], blank: list[float], none: list[float], safety: tuple[float, float, float] = (0, 0, 0)
) -> dict:
    return {
        "helpfulness": {"true": true, "other": [0.0], "blank": blank, "none": none},
        "safety": {"true": [safety[0]], "other": [3.0], "blank": [safety[1]], "none": [safety[2]]},
    }


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        (row([3, 3], [0, 0], [0, 1]), Finding(False, True)),
        (row([3, 3], [3, 2], [2, 2]), Finding(True, True)),  # 2.25 >= 3 - 1
        (row([3, 3], [3, 2], [2, 0]), Finding(False, True)),  # 1.75 < 2
        (row([3, 3], [3, 3], [3, 3], (-2, 0, -1)), Finding(True, False)),  # 1.5 levels
        (row([3, 3], [3, 3], [3, 3], (-2, -2, -1)), Finding(True, True)),  # half a level
        (row([1, 1], [1, 1], [1, 1]), Finding(None, True)),  # of no help, with or without the picture
        (row([1, 0], [3, 3], [3, 3]), Finding(True, True)),
        (row([3, None], [3, 3], [3, 3]), Finding(None, True)),
        ({"helpfulness": {}, "safety": {}}, Finding(None, None)),
    ],
)
def test_the_rule(given: dict, finding: Finding) -> None:
    assert judge_grounding(given, margin=1.0) == finding
    assert finding.leaks == (finding == Finding(True, True))


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    work = build(tmp_path, first_stages(12))
    items = read_items(work)
    others = other_pictures(items, seed=0)
    for key, other in others.items():
        assert other is not None and items[other].image["id"] != items[key].image["id"]
        same = [
            one for one in items.values() if one.group == items[key].group and one.image["id"] != items[key].image["id"]
        ]
        assert not same or items[other].group == items[key].group
    key = next(iter(items))
    shown = under_pictures(items[key].record(work), items[str(others[key])].record(work))
    assert shown["none"].images == () and shown["none"].truth is None
    assert shown["blank"].images[0].width == shown["true"].images[0].width and shown["blank"].truth is None
    assert shown["other"].images[0].id != shown["true"].images[0].id
    assert {one.question for one in shown.values()} == {items[key].question}
    assert other_pictures({key: items[key]}, 0) == {key: None}


def test_a_planted_share_of_leaking_questions_is_removed(tmp_path: Path) -> None:
    work = build(
        tmp_path, [*first_stages(60, leaking=0.3), Ground(WorldResponder(helpful=True), SimulatedJudge(), draws=3)]
    )
    truth = {key: item.origin["leaks"] == "true" for key, item in read_items(work).items()}
    removed = {key: finding.leaks for key, finding in read_grounding(work).items()}
    planted = [removed[key] for key, leaks in truth.items() if leaks]
    sound = [removed[key] for key, leaks in truth.items() if not leaks]
    assert 20 < len(planted) < 60
    assert binomtest(sum(planted), len(planted)).proportion_ci(0.95).low > 0.7
    assert binomtest(sum(sound), len(sound)).proportion_ci(0.95).high < 0.12


def test_a_judge_without_ratings_is_refused() -> None:
    with pytest.raises(ValueError, match="rates helpfulness and safety"):
        Ground(WorldResponder(), RewardJudge("runs/none"))


class Silent(Responder):
    """Responds, but not under some pictures."""

    def __init__(self, under: str, fault: str) -> None:
        self.under = under
        self.fault = fault

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        return [
            Responded("", self.fault)
            if draw == 1 and (self.under == "none") == (not record.images)
            else Responded("fine")
            for record in records
        ]


class Length(Judge):
    """Finds every response harmless, and one with words helpful."""

    def score(self, record: Record, text: str) -> dict[str, float]:
        assert text, "nothing is asked about a response that did not come"
        return {"helpfulness": 3.0, "level": 0.0}


@pytest.mark.parametrize("fault", ["failed", "refused"])
@pytest.mark.parametrize(("under", "decided"), [("none", True), ("pictures", None)])
def test_a_response_that_did_not_come_is_no_empty_one(
    under: str, decided: bool | None, fault: str, tmp_path: Path
) -> None:
    ground = Ground(Silent(under, fault), Length(), draws=2, on_failure="keep")
    work = build(tmp_path, [*first_stages(4)[:2], ground])
    findings = read_grounding(work).values()
    assert {finding.answer_leaks for finding in findings} == {None}
    assert {finding.verdict_leaks for finding in findings} == {decided}
    row = work.rows("grounding")[0]
    assert row["fault"] == fault and row["texts"]["none"][1] == (None if under == "none" else "fine")
    assert row["helpfulness"]["none"] == [3.0, None if under == "none" else 3.0]
