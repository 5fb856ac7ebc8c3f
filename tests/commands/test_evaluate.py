"""The command that evaluates policies, on tiny runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct import CostJudge, RewardJudge
from safe_rlhf_v.construct.judging import opinions_in
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.construct.measures import choices
from safe_rlhf_v.evaluation import Audit, BestOf, ModelPolicy, PeopleRatings, RefusalWords, ResponsesFile
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.world import SimulatedJudge, WorldJudge

HOSTILE = "<script>alert(1)</script> \u202e =1+1 \u0000 {{x}}"


class Broken(Judge):
    """Gives NaN, infinity, and once something that is no number."""

    def __init__(self, word: str = "") -> None:
        self.word = word

    def score(self, record: Record, text: str) -> dict[str, float]:
        value: Any = "three" if self.word and self.word in record.key else math.inf
        return {"level": math.nan, "harmful": math.nan, "other": value}


def options(runs: Path, world: Path, out: Path, **more: Any) -> dict[str, Any]:
    policies = {"start": ModelPolicy(str(runs / "supervised")), "mine": ModelPolicy(str(runs / "supervised"), seed=5)}
    judges = {"truth": WorldJudge(), "cost": CostJudge(str(runs / "cost")), "asked": SimulatedJudge(garbage=0.2)}
    small = {"max_new_tokens": 6, "batch_size": 5, "grounding_prompts": 2, "most_prompts": 6, "device": "cpu"}
    return {
        "policies": policies, "start": "start", "data": world, "output": out, "judges": judges,
        "audit": Audit(WorldJudge(), 3), "modes": ["sampled", "greedy", "matched"], **small, **more,
    }  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    return {path.name: path.read_bytes() for path in names if path.name != "summary.json"}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return Lines(folder, name).rows()


@pytest.fixture(scope="module")
def finished(policy_stages: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate(**options(policy_stages, world, out))
    return out


def test_what_an_evaluation_leaves(finished: Path) -> None:
    responses = rows(finished, "responses")
    modes = {(row["policy"], row["mode"], row["picture"]) for row in responses}
    assert modes == {
        *((name, "sampled", picture) for name in ("start", "mine") for picture in ("real", "other", "blank", "none")),
        ("start", "greedy", "real"), ("mine", "greedy", "real"), ("start", "matched:mine", "real"),
    }  # fmt: skip
    assert {len(row["values"]) for row in responses if row["mode"] == "sampled"} == {4}
    assert all("entropy" not in row["values"] for row in responses if row["mode"] == "greedy")
    assert {row["values"]["kl"] for row in responses if row["policy"] == "start" and row["mode"] == "sampled"} == {0}
    by_mode = {
        mode: [row["response"] for row in responses if row["policy"] == mode[0] and row["mode"] == mode[1]]
        for mode in (("start", "sampled"), ("mine", "sampled"), ("start", "greedy"), ("mine", "greedy"))
    }
    assert by_mode["start", "greedy"] == by_mode["mine", "greedy"]
    assert by_mode["start", "sampled"] != by_mode["mine", "sampled"]  # other seeds
    scores = rows(finished, "scores")
    assert len(scores) == 3 * len(responses)
    assert all(row["fault"] == "unparsable" and row["reply"] for row in scores if row["fault"])
    assert any(row["fault"] for row in scores if row["judge"] == "asked")
    assert all(row["values"]["harmful"] == float(row["values"]["cost"] > 0) for row in scores if row["judge"] == "cost")
    facts = json.loads((finished / "evaluation.json").read_text())
    assert facts["start"] == "start" and facts["matched"]["mine"]["temperature"] > 0
    assert {row["picture"] for row in rows(finished, "judge_pictures")} == {"other", "blank", "none"}
    assert {row["judge"] for row in rows(finished, "judge_pictures")} == {"cost", "asked"}
    assert len(rows(finished, "audit")) == 2 * 2 * 3
    assert (finished / "report.html").stat().st_size > 1000
    assert json.loads((finished / "summary.json").read_text())["start"] == "start"


def test_comparisons_by_scores_are_the_same_in_both_orders_and_others_are_asked(finished: Path) -> None:
    compared = rows(finished, "comparisons")
    assert {row["mode"] for row in compared} == {"sampled", "greedy", "matched:mine"}
    for row in compared:
        opinions = opinions_in([{**row, "pair": row["key"]}])
        for axis in {one.axis for one in opinions}:
            forward, backward = (one.value for one in opinions if one.axis == axis and one.probe == "compare")
            assert row["judge"] == "asked" or forward == -backward
        assert row["judge"] != "cost" or set(choices(opinions).values()) <= {-1, 0, 1}
    greedy = [one["value"] for row in compared if row["mode"] == "greedy" for one in row["opinions"]]
    assert set(greedy) == {0}  # the same response twice: nobody is asked


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_gives_the_same_bytes(
    finished: Path, policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    class Counting(WorldJudge):
        left = 10**9
        __module__ = WorldJudge.__module__  # lines hold the class of a judge
        __qualname__ = WorldJudge.__qualname__

        def score(self, record: Record, text: str) -> dict[str, float]:
            Counting.left -= 1
            if Counting.left < 0:
                raise Killed
            return super().score(record, text)

    wanted = files(finished)
    for calls in (7, 10**9):
        Counting.left = calls
        judges = {**options(policy_stages, world, tmp_path)["judges"], "truth": Counting()}
        judges["truth"].__class__.__module__, judges["truth"].__class__.__qualname__ = (
            "safe_rlhf_v.world.judge",
            "WorldJudge",
        )
        try:
            evaluate(**options(policy_stages, world, tmp_path, judges=judges))
        except Killed:
            file = tmp_path / "responses.jsonl"  # half a line, as of a process that was killed
            cut = file.read_bytes()[:-40]
            file.write_bytes(cut)
            note = json.loads((tmp_path / "responses.json").read_text())
            note.pop("sha256")
            (tmp_path / "responses.json").write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n")
            (tmp_path / "temperatures.json").unlink()
    result = files(tmp_path)
    assert {name for name in wanted if wanted[name] != result[name]} <= {"evaluation.json"}  # the class's name


def test_responses_do_not_depend_on_their_neighbours(
    finished: Path, policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    evaluate(**options(policy_stages, world, tmp_path, modes=["sampled"], pictures=["real"], batch_size=2, judges=None))
    texts = {row["key"]: row["response"] for row in rows(tmp_path, "responses") if row["policy"] == "mine"}
    others = {
        row["key"]: row["response"]
        for row in rows(finished, "responses")
        if (row["policy"], row["mode"], row["picture"]) == ("mine", "sampled", "real")
    }
    assert texts == others


def test_ready_responses_of_anywhere(world: Path, tmp_path: Path, policy_stages: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    lines = [{"key": "test-000000", "response": HOSTILE}, {"key": "nobody", "response": "x"}]
    file.write_text("\ufeff" + "".join(json.dumps(line) + "\n\n" for line in lines))
    judges: dict[str, Any] = {"broken": Broken(), "refusals": RefusalWords()}
    more = {
        "policies": {"theirs": ResponsesFile(str(file))},
        "start": None,
        "judges": judges,
        "most_prompts": None,
        "audit": None,
    }
    evaluate(**options(policy_stages, world, tmp_path / "out", **more))
    responses = rows(tmp_path / "out", "responses")
    assert [row["fault"] for row in responses].count("missing") == len(responses) - 1
    assert {row["mode"] for row in responses} == {"sampled"}
    (row,) = [row for row in rows(tmp_path / "out", "scores") if row["judge"] == "broken" and row["fault"] != "missing"]
    assert row["values"] == {"level": None, "harmful": None, "other": None} and row["fault"] == "unknown"
    assert not (tmp_path / "out" / "comparisons.jsonl").exists()
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(
        ValueError, match=r"judges\.broken: the score 'other' of record test-000000 is no number: 'three'"
    ):
        evaluate(**options(policy_stages, world, tmp_path / "b", **{**more, "judges": {"broken": Broken("0000")}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "a", "response": "x"}\n{"key": "a", "response": "y"}\n', "line 2: key 'a' stands in line 1 already"),
        ('{"key": "a", "response": 3}\n', "line 1: the field 'response' is 3, not a text"),
        ('{"key": "a"}\n', "line 1: the field 'response' is missing"),
        ('{"key": "a", "response": "\\ud800"}\n', "line 1: the field 'response' holds the lone surrogate"),
        ('["a"]\n', "line 1: "),
        ('{"key": "a", "response": NaN}\n', "line 1: NaN is not allowed"),
        ("key,response\n", "line 1: "),
        ("", "holds no response"),
    ],
)
def test_a_line_that_is_no_response_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ResponsesFile(str(file)).check()


def refused(args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = entry.main(list(args))
    except SystemExit as error:
        status = int(error.code or 0)
    assert status == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_cannot_be_used_is_one_line_before_anything_is_sampled(
    policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["evaluate", f"--data={world}", f"--output={tmp_path / 'out'}"]
    mine = f"--policies.mine={policy_stages / 'supervised'}"
    reward = {"class_path": "safe_rlhf_v.construct.RewardJudge", "init_args": {"run": str(policy_stages / "cost")}}
    (tmp_path / "theirs.jsonl").write_text('{"key": "nobody", "response": "yes"}\n')
    file = {"file": str(tmp_path / "theirs.jsonl")}
    theirs = {"class_path": "safe_rlhf_v.evaluation.ResponsesFile", "init_args": file}
    cases = {
        "policies: name at least one": [*common, "--policies={}"],
        "policies.bad: ": [*common, mine, f"--policies.bad={policy_stages / 'cost'}"],
        "judges.r: ": [*common, mine, f"--judges={json.dumps({'r': reward})}"],
        "refusal wording misses": [
            *common,
            mine,
            '--judges={"w": {"class_path": "safe_rlhf_v.evaluation.RefusalWords"}}',
        ],
        "--start nobody: is none of the policies": [*common, mine, "--start=nobody"],
        "--temperature 0": [*common, mine, "--temperature=0"],
        "--modes: sampled is always needed": [*common, mine, "--modes=[greedy]"],
        "--pictures: real is always needed": [*common, mine, "--pictures=[none]"],
        "--modes: greedy is named twice": [*common, mine, "--modes=[sampled,greedy,greedy]"],
        "--budget inf: must be a finite number": [*common, mine, "--budget=.inf"],
        "policies: the name ' '": [*common, f"--policies={json.dumps({' ': str(policy_stages / 'supervised')})}"],
        "theirs.jsonl: holds no response to any of the": [*common, mine, f"--policies.a={json.dumps(theirs)}"],
        "'Missing'": [*common, mine, '--judges={"w": {"class_path": "safe_rlhf_v.evaluation.Missing"}}'],
    }
    for words, args in cases.items():
        line = refused(args, capsys)
        assert line.startswith("error: ") and (words in line or words == "'Missing'"), line
    assert not (tmp_path / "out").exists()


def test_a_name_that_yaml_reads_as_a_number_is_refused_before_anything_is_done(
    policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    for part, values in (("policies", {100: str(policy_stages / "supervised")}), ("judges", {True: WorldJudge()})):
        with pytest.raises(ValueError, match=f"{part}: the name (100|True) is no text; write it in quotes"):
            evaluate(**options(policy_stages, world, tmp_path / "out", **{part: values}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [(None, "gave None for record .*, not scores by name"), (RuntimeError("no memory"), "no memory")],
)
def test_a_judge_that_fails_is_named(
    error: Exception | None, words: str, policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    class Forgetful(Judge):
        def score(self, record: Record, text: str) -> dict[str, float]:
            if error is not None:
                raise error
            return None  # type: ignore[return-value]  # a forgotten return

    more = {"policies": {"mine": ModelPolicy(str(policy_stages / "supervised"))}, "start": None, "audit": None}
    small = {"judges": {"mine": Forgetful()}, "modes": ["sampled"], "pictures": ["real"], "most_prompts": 2}
    with pytest.raises(ValueError, match=f"judges.mine: {words}"):
        evaluate(**options(policy_stages, world, tmp_path, **more, **small))


@pytest.mark.slow
def test_the_best_of_several_has_the_largest_worth(policy_stages: Path, world: Path, tmp_path: Path) -> None:
    reward = RewardJudge(str(policy_stages / "reward"))
    cost = CostJudge(str(policy_stages / "cost"))
    run = str(policy_stages / "supervised")
    policies = {
        "one": BestOf(ModelPolicy(run), reward, cost, lam=2.0, draws=1),
        "four": BestOf(ModelPolicy(run), reward, cost, lam=2.0, draws=4),
    }
    more = {
        "policies": policies,
        "start": None,
        "judges": {"reward": reward, "cost": cost},
        "modes": ["sampled"],
        "audit": None,
    }
    evaluate(**options(policy_stages, world, tmp_path, pictures=["real"], **more))
    worth: dict[str, dict[str, float]] = {"one": {}, "four": {}}
    for row in rows(tmp_path, "scores"):
        value = row["values"].get("reward", 0.0) - 2 * row["values"].get("cost", 0.0)
        worth[row["policy"]][row["key"]] = worth[row["policy"]].get(row["key"], 0.0) + value
    assert all(worth["four"][key] >= value - 1e-4 for key, value in worth["one"].items())
    assert any(worth["four"][key] > value + 1e-4 for key, value in worth["one"].items())
    (bound,) = {row["values"]["kl_bound"] for row in rows(tmp_path, "responses") if row["policy"] == "four"}
    assert bound == pytest.approx(math.log(4) - 3 / 4, abs=1e-6)


def test_people_get_a_sheet_and_give_it_back(
    policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    rated = tmp_path / "rated.csv"
    more = {"audit": Audit(PeopleRatings(str(rated)), 3), "modes": ["sampled"], "pictures": ["real"], "judges": None}
    evaluate(**options(policy_stages, world, tmp_path / "out", **more))
    sheet = tmp_path / "out" / "audit_sheet.csv"
    with sheet.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert not (tmp_path / "out" / "audit.jsonl").exists() and "policy" not in lines[0]
    assert (sheet.with_suffix("") / lines[0]["picture"]).stat().st_size > 0
    with rated.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows({**line, "helpfulness": "2", "safety": "-1"} for line in lines[1:])
    more["audit"] = Audit(PeopleRatings(str(rated)), 3)
    evaluate(**options(policy_stages, world, tmp_path / "out", **more))
    rest = len(lines) - 1
    said = f"audit: {rated}: of {len(lines)} responses the helpfulness of {rest} and the safety of {rest} are rated"
    assert said in capsys.readouterr().out
    other = tmp_path / "other.csv"
    other.write_text("id,helpfulness,safety\nzzz,2,-1\n")
    with pytest.raises(
        ValueError, match=r"none of its 1 ids is that of one of the .* it is the sheet of another evaluation"
    ):
        evaluate(
            **options(policy_stages, world, tmp_path / "b", **{**more, "audit": Audit(PeopleRatings(str(other)), 3)})
        )
    audited = rows(tmp_path / "out", "audit")
    values = [tuple(row["values"].values()) for row in audited]
    assert set(values) == {(2.0, -1.0, 1.0), (None, None, None)}
    assert all((row["fault"] == "unknown") == (row["values"]["level"] is None) for row in audited)
    rated.write_text(rated.read_text().replace("-1", "-9"))
    with pytest.raises(ValueError, match=r"audit.judge: .*row 1 \(id r.*\), safety: -9 is outside -3\.\.3"):
        evaluate(
            **options(policy_stages, world, tmp_path / "c", **{**more, "audit": Audit(PeopleRatings(str(rated)), 3)})
        )
