"""What people watch and keep: figures and pictures for TensorBoard (silent without it), results as files."""

if __name__ != "safe_rlhf_v.callbacks":
    raise ImportError(f"import safe_rlhf_v.callbacks, not {__name__}: classes of both names would be unequal")

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback
from safe_rlhf_v.callbacks.group_accuracy import CategoryAccuracy, RuleAccuracy
from safe_rlhf_v.callbacks.metrics_file import MetricsFile
from safe_rlhf_v.callbacks.predictions_file import PredictionsFile
from safe_rlhf_v.callbacks.reliability_diagram import ReliabilityDiagram
from safe_rlhf_v.callbacks.sample_gallery import SampleGallery
from safe_rlhf_v.callbacks.score_histograms import ScoreHistograms

__all__ = [
    "CategoryAccuracy",
    "EvaluationCallback",
    "MetricsFile",
    "PredictionsFile",
    "ReliabilityDiagram",
    "RuleAccuracy",
    "SampleGallery",
    "ScoreHistograms",
]
