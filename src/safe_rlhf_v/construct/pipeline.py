"""Stages one after another in one working folder, and the plan of what they would ask."""

from collections.abc import Callable, Sequence
from typing import Any

from safe_rlhf_v.construct.images import CollectImages, usable_images
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.construct.responses import read_pairs
from safe_rlhf_v.construct.stage import Planned, Stage, Workspace
from safe_rlhf_v.records.user_files import locked_folder

NEEDS = {
    "questions": ("images",),
    "responses": ("questions",),
    "grounding": ("questions",),
    "judgements": ("responses",),
    "audit": ("judgements",),
    "people": ("judgements",),
    "shards": ("judgements",),
}
"""Which stages of ours a stage of ours reads."""


def check_order(stages: Sequence[Stage]) -> None:
    """Check that every stage stands once, behind those it reads.

    Raises:
        ValueError: If it does not.
    """
    seen: list[str] = []
    if not stages:
        raise ValueError("stages: name at least one")
    for stage in stages:
        if stage.name in seen:
            raise ValueError(f"stages: {stage.name} stands twice; keep one")
        missing = [name for name in NEEDS.get(stage.name, ()) if name not in seen]
        if missing:
            raise ValueError(f"stages: {stage.name} ({type(stage).__name__}) needs the stage {missing[0]} before it")
        seen.append(stage.name)


def run_stages(
    stages: Sequence[Stage],
    work: Workspace,
    until: str | None = None,
    tell: Callable[[str, dict[str, Any]], None] = lambda name, numbers: None,
) -> dict[str, dict[str, Any]]:
    """Run the stages; what an earlier run finished is not done again.

    Args:
        stages: In order.
        work: The working folder, which is created.
        until: Name of the last stage to run.
        tell: Told the name and the numbers of each stage when it is done.

    Returns:
        The numbers of every stage.

    Raises:
        FileError: If another process works in the folder.
        ValueError: If stages are missing, or something is wrong with what they read.
    """
    chosen = chosen_stages(stages, until)
    numbers: dict[str, dict[str, Any]] = {}
    with locked_folder(work.folder):
        for stage in chosen:
            numbers[stage.name] = stage.run(work)
            tell(stage.name, numbers[stage.name])
    return numbers


def chosen_stages(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages up to one. Raises: ValueError: If there is no such stage, or they do not fit together."""
    check_order(stages)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise ValueError(f"--until {until}: no such stage; there are: {', '.join(names)}")
    return list(stages) if until is None else list(stages[: names.index(until) + 1])


def plan_stages(stages: Sequence[Stage], work: Workspace, until: str | None = None) -> list[Planned]:
    """What would be asked, and how often at most; nobody is asked and nothing is written.

    Of stages that are finished the numbers are those of their results.

    Args:
        stages: In order.
        work: The working folder, which may be missing.
        until: Name of the last stage.
    """
    counts: dict[str, int] = {}
    plans: list[Planned] = []
    for stage in chosen_stages(stages, until):
        done = work.has(stage.name)
        planned = stage.plan(counts)
        plans += [plan._replace(calls=0) if done else plan for plan in planned]
        if done and isinstance(stage, CollectImages):
            counts["images"] = len(usable_images(work).rows)
        elif done and stage.name == "questions":
            counts["questions"] = len(read_items(work))
        elif done and stage.name == "responses":
            counts["pairs"] = len(read_pairs(work).usable)
    return plans
