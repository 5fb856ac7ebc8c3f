"""What stands in ``evaluation.json``: who took part, under which settings, and which judge is independent of which policy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safe_rlhf_v.construct.families import families_of, known_families
from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.evaluation.audit import NAME, Audit
from safe_rlhf_v.evaluation.budgets import Budget
from safe_rlhf_v.evaluation.matching import read_temperatures
from safe_rlhf_v.evaluation.policies import ModelPolicy, Policy, parts_of, runs_of
from safe_rlhf_v.evaluation.work import Work, described
from safe_rlhf_v.records.user_files import digest
from safe_rlhf_v.scoring.judge import Judge

VERSION = 1


def facts(work: Work, data: Path, budget: Budget | None, audit: Audit | None, label_families: Sequence[str]) -> Row:
    """Everything but the lines that a reader of an evaluation needs.

    Args:
        work: The evaluation.
        data: Shard folder.
        budget: The constraint on mean cost.
        audit: Who audits.
        label_families: Families of the models that labelled the training data: no judge of them is independent.
    """
    splits = list(dict.fromkeys(prompt.split for prompt in work.prompts))
    independent = independence(work.policies, work.judges, label_families)
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
        "budget": None if budget is None else budget.limit,
        "budget_judge": None if budget is None else budget.judge,
        "budget_run": None if budget is None else budget.run,
        "matched": {name: {k: v for k, v in one.items() if k != "of"} for name, one in read_temperatures(work).items()},
        "audit": None if audit is None else _audit(work, audit, label_families),
        "label_families": list(label_families),
        "trained_on": trained_here([*work.policies.items(), *work.judges.items(), *_auditor(audit)], data, splits),
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
        "judges": [{**_judge(name, judge), "independent_of": independent[name]} for name, judge in work.judges.items()],
    }


def _audit(work: Work, audit: Audit, label_families: Sequence[str]) -> Row:
    done = Lines(work.folder, NAME).finished  # people may not have rated anything yet
    independent = independence(work.policies, {NAME: audit.judge}, label_families)[NAME]
    return {**_judge(NAME, audit.judge), "independent_of": independent, "samples": audit.samples, "done": done}


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


def independence(
    policies: Mapping[str, Policy], judges: Mapping[str, Judge], label_families: Sequence[str]
) -> dict[str, dict[str, bool]]:
    """For each judge and policy, whether they have no family or model in common, nor the judge a family with the labels.

    Args:
        policies: By name.
        judges: By name.
        label_families: Families of the models that labelled the training data.
    """
    labels = families_of(label_families)
    of_policies = {name: ancestors(policy) | labels for name, policy in policies.items()}
    return {
        name: {other: own.isdisjoint(names) for other, own in of_policies.items()}
        for name, names in ((name, judge_ancestors(judge)) for name, judge in judges.items())
    }


def _auditor(audit: Audit | None) -> list[tuple[str, Judge]]:
    return [] if audit is None else [(f"the {NAME}", audit.judge)]


def trained_here(
    components: Iterable[tuple[str, Policy | Judge]], data: Path, splits: Sequence[str]
) -> dict[str, list[str]]:
    """Policies and judges that were trained on splits which are evaluated, by name, with these splits.

    A policy is named for the models that choose its responses, too.

    Args:
        components: Names, which may be those of a policy and a judge at once, with their policies and judges.
        data: Shard folder.
        splits: Splits that are evaluated.
    """
    from safe_rlhf_v.shards import Manifest
    from safe_rlhf_v.training.lineage import trained_on

    manifest = Manifest.load(data).digest
    of_names: dict[str, list[str]] = {}
    for name, component in components:
        seen = {pair for run in runs_of([component]) for pair in trained_on(run)}
        if own := [split for split in splits if (manifest, split) in seen]:
            of_names[name] = list(dict.fromkeys([*of_names.get(name, []), *own]))
    return of_names


def judge_ancestors(judge: Judge) -> set[str]:
    """Families of a judge, stated or known, its own mark, and the marks of the model that it is and of all that it started from.

    Args:
        judge: The judge.
    """
    own = f"judge:{digest(described({'': judge}))}"  # of class and settings: policies are chosen by judges without a model, too
    return {own, *families_of(judge.families), *_descent(judge), *_of_parts(judge)}


def _of_parts(component: Policy | Judge) -> set[str]:
    """The same of the policies and judges within one, by which its responses are chosen, or which judge in its place."""
    parts = parts_of(component)
    return {mark for one in parts for mark in (judge_ancestors(one) if isinstance(one, Judge) else ancestors(one))}


def _descent(component: Policy | Judge) -> set[str]:
    """Marks of the model of a policy or judge and of all that it started from, and the families that their names tell."""
    from safe_rlhf_v.training.lineage import model_names, own_marks

    named = [getattr(component, option, None) for option in ("run", "base")]
    models = [model for model in named if isinstance(model, str) and model]
    families = {family for model in models for name in model_names(model) for family in known_families(name)}
    return families | {mark for model in models for mark in own_marks(model)}


def ancestors(policy: Policy) -> set[str]:
    """Families of a policy, stated or known, marks of its model's descent, and of the models that it was trained against.

    Args:
        policy: The policy.
    """
    from safe_rlhf_v.training.lineage import trained_against

    names = {*families_of(policy.families), *_descent(policy), *_of_parts(policy)}
    if isinstance(policy, ModelPolicy):
        names |= trained_against(policy.run)
    return names
