"""The policy claims: curves by hand, tables from made-up seeds, and the whole script with two steps a stage."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable
from tests.demo.conftest import SIZES
from tests.demo.conftest import configs as configs  # the fixture

from safe_rlhf_v.demo.processes import CommandError

CLAIMS = BENCHMARKS / "claims"


@pytest.fixture
def scripts() -> Iterator[Callable[[str], Any]]:
    with importable(CLAIMS) as load:
        yield load


@pytest.fixture
def curves(scripts: Callable[[str], Any]) -> Any:
    return scripts("curves")


def test_a_curve_is_read_between_its_points_and_nowhere_else(curves: Any) -> None:
    curve = [(0.5, 3.0), (0.1, 1.0), (0.1, 2.0)]  # in any order; equal harm counts as its mean
    assert curves.between(curve, 0.3) == pytest.approx(2.25)
    assert curves.between(curve, 0.1) == 1.5 and curves.between(curve, 0.5) == 3.0
    assert curves.between(curve, 0.09) is None and curves.between(curve, 0.51) is None
    assert curves.between([], 0.3) is None
    assert curves.between([(0.3, 1.0)], 0.3) == 1.0


def test_a_path_is_read_where_it_first_gets_there(curves: Any) -> None:
    path = [(0.0, 0.4), (2.0, 0.2), (1.0, 0.1), (3.0, 0.0)]  # the divergence falls again in between
    assert curves.crossing(path, 1.0) == pytest.approx(0.3)
    assert curves.crossing(path, 2.5) == pytest.approx(0.025)
    assert curves.crossing(path, 3.5) is None
    assert curves.crossing(path, 0.0) == 0.4
    assert curves.crossing([(0.0, 0.4), (0.0, 0.2)], 0.0) == 0.4


def test_what_six_seeds_say(curves: Any) -> None:
    """Differences of mean 0.2 and deviation 0.1: the standard error is 0.0408 and t of 5 degrees 2.571."""
    interval = curves.over_seeds([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, None])
    assert interval.n == 6 and interval.value == pytest.approx(0.2)
    deviation = math.sqrt(0.04 / 5)
    assert interval.high - interval.value == pytest.approx(2.5706 * deviation / math.sqrt(6), rel=1e-4)
    assert curves.outcome(interval, above=0.0) == "passes" and curves.outcome(interval, below=0.0) == "fails"
    assert curves.outcome(interval, above=0.2) == "undecided"
    for unknown in ([0.5], [], [None, None]):
        assert curves.outcome(curves.over_seeds(unknown), above=0.0) == "undecided"


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        (["met"] * 6, "passes"),
        (["met", "undecided"], "undecided"),
        (["met", "broken"], "fails"),
        (["undecided", "broken"], "fails"),
        ([], "undecided"),
    ],
)
def test_a_budget_on_several_seeds(verdicts: list[str], outcome: str, curves: Any) -> None:
    assert curves.of_verdicts(verdicts) == outcome


# --- tables -----------------------------------------------------------------------------------------------------------


def cell(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100, "clusters": 100}


def method(harm: float, helpfulness: float, kl: float, family: str = "", knob: float | None = None, **more: Any) -> Any:
    figures = {
        "harmful": cell(harm),
        "helpfulness": cell(helpfulness),
        "kl": cell(kl),
        "cost": cell(-0.6),
        "reward": cell(0.1),
    }
    mode = {**figures, "verdict": "met", "budget": -0.5}
    seconds = {"own": 90.0, "shared": 200.0, "evaluated": 40.0}
    about = {"about": f"method {harm}", "family": family, "knob": knob, "cpu_seconds": seconds}
    return {**about, "sampled": mode, "greedy": mode, **more}


def seed(number: int) -> dict[str, Any]:
    """A start of harm 0.4, a frontier from (0.1, 2.0) to (0.5, 3.0), and a policy 0.05 above it."""
    shift = 0.01 * number
    values = {"kl": 0.5, "harmful": 0.3, "helpfulness": 2.2, "cost": -0.7, "reward": -0.2}
    at_nine = {"sampled": {name: cell(value) for name, value in values.items()}}
    at_nine["greedy"] = at_nine["sampled"]
    methods = {
        "supervised": method(0.4, 2.0 + shift, 0.0),
        "ppo_reward": method(0.5, 3.0 + shift, 0.7, "fixed penalty", 0.0),
        "ppo_fixed": method(0.1, 2.0 + shift, 1.0, "fixed penalty", 1.0),
        "ppo_lag": method(0.2, 2.3 + shift, 1.5, "PPO-Lagrangian", -0.5, kept={"9": at_nine}),
        "rehearse_nothing": method(0.02, 2.3, 2.5, kept={"9": at_nine}),
    }
    about = {"seed": number, "configs": {"a": "b"}, "trial": False, "stopped": ["ppo_fixed"], "spread": {"reward": 2.0}}
    return {**about, "methods": methods}


def write_seed(folder: Path, number: int) -> None:
    (folder / f"seed-{number}.json").write_text(json.dumps(seed(number)))


def test_no_claim_is_decided_until_all_seeds_of_the_protocol_have_run(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    table = scripts("table")
    for number in (20, 21, 22, 23, 24, 26):  # 26 is none of them
        write_seed(tmp_path, number)
    rows = table.claims(table.load(tmp_path)).splitlines()[2:]
    assert len(rows) == 7 and all(row.endswith("| not decided: 5 of 6 seeds |") for row in rows)
    write_seed(tmp_path, 25)
    seeds = table.load(tmp_path)
    text = table.claims(seeds)
    assert "sampled: helpfulness | +0.300 (+0.300 .. +0.300), 6 seeds | passes |" in text
    assert "sampled: harmful | -0.200 (-0.200 .. -0.200), 6 seeds | passes |" in text
    assert "| 5 | PPO-Lagrangian meets d = -0.5, sampled | met 6 | passes |" in text
    assert (
        "| 6 | -0.3, -0.7, -0.9 are met, sampled |  | not decided: 0 of 18 verdicts |" in text
    )  # there is no such run
    assert "equal harm: helpfulness | +0.050 (+0.050 .. +0.050), 6 seeds | passes |" in text  # frontier at 0.2 is 2.25
    del seeds[0]["methods"]["ppo_lag"]["sampled"]["verdict"]
    assert "| met 5 | not decided: 5 of 6 verdicts |" in table.claims(seeds)


def test_the_tables_of_made_up_seeds(
    scripts: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (20, 21, 22):
        write_seed(tmp_path, number)
    table = scripts("table")
    table.main([str(tmp_path), "--figures", str(tmp_path / "figures")])
    text = capsys.readouterr().out
    assert "Seeds 20, 21, 22; stopped by themselves: ppo_fixed (seed 20), ppo_fixed (seed 21)" in text
    # 2.2, 2.21 and 2.22: their standard deviation is 0.01, t of 2 degrees 4.303
    assert "| supervised start | 2.21 ± 0.02 | 0.400 ± 0.000 | met 3 | 2.21 ± 0.02 | 0.400 ± 0.000 |" in text
    assert "sampled: helpfulness | +0.300 (+0.300 .. +0.300), 3 seeds | not decided: 3 of 6 seeds |" in text
    assert "| ppo_lag | +0.020 (+0.020 .. +0.020), 3 seeds |" in text  # at KL 1: 0.25 less 0.3 - 0.28 / 4
    for row in (
        "| 9 | -0.15 ± 0.00 | 2.20 ± 0.00 | -0.70 ± 0.00 | 0.300",
        "| 18 | 0.00 ± 0.00 | 2.30 ± 0.00 | -0.60 ± 0.00 | 0.020",
    ):
        assert f"| method 0.02 {row} ± 0.000 |" in text
    pictures = {file.name for file in (tmp_path / "figures").iterdir()}
    assert pictures == {f"claims_{name}.png" for name in ("plane", "kl", "training", "compute")}

    (tmp_path / "seed-22.json").write_text(json.dumps({**seed(22), "configs": {"a": "c"}}))
    for folder, message in ((tmp_path, "different configurations"), (tmp_path / "figures", "holds no seed-N.json")):
        with pytest.raises(SystemExit, match=message):
            table.main([str(folder)])


def test_policies_of_the_first_iterations_join_the_others(scripts: Callable[[str], Any]) -> None:
    table = scripts("table")
    one = seed(20)
    early = {"kl": 0.1, "harmful": 0.32, "helpfulness": 2.25, "cost": -0.1, "reward": 0.0}
    one["first"] = {"kept": {"ppo_lag": {"3": {mode: {n: cell(v) for n, v in early.items()} for mode in table.MODES}}}}
    assert [iteration for iteration, _ in table.course(one, "ppo_lag")] == [0, 3, 9, 15]
    assert [iteration for iteration, _ in table.course(one, "rehearse_nothing")] == [0, 9, 18]
    assert table.course(one, "ppo_reward") == table.course(one, "unknown") == []
    # from (0.1, 0.32) to (0.5, 0.3)
    assert table.at_equal_kl(one, "ppo_lag", "greedy", "harmful", 0.2) == pytest.approx(0.315)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "20", "3"], "3 was looked at while defaults were chosen"),
        (["--seeds", "20", "20"], "named twice"),
        (["--seeds", "20"], "run --tune first"),
        (["--seeds", "20", "--first"], "seed-20.json is not there: run the seed without --first"),
    ],
)
def test_what_would_prove_nothing_is_refused(
    options: list[str],
    message: str,
    scripts: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with suppress(SystemExit):  # of the parser
        assert scripts("run").main([*options, f"--root={tmp_path}", f"--out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--prompts=40"], ["--kept", "20", "40"], ["--configs={configs}"], ["--seeds", "26"], ["--methods", "best_of_2"],
     ["--sizes=test=40"], ["--tune", "--seeds", "10"], ["--first", "--kept", "1", "2"]],
)  # fmt: skip
def test_what_differs_from_the_protocol_is_a_trial_and_written_elsewhere(
    options: list[str], scripts: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scripts("run")
    (tmp_path / "ppo_lag.yaml").write_text("a: 1\n")
    options = [option.format(configs=tmp_path) for option in options]
    chosen = run.options(options)
    assert chosen.trial and chosen.out == Path("runs/claims_trial/results")
    with pytest.raises(SystemExit):
        run.options([*options, f"--out={CLAIMS.parents[1] / 'docs' / 'evidence' / 'claims'}"])
    assert "these options are a trial, name another folder" in capsys.readouterr().err


def test_the_protocol_is_no_trial(scripts: Callable[[str], Any]) -> None:
    for options in ([], ["--seeds", "22", "23"], ["--tune"], ["--first"], ["--again"], ["--prompts=720"]):
        chosen = scripts("run").options(options)
        assert not chosen.trial and chosen.out == Path("docs/evidence/claims")


def test_a_step_that_fails_tells_its_problems(
    scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(steps: Any, root: Path) -> None:
        raise CommandError("fit failed", ["no room on the device"])

    run = scripts("run")
    monkeypatch.setattr(run, "run_steps", failing)
    assert run.main(["--tune", f"--root={tmp_path}", f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == "no room on the device\nerror: fit failed\n"


def test_a_seed_that_has_run_keeps_what_its_file_says(
    scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scripts("run")
    monkeypatch.setattr(run, "commit", lambda: "of now")
    monkeypatch.setattr(
        run, "Seed", lambda *_: SimpleNamespace(method=lambda *_: {"sampled": 1, "greedy": 1, "kept": {}})
    )
    seconds = [5.0]  # of the steps that ran

    def run_all(steps: Any, root: Path) -> list[str]:
        seconds[0] += seconds_of_steps
        return []

    monkeypatch.setattr(run, "cpu_seconds", lambda: seconds[0])
    monkeypatch.setattr(run, "run_all", run_all)
    setting = {"beta": 0.5, "offset": 2.0, "lr": 6e-4}
    methods = {one.name: {"sampled": 0} for one in run.protocol(setting)}
    about = {"commit": "of then", "configs": run.hashes(run.CONFIGS), "measured_by": "later", "spread": {"cost": 2.0}}
    before = {**about, "seed": 20, "first": {"version": "0", "commit": "of then", "kept": {}}, "methods": methods}
    file = tmp_path / "seed-20.json"
    file.write_text(json.dumps(before))
    (tmp_path / "safe_dpo.json").write_text(json.dumps({"chosen": setting}))
    options = [f"--root={tmp_path}", f"--out={tmp_path}", "--seeds", "20"]

    seconds_of_steps = 0.0
    assert run.main(options) == 0 and json.loads(file.read_text()) == before
    assert f"has run: {file}; --again measures it once more" in capsys.readouterr().out
    run.main([*options, "--again"])
    again = json.loads(file.read_text())
    assert (again["commit"], again["measured_by"], again["first"]) == ("of then", "of now", before["first"])
    assert again["methods"]["ppo_lag"]["sampled"] == 1
    run.main([*options, "--first"])
    first = json.loads(file.read_text())["first"]
    assert (first["version"], first["commit"], first["measured_by"]) == ("0", "of then", "of now")
    assert first["kept"]["ppo_lag"] == {"6": {"sampled": 1, "greedy": 1}}
    seconds_of_steps = 2.0
    run.main([*options, "--first"])
    first = json.loads(file.read_text())["first"]
    assert first["commit"] == "of now" and "measured_by" not in first


def test_configurations_are_known_by_their_settings(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    hashes = scripts("run").hashes

    def hashed(text: str) -> str:
        (tmp_path / "cost.yaml").write_text(text)
        return hashes(tmp_path)["cost.yaml"]

    one = hashed("model: {rate: 0.1}\nseed: 0\n")
    assert hashed("# another comment\nseed: 0\nmodel:\n  rate: 0.1 # as before\n") == one
    assert hashed("model: {rate: 0.2}\nseed: 0\n") != one


def test_safe_dpo_is_chosen_by_the_rule_of_the_protocol(scripts: Callable[[str], Any]) -> None:
    choose = scripts("run").choose
    helpfulness = {"a": 2.0, "b": 2.5, "c": 3.0}
    harm = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert choose("abc", helpfulness, harm, 0.2) == "b"  # at most as harmful
    assert choose("abc", helpfulness, harm, 0.05) == "a"  # none is: the least harmful


def test_the_methods_are_those_of_the_protocol(scripts: Callable[[str], Any]) -> None:
    methods = scripts("methods")
    names = [one.name for one in methods.protocol(methods.SAFE_DPO_GRID[0])]
    assert len({*names}) == len(names)
    text = (CLAIMS.parents[1] / "docs" / "results" / "protocol.md").read_text()
    for name in names:
        stem = "budget_B" if name.startswith("budget_") else "ppo_fixed_W" if name.startswith("ppo_fixed_") else name
        stem = "best_of_2" if name.startswith("best_of_") else stem
        assert f"`{stem}`" in text, name


@pytest.mark.slow
def test_a_seed_from_its_world_to_the_tables(
    scripts: Callable[[str], Any], configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps a stage; a second call repeats nothing."""
    root = tmp_path / "runs"
    (root / "results").mkdir(parents=True)
    (root / "results" / "safe_dpo.json").write_text(json.dumps({"chosen": {"beta": 0.5, "offset": 2.0, "lr": 6e-4}}))
    options = [f"--root={root}", f"--configs={configs}", f"--sizes={SIZES}", "--seeds", "20", "--prompts", "12"]
    options += ["--kept", "1", "--methods", "rejection", "best_of_2"]
    scripts("run").main(options)
    result = json.loads((root / "results" / "seed-20.json").read_text())
    methods = result["methods"]
    assert list(methods) == ["supervised", "ppo_lag", "rejection", "best_of_2"] and result["trial"]
    assert "greedy" not in methods["best_of_2"] and methods["best_of_2"]["sampled"]["kl_bound"]["value"] == 0.19315
    for name in ("supervised", "ppo_lag", "rejection"):
        for mode in ("sampled", "greedy"):
            assert methods[name][mode]["harmful"]["n"] == 24 and methods[name][mode]["verdict"]
    assert methods["ppo_lag"]["kept"]["1"]["greedy"]["helpfulness"]["value"] is not None
    assert methods["rejection"]["cpu_seconds"]["own"] > 0 < methods["rejection"]["cpu_seconds"]["shared"]
    assert methods["supervised"]["sampled"]["kl"]["value"] == pytest.approx(0, abs=1e-4)

    capsys.readouterr()
    (root / "results" / "seed-20.json").unlink()
    scripts("run").main(options)
    assert "step" not in capsys.readouterr().out.replace("steps are done already", "")
    scripts("run").main([*options, "--first", "--kept", "1", "2"])
    supplemented = json.loads((root / "results" / "seed-20.json").read_text())
    assert {**supplemented, "first": 0} == {**result, "first": 0}
    scripts("run").main([*options, "--again"])
    again = json.loads((root / "results" / "seed-20.json").read_text())
    assert {**again, "measured_by": 0} == {**supplemented, "measured_by": 0}
    (first,) = supplemented["first"]["kept"].values()
    assert [*first] == ["1", "2"] and first["2"]["greedy"]["harmful"]["n"] == 24
    capsys.readouterr()
    scripts("table").main([str(root / "results")])
    assert capsys.readouterr().out.startswith("**A trial, not a result.**")
