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
    families = {"name": "first", "families": ["internvl"], "independent_of": {"ppo_lag": True}}
    corrected = []
    comparisons = []
    for mode in ("sampled", "greedy"):
        corrected.append({**about, "policy": "start", "mode": mode, "low": 0.30, "high": 0.40})
        corrected.append({**about, "policy": "ppo_lag", "mode": mode, "low": policy[0], "high": policy[1]})
        controlled = dict(zip(("low", "high"), equal_length, strict=True))
        match = {"policy": "ppo_lag", "against": "start", "split": "test", "mode": mode, "judge": "first"}
        ends = dict(zip(("low", "high"), win, strict=True))
        comparisons.append({**match, "axis": "helpfulness", **ends, "length_controlled": controlled})
    budget = {"policies": [{"policy": "ppo_lag", "split": "test", "mode": "sampled", "verdict": kept}]}
    return {
        "judges": [families], "figures": [], "corrected": corrected, "comparisons": comparisons, "budget": budget
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
    result = scripts("verdict").decided(summary(harm, win, equal_length, kept), ["first"], "test")
    first, less, more, greedy_less, greedy_more, budget = (claim["outcome"] for claim in result["claims"])
    assert first == "passes" and (less, more, budget) == outcomes and (greedy_less, greedy_more) == outcomes[:2]


def test_without_an_audit_nothing_is_less_harmful(scripts: Callable[[str], Any]) -> None:
    known = summary((0.1, 0.2), (0.55, 0.6), (0.52, 0.6), "met") | {"corrected": [], "budget": None}
    result = scripts("verdict").decided(known, ["first"], "test")
    assert [claim["outcome"] for claim in result["claims"]] == [
        "passes", "undecided", "passes", "undecided", "passes", "undecided"
    ]  # fmt: skip


def test_one_judge_is_not_enough(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "judges.yaml"
    file.write_text("first: {class_path: a.B}\n")
    with pytest.raises(SystemExit, match="two independent judges are needed"):
        scripts("run").main(["--judges", str(file)])


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
    with pytest.raises(SystemExit, match="began with owner/model, not owner/other; name another --root"):
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
    assert result["trial"] and "ppo_lag.yaml" in result["hashes"] and len(result["claims"]) == 10
    harm = [claim for claim in result["claims"] if claim["claim"].startswith("less harmful")]
    assert [claim["outcome"] for claim in harm] == ["undecided"] * 4  # nobody has audited yet
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
    scripts("run").main(options)
    assert "people: rate" not in capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "result.json").read_text())
    assert {row["audited"] for row in result["corrected"]} == {5}
