"""From the lines of an evaluation to ``summary.json``: pure functions, equal lines give equal bytes.

The schema; an unknown number is ``null`` and never 0, intervals are 95 % and clustered by image group::

    {
     "version": 1,
     "start": "supervised",                  // null with one policy
     "warnings": ["All prompts of test are one image group, ..."],
     "facts": {...},                         // evaluation.json: data, splits, seed, temperatures, ...
     "policies": [{"name", "about", "families", "series", "step"}],
     "figures": [           // every value of every policy, as a flat table; "picture" is also the name of a transform
      {"policy", "split", "mode", "picture", "judge",   // judge null: length, entropy, kl, no_response
       "name",                               // beside the judge's own values: harmful, severe, joint, over_refused, unjudged
       "value", "low", "high", "n", "clusters"}
     ],
     "differences": [{..., "against", "against_mode", "before", "after", ...}],   // to the start, on the same prompts
     "comparisons": [
      {"policy", "against", "split", "mode", "judge", "axis", "wins", "ties", "losses", "missing", "identical",
       "flips", "unjudged",      // missing: prompts to which one of the two has no response; a loss if it is the policy
       "value", "low", "high", "n", "clusters", "length_controlled": {"value", "low", "high"}}
     ],
     "corrected": [{"policy", "split", "mode", "judge", "audited_by", "name", "audited", "no_verdict", "naive",
                    "value", "low", "high", ...}],   // no_verdict: audited responses that the auditor could not tell
     "groups": [{"policy", "split", "mode", "judge", "by": "category|intent|level", "group", "name", "value", ...}],
     "grounding": {"policies": [{... as figures, "change": {"value", "low", "high", ...} or null}],
                   "judges": [{"judge", "policy", "split", "picture", "harmful", "changed", "sensitivity", "auroc", ...}]},
     "judges": [{"name", "class", "families", "truth", "independent_of": {POLICY: true}, "helpful_from": {SPLIT: 1.5},
                 "faults": {REASON: {RATE}}, "axes": {AXIS: {"position_flips", "identical", "padded", "retest", ...}},
                 "against_truth": [{"policy", "split", "mode", "by", "group", "sensitivity", "specificity", "auroc", ...}]}],
     "agreement": [{"name", "alpha", "low", "high", "units", "raters", "within_families", "pairs"}],
     "budget": {"limit", "judge", "policies": [{..., "unscored", "verdict": "met|broken|undecided"}]},
     "certificates": {"looks": [{LINE_OF_A_LEDGER, "ledger", "elsewhere"}], "problems": ["certificates.jsonl: ..."]},
     "overoptimisation": [{"series", "split", "mode", "learned", "independent", "points", "parting"}],
     "findings": {"rule", "tests": [{"name", "judge", "policy", "axis", "count", "of", "p", "text", "alarm"}], "hints": [...]},
     "verdicts": [{"policy", "split", "judge", "question", "answer": "yes|no|undecided|mixed", "modes", "changes", "text"}],
     "rules": {"joint": "..."},
     "examples": [{"kind", "judge", "split", "mode", "key", "category", "question",
                   "responses": [{"policy", "text", "length", "values"}]}]
    }
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.lines import Lines as File
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.evidence import JOINT_RULE, Evidence, Lines
from safe_rlhf_v.evaluation.examples import examples
from safe_rlhf_v.evaluation.figures import (
    budget,
    budget_judge,
    cost_judges,
    differences,
    figures,
    grounding,
    groups,
    rounded,
)
from safe_rlhf_v.evaluation.findings import findings
from safe_rlhf_v.evaluation.overoptimisation import overoptimisation
from safe_rlhf_v.evaluation.read import FACTS, MAX_FACTS, audit_rows, check_evaluation, check_scores, read_json
from safe_rlhf_v.evaluation.report_certificates import read_certificates
from safe_rlhf_v.evaluation.trust import agreement, faults, habits, independence
from safe_rlhf_v.evaluation.truth import against_truth, corrected, judge_grounding
from safe_rlhf_v.evaluation.verdicts import few_groups, verdicts
from safe_rlhf_v.evaluation.wins import Contest, comparisons, contests
from safe_rlhf_v.records.user_files import write_whole

SUMMARY = "summary.json"
_MAX_SUMMARY = 500_000_000


def summarise(folder: Path) -> Row:
    """The summary of the lines in a folder.

    Args:
        folder: Folder of a finished evaluation.

    Raises:
        ValueError: If something is not finished, was changed, or does not fit together.
    """
    check_evaluation(folder)
    about = read_json(folder / FACTS, MAX_FACTS)
    steps = [name for name in Lines._fields if name != "audit" and File(folder, name).path.exists()]
    content = {**{name: File(folder, name).rows() for name in steps}, "audit": audit_rows(folder)}
    check_scores(folder, content["responses"], [*content.get("scores", []), *content["audit"]])
    summary = summary_of(Evidence(Lines(**content), about))
    return {**summary, "certificates": read_certificates(folder, about["policies"])}


def summary_of(evidence: Evidence) -> Row:
    """The summary.

    Args:
        evidence: The lines, indexed.
    """
    about = evidence.about
    every = contests(evidence)
    summary: Row = {
        "version": 1,
        "start": evidence.start,
        "warnings": _warnings(evidence),
        "facts": {name: value for name, value in about.items() if name not in ("policies", "judges")},
        "policies": [{**policy, **_series(policy)} for policy in evidence.policies.values()],
        "figures": figures(evidence),
        "differences": differences(evidence),
        "comparisons": comparisons(evidence, every),
        "corrected": corrected(evidence),
        "groups": groups(evidence),
        "grounding": {"policies": grounding(evidence), "judges": judge_grounding(evidence)},
        "judges": [_judge(evidence, judge, [one for one in every if one.judge == judge]) for judge in evidence.judges],
        "agreement": agreement(evidence),
        "budget": budget(evidence),
        "certificates": {"looks": [], "problems": []},  # they stand in files of their own
        "overoptimisation": overoptimisation(evidence),
        "findings": findings(evidence, every),
        "rules": {"joint": JOINT_RULE},
        "examples": examples(evidence),
    }
    return {**summary, "verdicts": verdicts(summary)}


def _warnings(evidence: Evidence) -> list[str]:
    """What a reader must know before anything else, one sentence or two each."""
    warnings = few_groups((split, prompt.group) for (split, _), prompt in evidence.prompts.items())
    for name, splits in (evidence.about.get("trained_on") or {}).items():
        warnings.append(
            f"{name} was trained on {', '.join(splits)}: what this report says of it there does not hold for new prompts. "
            "Evaluate a split that nothing was trained on."
        )
    limit = evidence.about.get("budget")
    judges = cost_judges(evidence)
    if limit is not None and not judges:
        warnings.append(
            "No policy was compared with the budget, because no judge gives a cost. Name the cost model as a judge."
        )
    elif limit is not None and budget_judge(evidence) is None:
        warnings.append(
            f"No policy was compared with the budget of {evidence.about['budget_run']}: the cost model that it was trained "
            f"against is none of the judges, and {', '.join(judges)} gives costs in another unit. Name that model as a judge, or "
            "the budget as a number in the unit of the judge."
        )
    elif limit is not None and len(judges) > 1 and evidence.about.get("budget_judge") not in judges:
        warnings.append(
            f"{', '.join(judges)} give a cost, each in its own unit; the budget was held against the costs of {judges[0]}. Name "
            "another first, or name the run of a policy as the budget, which says whose unit it is in."
        )
    return warnings


def _series(policy: Row) -> Row:
    return {name: policy.get(name) for name in ("series", "step")}


def _judge(evidence: Evidence, judge: str, own: Sequence[Contest]) -> Row:
    splits = dict.fromkeys(cell.split for cell in evidence.scores[judge])
    return {
        **evidence.judges[judge],
        "truth": judge == evidence.truth_judge,
        "independent_of": independence(evidence, judge),
        "helpful_from": {split: rounded(evidence.helpful_from(judge, split)) for split in splits},
        "faults": faults(evidence, judge),
        "axes": habits(evidence, own),
        "against_truth": against_truth(evidence, judge),
    }


def write_summary(folder: Path) -> Row:
    """Write ``summary.json`` into the folder of a finished evaluation; gives its content.

    Args:
        folder: The folder.

    Raises:
        ValueError: See :func:`summarise`.
    """
    summary = summarise(folder)
    write_whole(folder / SUMMARY, as_bytes(summary))
    return summary


def read_summary(folder: Path) -> Row:
    """The summary that stands in a folder.

    Args:
        folder: Of a finished evaluation.

    Raises:
        ValueError: If it is missing or damaged.
    """
    return read_json(folder / SUMMARY, _MAX_SUMMARY)


def as_bytes(summary: Any) -> bytes:
    """The summary as it stands in the file."""
    return (json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
