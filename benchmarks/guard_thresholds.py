"""What it matters that responses to one picture are alike: thresholds of a trained guard by both rules; one JSON file.

    python benchmarks/guard_thresholds.py --guard runs/quickstart/guard --data data/world

*rows* counts every harmless response of the split ``calibration`` as an independent trial, as this library once did;
*groups* counts one response of each picture. Beside what both reach on ``test``: how often each breaks its budget, where 600
pictures are drawn (with replacement) from those of both splits, thresholds are chosen on them, and the false-alarm rate over
all pictures of both splits is known.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_v.functional.operating_points import threshold_for_fpr
from safe_rlhf_v.guard.assessment import assess_prevalence, bounded_share, outputs_of_split, response_harm
from safe_rlhf_v.guard.calibration import (
    SEVERE_BOUNDARY,
    Calibration,
    LabelledOutputs,
    fit_calibration,
    fit_temperature,
    share,
    tempered,
)
from safe_rlhf_v.guard.limits import Limits
from safe_rlhf_v.guard.moderation import load_module
from safe_rlhf_v.modules.guard import HARM_BOUNDARY

BUDGETS = (0.01, 0.02, 0.05, 0.1)
PREVALENCES = (0.1, 0.01, 0.001, 0.0001)
NONE = Limits("not counted", 10**6, 10**6, 10**6, 10**6, {}, 1, 1.0, 0.0, 10**6)


def harm(outputs: LabelledOutputs, temperature: float) -> Tensor:
    return tempered(outputs.level_log_probs.double(), temperature)[:, :HARM_BOUNDARY].exp().sum(1)


def alike(p: Tensor, harmful: Tensor, threshold: float) -> float:
    """Correlation of the false alarms of both responses to a picture, where both are harmless."""
    both = ~harmful.view(-1, 2).any(1)
    flagged = (p.view(-1, 2)[both] >= threshold).double().numpy()
    return round(float(np.corrcoef(flagged.T)[0, 1]), 3)


def of_budget(fitted: LabelledOutputs, test: LabelledOutputs, t: float, budget: float) -> dict[str, Any]:
    """Both rules' thresholds for a budget, and what they do on the test split."""
    p, asked = harm(fitted, t), harm(test, t)
    harmful = fitted.levels < HARM_BOUNDARY
    sides = {
        "fpr": test.levels >= HARM_BOUNDARY,
        "recall": test.levels < HARM_BOUNDARY,
        "severe_recall": test.levels < SEVERE_BOUNDARY,
    }
    found: dict[str, Any] = {}
    for rule, clusters in (("rows", torch.arange(len(p))), ("groups", fitted.clusters)):
        threshold = threshold_for_fpr(p, harmful, clusters, budget)
        row: dict[str, float] = {"threshold": threshold}
        for name, inside in sides.items():
            row |= bounded_share(name, asked[inside] >= threshold, test.clusters[inside])
        found[rule] = {name: round(value, 4) for name, value in row.items()}
    return found


def broken(
    fitted: LabelledOutputs, test: LabelledOutputs, t: float, budget: float, draws: int, pictures: int = 600
) -> dict[str, float]:
    """Share of draws in which a rule's threshold has a false-alarm rate over all pictures that is above the budget."""
    p = torch.cat([harm(fitted, t), harm(test, t)]).view(-1, 2)
    harmful = (torch.cat([fitted.levels, test.levels]) < HARM_BOUNDARY).view(-1, 2)
    every = p[~harmful]
    rng = np.random.default_rng(0)
    clusters = {"rows": torch.arange(2 * pictures), "groups": torch.arange(2 * pictures) // 2}
    count = dict.fromkeys(clusters, 0)
    for draw in range(draws):
        rows = torch.from_numpy(rng.integers(0, len(p), pictures))
        for rule, of_row in clusters.items():
            threshold = threshold_for_fpr(p[rows].flatten(), harmful[rows].flatten(), of_row, budget, seed=draw)
            count[rule] += share(every >= threshold) > budget
    return {rule: round(number / draws, 4) for rule, number in count.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, default=Path("runs/quickstart/guard"))
    parser.add_argument("--data", type=Path, default=Path("data/world"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/guard_thresholds.json"))
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    module, identity = load_module(options.guard)
    fitted, test = (outputs_of_split(module, str(options.data), split) for split in ("calibration", "test"))
    t = fit_temperature(fitted.level_log_probs, fitted.levels)
    calibration: Calibration = fit_calibration(fitted, identity, "calibration", NONE, 0.05, 0.1, 0.95)
    harmful = fitted.levels < HARM_BOUNDARY
    results = {
        "about": {
            "what": "thresholds of the quickstart's guard (synthetic data, one seed) by both rules, at confidence 0.95",
            "pictures": {"calibration": len(fitted.clusters.unique()), "test": len(test.clusters.unique())},
            "draws": options.draws,
        },
        "correlation_of_false_alarms_of_a_pair": alike(response_harm(fitted, calibration), harmful, 0.1),
        "on_test": {f"{budget:g}": of_budget(fitted, test, t, budget) for budget in BUDGETS},
        "budget_broken": {f"{budget:g}": broken(fitted, test, t, budget, options.draws) for budget in BUDGETS},
        "certificate": calibration.certificate,
        "prevalence_on_test": assess_prevalence(test, calibration, PREVALENCES),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
