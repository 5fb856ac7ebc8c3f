"""What people watch and keep: figures and pictures for every logger that takes them, results as files."""

if __name__ != "safe_rlhf_v.callbacks":
    raise ImportError(f"import safe_rlhf_v.callbacks, not {__name__}: classes of both names would be unequal")

from safe_rlhf_v.callbacks.constraint_monitor import ConstraintMonitor
from safe_rlhf_v.callbacks.evaluation import EvaluationCallback
from safe_rlhf_v.callbacks.group_accuracy import CategoryAccuracy, RuleAccuracy
from safe_rlhf_v.callbacks.guard_report import GuardReport
from safe_rlhf_v.callbacks.metrics_file import MetricsFile
from safe_rlhf_v.callbacks.predictions_file import PredictionsFile
from safe_rlhf_v.callbacks.reliability_diagram import ReliabilityDiagram
from safe_rlhf_v.callbacks.response_gallery import ResponseGallery
from safe_rlhf_v.callbacks.responses import ResponseCallback
from safe_rlhf_v.callbacks.reward_cost_plane import RewardCostPlane
from safe_rlhf_v.callbacks.run_keeper import RunKeeper
from safe_rlhf_v.callbacks.sample_gallery import SampleGallery
from safe_rlhf_v.callbacks.score_histograms import ScoreHistograms
from safe_rlhf_v.callbacks.stop_on_violation import StopOnViolation

__all__ = [
    "CategoryAccuracy",
    "ConstraintMonitor",
    "EvaluationCallback",
    "GuardReport",
    "MetricsFile",
    "PredictionsFile",
    "ReliabilityDiagram",
    "ResponseCallback",
    "ResponseGallery",
    "RewardCostPlane",
    "RuleAccuracy",
    "RunKeeper",
    "SampleGallery",
    "ScoreHistograms",
    "StopOnViolation",
]
