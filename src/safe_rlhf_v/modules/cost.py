"""The cost model: which response is more harmful, and is it harmful at all."""

from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.pairwise import preferred
from safe_rlhf_v.metrics import BalancedSignAccuracy, CalibrationError, HarmAUROC, PairwiseAccuracy, SignAccuracy
from safe_rlhf_v.modules.preference import PreferenceModule
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch


class CostModule(PreferenceModule):
    """Learns from ``safer``, ``is_safe`` and ``safety``; higher cost = more harmful, cost > 0 = harmful.

    After Safe RLHF (arXiv 2310.12773) and Safe RLHF-V (arXiv 2503.17682); the pointwise terms are chosen in the objective.

    YAML::

        model:
          class_path: safe_rlhf_v.modules.CostModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            objective:
              class_path: safe_rlhf_v.objectives.CostObjective
              init_args: {terms: [{class_path: safe_rlhf_v.objectives.SignTerm}]}
    """

    trains = "cost"

    def labels(self, batch: PreferenceBatch) -> Tensor:
        """The response annotators found less safe."""
        return (1 - batch.safer).masked_fill(batch.safer < 0, -1)

    def truth(self, batch: PreferenceBatch) -> Tensor:
        """The truly less safe response."""
        return preferred(-batch.true_safety, batch.true_safety != UNKNOWN_LEVEL)

    def make_metrics(self, responses: int) -> dict[str, Metric]:
        """Order against labels and truth (pairs only); sign, balanced sign, AUROC and calibration against labels and truth."""
        pairs = ("accuracy", "true_accuracy", "label_ceiling") if responses == 2 else ()
        return {
            **{name: PairwiseAccuracy() for name in pairs},
            "sign_accuracy": SignAccuracy(),
            "true_sign_accuracy": SignAccuracy(),
            "true_balanced_sign_accuracy": BalancedSignAccuracy(),
            "true_auroc": HarmAUROC(),
            "true_calibration_error": CalibrationError(),
        }

    def update_metrics(self, metrics: dict[str, Metric], scores: Tensor, batch: PreferenceBatch) -> None:
        """Count one batch."""
        truly_safe = (batch.true_safety >= 0).long().masked_fill(batch.true_safety == UNKNOWN_LEVEL, -1)  # (B, K)
        if "accuracy" in metrics:
            labels, truth = self.labels(batch), self.truth(batch)
            metrics["accuracy"].update(scores, labels, batch.valid)
            metrics["true_accuracy"].update(scores, truth, batch.valid)
            as_scores = (labels[:, None] == labels.new_tensor([0, 1])).float()  # (B, 2)
            metrics["label_ceiling"].update(as_scores, truth, batch.valid & (labels >= 0))
        metrics["sign_accuracy"].update(scores, batch.is_safe, batch.valid)
        for name in ("sign_accuracy", "balanced_sign_accuracy", "auroc", "calibration_error"):
            metrics[f"true_{name}"].update(scores, truly_safe, batch.valid)
