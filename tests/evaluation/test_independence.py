"""A judge that a policy was trained against is not independent of it, wherever it lies now."""

import json
import shutil
from pathlib import Path

import pytest

from safe_rlhf_v.construct import CostJudge, RewardJudge
from safe_rlhf_v.evaluation import BestOf, ModelPolicy, facts
from safe_rlhf_v.training import lineage


@pytest.fixture
def project(policy_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder whose policy was trained against its cost model; another folder is the current one."""
    for run in ("cost", "reward"):
        shutil.copytree(policy_stages / run, tmp_path / "project" / "runs" / run)
    (tmp_path / "project" / "runs" / "aligned").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr(
        lineage,
        "named_models",
        lambda run, *names: ["runs/cost"] if run.endswith("aligned") and "cost" in names else [],
    )
    return tmp_path / "project"


def independent(policy: ModelPolicy | BestOf, judge: CostJudge | RewardJudge) -> bool:
    return not facts.ancestors(policy) & facts.judge_ancestors(judge)


def test_seen_from_another_folder_moved_or_copied(project: Path, tmp_path: Path) -> None:
    aligned = ModelPolicy(str(project / "runs" / "aligned"))
    assert not independent(aligned, CostJudge(str(project / "runs" / "cost")))
    assert independent(aligned, RewardJudge(str(project / "runs" / "reward")))
    shutil.copytree(project / "runs" / "cost", tmp_path / "copy")
    assert not independent(aligned, CostJudge(str(tmp_path / "copy")))
    copy = CostJudge(str(tmp_path / "copy"))
    assert not independent(BestOf(ModelPolicy("start"), cost=copy), copy)


def test_where_a_name_fits_two_runs_neither_is_independent(project: Path, policy_stages: Path) -> None:
    aligned = ModelPolicy(str(project / "runs" / "aligned"))
    shutil.copytree(policy_stages / "reward", Path("runs/cost"))  # the name as seen from here, and from the project
    assert not independent(aligned, RewardJudge(str(project / "runs" / "reward")))
    assert not independent(aligned, CostJudge(str(project / "runs" / "cost")))


def test_families_are_known_by_the_names_of_the_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to state them; and the way to a folder says nothing."""
    home = tmp_path / "gpt"
    folders = {
        "base": {"config.json": {"model_type": "qwen2_5_vl"}},
        "adapter": {"adapter_config.json": {"base_model_name_or_path": "/grok/google/gemma-3-4b-it"}},
        "exported": {"export.json": {"base": "OpenGVLab/InternVL3-1B"}},
        "plain": {"config.json": {"model_type": "bert"}},
    }
    for name, files in folders.items():
        (home / name).mkdir(parents=True)
        for file, content in files.items():
            (home / name / file).write_text(json.dumps(content))
    (home / "run").mkdir()
    of_run = {str(home / "run"): ["Qwen/Qwen2.5-VL-7B-Instruct"]}
    monkeypatch.setattr(lineage, "named_models", lambda run, *names: of_run.get(run, []) if "backbone" in names else [])
    known = {
        name: {one for one in facts.ancestors(ModelPolicy(str(home / name))) if ":" not in one}
        for name in (*folders, "run")
    }
    assert known == {
        "base": {"qwen"}, "adapter": {"gemini"}, "exported": {"internvl"}, "plain": set(), "run": {"qwen"}
    }  # fmt: skip
    assert "llava" in facts.ancestors(ModelPolicy(str(home / "plain"), base="llava-hf/llava-1.5-7b-hf"))
    assert "qwen" in facts.ancestors(BestOf(ModelPolicy(str(home / "base")), cost=CostJudge("nowhere")))


@pytest.mark.parametrize(
    ("stated", "independent"), [("gpt", False), ("GPT-4o", False), ("gemma", True), ("qwen", False)]
)
def test_a_judge_of_the_labels_family_is_independent_of_no_policy(stated: str, independent: bool) -> None:
    judge = CostJudge("nowhere", families=[stated])
    policies = {name: ModelPolicy(name, families=["Qwen2.5"]) for name in ("one", "other")}
    assert facts.independence(policies, {"judge": judge}, ["gpt-4"]) == {"judge": dict.fromkeys(policies, independent)}
