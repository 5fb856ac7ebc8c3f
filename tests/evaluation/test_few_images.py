"""Evaluations of few images, and of records that know nothing but a question and a picture: no crash, no false certainty."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.evaluation.unlabelled import Words, tiny, write_photographs

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation import Audit
from safe_rlhf_v.evaluation.figures import mean, share_difference

ONE = "All prompts of test are one image group, and prompts of one image are not independent: no interval can be given"


def finite(word: str) -> NoReturn:
    raise AssertionError(f"the summary holds {word}")


def evaluated(tmp_path: Path, prompts: int, images: int, **more: Any) -> tuple[dict[str, Any], str]:
    """Summary and text of the report."""
    data = write_photographs(tmp_path / "data", prompts, images)
    evaluate(**tiny(data, tmp_path / "out", audit=Audit(Words(), 3), grounding_prompts=3, **more))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=finite)
    page = re.sub(r"<style>.*?</style>|<[^>]*>", " ", (tmp_path / "out" / "report.html").read_text(), flags=re.DOTALL)
    return summary, " ".join(html.unescape(page).split())


def answers(summary: dict[str, Any]) -> dict[str, str]:
    return {row["question"]: row["answer"] for row in summary["verdicts"] if row["policy"] == "mine"}


@pytest.mark.parametrize("prompts", [1, 5])
def test_prompts_of_one_image_decide_nothing_and_the_report_says_why(
    prompts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, page = evaluated(tmp_path, prompts, 1)
    assert ONE in capsys.readouterr().out and ONE in page and ONE in summary["warnings"][0]
    assert set(answers(summary).values()) == {"undecided"} and "safer" in answers(summary)
    assert "no interval: too few image groups" in page and "unknown to unknown" not in page
    for name in ("responses", "judge_pictures"):  # there is no other picture
        assert {row["picture"] for row in Lines(tmp_path / "out", name).rows()} >= {"blank", "none"}
        assert "other" not in {row["picture"] for row in Lines(tmp_path / "out", name).rows()}
    assert "looks at the picture" not in answers(summary)


def test_two_images_that_agree_are_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, page = evaluated(tmp_path, 4, 2)
    assert "The prompts of test are 2 image groups only" in capsys.readouterr().out
    assert set(answers(summary).values()) == {"undecided"} and {"safer", "keeps the budget"} <= answers(summary).keys()
    (change,) = [row["changes"]["sampled"] for row in summary["verdicts"] if row["question"] == "safer"]
    assert change["value"] == change["low"] == -1 and change["high"] > 0
    assert "Read this first" in page


@pytest.mark.parametrize("images", [0, 8])
def test_enough_prompts_without_any_label_are_decided(
    images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, page = evaluated(tmp_path, 8, images)
    assert summary["warnings"] == [] and "Read this first" not in page
    assert answers(summary)["safer"] == answers(summary)["keeps the budget"] == "yes"
    assert ("looks at the picture" in answers(summary)) == bool(images)
    assert bool(summary["grounding"]["policies"]) == bool(images)


def test_without_labels_and_judges_there_is_nothing_to_judge_by(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "data", 2, 2)
    with pytest.raises(ValueError, match=r"judges: name at least one.*these data carry no ground truth"):
        evaluate(**tiny(data, tmp_path / "out", judges=None))


def test_means_on_which_few_groups_agree_have_no_interval() -> None:
    for groups in range(1, 8):
        found = mean([0.1] * 2 * groups, [str(i // 2) for i in range(2 * groups)])
        assert found.value == pytest.approx(0.1) and math.isnan(found.low) == math.isnan(found.high) == (groups < 6)
    assert math.isnan(mean([3.0] * 6, [*"abcdef"], confidence=0.99).low)  # 2 / 2^6 is above 1 %
    assert not math.isnan(mean([3.0, 4.0], [*"ab"]).low)


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_equal_differences_of_shares_stay_open_by_the_groups_that_could_differ(value: int) -> None:
    """With n groups alike, at most 1 - 0.025^(1/n) of the others are not."""
    for groups in (2, 5, 6, 40):
        others = 1 - 0.025 ** (1 / groups)
        found = share_difference([value] * groups, [*map(str, range(groups))])
        assert found[:3] == pytest.approx((value, value - others * (1 + value), value + others * (1 - value)))
        assert (found.low > 0 or found.high < 0) == (value != 0 and groups >= 6)


def test_a_difference_of_shares_lies_in_its_range() -> None:
    found = share_difference([-1.0, 0.0, 1.0, -1.0], [*"aabb"])
    assert (found.low, found.high) == (-1, 1)
    assert math.isnan(share_difference([1.0, 0.0], [*"aa"]).low)
