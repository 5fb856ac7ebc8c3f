"""A judge that a policy was trained against is not independent of it, wherever it lies now."""

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
