"""Models of ours as sources and judges, on tiny runs."""

from pathlib import Path

import pytest
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct.judging import JudgeResponses, read_opinions
from safe_rlhf_v.construct.models import CostJudge, GuardJudge, PolicyResponder, RewardJudge
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.construct.responses import Respond, read_pairs
from safe_rlhf_v.scoring.judge import Asked
from safe_rlhf_v.training.checkpoints import CheckpointError

pytestmark = pytest.mark.slow


def test_policies_respond_and_reward_and_cost_models_judge(policy_stages: Path, tmp_path: Path) -> None:
    def stages() -> list:
        run = str(policy_stages / "supervised")
        responders = {
            "hot": PolicyResponder(run, temperature=1.0, max_new_tokens=6),
            "hotter": PolicyResponder(run, temperature=1.5, max_new_tokens=6),
        }
        judges = {"reward": RewardJudge(str(policy_stages / "reward")), "cost": CostJudge(str(policy_stages / "cost"))}
        return [*first_stages(4)[:2], Respond(responders, batch_size=3), JudgeResponses(judges, probes=1.0)]

    work = build(tmp_path / "a", stages())
    again = build(tmp_path / "b", stages())
    assert work.rows("responses") == again.rows("responses")
    assert work.rows("judgements") == again.rows("judgements")
    texts = {row["text"] for row in work.rows("responses")}
    assert len(texts) > 8
    opinions = read_opinions(work)
    assert {(one.judge, one.axis) for one in opinions} == {("reward", "helpfulness"), ("cost", "safety")}
    assert all(one.value in (-1, 0, 1) for one in opinions) and not any(one.probe == "rate" for one in opinions)
    assert all(one.value == 0 for one in opinions if one.probe == "identical")


def test_reward_is_up_and_cost_is_down(policy_stages: Path, tmp_path: Path) -> None:
    work = build(tmp_path, first_stages(3))
    pairs = list(read_pairs(work).usable.values())
    for judge, axis, name, sign in (
        (RewardJudge(str(policy_stages / "reward")), "helpfulness", "reward", 1),
        (CostJudge(str(policy_stages / "cost")), "safety", "cost", -1),
    ):
        for pair in pairs:
            record = pair.item.record(work)
            first, second = (sign * judge.score(record, text)[name] for text in pair.texts)
            forward, other = judge.ask(
                [
                    Asked(record, pair.texts, axis),
                    Asked(record, pair.texts, "safety" if axis == "helpfulness" else "helpfulness"),
                ]
            )
            assert forward.value == (first > second) - (first < second)
            assert other.fault == "unknown"
    with pytest.raises(CheckpointError, match="a reward model is needed"):
        RewardJudge(str(policy_stages / "cost")).ask([Asked(pairs[0].item.record(work), pairs[0].texts, "helpfulness")])


def test_a_guard_rates_and_compares(calibrated_run: Path, tmp_path: Path) -> None:
    work = build(tmp_path, first_stages(2))
    item = next(iter(read_items(work).values()))
    judge = GuardJudge(str(calibrated_run))
    record = item.record(work)
    rated, same, helpful, unread = judge.ask(
        [
            Asked(record, ("this is one red knife .",), "safety"),
            Asked(record, ("take care .", "take care ."), "safety"),
            Asked(record, ("take care .",), "helpfulness"),
            Asked(record, ("",), "safety"),
        ]
    )
    assert rated.value in range(-3, 4) and rated.value == judge.score(record, "this is one red knife .")["level"]
    assert (same.value, helpful.fault, unread.fault) == (0, "unknown", "unknown")
    assert "empty" in unread.reply
