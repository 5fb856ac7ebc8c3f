"""What turns a trained guard into one whose probabilities and decisions can be trusted: fitted once, stored beside it."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from safe_rlhf_v.guard.limits import Limits
from safe_rlhf_v.records.taxonomy import NUM_LEVELS
from safe_rlhf_v.records.user_files import read_bounded, write_whole
from safe_rlhf_v.training.checkpoints import find_checkpoint

CALIBRATION_FILE = "calibration.json"
MAX_BYTES = 100_000_000


class CalibrationMissing(ValueError):
    """A guard without calibration makes no decisions."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures and thresholds of one trained guard.

    Attributes:
        model: Identity of the guard it was fitted for (hash of its weights).
        split: Data it was fitted on, used for nothing else.
        level_temperature: T of the levels: log p / T, normalised (Guo et al., arXiv 1706.04599).
        prompt_temperature: T of the prompt-risk logit.
        block: Responses with P(harmful) at or above this are blocked.
        review: Responses at or above this, below ``block``, need a person's eye.
        prompt_block: The same for prompts, by prompt risk.
        prompt_review: The same for prompts, by prompt risk.
        limits: What the guard's training covered; beyond it nothing is judged.
        certificate: What was measured when the thresholds were chosen, for people.
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
        """Raises: ValueError: If a number makes no sense; a damaged file must not open the guard."""
        for name in ("level_temperature", "prompt_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"calibration: {name} is {getattr(self, name)!r}, it must be positive")
        for low, high in ((self.review, self.block), (self.prompt_review, self.prompt_block)):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"calibration: thresholds must keep 0 <= review <= block <= 1, got {low} and {high}")
        if len(self.level_prior) != NUM_LEVELS or not all(0 < share < 1 for share in self.level_prior):
            raise ValueError(f"calibration: level_prior must hold {NUM_LEVELS} frequencies, got {self.level_prior}")

    def save(self, folder: Path) -> Path:
        """Write it into a run's folder, whole or not at all."""
        path = folder / CALIBRATION_FILE
        write_whole(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it.

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
                    f"{path}: written before a calibration said what the guard's training covered; run "
                    "'python -m safe_rlhf_v calibrate' again"
                )
            limits, prior = Limits.from_json(body["limits"]), tuple(body["level_prior"])
            return cls(**{**body, "limits": limits, "level_prior": prior})
        except CalibrationMissing:
            raise
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a calibration of this version ({error})") from None


def run_home(path: str | Path) -> Path:
    """The folder a guard's calibration lies in: the run's, whether its folder or one of its checkpoints is named."""
    root = Path(path)
    return root if root.is_dir() else find_checkpoint(root).parent


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """(..., K) log-probabilities, sharper for T < 1 and flatter for T > 1; which of two levels is likelier stays.

    Args:
        log_probs: (..., K).
        temperature: T > 0.
    """
    return torch.log_softmax(log_probs / temperature, dim=-1)


def fit_temperature(log_probs: Tensor, classes: Tensor) -> float:
    """The T with the highest likelihood of held-out classes (Guo et al., arXiv 1706.04599, section 4.2).

    The likelihood has one maximum over 1/T, which a search over log T finds within 1/5 .. 5:
    a set that the guard separates perfectly would ask for T = 0, and no set of some hundreds shows that much.

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

    low, high = -math.log(5), math.log(5)
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
