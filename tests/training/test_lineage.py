"""Where a model comes from: copies, moved and exported folders, earlier stages, and classes that name a model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from safe_rlhf_v.evaluation import ModelPolicy
from safe_rlhf_v.evaluation.budgets import budget_of_run
from safe_rlhf_v.training import lineage
from safe_rlhf_v.training.lineage import marks, own_marks, run_content, trained_against


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    (folder / "README.md").write_text("about")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "score.safetensors",
        "adapter_config.json",
        "chat_template.jinja",
        "merges.txt",
        "decoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_model_that_was_replaced_in_its_folder_has_another_content(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"one")
    before = run_content(str(model))
    (model / name).write_bytes(b"two")
    assert run_content(str(model)) != before != ""
    (model / name).unlink()
    assert run_content(str(model)) != before


def test_links_to_files_count_and_links_to_folders_do_not(model: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links to files; a link to a folder could name anything."""
    (tmp_path / "blobs").mkdir()
    (model / "config.json").rename(tmp_path / "blobs" / "config")
    (model / "config.json").symlink_to(tmp_path / "blobs" / "config")
    before = run_content(str(model))
    (model / "outside").symlink_to(tmp_path / "blobs")
    (model / "self").symlink_to(model)
    (model / ".cache").mkdir()
    (model / ".cache" / "x.json").write_text("{}")
    assert run_content(str(model)) == before
    (tmp_path / "blobs" / "config").write_text('{"a": 1}')
    assert run_content(str(model)) != before


def test_a_copy_and_a_later_date_change_nothing(model: Path, tmp_path: Path) -> None:
    before = run_content(str(model))
    shutil.copytree(model, tmp_path / "copy")
    os.utime(model / "model.safetensors", (1, 1))
    (model / "README.md").write_text("more about it")
    assert run_content(str(model)) == run_content(str(tmp_path / "copy")) == before
    assert marks(str(model)) & marks(str(tmp_path / "copy")) == {f"weights:{before}"}


def test_bytes_of_one_length_written_at_once_are_told_apart(model: Path) -> None:
    """As a second export into the same folder: the size stays."""
    before = run_content(str(model))
    (model / "model.safetensors").write_bytes(bytes(reversed(range(100))))
    assert run_content(str(model)) != before


def test_a_policy_was_trained_against_the_models_of_its_start_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO after PPO: the second names no cost model; and runs that name each other end the search."""
    stages = {
        "dpo": {"init_from": "ppo"},
        "ppo": {"start": "supervised", "reward": "reward", "cost": {"init_args": {"model": "owner/judge"}}},
        "supervised": {"init_from": "dpo"},
        "guard": {"init_from": "cost_guard"},
    }

    def module(run: str) -> Any:
        return {"init_args": stages[run]} if run in stages else {}

    monkeypatch.setattr(lineage, "read_stage", lambda run: run)
    monkeypatch.setattr(lineage, "stored_options", lambda stage, name: module(stage).get("init_args", {}))
    monkeypatch.setattr(lineage, "is_model", lambda run: False)
    for policy in ("dpo", "ppo"):
        assert trained_against(policy) == marks("reward") | marks("owner/judge")
    assert own_marks("guard") == marks("guard") | marks("cost_guard")


@pytest.mark.parametrize("option", ["folder", "model"])
def test_a_backbones_base_is_what_a_run_started_from(model: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "export.json").write_text(json.dumps({"weights": "aa", "trained_against": ["bb"]}))
    backbone = {"class_path": "C", "init_args": {option: str(model), "lora": {"r": 2}}}
    monkeypatch.setattr(lineage, "read_stage", lambda run: run)
    monkeypatch.setattr(lineage, "stored_options", lambda stage, name: {"backbone": backbone})
    assert trained_against("run.ckpt") == {"weights:bb"}
    assert own_marks("run.ckpt") > marks(str(model)) >= {"weights:aa"}


@pytest.mark.parametrize(
    "value", ["run", {"class_path": "C", "init_args": {"run": "run"}}, {"init_args": {"folder": "run"}}]
)
def test_a_model_is_named_by_a_text_or_by_a_class(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "read_stage", lambda run: run)
    monkeypatch.setattr(lineage, "stored_options", lambda stage, name: {"roles": {"init_args": {"cost": value}}})
    assert lineage.named_models("somewhere.ckpt", "cost") == ["run"]


@pytest.mark.parametrize(
    "value", [None, 3, [], "", "a\0b", "x" * 5000, {"init_args": None}, {"init_args": {"model": 3}}]
)
def test_what_is_no_name_names_nothing(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "read_stage", lambda run: run)
    monkeypatch.setattr(lineage, "stored_options", lambda stage, name: {"cost": value, "roles": "text"})
    assert lineage.named_models("somewhere.ckpt", "cost") == []


def test_an_exported_folder_keeps_what_its_policy_was_trained_against(model: Path) -> None:
    (model / "export.json").write_text(json.dumps({"weights": "aa", "trained_against": ["bb", 3]}))
    assert trained_against(str(model)) == {"weights:bb"} and "weights:aa" in marks(str(model))
    for damaged in ("[", "[]", "3", json.dumps({"weights": 4, "trained_against": "bb"})):
        (model / "export.json").write_text(damaged)
        assert trained_against(str(model)) == set()


def test_the_content_of_a_policy_is_that_of_its_model(model: Path) -> None:
    assert ModelPolicy(str(model)).content() == run_content(str(model)) != ""


@pytest.mark.parametrize("run", ["nowhere", "owner/name"])
def test_a_budget_of_no_run_is_refused(run: str) -> None:
    with pytest.raises(ValueError, match=f"--budget {run}: .*name a number"):
        budget_of_run(run)


def test_a_run_without_a_budget_is_refused(policy_stages: Path) -> None:
    with pytest.raises(ValueError, match="is no run of a policy with a budget; name a number"):
        budget_of_run(str(policy_stages / "supervised"))
