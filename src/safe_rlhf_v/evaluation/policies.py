"""Let any policy answer a split, and say what the responses are worth: by the learned models, and by a judge that knows more.

Shapes: B prompts of a batch, one response each.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.data_modules.prompt import PromptDataModule
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.modules.admission import complaint
from safe_rlhf_v.modules.preference import PreferenceModule
from safe_rlhf_v.policy.rollout import draw, generator
from safe_rlhf_v.policy.types import MicroBatch
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.rows import Row, join_rows


class Judges(NamedTuple):
    """Who looks at a response; whoever is missing says nothing.

    Attributes:
        reward: A reward model.
        cost: A cost model.
        start: The policy from which the divergence is measured.
        judge: Ground truth, or a judge.
    """

    reward: PreferenceModule | None = None
    cost: PreferenceModule | None = None
    start: Backbone | None = None
    judge: Judge | None = None


def response_split(
    policy: Backbone,
    data: PromptDataModule,
    split: str,
    judges: Judges,
    sampling: SamplingOptions,
    seed: int = 0,
) -> Iterator[list[Row]]:
    """One list of rows per batch: ``key``, ``response`` and every value there is. The same seed gives the same responses.

    Args:
        policy: In evaluation mode.
        data: Its ``test_splits`` must be ``(split,)``.
        split: Named in the random stream: splits are independent.
        judges: Who looks.
        sampling: How responses are drawn.
        seed: Of the sampling.

    Raises:
        ShardError: Naming a record that the policy's processor refuses.
    """
    (loader,) = data.test_dataloader()
    words = [seed, *split.encode()]
    for number, batch in enumerate(loader):
        try:
            yield response_batch(policy, batch, judges, sampling, generator(*words, number))
        except RefusedRows as error:
            raise complaint(batch, error) from None


@torch.no_grad()
def response_batch(
    policy: Backbone, batch: PolicyBatch, judges: Judges, sampling: SamplingOptions, draws: torch.Generator
) -> list[Row]:
    """Rows of one batch, without padding rows.

    Args:
        policy: In evaluation mode.
        batch: B prompts.
        judges: Who looks.
        sampling: How responses are drawn.
        draws: Source of randomness.
    """
    drawn, ((micro_batch,),) = draw(policy, batch.prompts, sampling, draws)
    columns: dict[str, Tensor] = {}
    for name in ("reward", "cost"):
        model: PreferenceModule | None = getattr(judges, name)
        if model is not None:
            columns[name] = score_micro_batch(model, micro_batch)
    if judges.start is not None:
        kl = kl_estimate(reread(policy, micro_batch), reread(judges.start, micro_batch), drawn.mask)
        columns["kl"] = sequence_kl(kl, drawn.mask)
    columns["length"] = drawn.mask.sum(1).float()
    columns["unfinished"] = (~drawn.finished).float()
    rows = join_rows(drawn.text, columns, batch.records, judges.judge)
    return [
        {"key": key, **row} for key, row, valid in zip(batch.keys, rows, batch.valid.tolist(), strict=True) if valid
    ]


def score_micro_batch(model: PreferenceModule, micro_batch: MicroBatch) -> Tensor:
    """(n,) float32 score of each response, read from the very tokens that were sampled."""
    backbone, head = model.backbone, model.head
    states = backbone.read(
        micro_batch.tokens, backbone.encode_images(micro_batch.images), log_probs=head.needs_log_probs
    )
    score: Tensor = head(states)[:, 0]
    return score


def reread(backbone: Backbone, micro_batch: MicroBatch) -> Tensor:
    """(n, R) float32 log-probability of each response token at temperature 1, 0 where masked."""
    states = backbone.read(micro_batch.tokens, backbone.encode_images(micro_batch.images), log_probs=True)
    assert states.log_probs is not None
    return states.log_probs
