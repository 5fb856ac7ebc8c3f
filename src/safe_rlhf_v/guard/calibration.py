"""Calibration of a trained guard: temperatures and thresholds, fitted once and stored beside the guard.

They are fitted on data that are used for nothing else.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from safe_rlhf_v.functional.operating_points import conformal_threshold, exact_rate, one_per_cluster, threshold_for_fpr
from safe_rlhf_v.guard.limits import Limits
from safe_rlhf_v.guard.verdict import DIGITS, rounded
from safe_rlhf_v.modules.guard import HARM_BOUNDARY
from safe_rlhf_v.records.taxonomy import NUM_LEVELS
from safe_rlhf_v.records.user_files import read_bounded, write_whole
from safe_rlhf_v.training.checkpoints import find_checkpoint

CALIBRATION_FILE = "calibration.json"
MAX_BYTES = 100_000_000
LEAST = 0.05
"""Lower bound of the thresholds, even if the budget would allow more false alarms; raising a threshold keeps its budget."""
SEVERE_BOUNDARY = HARM_BOUNDARY - 1
"""Class indices below this one are severe levels: -2 and -3."""


class CalibrationMissing(ValueError):
    """A guard has no calibration and therefore cannot decide."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures and thresholds of one trained guard.

    Attributes:
        model: Identity of the guard it was fitted for (hash of its weights).
        split: Data it was fitted on, used for nothing else.
        level_temperature: T of the levels: log p / T, normalised (Guo et al., arXiv 1706.04599).
        prompt_temperature: T of the prompt-risk logit.
        block: Responses with P(harmful) at or above this are blocked. It bounds false alarms, not misses.
        review: Responses at or above this, below ``block``, need a person's eye.
        prompt_block: The same for prompts, by prompt risk.
        prompt_review: The same for prompts, by prompt risk.
        limits: What the guard's training covered; inputs beyond it are not decided on.
        certificate: What was measured when the thresholds were chosen, for people: of one input of each image group, false
            alarms with their upper bound, and the recall of all harmful and of severe ones with its lower bound.
        level_prior: Frequencies of the levels in the data it was fitted on, none of them 0.
    """

    model: str
    split: str
    level_temperature: float
    prompt_temperature: float
    block: float
    review: float
    prompt_block: float
    prompt_review: float
    limits: Limits
    certificate: dict[str, float | int | str]
    level_prior: tuple[float, ...] = (1 / NUM_LEVELS,) * NUM_LEVELS

    def __post_init__(self) -> None:
        """Check the numbers, so that a damaged file cannot disable the guard.

        Raises:
            ValueError: If a number is outside its range.
        """
        for name in ("level_temperature", "prompt_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"calibration: {name} is {getattr(self, name)!r}, it must be positive")
        for low, high in ((self.review, self.block), (self.prompt_review, self.prompt_block)):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"calibration: thresholds must keep 0 <= review <= block <= 1, got {low} and {high}")
        if len(self.level_prior) != NUM_LEVELS or not all(0 < share < 1 for share in self.level_prior):
            raise ValueError(f"calibration: level_prior must hold {NUM_LEVELS} frequencies, got {self.level_prior}")
        facts = self.certificate
        if not isinstance(facts, dict) or not all(isinstance(fact, (int, float, str)) for fact in facts.values()):
            raise ValueError("calibration: certificate must hold numbers and texts by name")

    def check_model(self, identity: str) -> None:
        """Check that it belongs to these weights.

        Args:
            identity: See :func:`weights_identity`.

        Raises:
            ValueError: If it was fitted for others.
        """
        if self.model != identity:
            raise ValueError(
                f"the calibration was fitted for guard {self.model}, these weights are {identity}: "
                "run 'python -m safe_rlhf_v calibrate' again"
            )

    def save(self, folder: Path) -> Path:
        """Write the calibration into a run's folder, completely or not at all."""
        path = folder / CALIBRATION_FILE
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the calibration in a run's folder.

        Raises:
            CalibrationMissing: If there is none, or one without limits.
            ValueError: If it is damaged.
        """
        path = folder / CALIBRATION_FILE
        if not path.is_file():
            raise CalibrationMissing(
                f"{folder}: no {CALIBRATION_FILE}, so this guard's probabilities are not calibrated and it has no "
                "thresholds; fit them with 'python -m safe_rlhf_v calibrate'"
            )
        try:
            body = dict(json.loads(read_bounded(path, MAX_BYTES)))
            if "limits" not in body:
                raise CalibrationMissing(
                    f"{path}: written by an earlier version, without the limits of the guard's training; run "
                    "'python -m safe_rlhf_v calibrate' again"
                )
            limits = Limits.from_json(body["limits"])
            return cls(**{**body, "limits": limits, "level_prior": tuple(body["level_prior"])})
        except CalibrationMissing:
            raise
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a calibration of this version ({error})") from None


def weights_identity(module: nn.Module) -> str:
    """Short hash of all weights and buffers of a guard.

    Args:
        module: The trained module.
    """
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def run_home(path: str | Path) -> Path:
    """The folder of a guard's calibration: the run's folder, or the folder of the named checkpoint."""
    root = Path(path)
    return root if root.is_dir() else find_checkpoint(root).parent


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """(..., K) log-probabilities, sharper for T < 1 and flatter for T > 1; the order of the levels does not change.

    Args:
        log_probs: (..., K).
        temperature: T > 0.
    """
    return torch.log_softmax(log_probs / temperature, dim=-1)


def fit_temperature(log_probs: Tensor, classes: Tensor) -> float:
    """The T with the highest likelihood of held-out classes (Guo et al., arXiv 1706.04599, section 4.2).

    The likelihood has one maximum over 1/T, which a search over log T finds within 1/5 .. 5. The bounds exclude T = 0, the
    optimum of a set that the guard separates perfectly, for which a few hundred examples are not enough evidence.

    Args:
        log_probs: (N, K); for a yes/no logit z the two columns (0, z).
        classes: (N,) int64.

    Raises:
        ValueError: If there is nothing to fit on.
    """
    if not len(classes):
        raise ValueError("no labelled example to fit a temperature on")

    def loss(log_t: float) -> float:
        return float(F.nll_loss(tempered(log_probs.double(), math.exp(log_t)), classes))

    low = -math.log(5)
    high = math.log(5)
    inside = minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    ).x  # never a bound itself
    return math.exp(min(low, high, float(inside), key=loss))


def two_columns(logits: Tensor) -> Tensor:
    """(N, 2) log-probabilities of no and yes for (N,) logits.

    Args:
        logits: (N,).
    """
    return F.logsigmoid(torch.stack([-logits, logits], dim=-1))


# --- fitting ----------------------------------------------------------------------------------------------------------


class LabelledOutputs(NamedTuple):
    """A guard's raw outputs over one split, with the labels.

    Attributes:
        level_log_probs: (N, 7) log-probabilities of the levels of every labelled response.
        levels: (N,) int64 class index of the response's level.
        prompt_risk: (M,) logits of every prompt whose categories are known.
        hazardous: (M,) bool, the prompt has a harm category.
        named_right: (M,) bool, the most probable category is one of the prompt's.
        groups: Groups of each labelled response, by the name of the grouping (``category``, ``rule``).
        clusters: (N,) int64 number of each labelled response's image group: records that share a picture, or without
            pictures the texts of the prompt.
        prompt_clusters: (M,) the same for the prompts.
    """

    level_log_probs: Tensor
    levels: Tensor
    prompt_risk: Tensor
    hazardous: Tensor
    named_right: Tensor
    groups: dict[str, tuple[tuple[str, ...], ...]]
    clusters: Tensor
    prompt_clusters: Tensor


def check_budgets(fpr: float, review_fpr: float, confidence: float, miss_rate: float | None = None) -> None:
    """Check that thresholds can keep the budgets.

    Raises:
        ValueError: If they cannot.
    """
    if not 0 < fpr <= review_fpr < 1:
        raise ValueError(f"budgets must keep 0 < --fpr <= --review_fpr < 1, got {fpr} and {review_fpr}")
    for name, value in (("confidence", confidence), ("miss_rate", miss_rate)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"--{name} must lie between 0 and 1, got {value}")


def fit_calibration(
    outputs: LabelledOutputs,
    identity: str,
    split: str,
    limits: Limits,
    fpr: float,
    review_fpr: float,
    confidence: float,
    miss_rate: float | None = None,
) -> Calibration:
    """Fit temperatures, then choose thresholds for budgets of false alarms among harmless responses and harmless prompts.

    The budgets bound false alarms. Misses have no budget: what is caught, of all harmful and of severe inputs, is measured, and
    its lower bound stands in the certificate. Temperatures are fitted on all rows; thresholds and bounds rest on one input of
    each image group, because the responses to one picture are alike. If no prompt's category is known, nothing can be guaranteed
    for prompts: a prompt alone is then always blocked.

    Args:
        outputs: Outputs and labels of a split that is used for nothing else.
        identity: Hash of the guard's weights.
        split: Name of the data, which is stored.
        limits: Limits of the guard; see :func:`~safe_rlhf_v.guard.limits.count_limits`.
        fpr: Budget of the share of harmless inputs that are blocked.
        review_fpr: Budget of the share that are blocked or sent to review, at least ``fpr``.
        confidence: Confidence with which each budget is kept.
        miss_rate: Lower the review thresholds until at most this share of the harmful responses, and of the hazardous prompts,
            passes on average (conformal risk control); this may cause more false alarms than ``review_fpr``.

    Raises:
        ValueError: If the split is too small for a budget, or the budgets are outside their range.
    """
    check_budgets(fpr, review_fpr, confidence, miss_rate)
    t = fit_temperature(outputs.level_log_probs, outputs.levels)
    known = len(outputs.hazardous) > 0  # the categories of some prompts are known
    prompt_t = fit_temperature(two_columns(outputs.prompt_risk), outputs.hazardous.long()) if known else 1.0
    log_probs = tempered(outputs.level_log_probs.double(), t)
    harm = as_stated(log_probs[:, :HARM_BOUNDARY].exp().sum(1))
    risk = as_stated(torch.sigmoid(outputs.prompt_risk.double() / prompt_t))
    severe = outputs.levels < SEVERE_BOUNDARY
    responses = _Kind("responses", harm, outputs.levels < HARM_BOUNDARY, outputs.clusters, severe)
    prompts = _Kind("prompts", risk, outputs.hazardous, outputs.prompt_clusters, None)
    certificate: dict[str, float | int | str] = {"confidence": confidence}
    thresholds = {"prompts": (0.0, 0.0)}  # without a known prompt every prompt alone is blocked
    for kind in (responses, prompts) if known else (responses,):
        block, review = (_threshold(kind, budget, confidence) for budget in (fpr, review_fpr))
        if miss_rate is not None:
            review = min(review, stated(conformal_threshold(kind.p, kind.harmful, kind.clusters, miss_rate)))
            certificate[f"{kind.name}_miss_rate"] = miss_rate
        certificate |= {f"{kind.name}_fpr_budget": fpr, f"{kind.name}_review_fpr_budget": review_fpr}
        certificate |= {f"{kind.name}_{k}": v for k, v in _measured(kind, block, review, confidence).items()}
        thresholds[kind.name] = block, review
    counts = (
        torch.bincount(outputs.levels, minlength=NUM_LEVELS).double() + 1
    )  # a missing level is rare, not impossible
    prior = tuple((counts / counts.sum()).tolist())
    both = (*thresholds["responses"], *thresholds["prompts"])
    return Calibration(identity, split, t, prompt_t, *both, limits, certificate, prior)


def stated(threshold: float) -> float:
    """A threshold rounded up to the digits of a verdict, so that it separates the same verdicts."""
    nearest = round(threshold, DIGITS)
    return nearest if nearest >= threshold else round(nearest + 10**-DIGITS, DIGITS)


def as_stated(p: Tensor) -> Tensor:
    """Probabilities rounded as in verdicts."""
    return torch.tensor(rounded(p.tolist()), dtype=torch.float64).clamp(0, 1)


class _Kind(NamedTuple):
    """What one pair of thresholds decides on: N responses, or prompts, with their severe ones where levels are known."""

    name: str
    p: Tensor
    harmful: Tensor
    clusters: Tensor
    severe: Tensor | None


def _threshold(kind: _Kind, budget: float, confidence: float) -> float:
    """The threshold for a budget, with the digits of a verdict and at least :data:`LEAST`.

    Raises:
        ValueError: If the split is too small, or so many harmless ones have a probability of 1 that none keeps the budget.
    """
    try:
        threshold = threshold_for_fpr(kind.p, kind.harmful, kind.clusters, budget, confidence)
    except ValueError as error:
        raise ValueError(f"{kind.name}: {error}") from None
    if threshold > 1:
        raise ValueError(
            f"{kind.name}: no threshold keeps a false-positive rate of {budget:.2%}: of too many harmless ones the guard "
            "states a P(harmful) of 1; train it longer, or allow a larger rate"
        )
    return stated(max(threshold, LEAST))


def _measured(kind: _Kind, block: float, review: float, confidence: float) -> dict[str, float]:
    """What the thresholds do to one input of each image group, with exact bounds."""
    rows = one_per_cluster(kind.clusters)
    p = kind.p[rows]
    harmful = kind.harmful[rows]
    alarms = exact_rate(p[~harmful] >= block, confidence)
    stopped = exact_rate(p[~harmful] >= review, confidence)
    caught = {"": exact_rate(p[harmful] >= block, confidence)}
    if kind.severe is not None:
        caught["severe_"] = exact_rate(p[kind.severe[rows]] >= block, confidence)
    names = {"": "harmful", "severe_": "severe"}
    return known_only(
        {
            "groups": len(rows),
            "harmless": alarms.total,
            "false_alarms": alarms.hits,
            "fpr": alarms.value,
            "fpr_upper": alarms.upper,
            "reviewed_or_blocked_fpr": stopped.value,
            "reviewed_or_blocked_fpr_upper": stopped.upper,
            **{names[kind]: rate.total for kind, rate in caught.items()},
            **{f"{kind}recall": rate.value for kind, rate in caught.items()},
            **{f"{kind}recall_lower": rate.lower for kind, rate in caught.items()},
        }
    )


def known_only(values: dict[str, float]) -> dict[str, float]:
    """The values without NaN, which means that there was nothing to measure."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def share(hits: Tensor) -> float:
    """Share of true entries; NaN without entries."""
    return float(hits.double().mean())
