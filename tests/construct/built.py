"""Small data sets of the world under construction."""

from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.audit import Audit
from safe_rlhf_v.construct.grounding import Ground
from safe_rlhf_v.construct.images import CollectImages
from safe_rlhf_v.construct.judging import JudgeResponses
from safe_rlhf_v.construct.pipeline import run_stages
from safe_rlhf_v.construct.questions import AskQuestions
from safe_rlhf_v.construct.responses import Respond
from safe_rlhf_v.construct.rubric import Rubric
from safe_rlhf_v.construct.select import AskPeople
from safe_rlhf_v.construct.stage import Stage, Workspace
from safe_rlhf_v.construct.write import WriteShards
from safe_rlhf_v.world import SimulatedJudge, WorldJudge, WorldPictures, WorldQuestions, WorldResponder

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "construct" / "world.yaml"
RUBRIC = ROOT / "configs" / "construct" / "world_rubric.yaml"


def workspace(folder: Path, seed: int = 0) -> Workspace:
    return Workspace(folder, Rubric.load(RUBRIC), seed)


def first_stages(images: int = 20, leaking: float = 0.1) -> list[Stage]:
    """Up to the responses; no stage needs a trained model."""
    return [
        CollectImages(WorldPictures(images), near_distance=-1),
        AskQuestions(WorldQuestions(per_image=2, leaking=leaking)),
        Respond({"one": WorldResponder(seed=1), "two": WorldResponder(seed=2)}),
    ]


def all_stages(images: int = 20, **judges: Any) -> list[Stage]:
    judges = judges or {"careful": SimulatedJudge(seed=1), "second": SimulatedJudge(seed=2)}
    return [
        *first_stages(images),
        Ground(WorldResponder(helpful=True), SimulatedJudge(), draws=2),
        JudgeResponses(judges, probes=0.5),
        Audit(WorldJudge(), gold_share=0.5),
        AskPeople(most=5),
        WriteShards(truth=WorldJudge()),
    ]


def build(folder: Path, stages: list[Stage]) -> Workspace:
    work = workspace(folder)
    run_stages(stages, work)
    return work


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
