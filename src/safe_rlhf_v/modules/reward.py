"""The reward model: which response is more helpful."""

from torch import Tensor
from torchmetrics import Metric

from safe_rlhf_v.functional.pairwise import preferred
from safe_rlhf_v.metrics import PairwiseAccuracy
from safe_rlhf_v.modules.preference import PreferenceModule, update_pairs
from safe_rlhf_v.records.batches import PreferenceBatch


class RewardModule(PreferenceModule):
    """Learns from ``more_helpful``; higher reward = more helpful (Safe RLHF-V, arXiv 2503.17682).

    YAML::

        model:
          class_path: safe_rlhf_v.modules.RewardModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            objective: {class_path: safe_rlhf_v.objectives.BradleyTerry}
    """

    trains = "reward"

    def labels(self, batch: PreferenceBatch) -> Tensor:
        """The response annotators found more helpful."""
        return batch.more_helpful

    def truth(self, batch: PreferenceBatch) -> Tensor:
        """The truly more helpful response."""
        return preferred(batch.true_helpfulness, ~batch.true_helpfulness.isnan())

    def make_metrics(self, responses: int) -> dict[str, Metric]:
        """Agreement with the labels, with the truth, and of the labels with the truth (their ceiling)."""
        return {name: PairwiseAccuracy() for name in ("accuracy", "true_accuracy", "label_ceiling")}

    def update_metrics(self, metrics: dict[str, Metric], scores: Tensor, batch: PreferenceBatch) -> None:
        """Count one batch."""
        update_pairs(metrics, scores, self.labels(batch), self.truth(batch), batch.valid)
