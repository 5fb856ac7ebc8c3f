"""Which share of the world's truths needs the picture: the count, in small."""

import json
from typing import Any

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    with importable(BENCHMARKS) as load:
        result: dict[str, Any] = load("picture_share").measured(600, 20)
    return result


def test_some_truths_need_the_picture_and_some_do_not(measured: dict[str, Any]) -> None:
    shares = measured["needs_the_picture"]
    by_rule = shares["verdict_can_change_by_rule"]
    assert by_rule["refusal"] == by_rule["no_act"] == 0.0  # never harmful
    assert by_rule["mitigation"] == 1.0  # the wrong one, and harmful, in another place
    assert 0.5 < shares["verdict_can_change"] < shares["level_can_change"] < 1
    assert shares["verdict_changes"] < shares["verdict_can_change"]
    assert shares["level_changes"] < shares["level_can_change"]
    for kind in ("counterfactual_helpfulness", "counterfactual_safety"):
        assert measured["twins"][kind]["order_changes"] == 1.0
    assert measured["twins"]["counterfactual_verdict"]["verdict_changes"] == 1.0


def test_text_tells_much_but_not_all(measured: dict[str, Any]) -> None:
    other, same = (measured["best_from_text"][name] for name in ("other_draws", "same_draws"))
    assert all(other[name] < same[name] for name in other)
    assert other["harm_auroc"] > 0.65 and other["level_accuracy"] > 0.4
    for response in measured["best_response_without_the_picture"].values():
        assert response["blind"] < 0.5 and response["seeing"] > 2


def test_the_evidence_holds_what_the_script_gives(measured: dict[str, Any]) -> None:
    evidence = json.loads((BENCHMARKS.parent / "docs" / "evidence" / "picture_share.json").read_text())
    assert evidence.keys() == measured.keys()
    for name, value in measured["needs_the_picture"].items():
        if isinstance(value, float):
            assert evidence["needs_the_picture"][name] == pytest.approx(value, abs=0.06)
    assert (
        evidence["best_from_text"]["other_draws"]["harm_auroc"] < evidence["best_from_text"]["same_draws"]["harm_auroc"]
    )
