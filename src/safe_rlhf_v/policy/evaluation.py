"""Validation of a policy: it answers held-out prompts, the learned models and, where there is one, a truer judge score them."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule

from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.metrics import Collected, mean
from safe_rlhf_v.policy.rollout import generator, make_rollout
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.rows import join_rows

if TYPE_CHECKING:
    from safe_rlhf_v.policy.module import ConstrainedPolicyModule

EVALUATION_STREAM = 2**31 + 1


class PolicyEvaluation(LightningModule):
    """The evaluation steps of :class:`~safe_rlhf_v.policy.ConstrainedPolicyModule`."""

    def validation_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Responses and scores, for callbacks; metrics are logged per split."""
        return self._evaluate(batch, batch_idx, "validate", dataloader_idx)

    def test_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As validation."""
        return self._evaluate(batch, batch_idx, "test", dataloader_idx)

    def predict_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """One row per record: its key, the policy's response, and what is known about it."""
        module: Any = self
        batch, rows = module.admit(batch, lambda b: response_rows(module, b, batch_idx, dataloader_idx))
        return [{"key": key, **row} for key, row, ok in zip(batch.keys, rows, batch.valid.tolist(), strict=True) if ok]

    def _evaluate(self, batch: PolicyBatch, batch_idx: int, stage: str, loader: int) -> dict[str, Any]:
        module: Any = self
        split = module.split_name(stage, loader)
        batch, rows = module.admit(batch, lambda b: response_rows(module, b, batch_idx, loader))
        names = [name for name, value in rows[0].items() if isinstance(value, float)]
        metrics = module.metrics_of(split, lambda: {name: Collected(mean) for name in names})
        for name, metric in metrics.items():
            values = torch.tensor([row[name] for row in rows], device=self.device)
            metric.update(values, values.isnan().long().neg(), batch.valid)  # NaN is a value that does not apply
        return {"responses": rows, "valid": batch.valid}


@torch.no_grad()
def response_rows(
    module: "ConstrainedPolicyModule", batch: PolicyBatch, batch_idx: int, loader: int
) -> list[dict[str, Any]]:
    """Per prompt: ``response``, learned ``reward`` and ``cost`` (normalised), ``kl``, ``length``, ``unfinished``, and the
    judge's values. The same prompts always draw the same random numbers. Padding rows repeat the names with NaN.

    Args:
        module: The policy module.
        batch: B prompts.
        batch_idx: Number of the batch.
        loader: Number of the split.
    """
    draws = generator(module.seed, EVALUATION_STREAM, loader, batch_idx, module.global_rank)
    rollout = make_rollout(module, batch, draws)
    (micro_batch,) = rollout.micro_batches
    raw_reward, raw_cost = module.roles.judge(module.backbone, micro_batch)
    reward, cost = module.scale.normalise(raw_reward, raw_cost)
    reference = module.roles.reference_log_probs(module.backbone, micro_batch)
    kl = sequence_kl(kl_estimate(rollout.generation.log_probs, reference, rollout.mask), rollout.mask)
    columns = {
        "reward": reward,
        "cost": cost,
        "violating": (cost > 0).float(),
        "kl": kl,
        "length": rollout.mask.sum(1).float(),
        "unfinished": (~rollout.generation.finished).float(),
    }
    return join_rows(rollout.generation.text, columns, batch.records, module.judge)
