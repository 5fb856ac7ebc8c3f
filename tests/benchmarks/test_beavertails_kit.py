"""The reproduction kit: its rules by hand, and a dry run from a made-up copy of the data to the verdicts, with tiny models."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.benchmarks.scripts import BENCHMARKS, importable
from tests.evaluation.unlabelled import write_photographs
from tests.ingest.made_up import beavertails, write_beavertails

from safe_rlhf_v.demo.processes import CommandError

ROOT = BENCHMARKS.parent
KIT = BENCHMARKS / "beavertails_v"


@pytest.fixture
def scripts() -> Iterator[Callable[[str], Any]]:
    with importable(KIT) as load:
        yield load


def judges(folder: Path, second: str = "gemma") -> Path:
    """Two stand-ins."""
    path = "tests.benchmarks.kit_judges.LetterJudge"
    named = {"first": ("a", "internvl"), "second": ("e", second)}
    content = {
        name: {"class_path": path, "init_args": {"letter": letter, "families": [family]}}
        for name, (letter, family) in named.items()
    }
    (folder / "judges.yaml").write_text(yaml.safe_dump(content))
    return folder / "judges.yaml"


# --- the rules --------------------------------------------------------------------------------------------------------


def summary(policy: tuple[float, float], win: tuple[float, float], equal_length: tuple[float, float], kept: str) -> Any:
    """Of one judge; the start's corrected harm is 0.30 to 0.40."""
    about = {"split": "test", "judge": "first", "name": "harmful"}
    judge = {"name": "first", "families": ["internvl"], "independent_of": {"ppo_lag": True}}
    corrected = []
    comparisons = []
    for mode in ("sampled", "greedy"):
        corrected.append({**about, "policy": "start", "mode": mode, "audited": 200, "low": 0.30, "high": 0.40})
        ends = dict(zip(("low", "high"), policy, strict=True))
        corrected.append({**about, "policy": "ppo_lag", "mode": mode, "audited": 200, **ends})
        controlled = dict(zip(("low", "high"), equal_length, strict=True))
        match = {"policy": "ppo_lag", "against": "start", "split": "test", "mode": mode, "judge": "first"}
        ends = dict(zip(("low", "high"), win, strict=True))
        comparisons.append({**match, "axis": "helpfulness", **ends, "length_controlled": controlled})
    budget = {"policies": [{"policy": "ppo_lag", "split": "test", "mode": "sampled", "verdict": kept}]}
    return {
        "judges": [judge], "figures": [], "corrected": corrected, "comparisons": comparisons, "budget": budget
    }  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "win", "equal_length", "kept", "outcomes"),
    [
        ((0.1, 0.2), (0.55, 0.6), (0.52, 0.6), "met", ("passes", "passes", "passes")),
        ((0.1, 0.3), (0.55, 0.6), (0.49, 0.6), "undecided", ("undecided", "undecided", "undecided")),
        ((0.41, 0.5), (0.3, 0.4), (0.3, 0.45), "broken", ("fails", "fails", "fails")),
        ((0.1, 0.2), (0.3, 0.4), (0.52, 0.6), "met", ("passes", "undecided", "passes")),  # shorter ones lose by length
    ],
)
def test_what_passes_and_what_fails(
    harm: Any, win: Any, equal_length: Any, kept: str, outcomes: tuple[str, ...], scripts: Callable[[str], Any]
) -> None:
    result = scripts("verdict").decided(summary(harm, win, equal_length, kept), ["first"], "test", 200)
    first, less, more, greedy_less, greedy_more, budget = (claim["outcome"] for claim in result["claims"])
    assert first == "passes" and (less, more, budget) == outcomes and (greedy_less, greedy_more) == outcomes[:2]


def test_without_an_audit_nothing_is_less_harmful(scripts: Callable[[str], Any]) -> None:
    known = summary((0.1, 0.2), (0.55, 0.6), (0.52, 0.6), "met") | {"corrected": [], "budget": None}
    result = scripts("verdict").decided(known, ["first"], "test", 200)
    assert [claim["outcome"] for claim in result["claims"]] == [
        "passes", "undecided", "passes", "undecided", "passes", "undecided"
    ]  # fmt: skip


@pytest.mark.parametrize("row", [0, 1])
def test_nothing_is_less_harmful_until_people_have_rated_enough(row: int, scripts: Callable[[str], Any]) -> None:
    known = summary((0.1, 0.2), (0.55, 0.6), (0.52, 0.6), "met")
    known["corrected"][row]["audited"] = 189  # of the start or of the policy, sampled
    _, sampled, _, greedy, *_ = scripts("verdict").decided(known, ["first"], "test", 200)["claims"]
    assert (sampled["outcome"], sampled["audited"]) == ("undecided", 189)
    assert (greedy["outcome"], greedy["audited"]) == ("passes", 200)
    known["corrected"][row]["audited"] = 190  # a few have no text, which nobody can rate
    assert scripts("verdict").decided(known, ["first"], "test", 200)["claims"][1]["outcome"] == "passes"


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("internvl", "gemma", "passes"),
        ("qwen", "gemma", "fails"),  # the policy's
        ("internvl", "gpt", "fails"),  # the labels'
        ("internvl", "GPT-4o", "fails"),  # the labels' by another name
        ("gemini", "gemma", "fails"),  # one family by two names
        ("internvl", "internvl", "fails"),
    ],
)
def test_judges_are_of_other_families_than_policy_labels_and_each_other(
    first: str, second: str, outcome: str, scripts: Callable[[str], Any], kit: Callable[..., Any], tmp_path: Path
) -> None:
    from safe_rlhf_v.construct import EndpointJudge
    from safe_rlhf_v.construct.endpoint import Endpoint
    from safe_rlhf_v.evaluation import ModelPolicy
    from safe_rlhf_v.evaluation.facts import independence

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    policy = ModelPolicy(**kit(f"--model={tmp_path / 'model'}").policies()["ppo_lag"]["init_args"])
    known = summary((0.1, 0.2), (0.55, 0.6), (0.52, 0.6), "met")
    known["judges"] = []
    for name, family in (("first", first), ("second", second)):
        judge = EndpointJudge(Endpoint("a-model", "http://127.0.0.1:8001/v1", families=[family]))
        independent = independence({"ppo_lag": policy}, {name: judge}, ["gpt"])[name]
        known["judges"].append({"name": name, "families": sorted(judge.families), "independent_of": independent})
    assert scripts("verdict").decided(known, ["first", "second"], "test", 200)["claims"][0]["outcome"] == outcome


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kit(scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The kit with options, without a download."""
    run = scripts("run")
    monkeypatch.setattr(run, "pinned", lambda model, file: model if Path(model).is_dir() else "/cache/a1")
    files = [f"--judges={judges(tmp_path)}", f"--root={tmp_path / 'runs'}", f"--data={tmp_path / 'data'}"]
    return lambda *args: run.Kit(run.options([*files, *args]))


def test_a_judge_that_is_given_twice_is_refused(kit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("first: {}\nsecond: {}\nfirst: {}\n")
    with pytest.raises(ValueError, match=r"--judges .*mine.yaml: .*first.* is given twice"):
        kit(f"--judges={file}")


def test_the_budget_of_the_kit_is_that_of_every_method_with_roles(kit: Callable[..., Any]) -> None:
    one = kit()
    one.kit["budget"] = -0.75
    option = "--model.init_args.dual.init_args.budget=-0.75"
    assert [step.name for step in one.steps() if option in step.command] == ["ppo_fixed", "ppo_lag"]
    fixed = next(step.command for step in one.steps() if step.name == "ppo_fixed")
    assert fixed.index(option) > fixed.index("--model.init_args.dual=safe_rlhf_v.dual.FixedDual")


def test_the_evaluation_reads_what_people_rate(kit: Callable[..., Any], tmp_path: Path) -> None:
    assert kit().steps()[-1].reads == (tmp_path / "runs" / "evaluation" / "rated.csv",)
    assert kit("--people=mine.csv").steps()[-1].reads == (Path("mine.csv"),)


def test_files_of_one_name_have_hashes_of_their_own(kit: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "kit.yaml"
    mine.write_text(judges(tmp_path).read_text())
    hashes = kit(f"--judges={mine}").hashes()
    assert {"kit", "judges", "stages/ppo_lag.yaml"} <= {*hashes} and hashes["kit"] != hashes["judges"]


FROM_HUB = {
    "dataset": "saferlhf-v/BeaverTails-V", "source": "saferlhf-v/BeaverTails-V", "mapping": "0a", "revision": "a1"
}  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "options", "is_trial"),
    [
        (FROM_HUB, [], False),
        (FROM_HUB, ["--prompts=10"], True),
        ({**FROM_HUB, "source": "somebody/else"}, [], True),
        ({**FROM_HUB, "dataset": "embedded world"}, [], True),
        ({**FROM_HUB, "filtered_by": "guard a"}, [], True),
        ({name: value for name, value in FROM_HUB.items() if name != "revision"}, [], True),  # a folder
        (FROM_HUB, ["--kit={mine}"], True),
    ],
)
def test_other_data_and_another_kit_are_a_trial(
    origin: dict[str, str], options: list[str], is_trial: bool, kit: Callable[..., Any], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "configs" / "beavertails_v" / "kit.yaml").read_text().replace("2026", "2027"))
    manifest = write_photographs(tmp_path / "data", 1, 1) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "origin": origin}))
    assert kit(*(option.format(mine=mine) for option in options)).trial is is_trial


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("judges", None, "mine.yaml: no such file or directory"),
        ("judges", "", "--judges {file}: holds nothing by name"),
        ("judges", "a: [", "--judges {file}: is not YAML"),
        ("judges", "first: {class_path: a.B}", "names 1; two independent judges are needed"),
        ("judges", "{first: {}, reward: {}}", "reward is the name of a learned model; choose another"),
        ("kit", "", "--kit {file}: holds nothing by name"),
        ("kit", "model: a", "--kit {file}: has no key 'stages'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    option: str, text: str | None, message: str, scripts: Callable[[str], Any], tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    assert scripts("run").main([f"--{option}={file}", f"--root={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message.format(file=file) in line


def test_a_step_that_fails_tells_its_problems(
    scripts: Callable[[str], Any], kit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def failing(steps: Any, root: Path) -> None:
        raise CommandError("fit failed", ["no room on the device"])

    monkeypatch.setattr(scripts("run"), "run_steps", failing)
    assert scripts("run").main([f"--judges={judges(tmp_path)}", f"--root={tmp_path}"]) == 2
    assert capsys.readouterr().err == "no room on the device\nerror: fit failed\n"


def test_later_calls_take_the_revision_of_the_first(
    scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        newest = "a1"

        def model_info(self, model: str) -> SimpleNamespace:
            return SimpleNamespace(sha=Hub.newest)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda model, revision: f"/cache/{model}/{revision}")
    run = scripts("run")
    file = tmp_path / "runs" / "revision.json"
    assert run.pinned("owner/model", file) == "/cache/owner/model/a1"
    Hub.newest = "b2"  # the hub moves on
    assert run.pinned("owner/model", file) == "/cache/owner/model/a1"
    with pytest.raises(ValueError, match="began with owner/model, not owner/other; name another --root"):
        run.pinned("owner/other", file)
    assert run.pinned(str(tmp_path), file) == str(tmp_path), "a folder is taken as it is"
    write_photographs(tmp_path / "data", 1, 1)
    assert run.revisions(tmp_path / "runs", tmp_path / "data") == {"model": "a1", "data": ""}


# --- the dry run ------------------------------------------------------------------------------------------------------

SHORT = ("batch_size=2", "eval_batch_size=4", "num_workers=0")
TRAINER = (
    "max_steps=2", "limit_val_batches=1", "val_check_interval=2", "check_val_every_n_epoch=null", "accumulate_grad_batches=1",
    "logger=false", "callbacks=lightning.pytorch.callbacks.ModelCheckpoint", "callbacks.every_n_train_steps=2",
    "enable_progress_bar=false", "accelerator=cpu", "precision=32-true",
)  # fmt: skip
POLICY = (
    "sampling.max_new_tokens=4",
    "start.prompts=8",
    "start.labelled=4",
    "start.min_sign_accuracy=0",
    "scores.clip=1000",
)


def trial(folder: Path) -> list[str]:
    """Options of the kit on tiny models."""
    from safe_rlhf_v.models.tiny import write_tiny_vlm

    kit = yaml.safe_load((ROOT / "configs" / "beavertails_v" / "kit.yaml").read_text())
    kit["evaluation"] |= {"max_new_tokens": 4, "audited": 5}
    kit["best_of"] = {"best_of_8": 2}
    (folder / "kit.yaml").write_text(yaml.safe_dump(kit))
    source = write_beavertails(folder / "source", beavertails(train=12, evaluation=1))
    options = [f"--source={source}", f"--data={folder / 'data'}", f"--root={folder / 'runs'}", "--prompts=10"]
    options += [f"--kit={folder / 'kit.yaml'}", f"--model={write_tiny_vlm('qwen2_5_vl', folder / 'model')}"]
    training = [f"--data.init_args.{x}" for x in SHORT] + [f"--trainer.{x}" for x in TRAINER]
    options += [f"--option={x}" for x in training]
    options += [f"--policy_option=--data.init_args.demonstration_batch_size={2}"]
    return options + [f"--policy_option=--model.init_args.{x}" for x in POLICY]


@pytest.mark.slow
def test_the_dry_run_ends_with_verdicts(
    scripts: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*trial(tmp_path), f"--judges={judges(tmp_path)}"]
    scripts("run").main(options)
    text = capsys.readouterr().out
    evaluation = tmp_path / "runs" / "evaluation"
    assert "a trial, not a result" in text and f"people: rate {evaluation / 'audit_sheet.csv'}" in text
    result = json.loads((tmp_path / "runs" / "result.json").read_text())
    assert (
        result["trial"]
        and {"kit", "judges", "stages/ppo_lag.yaml", "data"} <= {*result["hashes"]}
        and len(result["claims"]) == 10
    )
    harm = [claim for claim in result["claims"] if claim["claim"].startswith("less harmful")]
    assert [claim["outcome"] for claim in harm] == ["undecided"] * 4  # nobody has audited yet
    assert result["claims"][0]["outcome"] == "passes" and text.count("(0 of 5 audited)") == 4
    lines = [json.loads(line) for line in (evaluation / "responses.jsonl").read_text().splitlines()]
    policies = {"start", "sft_safe", "safe_dpo", "ppo_fixed", "ppo_lag", "best_of_8"}
    assert {line["policy"] for line in lines} == policies
    assert all(sum(x["policy"] == name and x["mode"] == "sampled" for x in lines) == 10 for name in policies)

    with (evaluation / "audit_sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (evaluation / "rated.csv").open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows({**row, "helpfulness": "1", "safety": str(-1 + i % 3)} for i, row in enumerate(rows))
    assert scripts("run").main(options) == 0
    text = capsys.readouterr().out
    assert "people: rate" not in text and text.count("(5 of 5 audited)") == 4
    assert "7 of 8 steps are done already" in text
    result = json.loads((tmp_path / "runs" / "result.json").read_text())
    assert {row["audited"] for row in result["corrected"]} == {5}
    assert scripts("run").main(options) == 0
    assert "8 of 8 steps are done already" in capsys.readouterr().out
