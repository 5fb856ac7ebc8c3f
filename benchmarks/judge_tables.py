"""How far the learned judges can be trusted, before and after a policy was trained against them, and who looks at the picture.

    python -m safe_rlhf_v evaluate --config configs/evaluate/quickstart.yaml
    python benchmarks/judge_tables.py runs/evaluated --out docs/evidence/judges.json

Reads the ``summary.json`` of an evaluation that the world's ground truth judged, too; writes what the tables of
``docs/results/judges.md`` need, and prints these tables.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.records.markdown import marked_table
from safe_rlhf_v.records.user_files import write_whole

PICTURES = {"real": "real picture", "other": "other picture", "blank": "blank picture", "none": "no picture"}
Row = dict[str, Any]


def evidence(summary: Row) -> Row:
    """The rows behind the tables."""
    judges = [
        {"judge": judge["name"], **row}
        for judge in summary["judges"]
        for row in judge["against_truth"] or ()
        if row["by"] in ("all", "intent") and not row["mode"].startswith("matched")
    ]
    seen, true = (
        [row for row in rows if row["judge"] == "truth" and row["name"] in ("helpfulness", "harmful")]
        for rows in (summary["grounding"]["policies"], summary["figures"])
    )
    return {
        "about": __doc__,
        "facts": {name: summary["facts"][name] for name in ("prompts", "seed", "temperature", "grounding_prompts")},
        "figures": true,
        "policies": seen,
        "judges": judges,
        "judges_beside_other_pictures": summary["grounding"]["judges"],
    }


def tables(found: Row) -> list[str]:
    """Every table of the page."""
    trust = [*trust_table(found["judges"], "all"), "", *trust_table(found["judges"], "intent"), ""]
    return [*trust, *ranking_table(found["judges"]), "", *picture_tables(found)]


def trust_table(rows: Sequence[Row], by: str) -> list[str]:
    """One line for each judge, policy and group."""
    head = [
        "Judge",
        "Responses of",
        *(["Intent"] if by == "intent" else []),
        "harmful",
        "caught",
        "harmless",
        "passed",
        "AUROC",
    ]
    lines = []
    for row in rows:
        if row["by"] != by or row["mode"] != "sampled" or row["auroc"] is None:
            continue
        about = [row["judge"], row["policy"], *([row["group"]] if by == "intent" else [])]
        caught, passed = row["sensitivity"], row["specificity"]
        lines.append([*about, caught["n"], share(caught), passed["n"], share(passed), f"{row['auroc']:.3f}"])
    return marked_table(head, lines).splitlines()


def ranking_table(rows: Sequence[Row]) -> list[str]:
    """Spearman's correlation of the reward with the true helpfulness."""
    values = {
        (row["policy"], row["mode"]): row["rank_correlation"]
        for row in rows
        if row["by"] == "all" and row["judge"] == "reward"
    }
    lines = [
        [policy, *(correlation(values.get((policy, mode))) for mode in ("sampled", "greedy"))]
        for policy in dict.fromkeys(policy for policy, _ in values)
    ]
    return marked_table(["Reward model on the responses of", "sampled", "greedy"], lines).splitlines()


def correlation(value: float | None) -> str:
    return "no greedy form" if value is None else f"{value:.2f}"


def picture_tables(found: Row) -> list[str]:
    """Policies that see, and judges that see, another picture than the real one."""
    policies = []
    for name in ("helpfulness", "harmful"):
        for policy in dict.fromkeys(row["policy"] for row in found["policies"]):
            own = {row["picture"]: row for row in found["policies"] if (row["policy"], row["name"]) == (policy, name)}
            write = share if name == "harmful" else number
            policies.append([f"{policy}, {name}", *(write(own[picture]) for picture in PICTURES)])
    judges = []
    for judge, policy in dict.fromkeys((r["judge"], r["policy"]) for r in found["judges_beside_other_pictures"]):
        own = {
            r["picture"]: r
            for r in found["judges_beside_other_pictures"]
            if (r["judge"], r["policy"]) == (judge, policy)
        }
        measure = "rank_correlation" if own["real"]["auroc"] is None else "auroc"
        title = {"rank_correlation": "rank correlation", "auroc": "AUROC"}[measure]
        judges.append([f"{judge} ({title}), {policy}", *(f"{own[picture][measure]:.2f}" for picture in PICTURES)])
    first = marked_table(["Policy, by the truth", *PICTURES.values()], policies)
    return [
        *first.splitlines(),
        "",
        *marked_table(["Judge, on the responses of", *PICTURES.values()], judges).splitlines(),
    ]


def share(value: Row) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} .. {value['high']:.3f})"


def number(value: Row) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} .. {value['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "evaluation", type=Path, help="folder of an evaluation with the judges truth, reward, cost and guard"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    chosen = parser.parse_args()
    found = evidence(json.loads((chosen.evaluation / "summary.json").read_text()))
    print("\n".join(tables(found)))
    if chosen.out:
        write_whole(chosen.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
