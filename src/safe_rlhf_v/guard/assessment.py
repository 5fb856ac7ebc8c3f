"""Assessment of a calibrated guard on a labelled split: its raw outputs, and metrics of them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.functional.ordinal import correct_prior, median_level
from safe_rlhf_v.guard.calibration import Calibration, LabelledOutputs, known_only, share, tempered
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
"""Metrics that :func:`assess` reports after calibration, with their names among the curves."""


def outputs_of_split(module: GuardModule, data: str, split: str, batch_size: int = 100) -> LabelledOutputs:
    """A guard's raw outputs for every response and prompt of a split.

    Args:
        module: The guard.
        data: Shard folder.
        split: Name of the split.
        batch_size: Records per pass.

    Raises:
        ValueError: If the data's categories are not the guard's.
    """
    from tqdm import tqdm

    labelled = PreferenceDataModule(data, eval_batch_size=batch_size, test_splits=(split,))
    check_categories(labelled.taxonomy, module.categories)
    loader = labelled.test_dataloader()[0]
    return outputs_of_batches(module, tqdm(loader, desc=split, unit="batch", disable=None))


def outputs_of_batches(module: GuardModule, batches: Iterable[PreferenceBatch]) -> LabelledOutputs:
    """A guard's raw outputs for every response and prompt of some batches, with unaltered texts.

    Args:
        module: The guard.
        batches: The batches; padding rows and responses without a level are left out.

    Raises:
        ShardError: Naming a record that cannot be read.
    """
    parts: list[tuple[Tensor, ...]] = []
    groups: dict[str, list[tuple[str, ...]]] = {"category": [], "rule": []}
    for batch in batches:
        batch = batch._replace(prompts=batch.prompts.with_images(module.images))
        with torch.no_grad():
            batch, raw = module.admit(batch, lambda b: module(b.prompts, [(*row, "") for row in b.responses]))
        outputs = GuardOutputs(*(part.float().cpu() for part in raw))
        b, k = batch.safety.shape
        known = (batch.safety != UNKNOWN_LEVEL) & batch.valid[:, None]  # (B, K)
        levels = outputs.level_log_probs.view(b, k + 1, -1)[:, :k][known]
        kind = hazard(batch.category)
        labelled = batch.valid & (kind >= 0)  # (B,)
        risk = outputs.prompt_risk.view(b, k + 1)[:, -1][labelled]
        named = named_right(outputs.category.view(b, k + 1)[:, -1], batch.category)[labelled]
        parts.append((levels, batch.safety[known] - MIN_LEVEL, risk, (kind == 1)[labelled], named))
        names = [tuple(module.categories[i] for i in row if i >= 0) for row in category_groups(batch.category)]
        for row, j in known.nonzero().tolist():
            groups["category"].append(names[row])
            groups["rule"].append((batch.rules[row][j],) if batch.rules[row][j] else ())
    levels, classes, risk, hazardous, named = (torch.cat(column) for column in zip(*parts, strict=True))
    return LabelledOutputs(
        levels, classes, risk, hazardous, named, {name: tuple(column) for name, column in groups.items()}
    )


def assess(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, float]:
    """Metrics of a calibrated guard on a split: levels, harm, calibration before and after, and its thresholds.

    Args:
        outputs: Raw outputs and labels of a split that nothing was fitted on.
        calibration: Calibration of the guard.
    """
    after = tempered(outputs.level_log_probs.double(), calibration.level_temperature)
    blocked = after[:, :HARM_BOUNDARY].exp().sum(1) >= calibration.block
    harmful = outputs.levels < HARM_BOUNDARY
    balanced = correct_prior(after, torch.tensor(calibration.level_prior, dtype=torch.float64))
    risk = torch.sigmoid(outputs.prompt_risk.double() / calibration.prompt_temperature)
    before, measured = (
        {name: float(value) for name, value in guard_values(log_probs, outputs.levels).items()}
        for log_probs in (outputs.level_log_probs, after)
    )
    return known_only(
        {
            "majority_accuracy": float(torch.bincount(outputs.levels).max() / len(outputs.levels)),
            **{name: measured[source] for name, source in MEASURED.items() if source in measured},
            "macro_mae_balanced": float(macro_mae(median_level(balanced), outputs.levels, NUM_LEVELS)),
            "harm_ece_before": before["harm_calibration_error"],
            "exceedance_ece_before": before["exceedance_calibration_error"],
            "recall_at_block": share(blocked[harmful]),
            "fpr_at_block": share(blocked[~harmful]),
            **{
                name: float(value)
                for name, value in prompt_values(outputs.prompt_risk, outputs.hazardous.long()).items()
            },
            "prompt_recall_at_block": share(risk[outputs.hazardous] >= calibration.prompt_block),
            "prompt_fpr_at_block": share(risk[~outputs.hazardous] >= calibration.prompt_block),
            "category_accuracy": share(outputs.named_right[outputs.hazardous]),
            "responses": float(len(outputs.levels)),
        }
    )


def assess_groups(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a calibrated guard by grouping and group, at the blocking threshold.

    Args:
        outputs: Raw outputs and labels, as for :func:`assess`.
        calibration: Calibration of the guard.

    Returns:
        The columns of :func:`~safe_rlhf_v.metrics.harm_by_group`, by grouping and group.
    """
    after = tempered(outputs.level_log_probs.double(), calibration.level_temperature)
    return {
        grouping: harm_by_group(after, outputs.levels, column, HARM_BOUNDARY, calibration.block)
        for grouping, column in outputs.groups.items()
        if any(column)
    }
