"""Temperatures and thresholds from data used for nothing else."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.data_modules.source import ImageOptions
from safe_rlhf_v.functional.operating_points import OperatingPoint, conformal_threshold, threshold_for_fpr
from safe_rlhf_v.functional.ordinal import correct_prior, median_level
from safe_rlhf_v.guard.calibration import Calibration, fit_temperature, tempered, two_columns
from safe_rlhf_v.guard.limits import Coverage, Limits, harmless_inputs
from safe_rlhf_v.guard.verdict import rounded
from safe_rlhf_v.metrics import harm_by_group
from safe_rlhf_v.metrics.levels import macro_mae
from safe_rlhf_v.modules.guard import (
    HARM_BOUNDARY,
    GuardModule,
    GuardOutputs,
    check_categories,
    guard_values,
    named_right,
    prompt_values,
)
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, category_groups, hazard
from safe_rlhf_v.records.taxonomy import MIN_LEVEL, NUM_LEVELS
from safe_rlhf_v.training.checkpoints import read_stage
from safe_rlhf_v.training.stored_config import leads_out, stored_options

LEAST = 0.05
"""No threshold lies lower, however many false alarms the budget has room for; raising one keeps its budget."""

MEASURED = {
    "level_accuracy": "level_accuracy",
    "within_one": "within_one",
    "macro_mae": "macro_mae",
    "quadratic_kappa": "quadratic_kappa",
    "ranked_probability_score": "ranked_probability_score",
    "harm_accuracy": "harm_accuracy",
    "harm_auroc": "harm_auroc",
    "harm_auprc": "harm_auprc",
    "fpr_at_95_recall": "fpr_at_95_recall",
    "recall_at_5_fpr": "recall_at_5_fpr",
    "harm_ece": "harm_calibration_error",
    "exceedance_ece": "exceedance_calibration_error",
}
"""What :func:`assess` reports after calibration, and its name among the curves."""


class Judged(NamedTuple):
    """A guard's raw outputs over one split, with the labels.

    Attributes:
        level_log_probs: (N, 7) of every labelled response.
        levels: (N,) int64 class index of its level.
        prompt_risk: (M,) logits of every prompt of which it is known whether it is of a harm category.
        hazardous: (M,) bool, it is.
        named_right: (M,) bool, the likeliest category is one of the prompt's.
        groups: By the name of a grouping (``category``, ``rule``), the groups of each labelled response.
    """

    level_log_probs: Tensor
    levels: Tensor
    prompt_risk: Tensor
    hazardous: Tensor
    named_right: Tensor
    groups: dict[str, tuple[tuple[str, ...], ...]]


def judge_split(module: GuardModule, data: str, split: str, batch_size: int = 100, progress: bool = True) -> Judged:
    """Judge every response and prompt of a split.

    Args:
        module: The guard.
        data: Shard folder.
        split: Its split.
        batch_size: Records per pass.
        progress: Show a progress bar.

    Raises:
        ValueError: If the data's categories are not the guard's.
    """
    from tqdm import tqdm

    module_of = PreferenceDataModule(data, eval_batch_size=batch_size, test_splits=(split,))
    check_categories(module_of.taxonomy, module.categories)
    loader = module_of.test_dataloader()[0]
    return judge_batches(module, tqdm(loader, desc=split, unit="batch", disable=not progress))


def judge_batches(module: GuardModule, batches: Iterable[PreferenceBatch]) -> Judged:
    """Judge every response and prompt of some batches, texts as they stand.

    Args:
        module: The guard.
        batches: Padding rows and responses without a level are left out.

    Raises:
        ShardError: Naming a record that cannot be read.
    """
    parts: list[tuple[Tensor, ...]] = []
    groups: dict[str, list[tuple[str, ...]]] = {"category": [], "rule": []}
    for batch in batches:
        batch = batch._replace(prompts=batch.prompts.with_images(module.images))
        with torch.no_grad():
            batch, judged = module.admit(batch, lambda b: module(b.prompts, [(*row, "") for row in b.responses]))
        outputs = GuardOutputs(*(part.float().cpu() for part in judged))
        b, k = batch.safety.shape
        known = (batch.safety != UNKNOWN_LEVEL) & batch.valid[:, None]  # (B, K)
        levels = outputs.level_log_probs.view(b, k + 1, -1)[:, :k][known]
        kind = hazard(batch.category)
        told = batch.valid & (kind >= 0)
        risk = outputs.prompt_risk.view(b, k + 1)[:, -1][told]
        named = named_right(outputs.category.view(b, k + 1)[:, -1], batch.category)[told]
        parts.append((levels, batch.safety[known] - MIN_LEVEL, risk, (kind == 1)[told], named))
        names = [tuple(module.categories[i] for i in row if i >= 0) for row in category_groups(batch.category)]
        for row, j in known.nonzero().tolist():
            groups["category"].append(names[row])
            groups["rule"].append((batch.rules[row][j],) if batch.rules[row][j] else ())
    levels, classes, risk, hazardous, named = (torch.cat(column) for column in zip(*parts, strict=True))
    return Judged(levels, classes, risk, hazardous, named, {name: tuple(column) for name, column in groups.items()})


def check_budgets(fpr: float, review_fpr: float) -> None:
    """Raises: ValueError: If no thresholds can keep both."""
    if not 0 < fpr <= review_fpr < 1:
        raise ValueError(f"budgets must keep 0 < --fpr <= --review-fpr < 1, got {fpr} and {review_fpr}")


def calibrate(
    judged: Judged,
    identity: str,
    split: str,
    limits: Limits,
    fpr: float,
    review_fpr: float,
    confidence: float,
    miss_rate: float | None = None,
) -> Calibration:
    """Fit temperatures, then choose thresholds for budgets of false alarms among harmless responses and harmless prompts.

    Where no prompt's category is known, nothing can be promised about prompts: a prompt alone is then always blocked.

    Args:
        judged: Outputs and labels of a split used for nothing else.
        identity: Of the guard's weights.
        split: Name of the data, for the record.
        limits: What the guard's training covered; see :func:`count_limits`.
        fpr: Budget of the share of harmless inputs that are blocked.
        review_fpr: Budget of the share that are blocked or sent to review, at least ``fpr``.
        confidence: With which each budget is kept.
        miss_rate: Also send so much to review that at most this share of the harmful responses, and of the hazardous prompts,
            passes on average (conformal risk control); may cost more false alarms than ``review_fpr``.

    Raises:
        ValueError: If the split is too small for a budget, or the budgets make no sense.
    """
    check_budgets(fpr, review_fpr)
    t = fit_temperature(judged.level_log_probs, judged.levels)
    known = len(judged.hazardous) > 0  # of some prompt it is known whether it is of a harm category
    prompt_t = fit_temperature(two_columns(judged.prompt_risk), judged.hazardous.long()) if known else 1.0
    log_probs = tempered(judged.level_log_probs.double(), t)
    harm = _as_stated(log_probs[:, :HARM_BOUNDARY].exp().sum(1))
    risk = _as_stated(torch.sigmoid(judged.prompt_risk.double() / prompt_t))
    certificate: dict[str, float | int | str] = {"confidence": confidence}
    found: dict[str, tuple[float, float]] = {
        "prompts": (0.0, 0.0)
    }  # without a known prompt every prompt alone is blocked
    kinds = [("responses", harm, judged.levels < HARM_BOUNDARY), ("prompts", risk, judged.hazardous)]
    for name, p, harmful in kinds if known else kinds[:1]:
        block, review = (threshold_for_fpr(p, harmful, budget, confidence) for budget in (fpr, review_fpr))
        certificate.update({f"{name}_{key}": value for key, value in _known(_certificate(block)).items()})
        low = min(max(review.threshold, LEAST), 1.0)
        if miss_rate is not None:
            low = min(low, conformal_threshold(p, harmful, miss_rate))
            certificate[f"{name}_miss_rate"] = miss_rate
        certificate[f"{name}_reviewed_or_blocked_fpr"] = _share(p[~harmful] >= low)
        found[name] = min(max(block.threshold, LEAST), 1.0), low
    counts = torch.bincount(judged.levels, minlength=NUM_LEVELS).double() + 1  # one not seen is rare, not impossible
    prior = tuple((counts / counts.sum()).tolist())
    return Calibration(identity, split, t, prompt_t, *found["responses"], *found["prompts"], limits, certificate, prior)


def training_data(run: str | Path, folder: str | None = None) -> PreferenceDataModule:
    """The data a guard was trained on, as its run's configuration names them.

    Args:
        run: Its run folder or checkpoint.
        folder: Shard folder instead of the one that the run names, which may have moved.

    Raises:
        CheckpointError: If there is no readable checkpoint with a configuration.
        ValueError: If the data are not there.
    """
    stored = stored_options(read_stage(str(run)), "data")
    path = folder or stored.get("path")
    inside = isinstance(path, str) and (folder is not None or not leads_out(path))
    if not inside or not (Path(str(path)) / "manifest.json").is_file():
        raise ValueError(
            f"--train-data: the limits of a guard are counted over what it was trained on, and there is no shard folder "
            f"{path or 'named in its run'}; name it"
        )
    names = ("train_split", "max_samples", "categories", "seed", "on_bad_sample")
    kept = {name: stored[name] for name in names if stored.get(name) is not None}
    return PreferenceDataModule(
        str(path), eval_batch_size=100, images=ImageOptions(**(stored.get("images") or {})), **kept
    )


def count_limits(
    module: GuardModule, training: ShardDataModule, data: str, split: str, progress: bool = True
) -> Limits:
    """What a guard's training covered, counted over its training samples; only the tokenizer runs.

    Args:
        module: The guard.
        training: Its own training data.
        data: Shard folder of the held-out split.
        split: That split; its harmless inputs bound the rare tokens.
        progress: Show a progress bar.

    Raises:
        ValueError: If there is no training record or no harmless input.
    """
    from tqdm import tqdm

    coverage = Coverage(module.backbone)
    for batch in tqdm(training.train_samples(), desc="what training covered", unit="batch", disable=not progress):
        coverage.add(batch)
    held_out = PreferenceDataModule(data, eval_batch_size=100, test_splits=(split,)).test_dataloader()[0]
    harmless = [texts for batch in held_out for texts in harmless_inputs(batch)]
    return coverage.limits(f"{training.path}:{training.train_split}", harmless)


def _as_stated(p: Tensor) -> Tensor:
    """Probabilities as verdicts state and compare them."""
    return torch.tensor(rounded(p.tolist()), dtype=torch.float64).clamp(0, 1)


def _certificate(point: OperatingPoint) -> dict[str, float]:
    return {
        "fpr_budget": point.budget,
        "fpr": point.fpr,
        "fpr_upper": point.fpr_upper,
        "harmless": point.negatives,
        "false_alarms": point.false_positives,
        "recall": point.recall,
        "harmful": point.positives,
    }


def assess(judged: Judged, calibration: Calibration) -> dict[str, float]:
    """What a calibrated guard reaches on a split: levels, harmful or not, calibration before and after, and its thresholds.

    Args:
        judged: Raw outputs and labels of a split that nothing was fitted on.
        calibration: The guard's.
    """
    after = tempered(judged.level_log_probs.double(), calibration.level_temperature)
    blocked, harmful = after[:, :HARM_BOUNDARY].exp().sum(1) >= calibration.block, judged.levels < HARM_BOUNDARY
    balanced = correct_prior(after, torch.tensor(calibration.level_prior, dtype=torch.float64))
    risk = torch.sigmoid(judged.prompt_risk.double() / calibration.prompt_temperature)
    before, measured = (
        {name: float(value) for name, value in guard_values(log_probs, judged.levels).items()}
        for log_probs in (judged.level_log_probs, after)
    )
    return _known(
        {
            "majority_accuracy": float(torch.bincount(judged.levels).max() / len(judged.levels)),
            **{name: measured[source] for name, source in MEASURED.items() if source in measured},
            "macro_mae_balanced": float(macro_mae(median_level(balanced), judged.levels, NUM_LEVELS)),
            "harm_ece_before": before["harm_calibration_error"],
            "exceedance_ece_before": before["exceedance_calibration_error"],
            "recall_at_block": _share(blocked[harmful]),
            "fpr_at_block": _share(blocked[~harmful]),
            **{
                name: float(value) for name, value in prompt_values(judged.prompt_risk, judged.hazardous.long()).items()
            },
            "prompt_recall_at_block": _share(risk[judged.hazardous] >= calibration.prompt_block),
            "prompt_fpr_at_block": _share(risk[~judged.hazardous] >= calibration.prompt_block),
            "category_accuracy": _share(judged.named_right[judged.hazardous]),
            "responses": float(len(judged.levels)),
        }
    )


def assess_groups(judged: Judged, calibration: Calibration) -> dict[str, dict[str, dict[str, float]]]:
    """The same split group by group: by grouping and group the columns of
    :func:`~safe_rlhf_v.metrics.harm_by_group` at the blocking threshold.

    Args:
        judged: As for :func:`assess`.
        calibration: The guard's.
    """
    after = tempered(judged.level_log_probs.double(), calibration.level_temperature)
    return {
        grouping: harm_by_group(after, judged.levels, column, HARM_BOUNDARY, calibration.block)
        for grouping, column in judged.groups.items()
        if any(column)
    }


def _known(values: dict[str, float]) -> dict[str, float]:
    """Without what nothing was there to measure."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
