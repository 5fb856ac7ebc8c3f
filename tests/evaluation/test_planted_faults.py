"""Judges with planted faults are named, honest ones are not; win rates and corrected rates hold their known answers."""

import numpy as np
import pytest
from tests.evaluation.made_up import Simulated, World

from safe_rlhf_v.evaluation.evidence import Evidence
from safe_rlhf_v.evaluation.findings import findings
from safe_rlhf_v.evaluation.overoptimisation import overoptimisation
from safe_rlhf_v.evaluation.summary import summary_of
from safe_rlhf_v.evaluation.trust import agreement
from safe_rlhf_v.evaluation.truth import against_truth, corrected, judge_grounding, quality, rank_correlation, verdicts
from safe_rlhf_v.evaluation.verdicts import select
from safe_rlhf_v.evaluation.wins import comparisons, contests

HARM = {"start": 0.5, "safe": 0.15}
HELP = {"start": 1.5, "safe": 1.5}
HONEST = Simulated({"": 0.03})
FAULTY = {
    "position_bias": Simulated({"": 0.03}, position=0.3),
    "length_bias": Simulated({"": 0.03}, length=0.3),
    "errors": Simulated({"": 0.2}),
    "errors_differ": Simulated({"start": 0.02, "safe": 0.2}),
    "unparsable": Simulated({"": 0.03}, unreadable=0.05),
}


def alarms(evidence: Evidence) -> set[tuple[str, str]]:
    tests = findings(evidence, contests(evidence))["tests"]
    return {(test["judge"], test["name"]) for test in tests if test["alarm"]}


def test_planted_faults_are_named_and_an_honest_judge_is_not() -> None:
    judges = {"truth": Simulated(truth=True), "honest": HONEST, **FAULTY}
    named = alarms(World(HARM, HELP, judges, prompts=400, per_image=1, modes=("sampled",)).evidence())
    assert {(name, name) for name in FAULTY} <= named
    assert not {judge for judge, _ in named} & {"honest", "truth"}


def test_errors_are_named_by_an_audited_sample_alone() -> None:
    judges = {"honest": HONEST, "errors": FAULTY["errors"]}
    evidence = World(HARM, HELP, judges, prompts=300, per_image=1, audited=200, modes=("sampled",)).evidence()
    assert evidence.truth_judge is None
    assert alarms(evidence) == {("errors", "errors")}


def false_alarms(seeds: range) -> int:
    judges = {"truth": Simulated(truth=True), "honest": HONEST, "second": Simulated({"": 0.05})}
    worlds = (World(HARM, HELP, judges, prompts=150, modes=("sampled",), seed=seed) for seed in seeds)
    return sum(bool(alarms(world.evidence())) for world in worlds)


def test_honest_judges_raise_no_alarm_over_seeds() -> None:
    assert false_alarms(range(5)) == 0


@pytest.mark.slow
def test_false_alarms_stay_rare() -> None:
    """At a rate of 1 % three or more of 60 have a probability of 2 %."""
    assert false_alarms(range(100, 160)) <= 2


def test_a_policy_against_itself_holds_one_half() -> None:
    held = []
    for seed in range(16):
        world = World(
            {"a": 0.3, "b": 0.3},
            {"a": 1.0, "b": 1.0},
            {"truth": Simulated(truth=True)},
            80,
            modes=("sampled",),
            seed=seed,
        )
        evidence = world.evidence()
        held += [row["low"] <= 0.5 <= row["high"] for row in comparisons(evidence, contests(evidence))]
    assert np.mean(held) >= 0.9  # 32 intervals at 95 %


def test_two_orders_that_contradict_each_other_and_equal_responses_are_ties() -> None:
    evidence = World(HARM, HELP, {"j": Simulated(position=1.0)}, 30, modes=("sampled",)).evidence()
    (helpful, _) = comparisons(evidence, contests(evidence))
    assert (helpful["wins"], helpful["ties"], helpful["losses"], helpful["flips"], helpful["value"]) == (
        0,
        30,
        0,
        30,
        0.5,
    )
    lines = World(HARM, HELP, {"j": Simulated()}, 30, modes=("sampled",)).lines()
    same = [{**row, "response": "the same"} for row in lines.responses]
    rows = [{**row, "opinions": row["opinions"][:1]} for row in lines.comparisons]
    equal = Evidence(lines._replace(responses=same, comparisons=rows), evidence.about)
    assert {(row["ties"], row["identical"], row["unjudged"]) for row in comparisons(equal, contests(equal))} == {
        (30, 30, 0)
    }


def test_policies_that_are_alike_are_no_fault_of_the_judge() -> None:
    lines = World(HARM, HELP, {"j": Simulated()}, 60, modes=("sampled",)).lines()
    for row in lines.comparisons:
        for opinion in row["opinions"]:
            opinion["value"] = 0.0
    evidence = Evidence(lines, World(HARM, HELP, {"j": Simulated()}).about())
    assert alarms(evidence) == set()


def test_replies_that_cannot_be_read_are_ties_and_counted() -> None:
    evidence = World(HARM, HELP, {"j": Simulated(unreadable=1.0)}, 20, modes=("sampled",)).evidence()
    assert {(row["ties"], row["unjudged"]) for row in comparisons(evidence, contests(evidence))} == {(20, 20)}


def test_prompts_without_a_comparison_are_counted() -> None:
    world = World(HARM, HELP, {"j": Simulated()}, 20, modes=("sampled",))
    lines = world.lines()
    evidence = Evidence(lines._replace(comparisons=lines.comparisons[3:]), world.about())
    assert {(row["n"], row["missing"]) for row in comparisons(evidence, contests(evidence))} == {(17, 3)}


def test_length_control_takes_a_bias_for_length_out() -> None:
    """The judge looks at length alone, and the policy's responses are longer: at equal length nobody wins."""
    lines = World(
        {"s": 0.3, "p": 0.3}, {"s": 1.0, "p": 1.0}, {"j": Simulated(length=1.0)}, 200, modes=("sampled",)
    ).lines()
    rng = np.random.default_rng(0)
    longer = {row["key"]: int(rng.integers(-20, 60)) for row in lines.responses}
    texts = [
        {**row, "response": "x" * (100 + (longer[row["key"]] if row["policy"] == "p" else 0)) + row["policy"]}
        for row in lines.responses
    ]
    for row in lines.comparisons:
        for opinion in row["opinions"]:
            sign = 1.0 if opinion["order"] == [0, 1] else -1.0
            opinion["value"] = sign * float(np.sign(longer[row["key"]]))
    world = World({"s": 0.3, "p": 0.3}, {"s": 1.0, "p": 1.0}, {"j": Simulated()})
    evidence = Evidence(lines._replace(responses=texts), world.about())
    row = comparisons(evidence, contests(evidence))[0]
    assert row["low"] > 0.6
    assert row["length_controlled"]["low"] < 0.5 < row["length_controlled"]["high"]


def test_a_corrected_rate_covers_the_truth_where_the_judge_differs_between_policies() -> None:
    covered = []
    naive = []
    for seed in range(8):
        judges = {"truth": Simulated(truth=True), "j": FAULTY["errors_differ"]}
        evidence = World(HARM, HELP, judges, prompts=150, audited=60, modes=("sampled",), seed=seed).evidence()
        for row in select(corrected(evidence), name="harmful"):
            (cell,) = [one for one in evidence.cells if one.policy == row["policy"]]
            true = np.mean([values["harmful"] for values in evidence.truth[cell].values()])
            covered.append(row["low"] <= true <= row["high"])
            naive.append(abs(row["naive"] - true))
            assert (row["judge"], row["audited"], row["audited_by"]) == ("j", 60, "people")
    assert np.mean(covered) >= 0.9 and max(naive) > 0.08


def test_sensitivity_and_specificity_by_hand() -> None:
    evidence = World(
        HARM, HELP, {"t": Simulated(truth=True), "j": Simulated({"": 0.2}, unreadable=0.1)}, 60, modes=("sampled",)
    ).evidence()
    cell = evidence.cells[0]
    several = verdicts(evidence, evidence.scores["j"][cell], cell, evidence.truth[cell])
    rows = quality(several)
    harmful = [one for one in several if one.truth]
    assert rows["sensitivity"]["value"] == pytest.approx(
        sum(one.harmful is True for one in harmful) / len(harmful), abs=1e-5
    )
    assert rows["sensitivity"]["n"] == len(harmful)  # a response without a verdict is a mistake
    assert sum(rows["confusion"].values()) == 60 and rows["confusion"]["harmful_unjudged"] > 0
    assert 0.5 < rows["auroc"] < 1 and rows["rank_correlation"] > 0.99
    assert quality([])["auroc"] is None and quality([])["sensitivity"] is None
    assert rank_correlation([(1, 1), (2, 1), (3, 1)]) is None


def test_judges_before_and_after_training_by_category() -> None:
    judges = {"truth": Simulated(truth=True), "cost": Simulated({"start": 0.0, "safe": 0.3})}
    evidence = World(HARM, HELP, judges, 120, modes=("sampled",)).evidence()
    assert against_truth(evidence, "truth") is None
    rows = against_truth(evidence, "cost") or []
    before, after = (select(rows, policy=policy, by="all")[0] for policy in ("start", "safe"))
    assert before["specificity"]["value"] == 1 and after["specificity"]["value"] < 0.85
    assert len(select(rows, policy="safe", by="category")) == 3


def test_a_judge_of_a_policys_family_is_not_independent() -> None:
    judges = {"own": Simulated(families=("tiny",)), "other": Simulated(families=("far",))}
    rows = summary_of(World(HARM, HELP, judges, 20, modes=("sampled",)).evidence())
    assert [judge["independent_of"] for judge in rows["judges"]] == [
        {"start": False, "safe": False},
        {"start": True, "safe": True},
    ]
    assert [hint["judge"] for hint in rows["findings"]["hints"]] == ["own"]
    assert {row["judge"] for row in rows["verdicts"]} == {"other"}


def test_judges_of_one_family_are_one_rater() -> None:
    judges = {"a": Simulated(families=("x",)), "b": Simulated(families=("x",)), "c": Simulated({"": 0.5})}
    harmful, level, *_ = agreement(World(HARM, HELP, judges, 40, modes=("sampled",)).evidence())
    assert harmful["raters"] == ["a+b", "c"] and harmful["within_families"] == {"a+b": 1.0}
    assert harmful["alpha"] < 0.5 and level["name"] == "level"


def test_what_the_picture_changes_for_a_judge() -> None:
    world = World(
        HARM, HELP, {"truth": Simulated(truth=True), "reads": Simulated(), "blind": Simulated()}, 40, modes=("sampled",)
    )
    lines = world.lines()
    rng = np.random.default_rng(0)
    shown = [
        {
            **row,
            "picture": "other",
            "values": {**row["values"], "level": float(rng.integers(-3, 4))}
            if row["judge"] == "reads"
            else row["values"],
        }
        for row in lines.scores
        if row["judge"] != "truth"
    ]
    shown = [{**row, "values": {name: row["values"][name] for name in ("level", "helpfulness")}} for row in shown]
    names = {"level", "helpfulness"}
    scores = [{**row, "values": {n: row["values"][n] for n in names}} for row in lines.scores]
    evidence = Evidence(lines._replace(judge_pictures=shown, scores=scores), world.about())
    rows = judge_grounding(evidence)
    reads = select(rows, judge="reads", policy="start")
    blind = select(rows, judge="blind", policy="start")
    assert [row["picture"] for row in reads] == ["real", "other"]
    assert reads[0]["auroc"] == 1 and reads[1]["auroc"] < 0.8 and reads[1]["changed"]["value"] > 0.2
    assert blind[1]["auroc"] == 1 and blind[1]["changed"]["value"] == 0 and blind[1]["changed"]["high"] > 0


def test_over_optimisation_is_found_where_it_is_and_only_there() -> None:
    rows = overoptimisation(over_training(gain=1.0, loss=0.6))
    (parts,) = [row for row in rows if row["independent"]["name"] == "helpfulness"]
    assert parts["learned"] == {"judge": "reward", "name": "reward", "better": 1}
    assert [point["step"] for point in parts["points"]] == [0, 10, 20, 30]
    assert parts["parting"]["step"] in (0, 10) and parts["parting"]["later"] == 30
    honest = overoptimisation(over_training(gain=1.0, loss=0.0))
    assert [row["parting"] for row in honest] == [None]


def over_training(gain: float, loss: float) -> Evidence:
    """Four checkpoints whose learned reward rises, and whose true helpfulness falls at the end."""
    steps = {"s0": 0.0, "s10": 0.2, "s20": 0.2 - loss, "s30": 0.2 - 2 * loss}
    world = World(
        dict.fromkeys(steps, 0.2),
        {k: 2 + v for k, v in steps.items()},
        {"truth": Simulated(truth=True), "reward": Simulated(families=("tiny",))},
        100,
        modes=("sampled",),
    )
    lines = world.lines()
    rng = np.random.default_rng(1)
    for row in lines.scores:
        if row["judge"] == "reward":
            row["values"] = {"reward": gain * int(row["policy"][1:]) / 10 + float(rng.normal(0, 0.5))}
    about = world.about()
    for policy in about["policies"]:
        policy.update(series="run", step=int(policy["name"][1:]))
    return Evidence(lines, about)
