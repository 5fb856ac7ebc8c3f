"""What is missing, stale or counted twice never makes a policy look safer than it is."""

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.made_up import Simulated, World
from tests.evaluation.unlabelled import Echo, photograph, tiny

from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines as File
from safe_rlhf_v.evaluation.certificate import certify_rows, make_claim
from safe_rlhf_v.evaluation.certificate_rows import ScoredRow, read_evaluation, read_file
from safe_rlhf_v.evaluation.evidence import Cell, Evidence, Lines
from safe_rlhf_v.evaluation.figures import budget, paired
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.evaluation.summary import summarise, summary_of
from safe_rlhf_v.evaluation.verdicts import select
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardWriter

Scores = list[dict[str, Any]]
N = 200
"""Prompts, each with a picture of its own."""


def evidence(mine: Scores, start: Scores, mode: str = "sampled", **about: Any) -> Evidence:
    """A judge ``j`` on the policy ``mine`` and on the start; a score is its values, or ``{"fault": ...}``."""
    prompts = [{"split": "test", "key": f"k{i}", "group": f"g{i}", "question": "q"} for i in range(len(mine))]
    lines = Lines([], [], [], [], prompts, [])
    for policy, scores in (("start", start), ("mine", mine)):
        for i, score in enumerate(scores):
            at = {"policy": policy, "split": "test", "mode": mode, "picture": "real", "key": f"k{i}"}
            fault = score.get("fault", "")
            lines.responses.append({**at, "response": "r", "fault": fault if fault == "missing" else "", "values": {}})
            lines.scores.append({"judge": "j", **at, "values": {} if fault else score, "fault": fault})
    judges = [{"name": "j", "class": "J", "families": [], "independent_of": {}}]
    facts = {"start": "start", "judges": judges, "policies": [{"name": "start"}, {"name": "mine"}], **about}
    return Evidence(lines, facts)


def harmful(count: int, of: int = N) -> Scores:
    return [{"harmful": float(i < count)} for i in range(of)]


def answer(found: Evidence, question: str) -> dict[str, Any]:
    return select(summary_of(found)["verdicts"], policy="mine", question=question)[0]


@pytest.mark.parametrize("fault", ["missing", "unparsable", "refused", "unknown"])
def test_what_the_start_lacks_is_not_its_harm(fault: str) -> None:
    """Both are equally harmful; the start has no verdict on 24 of 200 responses."""
    lacking = [{"fault": fault} if 100 <= i < 124 else score for i, score in enumerate(harmful(10))]
    safer = answer(evidence(harmful(10), lacking), "safer")
    assert safer["answer"] == "undecided" and "harmful 5.0 % after 5.0 %" in safer["text"]
    # A policy that does not respond is no safer; what a judge cannot read may be either.
    of_policy = answer(evidence(lacking, harmful(10)), "safer")
    assert of_policy["answer"] == ("no" if fault == "missing" else "undecided")
    assert "harmful 17.0 % after 5.0 %" in of_policy["text"]


@pytest.mark.parametrize("unread, expected", [(20, "no"), (60, "undecided")])
def test_what_the_start_lacks_hides_no_harm_that_it_cannot_explain(unread: int, expected: str) -> None:
    lacking = [{"fault": "unparsable"} if i >= N - unread else score for i, score in enumerate(harmful(7))]
    assert answer(evidence(harmful(56), lacking), "safer")["answer"] == expected


@pytest.mark.parametrize("question", ["safer", "both at once", "more helpful"])
@pytest.mark.parametrize("fault", ["unparsable", "refused", "unknown"])
def test_equal_policies_stay_equal_whatever_a_judge_cannot_read(fault: str, question: str) -> None:
    scores = [
        {"fault": fault} if i % 30 == 7 else {"harmful": float(i % 5 == 0), "helpfulness": i % 4} for i in range(N)
    ]
    both = answer(evidence(scores, scores), question)
    assert both["answer"] == "undecided"
    low, high = (both["changes"]["sampled"][end] for end in ("low", "high"))
    assert low <= 0 <= high


@pytest.mark.parametrize("lacking", ["mine", "start"])
def test_who_answers_only_where_it_is_good_is_not_more_helpful(lacking: str) -> None:
    """One of both answers the prompts that are easy, on which it is better than the other; the rest is missing."""
    easy = [{"helpfulness": 2.0 + i % 3} if i < 60 else {"fault": "missing"} for i in range(N)]
    every = [{"helpfulness": 1.0 + i % 3} for i in range(N)]
    found = evidence(easy, every) if lacking == "mine" else evidence(every, easy)
    assert answer(found, "more helpful")["answer"] == "undecided"


def test_joint_success_of_the_start_is_not_lost_by_a_fault() -> None:
    good = [{"harmful": 0.0, "helpfulness": 2.0 + i % 3} for i in range(N)]
    lacking = [{"fault": "unparsable"} if i < 60 else score for i, score in enumerate(good)]
    assert answer(evidence(good, lacking), "both at once")["answer"] != "yes"


@pytest.mark.parametrize("left_out", [{}, {"cost": math.nan}, {"cost": None}])
def test_a_judge_that_leaves_its_verdict_out_has_not_judged(left_out: dict[str, Any]) -> None:
    costs: Scores = [{"cost": -1.0} if i % 2 else left_out for i in range(N)]
    found = evidence(costs, [{"cost": -1.0}] * N)
    figures = {row["name"]: row["value"] for row in select(summary_of(found)["figures"], policy="mine", judge="j")}
    assert figures["harmful"] == figures["unjudged"] == 0.5


def test_people_in_an_audit_may_leave_a_part_out() -> None:
    found = evidence(harmful(0, 2), harmful(0, 2))
    at = {"judge": "audit", "policy": "mine", "split": "test", "mode": "sampled", "picture": "real"}
    values = [{"helpfulness": 2.0, "level": None}, {"helpfulness": None, "level": 1.0}]
    found.lines.audit.extend({**at, "key": f"k{i}", "values": one, "fault": ""} for i, one in enumerate(values))
    audited = found.audit[Cell("mine", "test", "sampled")]
    assert [one["unjudged"] for one in audited.values()] == [0.0, 0.0]
    assert math.isnan(audited["k0"]["harmful"]) and audited["k1"]["harmful"] == 0.0


def test_a_response_without_a_cost_may_cost_more_than_the_budget() -> None:
    """The judge cannot read the costly responses."""
    true = [{"cost": 2.0 if i < 125 else -1.0} for i in range(N)]
    hidden = [{"fault": "unparsable"} if i < 125 else score for i, score in enumerate(true)]
    for mine, verdict in ((true, "broken"), (hidden, "undecided"), (true[125:], "met")):
        of_mine = select(budget(evidence(mine, true[: len(mine)], budget=0.0))["policies"], policy="mine")[0]
        assert of_mine["verdict"] == verdict and of_mine["unscored"] == (125 if mine is hidden else 0)
    text = answer(evidence(hidden, true, budget=0.0), "keeps the budget")["text"]
    assert "125 without a cost count as more than the budget" in text and "in the judgement of j" in text


def test_a_budget_without_a_cost_is_said() -> None:
    summary = summary_of(evidence(harmful(1), harmful(1), budget=0.1))
    assert summary["budget"] is None
    assert any("no judge gives a cost" in text for text in summary["warnings"])


def test_a_start_that_found_no_temperature_is_not_compared() -> None:
    found = evidence(harmful(30), harmful(30))
    for i in range(N):
        at = {"policy": "start", "split": "test", "mode": "matched:mine", "picture": "real", "key": f"k{i}"}
        found.responses.setdefault(Cell("start", "test", "matched:mine"), {})[f"k{i}"] = {**at, "fault": "unmatched"}
    own = Cell("mine", "test", "sampled")
    assert [other.mode for other in found.counterparts(own)] == ["sampled"]
    found.responses[Cell("start", "test", "matched:mine")]["k7"]["fault"] = ""
    assert [other.mode for other in found.counterparts(own)] == ["sampled", "matched:mine"]


def test_an_entropy_that_was_not_reached_decides_nothing() -> None:
    found = evidence(harmful(2), harmful(100), matched={"mine": {"why": "the nearest is taken"}})
    for i in range(N):
        at = {"policy": "start", "split": "test", "mode": "matched:mine", "picture": "real", "key": f"k{i}"}
        found.responses.setdefault(Cell("start", "test", "matched:mine"), {})[f"k{i}"] = {**at, "values": {}}
        found.scores["j"].setdefault(Cell("start", "test", "matched:mine"), {})[f"k{i}"] = {
            "harmful": float(i < 100), "unjudged": 0.0,
        }  # fmt: skip
    sharp = answer(found, "safer, at equal entropy")
    assert sharp["answer"] == "undecided" and "the nearest is taken" in sharp["text"]
    assert answer(found, "safer")["answer"] == "yes"


def test_helpfulness_and_reward_are_not_mixed() -> None:
    """Another picture leaves helpfulness as it is and lowers the reward."""
    scores = [{"harmful": 0.0, "helpfulness": float(i % 3), "reward": float(i % 5)} for i in range(N)]
    found = evidence(scores, scores)
    for i, score in enumerate(scores):
        at = {"policy": "mine", "split": "test", "mode": "sampled", "picture": "other", "key": f"k{i}"}
        found.lines.responses.append(at)
        found.responses.setdefault(Cell("mine", "test", "sampled", "other"), {})[f"k{i}"] = {**at, "values": {}}
        found.lines.scores.append({"judge": "j", **at, "values": {**score, "reward": score["reward"] - 2}, "fault": ""})
    looks = answer(found, "looks at the picture")
    assert looks["value"] == "helpfulness" and looks["answer"] == "undecided" and "reward" not in looks["text"]


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("questions", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_images_with_many_questions_get_no_place_of_their_own(questions: int, tmp_path: Path) -> None:
    """One image of ten has many questions and costs much; all others cost nothing. The policy breaks its budget."""
    rng = np.random.default_rng(0)
    claim = make_claim("p", "j", "cost", 0.048, 0.05, 1.0, 0.0)
    passed, trials = 0, 30
    for trial in range(trials):
        rows = []
        for group in range(1000):
            name = f"{trial}/{group}"
            several = questions if group % 10 == 0 else 1
            costs = (rng.random(several) < 0.5) * 1.0 if several > 1 else np.zeros(1)
            rows += [ScoredRow(f"{name}/{i}", name, float(cost), None) for i, cost in enumerate(costs)]
        passed += certify_rows(rows, claim, tmp_path / f"{trial}.jsonl", {}, True)["outcome"] == "passed"
    assert passed / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_a_certificate_of_images_says_what_all_responses_are(tmp_path: Path) -> None:
    """Ten images have a hundred harmful responses each: 77 % of the responses, 3 % of the images."""
    rows = [ScoredRow(f"a{i}", f"a{i}", 0.0, None) for i in range(300)]
    rows += [ScoredRow(f"b{i}/{j}", f"b{i}", 1.0, None) for i in range(10) for j in range(100)]
    entry = certify_rows(rows, make_claim("p", "j", "violations", 0.2, 0.05, None, None), tmp_path / "l", {}, True)
    assert entry["estimate"] == pytest.approx(10 / 310) and entry["mean_of_all"] == pytest.approx(1000 / 1300)


def test_errors_of_looks_with_other_deltas_add_up(tmp_path: Path) -> None:
    spent = 0.0
    for number, delta in enumerate((0.5, 0.05, 0.01)):
        rows = [ScoredRow(f"{number}/{i}", f"{number}/{i}", 0.0, None) for i in range(50)]
        claim = make_claim("p", "j", "violations", 0.2, delta, None, None)
        entry = certify_rows(rows, claim, tmp_path / "l", {}, True)
        spent += entry["error"]
        assert entry["spent"] == pytest.approx(spent)
    assert certify_rows(rows, claim, tmp_path / "l", {}, True)["spent"] == pytest.approx(spent)  # the same look again


@pytest.mark.parametrize(
    ("cost", "truth", "expected"),
    [("-1", "0.3", 1.0), ("-1", "-0.2", 0.0), ("-1", "1", 1.0), ("1", "0", 0.0), ("-1", "yes", 1.0), ("1", "false", 0.0)],
)  # fmt: skip
def test_the_truth_beside_a_cost_is_a_cost(cost: str, truth: str, expected: float, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"key,group,cost,truth\na,g,{cost},{truth}\n")
    (row,) = read_file(path, "violations")
    assert row.truth == expected and row.value == float(float(cost) > 0)


def test_scores_of_other_responses_are_refused(tmp_path: Path) -> None:
    """The responses were removed and written anew, as another policy's of the same name; evaluate refused the scores."""
    data = pictures_shared(tmp_path / "data", [(i,) for i in range(10)])
    out = tmp_path / "out"
    evaluate(**tiny(data, out, modes=["sampled"], pictures=["real"], probes=0.0))
    for name in ("responses.jsonl", "responses.json"):
        (out / name).unlink()
    changed = {"start": Echo("yes"), "mine": Echo("yes indeed")}
    with pytest.raises(ValueError, match=r"scores\.jsonl"):
        evaluate(**tiny(data, out, modes=["sampled"], pictures=["real"], probes=0.0, policies=changed))
    for read in (
        lambda: read_evaluation(out, "mine", "words", "violations", "test", "sampled"),
        lambda: response_rows(out, "mine"),
        lambda: summarise(out),
    ):
        with pytest.raises(ValueError, match="are not those of the responses that stand there"):
            read()


# --- image groups -----------------------------------------------------------------------------------------------------


def pictures_shared(root: Path, pictures: list[tuple[int, ...]]) -> Path:
    """Shards of records with these pictures."""
    with ShardWriter(root, name="shared", licence="CC0-1.0", taxonomy=None) as writer:
        for number, shades in enumerate(pictures):
            images = tuple(photograph(20 * shade) for shade in shades)
            writer.write("test", Record(f"k{number:03d}", f"What is {number}?", images))
    return root


def test_records_that_share_one_of_several_pictures_are_one_group(tmp_path: Path) -> None:
    data = pictures_shared(tmp_path / "data", [(0, 1), (0, 2), (3, 2), (4,), (5, 6)])
    evaluate(**tiny(data, tmp_path / "out", modes=["sampled"], pictures=["real", "other"], probes=0.0))
    groups = [row["group"] for row in File(tmp_path / "out", "prompts").rows()]
    assert groups[0] == groups[1] == groups[2] and len({*groups}) == 3
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())["figures"]
    (row,) = select(figures, policy="mine", name="harmful", mode="sampled", picture="real", judge="words")
    assert (row["n"], row["clusters"]) == (5, 3)


def test_each_picture_is_the_other_one_of_few(tmp_path: Path) -> None:
    from safe_rlhf_v.evaluation.prompts import PromptSet

    data = pictures_shared(tmp_path / "data", [(i,) for i in range(12)])
    prompts = PromptSet(data, ["test"], grounding=12)
    others = [prompts.record("test", one.key, "other").images[0].id for one in prompts.under("other")]
    own = [prompts.record("test", one.key).images[0].id for one in prompts.under("other")]
    assert sorted(others) == sorted(own) and all(a != b for a, b in zip(others, own, strict=True))


def test_the_difference_is_what_its_two_means_say() -> None:
    """A response that is not judged is worse than the worst, 1, by as much as this one is behind the best, 5."""
    mine = [{"helpfulness": 3.0} if i < 50 else {"helpfulness": None} for i in range(100)]
    start = [{"helpfulness": 1.0 if i < 50 else 5.0} for i in range(100)]
    found = evidence(mine, start)
    interval = paired(found, "j", Cell("mine", "test", "sampled"), Cell("start", "test", "sampled"), "helpfulness")
    assert interval.value == -3.0 and interval.n == 100
    assert "helpfulness 0.00 after 3.00 (difference -3.00" in answer(found, "more helpful")["text"]


def test_tables_of_judges_name_the_split_where_there_are_several() -> None:
    from safe_rlhf_v.evaluation.report import evaluation_page
    from safe_rlhf_v.reports.page import render

    world = World(
        {"start": 0.5, "mine": 0.1}, {"start": 1, "mine": 1}, {"world": Simulated(truth=True), "j": Simulated()}, 20
    )
    lines = world.lines()
    for file in lines:
        file.extend([{**row, "split": "hard"} for row in list(file) if row["split"] == "test"])
    summary = summary_of(Evidence(lines, {**world.about(), "splits": ["test", "hard"]}))
    text = html.unescape(render(evaluation_page(summary, {})))
    assert "mine on test" in text and "mine on hard" in text
    assert "mine on test" not in html.unescape(render(evaluation_page(summary_of(world.evidence()), {})))
