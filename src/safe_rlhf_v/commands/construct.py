"""``python -m safe_rlhf_v construct``: a preference data set of your own, from images to audited shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rlhf_v.commands.folders import check_outside_shards
from safe_rlhf_v.commands.options import AnyPath, NonNegativeInt
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.construct.stage import Stage

if TYPE_CHECKING:
    from safe_rlhf_v.construct.stage import Planned

EXAMPLES = (
    "construct --config configs/construct/world.yaml",
    "construct --config configs/construct/world.yaml --dry_run",
    "construct --config mine.yaml --until audit",
)


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(construct, args, name="construct", show=str, examples=EXAMPLES)


def construct(
    stages: list[Stage],
    output: AnyPath,
    rubric: AnyPath | None = None,
    seed: NonNegativeInt = 0,
    until: str | None = None,
    dry_run: bool = False,
) -> str:
    """Build a preference data set stage by stage: images, questions, responses, grounding, judging, audit, people, shards.

    Every question and reply is stored as a line in the output folder. Interrupted at any moment, the same command goes on where
    it stopped. A finished stage is not done again; to do it again, remove its files and those of later stages. See
    docs/howto/construct.md.

    Args:
        stages: Stages in order, each a class path with its options.
        output: Working folder.
        rubric: YAML file with categories, scales and policy; without it the one of this library.
        seed: Seed of everything that is drawn.
        until: Name of the last stage to run, as audit.
        dry_run: Say what would be asked, and how often at most, and ask nobody.

    Returns:
        What was done, in words.

    Raises:
        ValueError: If something cannot be used.
    """
    from safe_rlhf_v.construct.pipeline import plan_stages, run_stages
    from safe_rlhf_v.construct.rubric import Rubric
    from safe_rlhf_v.construct.stage import Workspace

    if not str(output):
        raise ValueError("--output is empty; name a folder")
    check_outside_shards("--output", Path(output))
    work = Workspace(Path(output), Rubric.load(rubric), seed)
    if dry_run:
        return _planned(plan_stages(stages, work, until))
    run_stages(stages, work, until, tell=lambda name, numbers: print(_line(name, numbers), flush=True))
    return f"in {work.folder}"


def _line(name: str, numbers: dict[str, Any]) -> str:
    """The numbers of a stage."""
    return f"{name}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in numbers.items())


def _planned(plans: "Sequence[Planned]") -> str:
    """The plan as a table."""
    if not plans:
        return "nobody would be asked"
    rows = [f"{plan.calls:>9,}  {plan.stage:<11} {plan.who}: {plan.what}" for plan in plans]
    total = sum(plan.calls for plan in plans)
    return "\n".join(["at most so often (stages that are finished ask nobody):", *rows, f"{total:>9,}  in all"])
