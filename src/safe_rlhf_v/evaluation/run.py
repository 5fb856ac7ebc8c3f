"""An evaluation from beginning to end: everything is looked at first, then each step writes its lines, then the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safe_rlhf_v.evaluation.audit import NAME as AUDIT
from safe_rlhf_v.evaluation.audit import Audit, write_audit
from safe_rlhf_v.evaluation.budgets import Budget
from safe_rlhf_v.evaluation.comparisons import write_comparisons
from safe_rlhf_v.evaluation.facts import facts
from safe_rlhf_v.evaluation.people import check_people, wait_for_people
from safe_rlhf_v.evaluation.policies import Policy
from safe_rlhf_v.evaluation.read import FACTS
from safe_rlhf_v.evaluation.refusals import RefusalWords
from safe_rlhf_v.evaluation.report import write_report
from safe_rlhf_v.evaluation.responses import write_prompts, write_responses
from safe_rlhf_v.evaluation.scores import write_judge_pictures, write_scores
from safe_rlhf_v.evaluation.stored import ResponsesFile
from safe_rlhf_v.evaluation.verdicts import few_groups
from safe_rlhf_v.evaluation.work import Work, named
from safe_rlhf_v.records.user_files import locked_folder, write_whole
from safe_rlhf_v.scoring.judge import Judge


def check(work: Work, audit: Audit | None) -> None:
    """Look at every policy and judge, so that nothing fails after hours of sampling.

    Args:
        work: The evaluation.
        audit: Who audits.

    Raises:
        ValueError: In one line, beginning with the name of the policy or judge that cannot be used.
    """
    if all(isinstance(judge, RefusalWords) for judge in work.judges.values()):
        raise ValueError(
            "judges: refusal wording misses up to two thirds of the refusals, and says nothing about harm; add another judge"
        )
    check_people(work.judges, AUDIT)
    _check_series(work.policies)
    components: dict[str, Any] = {f"policies.{name}": policy for name, policy in work.policies.items()}
    if work.reference is not None and work.reference not in work.policies.values():
        components["start"] = work.reference
    components |= {f"judges.{name}": judge for name, judge in work.judges.items()}
    if audit is not None:
        components["audit.judge"] = audit.judge
    for name, component in components.items():
        with named(name):
            component.check()
            if isinstance(component, ResponsesFile):
                component.check_keys([prompt.key for prompt in work.prompts])
            component.unload()


def _check_series(policies: Mapping[str, Policy]) -> None:
    steps: dict[tuple[str, int], str] = {}
    for name, policy in policies.items():
        if policy.step is None:
            continue
        if policy.series is None:
            raise ValueError(
                f"policies.{name}: has a step and no series; checkpoints of one run have one series, give it a name"
            )
        first = steps.setdefault((policy.series, policy.step), name)
        if first != name:
            raise ValueError(
                f"policies.{name}: is step {policy.step} of the series {policy.series}, as policies.{first} is"
            )


def run_evaluation(
    work: Work,
    data: Path,
    budget: Budget | None = None,
    audit: Audit | None = None,
    probes: float = 0.25,
    label_families: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Look at every policy and judge, then do every step that is not done yet.

    Args:
        work: The evaluation.
        data: Shard folder.
        budget: The constraint on mean cost, for the report.
        audit: Who audits.
        probes: Share of the pairs on which judges are tested that are asked.
        label_families: Families of the models that labelled the training data: no judge of them is independent.
        tell: Told what is left to do, where prompts are too few, and which cannot be transformed.

    Raises:
        FileError: If another process evaluates into the folder.
        RefusedToGoOn: If a reply fails.
        ValueError: If a policy or judge cannot be used, what stands in the folder comes from something else, or people who are
            judges have not rated every response.
    """
    # A folder in use is refused before a network is loaded, and none is made before everything was looked at.
    with locked_folder(work.folder) if work.folder.exists() else nullcontext():
        check(work, audit)
    with locked_folder(work.folder):
        for form in work.pictures:
            if problems := work.prompts.problems(form):
                of = len(work.prompts.grounding)
                tell(f"{form}: {len(problems)} of {of} prompts are left out, as {problems[0]}")
        for warning in few_groups((prompt.split, prompt.about["group"]) for prompt in work.prompts):
            tell(warning)
        write_prompts(work)
        write_responses(work)
        wait_for_people(work)
        write_scores(work)
        write_comparisons(work, probes)
        write_judge_pictures(work)
        if audit is not None and (left := write_audit(work, audit)):
            tell(left)
        text = json.dumps(
            facts(work, data, budget, audit, label_families), indent=1, ensure_ascii=False, allow_nan=False
        )
        write_whole(work.folder / FACTS, (text + "\n").encode())
        write_report(work.folder)


def chosen_judges(judges: Mapping[str, Judge], default: Judge | None) -> dict[str, Judge]:
    """The judges, or the ground truth where there is one.

    Args:
        judges: Those that were named.
        default: The ground truth of the data.

    Raises:
        ValueError: If there is none.
    """
    if judges:
        return dict(judges)
    if default is None:
        raise ValueError("judges: name at least one, as --judges.cost.class_path; these data carry no ground truth")
    return {"truth": default}
