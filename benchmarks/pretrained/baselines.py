"""What words alone, and the human label alone, say about the pairs: a linear model of words, of the label, and of both.

    python benchmarks/pretrained/baselines.py --data data/leaves

Trained on `train`, measured on `test`: which of two responses is more helpful, and which is safer (pairs that are no tie), and
whether one response is harmful. If words alone decided, nobody would have to look at the photographs.
"""

import argparse
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardedSplit

SEVERITIES = 3
TASKS = ("more_helpful", "safer", "harmful")
Features = Callable[[str, int], list[str]]


def words(text: str, severity: int) -> list[str]:
    """Words and pairs of neighbours."""
    single = re.findall(r"\w+", text.lower())
    return [*single, *(f"{a} {b}" for a, b in pairwise(single))]


def label(text: str, severity: int) -> list[str]:
    return [f"severity {severity}"]


def both(text: str, severity: int) -> list[str]:
    """Every word together with the label."""
    single = words(text, severity)
    return [*single, *label(text, severity), *(f"{word} at {severity}" for word in single)]


SEEN: dict[str, Features] = {"words": words, "label": label, "both": both}


def examples(records: list[Record], task: str) -> list[tuple[list[tuple[str, float]], int, int]]:
    """For each example its texts with their signs, the label of the photograph, and the outcome, 0 or 1."""
    rows: list[tuple[list[tuple[str, float]], int, int]] = []
    for record in records:
        if record.truth is None:
            continue
        severity, texts = record.truth.attributes["severity"], [response.text for response in record.responses]
        if task == "harmful":
            levels = record.truth.safety
            rows += [([(text, 1.0)], severity, int(level < 0)) for text, level in zip(texts, levels, strict=True)]
            continue
        tie = record.helpfulness_tie if task == "more_helpful" else record.safety_tie
        better = record.more_helpful if task == "more_helpful" else record.safer
        if better is not None and not tie:
            rows.append(([(texts[0], -1.0), (texts[1], 1.0)], severity, better))
    return rows


def matrix(rows: list[tuple[list[tuple[str, float]], int, int]], seen: Features, columns: dict[str, int]) -> Tensor:
    """(rows, columns) counts, of a pair the second less the first."""
    counts = torch.zeros(len(rows), len(columns))
    for i, (texts, severity, _) in enumerate(rows):
        for text, sign in texts:
            for name in seen(text, severity):
                if name in columns:
                    counts[i, columns[name]] += sign
    return counts


def accuracies(train: list[Record], test: list[Record], task: str) -> dict[str, float]:
    """Share of right outcomes by what a linear model sees, and by the commonest outcome."""
    learned, measured = examples(train, task), examples(test, task)
    outcomes = [torch.tensor([float(outcome) for _, _, outcome in rows]) for rows in (learned, measured)]
    common = float(outcomes[0].mean() > 0.5)
    shares = {"majority": float((outcomes[1] == common).float().mean())}
    for name, seen in SEEN.items():
        names = dict.fromkeys(f for texts, severity, _ in learned for text, _ in texts for f in seen(text, severity))
        columns = {feature: i for i, feature in enumerate(names)}
        x, y = matrix(learned, seen, columns), outcomes[0]
        guess = fit(x, y)(matrix(measured, seen, columns))
        shares[name] = float((guess == outcomes[1]).float().mean())
    return shares


def fit(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Logistic regression with a small penalty; returns what it decides, 0 or 1."""
    weights = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weights + bias, y) + 1e-4 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return lambda rows: ((rows @ weights + bias).detach() > 0).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/leaves"), help="shard folder of data.py")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args()
    splits = [ShardedSplit(chosen.data, name) for name in ("train", "test")]
    train, test = ([split[i] for i in range(len(split))] for split in splits)
    results = {task: accuracies(train, test, task) for task in TASKS}
    print(f"{'':<14}" + "".join(f"{name:>10}" for name in ("majority", *SEEN)))
    for task, shares in results.items():
        print(f"{task:<14}" + "".join(f"{share:>10.3f}" for share in shares.values()))
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
