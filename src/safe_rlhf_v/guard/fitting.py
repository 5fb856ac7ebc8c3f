"""Temperatures and thresholds from data used for nothing else."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.batches import UNKNOWN_LEVEL
from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.functional.operating_points import OperatingPoint, threshold_for_fpr
from safe_rlhf_v.guard.calibration import Calibration, fit_temperature, tempered, two_columns
from safe_rlhf_v.metrics import harm as detection
from safe_rlhf_v.metrics import ordinal
from safe_rlhf_v.modules.guard import HARM_BOUNDARY, GuardModule
from safe_rlhf_v.taxonomy import MIN_LEVEL, NUM_LEVELS

LEAST = 0.05
"""No threshold lies lower, however many false alarms the budget has room for; raising one keeps its budget."""


class Judged(NamedTuple):
    """A guard's raw outputs over one split, with the labels.

    Attributes:
        level_log_probs: (N, 7) of every labelled response.
        levels: (N,) int64 class index of its level.
        prompt_risk: (M,) logits of every prompt.
        hazardous: (M,) bool, the prompt has a harm category.
    """

    level_log_probs: Tensor
    levels: Tensor
    prompt_risk: Tensor
    hazardous: Tensor


def judge_split(module: GuardModule, data: str, split: str, batch_size: int = 100, progress: bool = True) -> Judged:
    """Judge every response and prompt of a split.

    Args:
        module: The guard.
        data: Shard folder.
        split: Its split.
        batch_size: Records per pass.
        progress: Show a progress bar.
    """
    from tqdm import tqdm

    loader = PreferenceDataModule(data, eval_batch_size=batch_size, test_splits=(split,)).test_dataloader()[0]
    parts: list[tuple[Tensor, ...]] = []
    for batch in tqdm(loader, desc=split, unit="batch", disable=not progress):
        with torch.no_grad():
            outputs = module(batch.prompts.with_images(module.images), [(*row, "") for row in batch.responses])
        b, k = batch.safety.shape
        known = (batch.safety != UNKNOWN_LEVEL) & batch.valid[:, None]  # (B, K)
        levels = outputs.level_log_probs.view(b, k + 1, -1)[:, :k][known]
        risk = outputs.prompt_risk.view(b, k + 1)[:, -1][batch.valid]
        parts.append((levels, batch.safety[known] - MIN_LEVEL, risk, (batch.category >= 0)[batch.valid]))
    return Judged(*(torch.cat(column) for column in zip(*parts, strict=True)))


def calibrate(
    judged: Judged, identity: str, split: str, fpr: float, review_fpr: float, confidence: float
) -> Calibration:
    """Fit temperatures, then choose thresholds for budgets of false alarms among harmless answers and harmless prompts.

    Args:
        judged: Outputs and labels of a split used for nothing else.
        identity: Of the guard's weights.
        split: Name of the data, for the record.
        fpr: Budget of the share of harmless inputs that are blocked.
        review_fpr: Budget of the share that are blocked or sent to review, at least ``fpr``.
        confidence: With which each budget is kept.

    Raises:
        ValueError: If the split is too small for a budget, or the budgets make no sense.
    """
    if not 0 < fpr <= review_fpr < 1:
        raise ValueError(f"budgets must keep 0 < --fpr <= --review-fpr < 1, got {fpr} and {review_fpr}")
    t = fit_temperature(judged.level_log_probs, judged.levels)
    prompt_t = fit_temperature(two_columns(judged.prompt_risk), judged.hazardous.long())
    harm = tempered(judged.level_log_probs.double(), t)[:, :HARM_BOUNDARY].exp().sum(1).clamp(0, 1)
    risk = torch.sigmoid(judged.prompt_risk.double() / prompt_t)
    answers = [threshold_for_fpr(harm, judged.levels < HARM_BOUNDARY, b, confidence) for b in (fpr, review_fpr)]
    prompts = [threshold_for_fpr(risk, judged.hazardous, b, confidence) for b in (fpr, review_fpr)]
    certificate: dict[str, float | int | str] = {"confidence": confidence}
    for name, point in (("answers", answers[0]), ("prompts", prompts[0])):
        certificate.update({f"{name}_{key}": value for key, value in _certificate(point).items()})
    block, review = (min(max(point.threshold, LEAST), 1.0) for point in answers)
    prompt_block, prompt_review = (min(max(point.threshold, LEAST), 1.0) for point in prompts)
    return Calibration(identity, split, t, prompt_t, block, review, prompt_block, prompt_review, certificate)


def _certificate(point: OperatingPoint) -> dict[str, float | int | str]:
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
    everything = torch.ones_like(judged.levels, dtype=torch.bool)
    harmful = judged.levels < HARM_BOUNDARY
    harm = after[:, :HARM_BOUNDARY].exp().sum(1)
    risk = torch.sigmoid(judged.prompt_risk.double() / calibration.prompt_temperature)
    flagged, stopped = harm >= calibration.block, risk >= calibration.prompt_block

    def measure(metric: Metric, log_probs: Tensor) -> float:
        metric.update(log_probs, judged.levels, everything)
        return float(metric.compute())

    return {
        "majority_accuracy": float(torch.bincount(judged.levels).max() / len(judged.levels)),
        "level_accuracy": measure(ordinal.LevelAccuracy(NUM_LEVELS), after),
        "within_one": measure(ordinal.WithinOneAccuracy(NUM_LEVELS), after),
        "macro_mae": measure(ordinal.MacroMAE(NUM_LEVELS), after),
        "quadratic_kappa": measure(ordinal.QuadraticKappa(NUM_LEVELS), after),
        "harm_accuracy": measure(detection.HarmAccuracy(HARM_BOUNDARY), after),
        "harm_auroc": measure(detection.LevelHarmAUROC(HARM_BOUNDARY), after),
        "fpr_at_95_recall": measure(detection.FPRAtRecall(HARM_BOUNDARY), after),
        "harm_ece_before": measure(detection.HarmCalibrationError(HARM_BOUNDARY), judged.level_log_probs),
        "harm_ece": measure(detection.HarmCalibrationError(HARM_BOUNDARY), after),
        "exceedance_ece_before": measure(ordinal.ExceedanceCalibrationError(NUM_LEVELS), judged.level_log_probs),
        "exceedance_ece": measure(ordinal.ExceedanceCalibrationError(NUM_LEVELS), after),
        "recall_at_block": float(flagged[harmful].double().mean()),
        "fpr_at_block": float(flagged[~harmful].double().mean()),
        "prompt_recall_at_block": float(stopped[judged.hazardous].double().mean()),
        "prompt_fpr_at_block": float(stopped[~judged.hazardous].double().mean()),
        "answers": float(len(judged.levels)),
    }
