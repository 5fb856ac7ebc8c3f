"""The guard on real photographs with human ordinal labels: severity of leaf damage, five levels, picture only.

    python benchmarks/leaf_guard.py FOLDER [--links cumulative corn softmax] [--out docs/evidence/leaf_guard.json]

FOLDER holds ``labels.csv`` (columns ``id`` and ``severity``, 0 to 4) and ``images/ID.jpg``: 1,747 photographs of coffee leaves
from the public repository ``esgario/lara2018`` (MIT). They become shards by ``python -m safe_rlhf_v shards import``; severity
0..4 is level +1..-3. Five folds, balanced over the levels; a tenth of each training part is kept for calibration.
``HueHistogram`` (the baseline) and ``Palette`` are trained by the same guard module with the same links, on the same folds.
"""

import argparse
import csv
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from leaf_readers import HueHistogram, Palette
from lightning.pytorch import Trainer, seed_everything
from torch.optim import AdamW

from safe_rlhf_v.data_modules.collate import CollatePreference
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.demo.processes import execute
from safe_rlhf_v.functional.ordinal import median_level
from safe_rlhf_v.guard.assessment import assess, outputs_of_batches
from safe_rlhf_v.guard.calibration import Calibration, LabelledOutputs, fit_calibration, tempered
from safe_rlhf_v.guard.limits import UNCOUNTED
from safe_rlhf_v.models import CornLink, CumulativeLink, ScalarHead, SoftmaxLink
from safe_rlhf_v.modules import GuardModule
from safe_rlhf_v.records.batches import PreferenceBatch
from safe_rlhf_v.records.taxonomy import NUM_LEVELS
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.shards.images import decode
from safe_rlhf_v.training.optim import WarmupCosine

FOLDS, QUESTION, ANSWER = 5, "How badly is this leaf affected?", "See the picture."
LINKS: dict[str, Callable[..., Any]] = {"cumulative": CumulativeLink, "corn": CornLink, "softmax": SoftmaxLink}
SHOWN = ("quadratic_kappa", "level_accuracy", "within_one", "macro_mae", "ranked_probability_score", "harm_auroc",
         "exceedance_ece_before", "exceedance_ece", "harm_ece_before", "harm_ece")  # fmt: skip


class Recipe(NamedTuple):
    """How a reader is trained."""

    reader: Callable[[], Any]
    epochs: int
    batch: int
    rate: float


RECIPES = {"hue histogram": Recipe(HueHistogram, 130, 128, 3e-3), "palette tower": Recipe(Palette, 20, 32, 6e-3)}


def make_shards(folder: Path, work: Path) -> Path:
    """The folder as shards with a split per fold; each level is dealt out over the folds at random."""
    with (folder / "labels.csv").open() as file:
        rows = [(row["id"], int(row["severity"])) for row in csv.DictReader(file)]
    random = np.random.default_rng(0)
    fold = np.zeros(len(rows), int)
    for level in range(5):
        members = random.permutation([i for i, (_, severity) in enumerate(rows) if severity == level])
        fold[members] = np.arange(len(members)) % FOLDS
    table = work / "leaf.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "image", "question", "response_0", "safety_0", "split"])
        for (name, severity), k in zip(rows, fold, strict=True):
            writer.writerow([f"leaf-{name}", f"{name}.jpg", QUESTION, ANSWER, 1 - severity, f"fold-{k}"])
    out = work / "shards"
    about = ["--name=leaf-severity", "--licence=MIT", f"--out={out}"]
    execute(["shards", "import", f"--table={table}", f"--images={folder / 'images'}", *about], logs=work)
    return out


def read_fold(shards: Path, fold: int) -> list[Sample]:
    split = ShardedSplit(shards, f"fold-{fold}")
    records = [split[i] for i in range(len(split))]
    return [Sample(record, (decode(record.images[0].data),)) for record in records]


class Loader:
    """Batches of decoded samples: shuffled and whole ones only for training, in order and all for judging."""

    def __init__(
        self, samples: list[Sample], collate: CollatePreference, batch: int = 64, shuffled: bool = False
    ) -> None:
        self.samples, self.collate, self.batch, self.shuffled = samples, collate, batch, shuffled

    def __iter__(self) -> Iterator[PreferenceBatch]:
        n = len(self.samples)
        order = torch.randperm(n).tolist() if self.shuffled else list(range(n))
        last = n - n % self.batch if self.shuffled else n
        for start in range(0, last, self.batch):
            yield self.collate([self.samples[i] for i in order[start : start + self.batch]])


def train(recipe: Recipe, link: str, samples: list[Sample], collate: CollatePreference, seed: int) -> GuardModule:
    seed_everything(seed, verbose=False)
    steps = recipe.epochs * (len(samples) // recipe.batch)
    module = GuardModule(
        recipe.reader,
        partial(LINKS[link], **({"thresholds": thresholds(samples)} if link == "cumulative" else {})),
        ScalarHead,
        categories=(),
        prompt_weight=0.0,
        category_weight=0.0,
        optimizer=partial(AdamW, lr=recipe.rate, weight_decay=0.02),
        scheduler=partial(WarmupCosine, total_steps=steps, warmup=0.15),
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, Loader(samples, collate, recipe.batch, shuffled=True))
    return module.eval()


def thresholds(samples: list[Sample]) -> list[float]:
    """Where a guard that knows nothing yet states the frequencies of the levels."""
    levels = torch.tensor([sample.record.responses[0].safety + 3 for sample in samples])
    shares = torch.bincount(levels, minlength=NUM_LEVELS).double() + 0.5
    below = (shares.cumsum(0) / shares.sum())[:-1]
    return torch.logit(below).tolist()


class Fold(NamedTuple):
    """What a trained guard says about the fold it has not seen."""

    outputs: LabelledOutputs
    calibration: Calibration


def run(name: str, link: str, folds: list[list[Sample]], collate: CollatePreference) -> list[Fold]:
    found = []
    for k in range(FOLDS):
        rest = [sample for i, fold in enumerate(folds) if i != k for sample in fold]
        kept = set(np.random.default_rng(k).permutation(len(rest))[: len(rest) // 10].tolist())
        module = train(RECIPES[name], link, [s for i, s in enumerate(rest) if i not in kept], collate, seed=k)
        held_out = Loader([s for i, s in enumerate(rest) if i in kept], collate)
        calibration = fit_calibration(
            outputs_of_batches(module, held_out), f"fold {k}", "held out", UNCOUNTED, 0.05, 0.1, 0.9
        )
        found.append(Fold(outputs_of_batches(module, Loader(folds[k], collate)), calibration))
    return found


def pooled(folds: list[Fold], calibrated: bool) -> LabelledOutputs:
    """All folds as one, each at its own temperature."""
    parts = [
        (
            tempered(outputs.level_log_probs.double(), c.level_temperature if calibrated else 1.0),
            outputs.levels,
            outputs,
        )
        for outputs, c in folds
    ]
    rest = (
        torch.cat([getattr(j, field) for _, _, j in parts]) for field in ("prompt_risk", "hazardous", "named_right")
    )
    rows = torch.arange(sum(len(y) for _, y, _ in parts))  # one response to each photograph
    prompts = torch.arange(sum(len(j.hazardous) for _, _, j in parts))
    stated = torch.cat([p for p, _, _ in parts])
    return LabelledOutputs(stated, torch.cat([y for _, y, _ in parts]), *rest, {}, rows, prompts)


def measure(folds: list[Fold]) -> dict[str, float]:
    plain = Calibration("pooled", "", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, UNCOUNTED, {})
    before, after = (assess(pooled(folds, calibrated), plain) for calibrated in (False, True))
    found = {name: after[name] for name in SHOWN if not name.endswith("_before")}
    found |= {f"{name}_before": before[name] for name in ("exceedance_ece", "harm_ece")}
    blocked = [(assess(outputs, c), c) for outputs, c in folds]
    return found | {"fpr_at_block": float(np.mean([a["fpr_at_block"] for a, _ in blocked]))}


def kappa(true: np.ndarray, decided: np.ndarray) -> float:
    counts = np.zeros((NUM_LEVELS, NUM_LEVELS))
    np.add.at(counts, (true, decided), 1)
    weights = np.subtract.outer(np.arange(NUM_LEVELS), np.arange(NUM_LEVELS)) ** 2
    return float(1 - (weights * counts).sum() / (weights * np.outer(counts.sum(1), counts.sum(0)) / counts.sum()).sum())


def intervals(runs: dict[str, list[Fold]], baseline: str) -> dict[str, dict[str, list[float]]]:
    """95 % bootstrap intervals over photographs of kappa, and of its difference to the baseline on the same ones."""
    random, decided = np.random.default_rng(0), {}
    for name, folds in runs.items():
        outputs = pooled(folds, calibrated=True)
        decided[name], true = median_level(outputs.level_log_probs).numpy(), outputs.levels.numpy()
    draws = [random.integers(0, len(true), len(true)) for _ in range(2000)]
    values = {name: np.array([kappa(true[d], levels[d]) for d in draws]) for name, levels in decided.items()}
    ends = lambda x: [round(float(q), 4) for q in np.quantile(x, [0.025, 0.975])]  # noqa: E731
    return {n: {"quadratic_kappa": ends(v), "minus_baseline": ends(v - values[baseline])} for n, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--links", nargs="+", choices=list(LINKS), default=["cumulative"])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    runs: dict[str, list[Fold]] = {}
    with tempfile.TemporaryDirectory() as work:
        shards = make_shards(options.folder, Path(work))
        collate = CollatePreference(ShardedSplit(shards, "fold-0").manifest.taxonomy, 1)
        folds = [read_fold(shards, k) for k in range(FOLDS)]
    for link in options.links:
        for name in RECIPES:
            start = time.process_time()
            runs[f"{name}, {link}"] = run(name, link, folds, collate)
            print(f"{name}, {link}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    baseline = f"hue histogram, {options.links[0]}"
    measured, ends = {name: measure(found) for name, found in runs.items()}, intervals(runs, baseline)
    print(
        f"\n{'':<26}{'kappa':>8} 95 % interval   minus baseline      " + "  ".join(f"{n[:16]:>16}" for n in SHOWN[1:])
    )
    for name, values in measured.items():
        low, high = ends[name]["quadratic_kappa"]
        less, more = ends[name]["minus_baseline"]
        shown = "  ".join(f"{values[n]:>16.3f}" for n in SHOWN[1:])
        print(
            f"{name:<26}{values['quadratic_kappa']:>8.3f} {low:.3f} .. {high:.3f}  {less:+.3f} .. {more:+.3f}  {shown}"
        )
    if options.out:
        report = {n: {**{k: round(v, 4) for k, v in measured[n].items()}, "intervals_95": ends[n]} for n in runs}
        about = {"what": __doc__.split("\n\n")[0], "photographs": sum(map(len, folds)), "baseline": baseline}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "runs": report}, indent=1) + "\n")
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
