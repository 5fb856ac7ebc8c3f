"""What stands in ``evaluation.json``: who took part, under which settings, and which judge is independent of which policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.construct.models import run_content
from safe_rlhf_v.evaluation.audit import NAME, Audit
from safe_rlhf_v.evaluation.matching import read_temperatures
from safe_rlhf_v.evaluation.policies import BestOf, ModelPolicy, Policy
from safe_rlhf_v.evaluation.work import Work
from safe_rlhf_v.scoring.judge import Judge

VERSION = 1


def facts(work: Work, data: Path, budget: float | None, audit: Audit | None, label_families: Sequence[str]) -> Row:
    """Everything but the lines that a reader of an evaluation needs.

    Args:
        work: The evaluation.
        data: Shard folder.
        budget: The constraint on mean cost.
        audit: Who audits.
        label_families: Families of the models that labelled the training data.
    """
    splits = list(dict.fromkeys(prompt.split for prompt in work.prompts))
    of_policies = {name: ancestors(policy) for name, policy in work.policies.items()}
    of_judges = {name: judge_ancestors(judge) for name, judge in work.judges.items()}
    return {
        "version": VERSION,
        "start": work.start,
        "data": str(data),
        "splits": splits,
        "prompts": {split: sum(prompt.split == split for prompt in work.prompts) for split in splits},
        "seed": work.seed,
        "temperature": work.sampling.temperature,
        "max_new_tokens": work.sampling.max_new_tokens,
        "modes": list(work.modes),
        "pictures": list(work.pictures),
        "grounding_prompts": len(work.prompts.grounding),
        "left_out": {form: len(problems) for form in work.pictures if (problems := work.prompts.problems(form))},
        "font": work.prompts.font,
        "budget": budget,
        "matched": {name: {k: v for k, v in one.items() if k != "of"} for name, one in read_temperatures(work).items()},
        "audit": None if audit is None else _audit(work, audit),
        "label_families": list(label_families),
        "policies": [
            {
                "name": name,
                "class": type(policy).__name__,
                "about": policy.about,
                "families": sorted(policy.families),
                "series": policy.series,
                "step": policy.step,
                "samples": policy.samples,
            }
            for name, policy in work.policies.items()
        ],
        "judges": [
            {
                **_judge(name, judge),
                "independent_of": {other: not own & of_judges[name] for other, own in of_policies.items()},
            }
            for name, judge in work.judges.items()
        ],
    }


def _audit(work: Work, audit: Audit) -> Row:
    done = Lines(work.folder, NAME).finished  # people may not have rated anything yet
    return {**_judge(NAME, audit.judge), "samples": audit.samples, "done": done}


def _judge(name: str, judge: Judge) -> Row:
    return {
        "name": name,
        "class": type(judge).__name__,
        "about": str(getattr(judge, "run", "") or getattr(judge, "file", "")),
        "families": sorted(judge.families),
        "axes": list(judge.axes),
        "rates": judge.rates,
        "by_scores": judge.by_scores,
        "truth": judge.knows_truth,
    }


def judge_ancestors(judge: Judge) -> set[str]:
    """Families of a judge, the run that it is, and the one that it started from.

    Args:
        judge: The judge.
    """
    run = getattr(judge, "run", None)
    if not isinstance(run, str):
        return set(judge.families)
    return {*judge.families, *_marks(run), *_marks_of_named(run, "init_from")}


def ancestors(policy: Policy) -> set[str]:
    """Families of a policy, and the runs of the reward and cost models that it was trained against.

    Args:
        policy: The policy.
    """
    names = set(policy.families)
    if isinstance(policy, BestOf):
        names |= ancestors(policy.policy)
        for judge in (policy.reward, policy.cost):
            names |= set() if judge is None else judge_ancestors(judge)
    if isinstance(policy, ModelPolicy):
        names |= _marks_of_named(policy.run, "reward", "cost")
    return names


def named_runs(run: str, *options: str) -> list[str]:
    """Runs that stand in the configuration of a run, as options of its module or of its roles; [] of anything else.

    Args:
        run: Run folder or checkpoint.
        options: Names of the options.
    """
    from safe_rlhf_v.training.checkpoints import CheckpointError, read_stage
    from safe_rlhf_v.training.models import is_model
    from safe_rlhf_v.training.stored_config import read_stored

    if is_model(run):
        return []
    try:
        module: Any = read_stored(read_stage(run))["model"]["init_args"]
    except CheckpointError:
        return []
    roles = (module.get("roles") or {}).get("init_args") or {}
    return [value for name in options for value in (module.get(name), roles.get(name)) if isinstance(value, str)]


def _marks_of_named(run: str, *options: str) -> set[str]:
    """Marks of the runs that a run names."""
    return {mark for named in named_runs(run, *options) for place in _places(named, run) for mark in _marks(place)}


def _places(named: str, run: str) -> list[str]:
    """Where a run that another one names may lie: seen from here, and from the folders above the run that names it.

    A run stores the paths that it was given, which hold in the folder that it was trained in.
    """
    above = [str(folder / named) for folder in Path(run).resolve().parents if (folder / named).exists()]
    return [named, *above[:1]]


def _marks(run: str) -> set[str]:
    """By what a run is known: its place, and its weights, which a copy of it shares."""
    weights = run_content(run)
    return {f"run:{Path(run).resolve()}", *([f"weights:{weights}"] if weights else [])}
