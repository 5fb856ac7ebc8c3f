"""What a detector's recall and false-positive rate come to where harm is as rare as it is in use."""

import math
from typing import NamedTuple

from safe_rlhf_v.functional.clustered import Interval

MILLION = 1_000_000


class AtPrevalence(NamedTuple):
    """A detector at a stated share of harmful inputs; every value stands between its two ends.

    Attributes:
        precision: Share of the alarms that are right; NaN without any alarm.
        precision_low: With the least recall and the most false alarms.
        precision_high: The other way round.
        alerts: Alarms per million inputs.
        alerts_low: With the least recall and the fewest false alarms.
        alerts_high: With the most of both.
        missed: Harmful inputs per million that raise no alarm.
        missed_low: With the most recall.
        missed_high: With the least recall.
    """

    precision: float
    precision_low: float
    precision_high: float
    alerts: float
    alerts_low: float
    alerts_high: float
    missed: float
    missed_low: float
    missed_high: float


def at_prevalence(recall: Interval, fpr: Interval, prevalence: float) -> AtPrevalence:
    r"""Precision, alarms and misses where a share :math:`\pi` of the inputs is harmful.

    Precision is :math:`\pi r / (\pi r + (1 - \pi) f)` (Bayes), with recall r and false-positive rate f, which do not depend on
    :math:`\pi` as long as harmful and harmless inputs stay of their kinds. It rises with r and falls with f, so its ends lie at
    the ends of theirs. If both intervals hold together with some confidence, so do all of these: give each a confidence of
    0.975 for 0.95 (Bonferroni).

    Args:
        recall: Share of harmful inputs that raise an alarm.
        fpr: Share of harmless inputs that do.
        prevalence: :math:`\pi`, in (0, 1).

    Raises:
        ValueError: If the prevalence is outside its range.
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence lies between 0 and 1, got {prevalence}")

    def alerts(r: float, f: float) -> float:
        return prevalence * r + (1 - prevalence) * f

    def precision(r: float, f: float) -> float:
        return prevalence * r / alerts(r, f) if alerts(r, f) else math.nan

    return AtPrevalence(
        precision(recall.value, fpr.value),
        prevalence * recall.low / worst if (worst := alerts(recall.low, fpr.high)) else 0.0,
        prevalence * recall.high / best if (best := alerts(recall.high, fpr.low)) else 1.0,
        *(
            MILLION * x
            for x in (alerts(recall.value, fpr.value), alerts(recall.low, fpr.low), alerts(recall.high, fpr.high))
        ),
        *(MILLION * prevalence * (1 - r) for r in (recall.value, recall.high, recall.low)),
    )
