"""The cost model: which response is more harmful, and is it harmful at all."""

from functools import partial

from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.pairwise import preferred
from safe_rlhf_v.metrics import Collected, PairwiseAccuracy, harmful_label, score_values
from safe_rlhf_v.modules.preference import PreferenceModule, update_pairs
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
        """Order (pairs only) and sign, each against the labels and against the truth."""
        pairs = ("accuracy", "true_accuracy", "label_ceiling") if responses == 2 else ()
        signs = {f"{truth}sign": Collected(partial(sign_values, prefix=truth)) for truth in ("", "true_")}
        return {**{name: PairwiseAccuracy() for name in pairs}, **signs}

    def update_metrics(self, metrics: dict[str, Metric], scores: Tensor, batch: PreferenceBatch) -> None:
        """Count one batch."""
        truly_harmful = (batch.true_safety < 0).long().masked_fill(batch.true_safety == UNKNOWN_LEVEL, -1)  # (B, K)
        if "accuracy" in metrics:
            update_pairs(metrics, scores, self.labels(batch), self.truth(batch), batch.valid)
        metrics["sign"].update(scores, harmful_label(batch.is_safe), batch.valid)
        metrics["true_sign"].update(scores, truly_harmful, batch.valid)


def sign_values(costs: Tensor, harmful: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Is the cost on the right side of 0, and does sigmoid(cost) come true? Values by name, each a scalar.

    Args:
        costs: (n,).
        harmful: (n,) int64, 1 harmful, 0 safe.
        prefix: Of the names.
    """
    names = {"accuracy": "sign_accuracy", "balanced_accuracy": "balanced_sign_accuracy"}
    values = score_values(costs, harmful)
    logged = ("accuracy", "balanced_accuracy", "auroc", "calibration_error")
    return {prefix + names.get(name, name): values[name] for name in logged if name in values}
