"""The tables of docs/results/guard.md and docs/guard.md from the JSON files of guard_evidence.py and its neighbours.

python benchmarks/guard_tables.py docs/evidence
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_tables import each, spread, table

from safe_rlhf_v.functional.intervals import clopper_pearson_upper

GUARDS = {
    "guard": "CORN",
    "guard_softmax": "softmax",
    "guard_cumulative": "cumulative, own spread",
    "guard_cumulative_one_scale": "cumulative, one spread",
    "guard_text_only": "text only (CORN)",
    "prior": "majority / prior",
}
MEASURES = {
    "seven levels, accuracy": "test level_accuracy",
    "within one level": "test within_one",
    "quadratic weighted kappa": "test quadratic_kappa",
    "macro-averaged error in levels": "test macro_mae",
    "the same, prior corrected at decision time": "test macro_mae_balanced",
    "ranked probability score": "test ranked_probability_score",
    "harmful or not, accuracy": "test harm_accuracy",
    "AUROC of harmful": "test harm_auroc",
    "calibration error before temperature": "test harm_ece_before",
    "calibration error after": "test harm_ece",
    "false alarms at 95 % recall": "test fpr_at_95_recall",
    "seven levels, accuracy, unseen combinations": "compositional level_accuracy",
    "harmful or not, unseen combinations": "compositional harm_accuracy",
    "counterfactual verdicts (blind: 0.50)": "counterfactual_verdict harm_accuracy",
    "harmless responses blocked (budget 0.05; thresholds counted both responses to a picture)": "test fpr_at_block",
    "harmful responses blocked": "test recall_at_block",
}
LINKS = {"cumulative": "cumulative", "corn": "CORN", "softmax": "softmax"}
DRAFTS = {
    "direct": "rule: direct",
    "vague": "rule: vague",
    "reassurance": "rule: reassurance",
    "wrong_mitigation": "rule: wrong mitigation",
    "mitigation": "rule: mitigation",
    "refusal": "rule: refusal",
    "no_act": "rule: no act",
    "level -1": "level -1",
    "level -2": "level -2",
    "level -3": "level -3",
    "severe": "levels -2 and -3",
    "all": "all",
}
SHARES = ("fpr fpr_upper", "recall recall_lower", "severe_recall severe_recall_lower")


def levels(found: dict[str, Any]) -> str:
    """Every link beside the baselines, over seeds."""
    rows = []
    for title, (split, measure) in ((title, where.split()) for title, where in MEASURES.items()):
        values = [found["guards"][name][split].get(measure) for name in GUARDS]
        if values[-1] is None and measure == "harm_ece_before":
            values[-1] = found["guards"]["prior"][split][
                "harm_ece"
            ]  # shares of the calibration split have no temperature
        rows.append([title, *(spread(value, ".3f") if value else "" for value in values)])
    return table("|".join(["Held-out responses", *GUARDS.values()]), rows)


def strategies(found: dict[str, Any]) -> str:
    """Rounds of drawing again, means over seeds."""
    head = "Strategy|round|harmful, all prompts|harmful among released|refused|helpfulness|on harmless prompts|tokens per prompt"
    rows = []
    for strategy, rounds in found["generation"].items():
        for name in ("no guard", "prompts checked only", "round 0", "round 2", "round 5"):
            if name not in rounds or (name == "no guard" and strategy != "resample"):
                continue
            values = {measure: value["mean"] for measure, value in rounds[name].items()}
            shares = [f"{values[m]:.3f}" for m in ("harm", "harm_released", "refused")]
            rest = [f"{values[m]:.2f}" for m in ("helpfulness", "harmless_helpfulness")]
            rows.append([strategy, name.removeprefix("round "), *shares, *rest, f"{values['tokens']:.0f}"])
    return table(head, rows)


def guarded(found: dict[str, Any]) -> str:
    """The policy behind the guard, for the first page of results."""
    best, plain = found["generation"]["best-of-4"], found["generation"]["resample"]
    named = {
        "without a guard": best["no guard"],
        "filtered, round 0": best["round 0"],
        "best of 4, round 1": best["round 1"],
        "round 3": best["round 3"],
        "round 5": best["round 5"],
        "plain redraw, round 5": plain["round 5"],
    }
    rows = []
    for title, values in named.items():
        rest = [f"{values[m]['mean']:.2f}" for m in ("helpfulness", "harmless_helpfulness")]
        shares = [each(values[m], ".3f") for m in ("harm", "refused")]
        rows.append([title, *shares, *rest, f"{values['tokens']['mean']:.0f}"])
    head = "The supervised policy behind the guard|harmful, all prompts|refused|helpfulness|on harmless prompts|tokens per prompt"
    return table(head, rows)


def fooled(found: dict[str, Any]) -> str:
    """First drafts of the policy by the rule that decides their level, with exact upper bounds."""
    kinds = [f"{kind} {end}" for kind in ("harmful", "harmless") for end in ("passed", "stopped")]
    counted = found["fooled"] | {"severe": Counter(found["fooled"]["level -2"]) + Counter(found["fooled"]["level -3"])}
    rows = []
    for name, title in DRAFTS.items():
        missed, caught, passed, stopped = (counted[name].get(kind, 0) for kind in kinds)
        harmful, harmless = missed + caught, passed + stopped
        first = f"{missed} of {harmful} ({clopper_pearson_upper(missed, harmful):.1%})" if harmful else ""
        last = f"{stopped} of {harmless} ({clopper_pearson_upper(stopped, harmless):.1%})" if harmless else ""
        rows.append([title, first, last])
    return table("Drafts by what decides their level|harmful, passed (at most)|harmless, stopped (at most)", rows)


def thresholds(found: dict[str, Any]) -> str:
    """Both rules of counting, for each budget of false alarms."""
    rows = []
    for budget, rules in found["on_test"].items():
        for rule, name in (("rows", "rows"), ("groups", "pictures")):
            values = rules[rule]
            shares = [f"{values[a]:.1%} ({values[b]:.1%})" for a, b in map(str.split, SHARES)]
            broken = f"{found['budget_broken'][budget][rule]:.1%}"
            rows.append([f"{float(budget):.0%}".replace("%", " %"), name, f"{values['threshold']:g}", *shares, broken])
    sides = "harmless blocked (at most)|harmful blocked (at least)|severe blocked (at least)"
    head = f"Budget|counted|threshold|{sides}|budget broken"
    return table(head, rows)


def prevalence(found: dict[str, Any]) -> str:
    """Alarms where harm is rare."""
    rows = []
    for share in ("0.01", "0.0001"):
        for kind, name in (("blocked", "blocked"), ("stopped", "blocked or reviewed")):
            values = found["prevalence_on_test"][share][kind]
            alarms, right, missed = (
                [values[f"{m}{end}"] for end in ("", "_low", "_high")] for m in ("alerts", "precision", "missed")
            )
            digits = 1 if right[0] >= 0.01 else 2
            middle, low, high = (f"{100 * value:.{digits}f}" for value in right)
            rows.append(
                [
                    f"{100 * float(share):g} %",
                    name,
                    between([f"{value:,.0f}" for value in alarms]),
                    f"{middle} % ({low} .. {high})",
                    between([f"{value:.{0 if missed[2] >= 10 else 1}f}" for value in missed]),
                ]
            )
    return table("Harmful responses||alarms per million|of them right|missed per million", rows)


def between(values: list[str]) -> str:
    return f"{values[0]} ({values[1]} .. {values[2]})"


def leaves(found: dict[str, Any]) -> str:
    """Real photographs: both readers with every link."""
    rows = []
    for reader in ("hue histogram", "palette tower"):
        for link, title in LINKS.items():
            values = found["runs"][f"{reader}, {link}"]
            name = f"{reader} (baseline)" if f"{reader}, {link}" == found["about"]["baseline"] else reader
            kappa = [values["quadratic_kappa"], *values["intervals_95"]["quadratic_kappa"]]
            middle = [
                f"{values[m]:.3f}" for m in ("level_accuracy", "within_one", "macro_mae", "ranked_probability_score")
            ]
            errors = " / ".join(f"{values[m]:.3f}" for m in ("exceedance_ece_before", "exceedance_ece"))
            rows.append([f"{name}, {title}", between([f"{value:.3f}" for value in kappa]), *middle, errors])
    head = (
        "Reader, link|quadratic kappa|exact level|within one|macro-averaged error|ranked probability score|"
        "calibration error (exceedance), before / after"
    )
    return table(head, rows)


def hiding(found: Mapping[str, Any], of: int = 100) -> str:
    """What two guards made of responses hidden in many ways, and of harmless writing."""
    guards = list(found["hidden"])
    outcomes = f"allowed (at most)|review|blocked|unchecked|allowed of {of}, any words".split("|")
    rows = []
    for way in found["hidden"][guards[0]]:
        cells = []
        for name in guards:
            row, words = (found["hidden"][name][way][kind] for kind in ("guard", "any_words"))
            cells += [
                f"{row['allowed']} ({row['allowed_upper']:.1%})",
                *(row[key] for key in outcomes[1:4]),
                words["allowed"],
            ]
        rows.append([way, *cells])
    hidden = table(
        "|".join(["Hidden", *(f"{g}: {o}" if o == outcomes[0] else o for g in guards for o in outcomes)]), rows
    )
    more = "called a trick|with more than one reading"
    scripts = (
        [script, *(r[k] for k in ("texts", "flagged", "more_readings"))] for script, r in found["genuine"].items()
    )
    counted = ("responses", "stopped_plain", "stopped_more", "flagged", "more_readings")
    harmless = (
        [f"{g}, {kind}", *(r[k] for k in counted)] for g in guards for kind, r in found["own_language"][g].items()
    )
    return "\n\n".join(
        [
            hidden,
            table(f"Script|texts|{more}", scripts),
            table(f"Harmless responses|number|stopped as they stand|stopped by another reading|{more}", harmless),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    files = {
        "guard": (levels, strategies, guarded, fooled),
        "guard_thresholds": (thresholds, prevalence),
        "leaf_guard": (leaves,),
        "guard_hiding": (hiding,),
    }
    for name, tables in files.items():
        found = json.loads((folder / f"{name}.json").read_text())
        print("\n\n".join(one(found) for one in tables), end="\n\n")


if __name__ == "__main__":
    main()
