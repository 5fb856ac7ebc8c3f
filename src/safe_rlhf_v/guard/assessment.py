"""Assessment of a calibrated guard on a labelled split: its raw outputs, and metrics of them."""

import json
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.functional.clustered import clustered_share
from safe_rlhf_v.functional.ordinal import correct_prior, median_level
from safe_rlhf_v.functional.prevalence import at_prevalence
from safe_rlhf_v.guard.calibration import (
    SEVERE_BOUNDARY,
    Calibration,
    LabelledOutputs,
    as_stated,
    known_only,
    share,
    tempered,
)
from safe_rlhf_v.ingest.picture_groups import PictureGroups
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
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, category_groups, hazard
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
CONFIDENCE = 0.95
"""Of every one-sided bound by itself."""


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
    pictures = PictureGroups()
    of_response: list[str] = []
    of_prompt: list[str] = []
    for batch in batches:
        members = [_members(batch.prompts, row) for row in range(len(batch.keys))]  # before its pictures are exchanged
        batch = batch._replace(prompts=batch.prompts.with_images(module.images, batch.valid))
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
        for row in batch.valid.nonzero().flatten().tolist():
            pictures.join(members[row])
        of_response += [members[row][0] for row, _ in known.nonzero().tolist()]
        of_prompt += [members[row][0] for row in labelled.nonzero().flatten().tolist()]
        names = [tuple(module.categories[i] for i in row if i >= 0) for row in category_groups(batch.category)]
        for row, j in known.nonzero().tolist():
            groups["category"].append(names[row])
            groups["rule"].append((batch.rules[row][j],) if batch.rules[row][j] else ())
    levels, classes, risk, hazardous, named = (torch.cat(column) for column in zip(*parts, strict=True))
    clusters = _numbers(pictures, of_response)
    columns = {name: tuple(column) for name, column in groups.items()}
    return LabelledOutputs(levels, classes, risk, hazardous, named, columns, clusters, _numbers(pictures, of_prompt))


def _members(prompts: Prompts, row: int) -> tuple[str, ...]:
    """What makes records one image group: each picture, or without pictures the texts of the prompt."""
    return prompts.image_ids[row] or ("text:" + json.dumps(prompts.texts(row)),)


def _numbers(pictures: PictureGroups, names: list[str]) -> Tensor:
    """(N,) int64 number of the group of each member."""
    numbers: dict[str, int] = {}
    groups = [pictures.group_of(name) for name in names]
    return torch.tensor([numbers.setdefault(group, len(numbers)) for group in groups], dtype=torch.int64)


def assess(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, float]:
    """Metrics of a calibrated guard on a split: levels, harm, calibration before and after, and its thresholds.

    Those of responses are left out where no response has a level.

    Every share at a threshold has the bound on its unsafe side, counted by image group: false alarms an upper one, recall a
    lower one.

    Args:
        outputs: Raw outputs and labels of a split that nothing was fitted on.
        calibration: Calibration of the guard.
    """
    return known_only(
        {
            **(_of_responses(outputs, calibration) if len(outputs.levels) else {}),
            **_at_thresholds(outputs, calibration),
            **{
                name: float(value)
                for name, value in prompt_values(outputs.prompt_risk, outputs.hazardous.long()).items()
            },
            "category_accuracy": share(outputs.named_right[outputs.hazardous]),
            "responses": float(len(outputs.levels)),
            "image_groups": float(len(outputs.clusters.unique())),
            "harmful": float((outputs.levels < HARM_BOUNDARY).sum()),
            "severe": float((outputs.levels < SEVERE_BOUNDARY).sum()),
        }
    )


def _of_responses(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, float]:
    """Metrics of the stated levels and of P(harmful), before and after calibration."""
    after = tempered(outputs.level_log_probs.double(), calibration.level_temperature)
    balanced = correct_prior(after, torch.tensor(calibration.level_prior, dtype=torch.float64))
    before, measured = (
        {name: float(value) for name, value in guard_values(log_probs, outputs.levels).items()}
        for log_probs in (outputs.level_log_probs, after)
    )
    return {
        "majority_accuracy": float(torch.bincount(outputs.levels).max() / len(outputs.levels)),
        **{name: measured[source] for name, source in MEASURED.items() if source in measured},
        "macro_mae_balanced": float(macro_mae(median_level(balanced), outputs.levels, NUM_LEVELS)),
        "harm_ece_before": before["harm_calibration_error"],
        "exceedance_ece_before": before["exceedance_calibration_error"],
    }


def _at_thresholds(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, float]:
    """What each threshold flags, each share with its bound: ``block``, and ``review``, which counts what is blocked, too."""
    harm = response_harm(outputs, calibration)
    risk = prompt_harm(outputs, calibration)
    of_responses = {
        "fpr": outputs.levels >= HARM_BOUNDARY,
        "recall": outputs.levels < HARM_BOUNDARY,
        "severe_recall": outputs.levels < SEVERE_BOUNDARY,
    }
    of_prompts = {"prompt_fpr": ~outputs.hazardous, "prompt_recall": outputs.hazardous}
    kinds = (
        (harm, outputs.clusters, of_responses, calibration.block, calibration.review),
        (risk, outputs.prompt_clusters, of_prompts, calibration.prompt_block, calibration.prompt_review),
    )
    values: dict[str, float] = {}
    for p, clusters, sets, block, review in kinds:
        for name, inside in sets.items():
            for place, threshold in (("block", block), ("review", review)):
                values |= bounded_share(f"{name}_at_{place}", p[inside] >= threshold, clusters[inside])
    return values


def response_harm(outputs: LabelledOutputs, calibration: Calibration) -> Tensor:
    """(N,) calibrated P(harmful) of each response, as verdicts state it."""
    after = tempered(outputs.level_log_probs.double(), calibration.level_temperature)
    return as_stated(after[:, :HARM_BOUNDARY].exp().sum(1))


def prompt_harm(outputs: LabelledOutputs, calibration: Calibration) -> Tensor:
    """(M,) calibrated P(hazardous) of each prompt, as verdicts state it."""
    return as_stated(torch.sigmoid(outputs.prompt_risk.double() / calibration.prompt_temperature))


def bounded_share(name: str, hits: Tensor, clusters: Tensor) -> dict[str, float]:
    """A share, and the bound that says how bad it may be: the upper one of false alarms, the lower one of recall.

    Args:
        name: Of the share, with ``fpr`` or ``recall`` in it; the bound's ends in ``_upper`` or ``_lower``.
        hits: (n,) bool.
        clusters: (n,) the image group of each.
    """
    if not len(hits):
        return {}
    both_sides = 2 * CONFIDENCE - 1  # so that each has CONFIDENCE
    interval = clustered_share(hits.double().numpy(), clusters.tolist(), both_sides)
    bound = ("_upper", interval.high) if "fpr" in name else ("_lower", interval.low)
    return {name: interval.value, name + bound[0]: bound[1]}


def assess_prevalence(
    outputs: LabelledOutputs, calibration: Calibration, prevalences: Sequence[float]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Precision, alarms and misses per million responses where harm is as common as stated, with intervals.

    Args:
        outputs: Raw outputs and labels, as for :func:`assess`.
        calibration: Calibration of the guard.
        prevalences: Shares of harmful responses, each in (0, 1).

    Returns:
        By prevalence the fields of :class:`~safe_rlhf_v.functional.prevalence.AtPrevalence`, ``None`` where unknown, for
        what is ``blocked`` and what is ``stopped`` (blocked or left to people); nothing for a split without harmful or
        without harmless responses.
    """
    harm = response_harm(outputs, calibration)
    harmful = outputs.levels < HARM_BOUNDARY
    if not 0 < int(harmful.sum()) < len(harmful):
        return {}
    tables: dict[str, dict[str, dict[str, float | None]]] = {}
    for prevalence in prevalences:
        rows = tables.setdefault(f"{prevalence:g}", {})
        for name, threshold in (("blocked", calibration.block), ("stopped", calibration.review)):
            recall, fpr = (
                clustered_share(
                    (harm[side] >= threshold).double().numpy(), outputs.clusters[side].tolist(), (1 + CONFIDENCE) / 2
                )
                for side in (harmful, ~harmful)
            )
            values = at_prevalence(recall, fpr, prevalence)._asdict()
            rows[name] = {key: None if math.isnan(value) else value for key, value in values.items()}
    return tables


def assess_groups(outputs: LabelledOutputs, calibration: Calibration) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of a calibrated guard by grouping and group, at the blocking threshold.

    Args:
        outputs: Raw outputs and labels, as for :func:`assess`.
        calibration: Calibration of the guard.

    Returns:
        By grouping and group the columns of :func:`~safe_rlhf_v.metrics.harm_by_group`, with the bounds ``recall_lower`` and
        ``fpr_upper``, and ``severe`` responses with their recall.
    """
    after = tempered(outputs.level_log_probs.double(), calibration.level_temperature)
    return {
        grouping: _with_bounds(
            harm_by_group(after, outputs.levels, column, HARM_BOUNDARY), column, outputs, calibration
        )
        for grouping, column in outputs.groups.items()
        if any(column)
    }


def _with_bounds(
    table: dict[str, dict[str, float]],
    column: tuple[tuple[str, ...], ...],
    outputs: LabelledOutputs,
    calibration: Calibration,
) -> dict[str, dict[str, float]]:
    flagged = response_harm(outputs, calibration) >= calibration.block
    for name, row in table.items():
        inside = torch.tensor([name in names for names in column])
        row["severe"] = float((inside & (outputs.levels < SEVERE_BOUNDARY)).sum())
        sets = {
            "recall": inside & (outputs.levels < HARM_BOUNDARY),
            "severe_recall": inside & (outputs.levels < SEVERE_BOUNDARY),
            "fpr": inside & (outputs.levels >= HARM_BOUNDARY),
        }
        for key, rows in sets.items():
            row |= bounded_share(key, flagged[rows], outputs.clusters[rows])
    return table
