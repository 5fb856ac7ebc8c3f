"""Evaluation of a policy: it responds to held-out prompts, and the learned models and a judge score the responses."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from safe_rlhf_v.metrics import Collected, mean
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.policy.rollout import MicroBatch, draw, generator
from safe_rlhf_v.policy.samplers import Sampler
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.rows import Row, join_rows

EVALUATION_STREAM = 2**31 + 1
"""Number of the random stream of responses to held-out prompts; no step has this number."""


@torch.no_grad()
def sampled_rows(
    policy: Backbone,
    batch: PolicyBatch,
    sampling: SamplingOptions,
    draws: torch.Generator,
    values: Callable[[Generation, MicroBatch], dict[str, Tensor]],
    judge: Judge | None,
    sampler: Sampler | None = None,
) -> list[Row]:
    """One response to each prompt as a row: ``response``, the given values, ``length``, ``unfinished``, and the judge's values.

    Args:
        policy: Samples the responses.
        batch: B prompts; padding rows get a response and a row with the same names, too.
        sampling: How responses are drawn.
        draws: Source of randomness.
        values: From the responses, as sampled and as one micro-batch, to (B,) values by name.
        judge: Knows more than the learned models; without one, refusals are recognised by their words.
        sampler: Who samples; ``None`` for the policy itself.
    """
    generation, ((micro_batch,),) = draw(policy, batch.prompts, sampling, draws, sampler=sampler)
    columns = {
        **values(generation, micro_batch),
        "length": generation.mask.sum(1).float(),
        "unfinished": (~generation.finished).float(),
    }
    return join_rows(generation.text, columns, batch.records, judge)


def rows_of_records(batch: PolicyBatch, rows: list[Row]) -> list[Row]:
    """The rows with the ``key`` of their records, without those of padding."""
    return [{"key": key, **row} for key, row, ok in zip(batch.keys, rows, batch.valid.tolist(), strict=True) if ok]


class PolicyEvaluation(BaseModule):
    """The evaluation steps of a policy module; a subclass writes :meth:`respond`.

    Attributes:
        seed: Of the sampling.
    """

    measured: ClassVar[frozenset[str]] = frozenset({"length", "unfinished"})
    """Values that every response has: NaN among them makes their mean NaN. Others, a judge's, may not apply to a response."""
    seed: int

    @abstractmethod
    def respond(self, batch: PolicyBatch, draws: torch.Generator) -> list[Row]:
        """One response to each prompt, and what it is worth.

        Args:
            batch: B prompts.
            draws: Source of randomness.
        """

    def response_rows(self, batch: PolicyBatch, batch_idx: int, loader: int) -> list[Row]:
        """:meth:`respond`; the same prompts always draw the same random numbers.

        Args:
            batch: B prompts.
            batch_idx: Number of the batch.
            loader: Number of the split.
        """
        return self.respond(batch, generator(self.seed, EVALUATION_STREAM, loader, batch_idx, self.global_rank))

    def validation_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Responses and scores, for callbacks; metrics are logged per split."""
        return self._evaluate(batch, batch_idx, "validate", dataloader_idx)

    def test_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As validation."""
        return self._evaluate(batch, batch_idx, "test", dataloader_idx)

    def predict_step(self, batch: PolicyBatch, batch_idx: int, dataloader_idx: int = 0) -> list[Row]:
        """One row per record: its key, the policy's response, and what is known about it."""
        batch, rows = self.admit(batch, lambda b: self.response_rows(b, batch_idx, dataloader_idx))
        return rows_of_records(batch, rows)

    def _evaluate(self, batch: PolicyBatch, batch_idx: int, stage: str, loader: int) -> dict[str, Any]:
        split = self.split_name(stage, loader)
        batch, rows = self.admit(batch, lambda b: self.response_rows(b, batch_idx, loader))
        metrics: dict[str, Any] = self.metrics_of(split, dict)
        for name in [name for name, value in rows[0].items() if isinstance(value, float)]:
            if name not in metrics:  # no judge looks at padding: its names may come with a later batch
                metrics[name] = Collected(mean).to(self.device)
            values = torch.tensor([row[name] for row in rows], device=self.device)
            absent = values.isnan() & (name not in self.measured)
            metrics[name].update(values, absent.long().neg(), batch.valid)
        return {"responses": rows, "valid": batch.valid}
