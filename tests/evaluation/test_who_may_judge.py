"""Who may judge, audit and be held against a budget: dependence is named, and nothing follows from what is not known."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.evaluation.made_up import Simulated, World, store
from tests.evaluation.test_never_safer import N, evidence, harmful
from tests.evaluation.unlabelled import Echo, Words, tiny, write_photographs

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct import CostJudge
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation import BestOf, ModelPolicy, facts
from safe_rlhf_v.evaluation.audit import Audit
from safe_rlhf_v.evaluation.budgets import judge_of_run
from safe_rlhf_v.evaluation.evidence import Evidence
from safe_rlhf_v.evaluation.facts import _audit, independence
from safe_rlhf_v.evaluation.figures import budget
from safe_rlhf_v.evaluation.summary import summary_of
from safe_rlhf_v.evaluation.truth import corrected
from safe_rlhf_v.evaluation.verdicts import select
from safe_rlhf_v.evaluation.work import described
from safe_rlhf_v.policy.answers import Answer
from safe_rlhf_v.shards.split import file_sha256
from safe_rlhf_v.training import lineage


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy was trained against the run ``cost``."""
    monkeypatch.setattr(lineage, "trained_against", lambda run: lineage.marks("cost"))


def test_a_policy_chosen_by_a_judge_without_a_model_is_not_independent_of_it() -> None:
    class Other(Words):
        def __init__(self, word: str) -> None:
            self.word = word

    best = BestOf(Echo("no"), cost=Other("a"))
    found = independence({"best": best, "plain": Echo("no")}, {"a": Other("a"), "b": Other("b"), "w": Words()}, ())
    assert found == {
        "a": {"best": False, "plain": True}, "b": {"best": True, "plain": True}, "w": {"best": True, "plain": True}
    }  # fmt: skip


def test_an_auditor_is_looked_at_like_any_judge(trained: None, tmp_path: Path) -> None:
    work: Any = SimpleNamespace(folder=tmp_path, policies={"aligned": ModelPolicy("aligned"), "echo": Echo("no")})
    assert _audit(work, Audit(CostJudge("cost")), ())["independent_of"] == {"aligned": False, "echo": True}
    assert _audit(work, Audit(CostJudge("other")), ())["independent_of"] == {"aligned": True, "echo": True}


def test_an_audit_that_is_not_independent_is_named_and_certifies_nothing(tmp_path: Path, capsys: Any) -> None:
    world = World({"start": 0.5, "mine": 0.0}, {"start": 1, "mine": 1}, {"j": Simulated()}, 40, 1, 20, ("sampled",))
    about = world.about()
    about["audit"] |= {"class": "CostJudge", "independent_of": {"start": True, "mine": False}, "done": True}
    (hint,) = summary_of(Evidence(world.lines(), about))["findings"]["hints"]
    assert hint["policies"] == ["mine"] and "The audit (CostJudge) is not independent of mine" in hint["text"]
    (tmp_path / "evaluation.json").write_text(json.dumps(about))
    store(tmp_path, **world.lines()._asdict())
    words = ["certify", "--evaluation", str(tmp_path), "--judge", "j", "--budget", "0.3"]
    assert main([*words, "--policy", "mine"]) == 2
    assert "the audit (CostJudge) is not independent of mine" in capsys.readouterr().err
    assert main([*words, "--policy", "mine", "--audit", "false"]) == 0
    assert main([*words, "--policy", "start"]) == 3 and "the truth of audited ones" in capsys.readouterr().out


def test_who_was_trained_on_what_is_evaluated_is_named(policy_stages: Path, world: Path, tmp_path: Path) -> None:
    """Wherever the data lie now."""
    run = str(policy_stages / "cost")
    manifest = file_sha256(world / "manifest.json")
    assert {(manifest, "train"), (manifest, "supervised")} <= lineage.trained_on(run)  # by itself, and by its start
    policies = {"best": BestOf(ModelPolicy(run), cost=Words()), "echo": Echo("no")}
    shutil.copytree(world, tmp_path / "copy")
    named = facts.trained_here([*policies.items(), ("cost", CostJudge(run))], tmp_path / "copy", ["test", "train"])
    assert named == {"best": ["train"], "cost": ["train"]}
    echo = Echo("no")
    unlike = [("one", ModelPolicy(run)), ("one", Words()), ("best", BestOf(echo, cost=CostJudge(run))), ("e", echo)]
    assert facts.trained_here(unlike, world, ["train"]) == {"one": ["train"], "best": ["train"]}
    assert facts.trained_here(facts._auditor(Audit(CostJudge(run))), world, ["train"]) == {"the audit": ["train"]}
    other = write_photographs(tmp_path / "other", 6, 6)
    assert facts.trained_here([("cost", CostJudge(run))], other, ["test", "train"]) == {}
    found = evidence(harmful(1), harmful(1), trained_on={"mine": ["train"]})
    assert any("mine was trained on train" in text for text in summary_of(found)["warnings"])


@pytest.mark.parametrize(
    ("name", "audit", "refused"),
    [
        ("mine", "true", True), ("mine", "false", True), ("start", "true", False),
        ("the audit", "true", True), ("the audit", "false", False), ("j", "true", False), ("j", "false", True),
    ],
)  # fmt: skip
def test_nothing_is_certified_on_prompts_that_were_trained_on(
    name: str, audit: str, refused: bool, tmp_path: Path, capsys: Any
) -> None:
    """By whom the responses are judged counts: with an audit the judge's word does not."""
    world = World({"start": 0.5, "mine": 0.05}, {"start": 1, "mine": 1}, {"j": Simulated()}, 200, 1, 200, ("sampled",))
    about = world.about() | {"trained_on": {name: ["test"]}}
    about["audit"] |= {"done": True}
    (tmp_path / "evaluation.json").write_text(json.dumps(about))
    store(tmp_path, **world.lines()._asdict())
    words = ["certify", "--evaluation", str(tmp_path), "--policy", "mine", "--judge", "j", "--budget", "0.9"]
    assert main([*words, "--audit", audit]) == (2 if refused else 0)
    assert (f"{name} was trained on test" in capsys.readouterr().err) is refused


def folder(root: Path, name: str, kind: str) -> str:
    """A model's folder that says what it descends from."""
    place = root / name
    place.mkdir()
    (place / "model.safetensors").write_bytes(name.encode())
    (place / "config.json").write_text(json.dumps({"model_type": kind}))
    return str(place)


def test_a_judge_is_known_by_its_folder_as_a_policy_is(tmp_path: Path) -> None:
    policy, relative, stranger = (
        folder(tmp_path, name, kind)
        for name, kind in (("policy", "qwen2_vl"), ("reward", "qwen2_vl"), ("other", "llava"))
    )
    judges = {name: CostJudge(run) for name, run in (("own", policy), ("relative", relative), ("stranger", stranger))}
    judges["on_its_base"] = CostJudge(stranger, base=policy)
    found = independence({"p": ModelPolicy(policy)}, judges, ())
    assert {name: one["p"] for name, one in found.items()} == {
        "own": False, "relative": False, "stranger": True, "on_its_base": False
    }  # fmt: skip
    inner = Words()
    outer = Echo("no")
    for around, within in ((inner, judges["relative"]), (outer, ModelPolicy(policy))):
        vars(around)["inner"] = within
    wrapped = independence({"p": ModelPolicy(policy), "outer": outer}, {"inner": inner, "plain": Words()}, ())
    assert wrapped == {"inner": {"p": False, "outer": False}, "plain": {"p": True, "outer": True}}
    labels = independence({"echo": Echo("no")}, judges, ["qwen"])
    assert [labels[name]["echo"] for name in ("relative", "stranger")] == [False, True]


def test_models_of_one_start_are_of_one_family(policy_stages: Path) -> None:
    """Both were trained from the supervised policy, neither against the other."""
    judge = CostJudge(str(policy_stages / "cost"))
    assert independence({"start": ModelPolicy(str(policy_stages / "supervised"))}, {"cost": judge}, ()) == {
        "cost": {"start": False}
    }


def test_missing_responses_stay_harmful_in_corrected_rates() -> None:
    """30 % are missing; of the others the judge calls a tenth harmful, and the audit finds none."""
    scores: list[dict[str, Any]] = [
        {"fault": "missing"} if i % 10 < 3 else {"harmful": float(i % 10 == 5)} for i in range(N)
    ]
    found = evidence(scores, harmful(0))
    for i in range(0, N, 3):
        at = {"judge": "audit", "policy": "mine", "split": "test", "mode": "sampled", "picture": "real", "key": f"k{i}"}
        missing = i % 10 < 3
        found.lines.audit.append({**at, "values": {} if missing else {"harmful": 0.0}, "fault": "missing" * missing})
    (row,) = select(corrected(found), policy="mine", name="harmful")
    assert row["low"] < 0.3 < row["high"] and row["low"] > 0.15


@pytest.mark.parametrize("prompts", [6, 8, 20, 30])
def test_equal_costs_say_nothing_about_costs_that_were_not_met(prompts: int) -> None:
    """The judge gives -1 or +1: a policy with 6 % of +1 has a mean of -0.88, and often none of +1 among few prompts."""
    equal, mixed = [{"cost": -1.0}] * prompts, [{"cost": 1.0 if i == 0 else -1.0} for i in range(prompts)]
    row = select(budget(evidence(equal, mixed, budget=-0.9))["policies"], policy="mine")[0]
    assert (row["verdict"], row["value"]) == ("undecided", -1.0) and row["low"] == -1.0
    many = 1 - 0.025 ** (1 / prompts)  # share that 0 of n allow at 97.5 %
    assert row["high"] == pytest.approx(-1 + 2 * many, abs=1e-4)
    row = select(budget(evidence(equal, equal, budget=-0.9))["policies"], policy="mine")[0]
    assert row["verdict"] == "undecided" and row["high"] is None  # nobody knows what else it could give


def test_many_equal_costs_are_within_a_budget() -> None:
    found = evidence([{"cost": -1.0}] * 400, [{"cost": 1.0 if i == 0 else -1.0} for i in range(400)], budget=-0.9)
    assert select(budget(found)["policies"], policy="mine")[0]["verdict"] == "met"


def two_costs(**about: Any) -> Evidence:
    found = evidence(
        [{"cost": -4.0 - i % 2} for i in range(N)], [{"cost": -4.0} for _ in range(N)], budget=0.0, **about
    )
    found.judges["unit"] = {"name": "unit", "families": [], "independent_of": {}}
    found.lines.scores.extend(
        [{**row, "judge": "unit", "values": {"cost": 2.0 + i % 2}} for i, row in enumerate(list(found.lines.scores))]
    )
    return found


def test_a_budget_is_held_against_the_judge_in_whose_unit_it_is() -> None:
    first, named = (summary_of(two_costs(**about)) for about in ({}, {"budget_judge": "unit"}))
    assert first["budget"]["judge"] == "j" and named["budget"]["judge"] == "unit"
    assert {row["verdict"] for row in named["budget"]["policies"]} == {"broken"}
    assert any("j, unit give a cost, each in its own unit" in text for text in first["warnings"])
    assert not any("give a cost" in text for text in named["warnings"])


def test_the_cost_model_of_a_run_is_found_among_the_judges(trained: None) -> None:
    judges = {"words": Words(), "other": CostJudge("elsewhere"), "own": CostJudge("cost")}
    assert judge_of_run("aligned", judges) == "own"
    assert judge_of_run("aligned", {"words": Words(), "other": CostJudge("elsewhere")}) is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(None, 1)], "policies.mine: has a step and no series"),
        ([("run", 1), ("run", 1)], "policies.p1: is step 1 of the series run, as policies.mine is"),
    ],
)
def test_checkpoints_have_a_series_and_a_step_of_their_own(tmp_path: Path, steps: Any, words: str) -> None:
    data = write_photographs(tmp_path / "data", 6, 6)
    policies: dict[str, Any] = {"start": Echo("yes")}
    for i, (series, step) in enumerate(steps):
        policies[f"p{i}" if i else "mine"] = policy = Echo("no")
        policy.series, policy.step = series, step
    with pytest.raises(ValueError, match=words):
        evaluate(**{**tiny(data, tmp_path / "out"), "policies": policies})


def test_the_weights_under_an_adapter_count(tmp_path: Path) -> None:
    """A resume never mixes responses of two bases."""
    adapter, base, other = (tmp_path / name for name in ("adapter", "base", "other"))
    for folder in (adapter, base, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(folder.name.encode())
        (folder / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))

    def settings(named: Path | None) -> Any:
        policy = ModelPolicy(str(adapter), base=None if named is None else str(named))
        judge = CostJudge(str(adapter), base=None if named is None else str(named))
        return [one["content"] for one in described({"p": policy, "j": judge}).values()]

    before = settings(None), settings(base), settings(other)
    assert before[0] == before[1] != before[2]
    (base / "model.safetensors").write_bytes(b"trained on")
    after = settings(None), settings(base), settings(other)
    assert after[0] != before[0] and after[1] != before[1] and after[2] == before[2]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_no_number_is_not_known(tmp_path: Path, value: float) -> None:
    class Odd(Echo):
        def respond(self, records: Any, *rest: Any) -> list[Answer]:
            return [answer._replace(values={"kl": value}) for answer in super().respond(records, *rest)]

    options = tiny(write_photographs(tmp_path / "data", 6, 6), tmp_path / "out", modes=["sampled"], pictures=["real"])
    evaluate(**{**options, "policies": {"start": Echo("yes"), "mine": Odd("no")}})
    assert [row["values"] for row in Lines(tmp_path / "out", "responses").rows() if row["policy"] == "mine"] == [
        {"kl": None}
    ] * 6


def test_scores_beyond_what_can_be_squared_are_not_known() -> None:
    rows = [{"reward": 6e99 if i % 2 else -6e99} for i in range(N)]
    figures = summary_of(evidence(rows, rows[::-1]))["figures"]
    assert {row["n"] for row in select(figures, name="reward")} == {0}
