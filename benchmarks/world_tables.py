"""The tables of docs/results/index.md and of how-to pages from the JSON files of evidence.py, construct_pays.py and loader.py.

python benchmarks/world_tables.py docs/evidence
"""

import argparse
import json
from pathlib import Path
from typing import Any

from policy_tables import each, spread, table

TWINS = {"reward": "counterfactual_helpfulness/true_accuracy", "cost": "counterfactual_safety/true_accuracy"}
RANKING = "test/true_accuracy"
SIGN = "test/true_balanced_sign_accuracy"
MEASURES = {
    "ranking, held-out pairs, against the truth": RANKING,
    "the noisy labels themselves against the truth": "test/label_ceiling",
    "ranking against the noisy labels": "test/accuracy",
    "ranking on unseen combinations": "compositional/true_accuracy",
    "ranking, counterfactual twins (blind: 0.50)": "",
    "ranking with shuffled pictures": "test/shuffled_accuracy",
    "ranking with blank pictures": "test/blank_accuracy",
    "harmful or not, balanced": SIGN,
    "counterfactual verdicts (blind: 0.50)": "counterfactual_verdict/true_sign_accuracy",
    "AUROC of harmful": "test/true_auroc",
}
PARTS = {
    "reward": "reward, token-evidence head",
    "reward_end_token": "reward, plain end-token head",
    "reward_text_only": "reward trained with blank pictures",
    "cost": "cost, as above",
    "cost_end_token": "cost, plain end-token head",
    "cost_no_ordinal": "cost without the ordinal term",
    "cost_text_only": "cost trained with blank pictures",
}
ARMS = {"every_judge": "majority of all nine judges", "audited": "audited and cleaned", "truth": "ground truth"}
LOADERS = {
    "loader, no worker, one thread": "no worker, one thread",
    "loader, no worker, 2 threads (default)": "no worker, two threads (the default there)",
    "loader, 2 worker(s)": "two workers",
}


def models(found: dict[str, Any]) -> str:
    """Reward and cost models on all pairs."""
    rows = []
    for title, measure in MEASURES.items():
        values = [found["runs"][stage].get(measure or TWINS[stage]) for stage in ("reward", "cost")]
        rows.append([title, *(f"{spread(value, '.3f')} ({each(value, '.3f')})" if value else "" for value in values)])
    return table("5,000 pairs|Reward model|Cost model", rows)


def sizes(found: dict[str, Any]) -> str:
    """The same with fewer pairs."""
    rows = []
    for end, pairs in (("_500", "500"), ("_1500", "1,500"), ("", "5,000")):
        reward, cost = found["runs"][f"reward{end}"], found["runs"][f"cost{end}"]
        values = [reward[RANKING], reward[TWINS["reward"]], cost[RANKING], cost[SIGN], cost[TWINS["cost"]]]
        rows.append([pairs, *(spread(value, ".3f") for value in values)])
    return table("Pairs|Reward: ranking|Reward: twins|Cost: ranking|Cost: balanced sign|Cost: twins", rows)


def parts(found: dict[str, Any]) -> str:
    """What each part brings, on the first seed."""
    rows = []
    for name, title in PARTS.items():
        run = found["runs"][name]
        measures = (RANKING, TWINS[name.partition("_")[0]], SIGN)
        rows.append([title, *(f"{run[m]['values'][0]:.3f}" if m in run else "" for m in measures)])
    return table("Variant|Ranking|Twins|Balanced sign", rows)


def pays(found: dict[str, Any]) -> str:
    """Models trained on labels of faulty judges, of audited ones, and on true labels."""
    measures = ("more_helpful_right", "safer_right", "reward test/true_accuracy", "cost test/true_accuracy")
    rows = [[title, *(spread(found["arms"][arm][m], ".3f") for m in measures)] for arm, title in ARMS.items()]
    return table("Labels|more helpful is right|safer is right|reward model|cost model", rows)


def reading(found: dict[str, Any]) -> str:
    """The loader's speed against bare decoding, with the extra ``jpeg`` and without."""
    rows = []
    for name, title in LOADERS.items():
        cases = [part["cases"][name] for part in (found, found["pillow_only"])]
        rows.append(
            [title, *(f"{c['ratio']:.2f} ({c['ratio_range'][0]:.2f} to {c['ratio_range'][1]:.2f})" for c in cases)]
        )
    return table("|with `jpeg`|Pillow only", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    files = {"foundation": (models, sizes, parts), "construct_pays": (pays,), "reading": (reading,)}
    for name, tables in files.items():
        found = json.loads((folder / f"{name}.json").read_text())
        print("\n\n".join(one(found) for one in tables), end="\n\n")


if __name__ == "__main__":
    main()
