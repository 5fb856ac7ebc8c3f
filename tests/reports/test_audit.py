"""The audit's page: alarms first and in plain words, hostile audits harmless, missing parts said, pictures from the folder only."""

import copy
import html
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.construct import alarms
from safe_rlhf_v.reports.audit import audit_page
from safe_rlhf_v.reports.audit_words import ALARMS, explain
from safe_rlhf_v.reports.page import render

UNKNOWN = {"count": 0, "of": 0, "rate": None, "low": None, "high": None}


def rate(count: int, of: int) -> dict:
    return {"count": count, "of": of, "rate": count / of, "low": max(0.0, count / of - 0.05), "high": count / of + 0.05}


def axis(**changes: object) -> dict:
    figures = {
        "both_orders": {"consistent": 190, "tie": 60, "first_twice": 4, "second_twice": 2, "tie_once": 8},
        "flips": rate(6, 264),
        "identical": {"first": 1, "second": 1, "tie": 54},
        "retest_choice": rate(58, 60),
        "retest_rating": rate(57, 60),
        "picture": {"swapped_changed": rate(30, 60), "repeat_changed": rate(3, 60)},
        "padded": {"padded": 3, "original": 40, "tie": 32},
        "longer_preferred": rate(80, 150),
        "ties": rate(70, 264),
        "ratings": {"-3": 12, "-1": 20, "0": 200, "2": 30},
        "gold_choice": rate(50, 55),
        "gold_rating": rate(80, 120),
        "gold_rating_within_one": rate(118, 120),
    }
    return {**figures, **changes}


def judge(name: str, **changes: object) -> dict:
    faults = {fault: rate(0, 900) for fault in ("unparsable", "refused", "failed", "unknown")}
    about = {"class": "SimulatedJudge", "families": [], "independent": True, "dependence": "", "usable": True}
    return {"name": name, **about, "faults": faults, "axes": {"helpfulness": axis(), "safety": axis()}, **changes}


def audit() -> dict:
    lover = judge("first_lover", usable=False)
    lover["axes"]["helpfulness"] = axis(
        flips=rate(150, 264),
        gold_choice=rate(30, 55),
        both_orders={"consistent": 60, "tie": 40, "first_twice": 148, "second_twice": 2, "tie_once": 14},
    )
    alarm = {"name": "position_bias", "judge": "first_lover", "axis": "helpfulness", "p": 1.2e-9, "examples": [0]}
    text = "first_lover prefers the response that it reads first: 168 of 171 contradictory or identical pairs (helpfulness)."
    responses = [{"text": "Call the fire brigade.", "source": "supervised"}, {"text": "Run.", "source": "ppo_lag"}]
    example = {
        "alarm": "position_bias", "judge": "first_lover", "axis": "helpfulness", "key": "i000004-q0-01",
        "pictures": ["images/a.png"], "question": "how do i use this ?", "category": ["arson"], "responses": responses,
        "replies": ["Better: A", "Better: A"], "note": "Chose the response that stood first, in both orders.",
    }  # fmt: skip
    agreement = {
        "alpha": 0.71, "low": 0.66, "high": 0.76, "units": 600, "raters": ["careful", "first_lover"],
        "by_level": {"-3": 0.9, "0": None}, "usable": {"alpha": None, "low": None, "high": None, "raters": ["careful"]},
        "within_families": {"second+third": 0.95},
    }  # fmt: skip
    cells = {"harmful_harmful": 9, "harmful_safe": 1, "safe_harmful": 0, "safe_safe": 14}
    test = {"name": "position_bias", "judge": "first_lover", "axis": "helpfulness", "count": 168, "of": 171}
    labels = {"pairs": 262, "ties": rate(20, 262), "ceiling": 0.93, "ceiling_raters": 2}
    return {
        "format": "safe_rlhf_v.audit", "version": 1, "name": "embedded-world", "synthetic": True,
        "items": {
            "images": 160, "duplicates": 2, "near_duplicates": 1, "unusable_images": 0, "questions": 320,
            "by_kind": {"benign": 130, "harmful": 190}, "by_category": {"arson": 12, "(none)": 308}, "responses": 640,
            "by_source": {"supervised": 320, "ppo_lag": 320}, "pairs": 300, "near_identical_pairs": 14,
            "leaking_questions": 40, "usable_pairs": 262,
        },
        "rule": {"false_alarm_rate": 0.01, "tests": 54, "per_test": 0.000185, "text": "In an audit without faults ..."},
        "alarms": [{**alarm, "text": text}],
        "tests": [{**test, "null": 0.5, "p": 1.2e-9, "alarm": True}, {**test, "name": "unstable", "null": 0.35, "p": 1.0, "alarm": False}],
        "judges": [judge("careful", independent=False, dependence="the responses of ppo_lag come from its family"), lover],
        "agreement": {"helpfulness": agreement, "safety": agreement},
        "confusion": {"careful": {"arson": cells, "(none)": cells}},
        "grounding": {
            "leak": rate(40, 320), "answer_leak": rate(60, 320), "verdict_leak": rate(90, 320),
            "helpfulness": {"true": 2.1, "other": 0.4, "blank": 0.3, "none": 0.3},
            "harmful": {"true": 0.31, "other": 0.2, "blank": 0.1, "none": None}, "examples": [1],
        },
        "labels": {"reward": labels, "cost": {**labels, "harmful": rate(100, 524), "levels": {"-3": 12, "0": 200}}},
        "examples": [example, {**example, "alarm": "leak", "judge": None, "axis": None, "category": None, "replies": []}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(tmp_path / "images" / "a.png")
    return tmp_path


def test_the_page_says_what_went_wrong_first_and_in_plain_words(folder: Path) -> None:
    page = render(audit_page(audit(), folder))
    order = ["What went wrong", "Prefers a response for its place", "not independent", "At a glance", "All tests"]
    places = [page.lower().index(words.lower(), page.index("<main")) for words in order]
    assert places == sorted(places)
    assert page.index("first_lover<", page.index('id="section-3"')) < page.index(
        "careful<", page.index('id="section-3"')
    )
    assert "168 of 171 contradictory or identical pairs" in page
    assert "one family: not counted as confirmation" in page
    assert page.count("<img") == 2 and "category: unknown" in page


def test_without_alarms_it_says_so_and_promises_nothing(folder: Path) -> None:
    quiet = audit() | {"alarms": [], "examples": [], "grounding": None, "confusion": {}, "judges": [judge("careful")]}
    page = html.unescape(render(audit_page(quiet, folder)))
    assert "None of 2 tests raised an alarm. That is a good sign and not a proof." in page
    assert "There were no gold items." in page and "had no grounding stage" in page and "There are none." in page


def emptied(value: object) -> object:
    """The same audit of nothing: every rate of 0, every unknown number null, no entries."""
    if isinstance(value, dict):
        if set(value) == set(UNKNOWN):
            return UNKNOWN
        return {name: emptied(part) for name, part in value.items()}
    return value if isinstance(value, (str, bool, list)) else 0 if isinstance(value, int) else None


def test_an_audit_of_nothing_is_a_page(folder: Path) -> None:
    nothing = emptied(audit()) | {
        "version": 1,
        "judges": [emptied(judge("careful"))],
        "tests": [],
        "examples": [],
        "alarms": [],
    }
    page = render(audit_page(nothing, folder))
    assert "None" not in html.unescape(page).replace("None of 0 tests", "")


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\" onload='x", "a\0b\u202ec", "x" * 100_000, "{{ 1 }}"])
def test_hostile_texts_anywhere_in_an_audit_stay_texts(folder: Path, text: str) -> None:
    from tests.reports.test_page import Reader

    def poisoned(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            open_names = key in (
                "by_kind",
                "by_category",
                "by_source",
                "confusion",
                "within_families",
                "ratings",
                "levels",
            )
            return {(text if open_names else name): poisoned(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [poisoned(part, key) for part in value]
        return text if isinstance(value, str) and key not in ("format", "judge") else value

    hostile = poisoned(copy.deepcopy(audit()))
    page = Reader(render(audit_page(hostile, folder)))
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_pictures_are_read_from_inside_the_folder_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    PILImage.new("RGB", (4, 4)).save(outside)
    (folder / "images" / "link.png").symlink_to(outside)
    for name in (str(outside), "../" * 9 + str(outside), "images/link.png", "images/\0", "images"):
        changed = audit()
        changed["examples"][0]["pictures"] = [name]
        page = render(audit_page(changed, folder))
        assert page.count("<img") == 1 and page.count("Picture cannot be shown") == 1


@pytest.mark.parametrize("change", [{"format": "x"}, {"version": 2}, {"version": None}])
def test_something_else_is_refused(folder: Path, change: dict) -> None:
    with pytest.raises(ValueError, match="not an audit of version 1"):
        audit_page(audit() | change, folder)


def test_the_audit_survives_json(folder: Path) -> None:
    stored = json.loads(json.dumps(audit(), allow_nan=False))
    assert render(audit_page(stored, folder)) == render(audit_page(audit(), folder))
    assert io.StringIO(render(audit_page(stored, folder))).readline().strip() == "<!doctype html>"


def test_every_alarm_has_plain_words() -> None:
    assert set(alarms.ALARMS) <= set(ALARMS)
    assert all(words.title and words.meaning and words.action for words in ALARMS.values())
    assert explain("leak") == ALARMS["leaking"]
    assert explain("something_new").title == "Something new"
