"""Each alarm: its exact test by hand, its false-alarm rate, and the fault that it is for."""

import random
from collections import Counter

import pytest
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct.alarms import (
    ALARMS,
    Check,
    Gold,
    Tolerances,
    at_most,
    axes_of,
    checks_of_judge,
    not_tested,
    raised,
)
from safe_rlhf_v.construct.judging import Judgement, JudgeResponses, opinions_in
from safe_rlhf_v.construct.measures import Rate
from safe_rlhf_v.construct.responses import read_pairs
from safe_rlhf_v.construct.stage import Workspace
from safe_rlhf_v.scoring.judge import AXES, Asked
from safe_rlhf_v.world import SimulatedJudge, WorldJudge


def test_exact_tests_by_hand() -> None:
    assert at_most("leaking", None, None, Rate(3, 3), 0.5).p == pytest.approx(1 / 8)
    assert at_most("leaking", None, None, Rate(2, 3), 0.5).p == pytest.approx(4 / 8)
    assert at_most("unparsable", "a", None, Rate(2, 2), 0.01).p == pytest.approx(0.01**2)
    assert at_most("unparsable", "a", None, Rate(0, 0), 0.01).p == 1


def position(first: int, second: int) -> Check:
    opinions = [
        Judgement(f"{side}{i}", "a", "compare", "safety", order, value, "", "")
        for side, count, value in (("f", first, 1.0), ("s", second, -1.0))
        for i in range(count)
        for order in ((0, 1), (1, 0))
    ]
    checks = checks_of_judge("a", axes_of(opinions), None, Tolerances())
    return next(check for check in checks if check.name == "position_bias")


def test_position_bias_is_two_sided() -> None:
    assert position(4, 0).p == pytest.approx(2 / 16)
    assert (position(0, 4).p, position(0, 4).side, position(0, 4).count) == (pytest.approx(2 / 16), "second", 4)
    assert position(2, 2).p == 1
    assert "reads first: 4 of 4" in position(4, 0).sentence()


def pictures(only_swapped: int, only_repeated: int, unmoved: int) -> list[Check]:
    opinions = []
    for i in range(only_swapped + only_repeated + unmoved):
        again = 1.0 if only_swapped <= i < only_swapped + only_repeated else 0.0
        swapped = 1.0 if i < only_swapped else 0.0
        for probe, value in (("rate", 0.0), ("repeat_rate", again), ("swapped", swapped)):
            opinions.append(Judgement(str(i), "a", probe, "safety", (0,), value, "", ""))
    return [c for c in checks_of_judge("a", axes_of(opinions), None, Tolerances()) if c.name == "picture_not_read"]


def test_a_judge_has_to_prove_that_it_reads_the_picture() -> None:
    (blind,) = pictures(0, 0, 30)
    assert blind.p == 1 and raised([blind], Tolerances()) == [True]
    (reads,) = pictures(10, 0, 20)
    assert reads.p == pytest.approx(1 / 1024) and raised([reads], Tolerances()) == [False]
    (noisy,) = pictures(8, 8, 14)
    assert raised([noisy], Tolerances()) == [True]
    assert pictures(0, 0, 19) == []  # too few to say


def test_the_false_alarm_rate_is_shared_among_the_tests() -> None:
    rare = Check("leaking", None, None, 9, 10, 0.1, 0.004)
    assert raised([rare], Tolerances()) == [True]
    assert raised([rare] * 3, Tolerances()) == [False] * 3  # 0.01 / 3
    picture = Check("picture_not_read", "a", None, 0, 0, 0.5, 1.0)
    assert raised([rare, picture], Tolerances()) == [True, True]  # not counted


def test_tolerances_are_shares() -> None:
    with pytest.raises(ValueError, match="ties is 1"):
        Tolerances(ties=1)


def test_every_alarm_has_a_sentence() -> None:
    for name in ALARMS:
        sentence = Check(name, "a judge", "safety", 3, 9, 0.5, 0.0, "first").sentence()
        assert "{" not in sentence and sentence.endswith("(safety).")


FAULTS = {
    "position_bias": SimulatedJudge(seed=4, position_bias=0.4),
    "length_bias": SimulatedJudge(seed=5, length_bias=0.5),
    "too_many_ties": SimulatedJudge(seed=6, lazy=1.0),
    "picture_not_read": SimulatedJudge(seed=7, blind=True),
    "unparsable": SimulatedJudge(seed=8, garbage=0.05),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One stored set of responses."""
    return build(tmp_path_factory.mktemp("stored"), first_stages(images=45))


def gold_of(work: Workspace) -> Gold:
    gold = Gold({axis: {} for axis in AXES}, {axis: {} for axis in AXES})
    for key, pair in read_pairs(work).usable.items():
        record = pair.item.record(work)
        for axis in AXES:
            choice, *ratings = WorldJudge().ask(
                [Asked(record, pair.texts, axis), *(Asked(record, (text,), axis) for text in pair.texts)]
            )
            gold.choices[axis][key] = {1: 0, -1: 1, 0: -1}[int(choice.value or 0)]
            gold.ratings[axis] |= {(key, i): float(one.value or 0) for i, one in enumerate(ratings)}
    return gold


def alarms_of(work: Workspace, judges: dict[str, SimulatedJudge]) -> Counter[tuple[str, str]]:
    stage = JudgeResponses(judges, probes=1.0)
    opinions = opinions_in(stage.do(work, stage.tasks(work)))
    checks = [
        check
        for name in judges
        for check in checks_of_judge(
            name, axes_of([o for o in opinions if o.judge == name]), gold_of(work), Tolerances()
        )
    ]
    return Counter(
        (str(check.judge), check.name)
        for check, alarm in zip(checks, raised(checks, Tolerances()), strict=True)
        if alarm
    )


def test_every_planted_fault_is_found_and_named(stored: Workspace) -> None:
    alarms = alarms_of(stored, {**FAULTS, "careful": SimulatedJudge(seed=1), "second": SimulatedJudge(seed=2)})
    assert {(fault, fault) for fault in FAULTS} <= set(alarms)
    # Who always says the same is not shown to look, either; nobody else has an alarm.
    assert set(alarms) == {(fault, fault) for fault in FAULTS} | {("too_many_ties", "picture_not_read")}


def test_without_faults_there_is_no_alarm(stored: Workspace) -> None:
    """Ten seeds of judges; the evidence has twenty with bounds. At most one audit in a hundred may raise an alarm."""
    alarms = sum(bool(alarms_of(stored, {"a": SimulatedJudge(seed=100 + i)})) for i in range(10))
    assert alarms == 0


def test_gold_items_find_a_judge_who_contradicts_them(stored: Workspace) -> None:
    class Backwards(SimulatedJudge):
        """Says the opposite."""

        def _value(self, *args: object) -> float:
            return -super()._value(*args)  # type: ignore[arg-type]

    assert ("backwards", "against_gold") in alarms_of(stored, {"backwards": Backwards()})


def test_an_unstable_judge_is_found(stored: Workspace) -> None:
    assert ("wild", "unstable") in alarms_of(stored, {"wild": SimulatedJudge(noise=4.0)})


def computed(pairs: int, chance: random.Random) -> list[Judgement]:
    """A judge without fault that computes scores: what it says in one order follows from the other."""
    opinions = []
    for i in range(pairs):
        choice = 0.0 if chance.random() < 0.5 else chance.choice((1.0, -1.0))
        longer = chance.choice((1.0, -1.0))
        for probe, order, value in (
            ("compare", (0, 1), choice), ("compare", (1, 0), -choice), ("repeat", (0, 1), choice),
            ("padded", (0, 2), -longer), ("padded", (2, 0), longer),
        ):  # fmt: skip
            opinions.append(Judgement(str(i), "a", probe, "safety", order, value, "", ""))
    return opinions


def test_a_pair_is_one_event() -> None:
    """100 pairs a judge; at the stated rate of 5 % at most 11 of 100 audits have an alarm with a probability of 99 %."""
    chance = random.Random(0)
    tolerances = Tolerances(false_alarm_rate=0.05)
    alarms = 0
    for _ in range(100):
        checks = checks_of_judge("a", axes_of(computed(100, chance)), None, tolerances)
        assert all(check.of <= 100 for check in checks if check.name != "unparsable")
        alarms += any(raised(checks, tolerances))
    assert alarms <= 11


def test_two_axes_of_a_pair_are_one_event() -> None:
    """A judge that does not look, and changes the ratings of both axes together, passes at most as often as stated."""
    chance = random.Random(0)
    tolerances = Tolerances(false_alarm_rate=0.05)
    passed = 0
    for _ in range(200):
        opinions = []
        for i in range(40):
            again, swapped = (float(chance.random() < 0.4) for _ in range(2))
            for axis in AXES:
                for probe, value in (("rate", 0.0), ("repeat_rate", again), ("swapped", swapped)):
                    opinions.append(Judgement(str(i), "a", probe, axis, (0,), value, "", ""))
        checks = checks_of_judge("a", axes_of(opinions), None, tolerances)
        alarms = dict(zip((check.name for check in checks), raised(checks, tolerances), strict=True))
        passed += not alarms["picture_not_read"]
    assert passed <= 18  # of 200 at 5 %, with a probability of 99 %


@pytest.mark.parametrize("pairs", [0, 19, 20])
def test_what_cannot_be_tested_is_said(pairs: int) -> None:
    opinions = [
        Judgement(str(i), "a", probe, axis, (0,), 1.0, "", "")
        for i in range(pairs)
        for probe in ("rate", "repeat_rate", "swapped")
        for axis in AXES
    ]
    stated = not_tested(axes_of(opinions))
    if pairs >= 20:
        assert stated == {}
        return
    reason = f"not tested: {pairs} pairs were rated again and beside another picture, it takes 20"
    assert stated == {"picture_not_read": reason}
    assert not any(c.name == "picture_not_read" for c in checks_of_judge("a", axes_of(opinions), None, Tolerances()))
