"""Results never go into shards, into a model's folder or onto a run: one line before anything is written."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.unlabelled import Echo, Words, tiny, write_photographs

from safe_rlhf_v.commands.construct import construct
from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct import CostJudge
from safe_rlhf_v.evaluation import Audit, BestOf, ModelPolicy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "data", 2, 2)


def everything(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


@pytest.mark.parametrize(("below", "relation"), [(".", "is"), ("evaluated", "lies in"), ("a/b", "lies in")])
@pytest.mark.parametrize("named", ["data", "other"])
def test_nothing_is_written_into_shards(below: str, relation: str, named: str, data: Path, tmp_path: Path) -> None:
    other = write_photographs(tmp_path / "other", 2, 2)
    output = (data if named == "data" else other) / below
    before = everything(tmp_path)
    for command in (
        lambda: evaluate(**tiny(data, output)),
        lambda: construct(stages=[], output=output),
    ):
        with pytest.raises(ValueError, match=f"^--output {output}: {relation} the folder of shards, .*{named}; name"):
            command()
    assert everything(tmp_path) == before


def test_shards_below_the_output_and_manifests_of_something_else_are_no_matter(data: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "of a web site"}')
    evaluate(**tiny(data, tmp_path / "out", pictures=["real"]))
    evaluate(**tiny(data, tmp_path, pictures=["real"]))
    assert (tmp_path / "report.html").exists()


def parts(run: str) -> list[dict[str, Any]]:
    """Where evaluations name a run."""
    policy = ModelPolicy(run)
    judge = CostJudge(run)
    return [
        {"policies": {"mine": policy}, "start": None},
        {"policies": {"mine": BestOf(policy, cost=judge)}, "start": None},
        {"judges": {"words": Words(), "cost": judge}},
        {"audit": Audit(judge)},
        {"start": ModelPolicy(run), "policies": {"mine": Echo("no")}},
    ]


@pytest.mark.parametrize("number", range(5))
def test_nothing_is_written_onto_a_run_or_into_a_model(number: int, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints = run / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step=2.ckpt").touch()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = everything(tmp_path)
    for named, output, words in (
        (run, run, "is the folder of a run"),
        (run, checkpoints, "lies in the folder of a run"),
        (checkpoints / "step=2.ckpt", checkpoints, "is the folder of a run"),
        (model, model, "is the folder of a model"),
        (model, model / "evaluated", "lies in the folder of a model"),
    ):
        more = parts(str(named))[number]
        with pytest.raises(ValueError, match=f"^--output {output}: {words}, {named}; name another folder"):
            evaluate(**tiny(data, output, **more))
    with pytest.raises(ValueError, match="run"):  # the run is no run, and its folder may hold an evaluation beside it
        evaluate(**tiny(data, run / "evaluated", **parts(str(run))[number]))
    assert everything(tmp_path) == before
