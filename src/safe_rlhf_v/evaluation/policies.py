"""Let any policy respond to a split, and say what the responses are worth: by the learned models, and by a judge that knows more.

Shapes: B prompts of a batch, one response each.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor

from safe_rlhf_v.data_modules.prompt import PromptDataModule
from safe_rlhf_v.functional.policy import kl_estimate, sequence_kl
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.modules.admission import complaint
from safe_rlhf_v.modules.preference import PreferenceModule
from safe_rlhf_v.policy.evaluation import rows_of_records, sampled_rows
from safe_rlhf_v.policy.rollout import MicroBatch, generator
from safe_rlhf_v.scoring.external import ExternalScorer
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.rows import Row


class Judges(NamedTuple):
    """Who scores a response; each of them may be left out.

    Attributes:
        reward: A reward model.
        cost: A cost model.
        start: The policy from which the divergence is measured.
        judge: Ground truth, or a judge.
    """

    reward: PreferenceModule | ExternalScorer | None = None
    cost: PreferenceModule | ExternalScorer | None = None
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
        judges: Who scores the responses.
        sampling: How responses are drawn.
        seed: Of the sampling.

    Raises:
        ShardError: Naming a record that the policy's processor refuses.
    """
    (loader,) = data.test_dataloader()
    words = [seed, *split.encode()]
    values = partial(learned_values, policy, judges)
    for number, batch in enumerate(loader):
        try:
            rows = sampled_rows(policy, batch, sampling, generator(*words, number), values, judges.judge)
        except RefusedRows as error:
            raise complaint(batch, error) from None
        yield rows_of_records(batch, rows)


def learned_values(
    policy: Backbone, judges: Judges, generation: Generation, micro_batch: MicroBatch
) -> dict[str, Tensor]:
    """(B,) each: what the learned models say of sampled responses.

    Args:
        policy: Who sampled them.
        judges: The models.
        generation: The responses as they were sampled.
        micro_batch: The same, as inputs of the networks.
    """
    values: dict[str, Tensor] = {}
    for name, model in (("reward", judges.reward), ("cost", judges.cost)):
        if model is not None:
            values[name] = score_micro_batch(model, micro_batch)
    if judges.start is not None:
        # Read again: the recorded log-probabilities come from another arithmetic than the start's.
        log_probs, reference = (reread(network, micro_batch) for network in (policy, judges.start))
        values["kl"] = sequence_kl(kl_estimate(log_probs, reference, generation.mask), generation.mask)
    return values


def score_micro_batch(model: PreferenceModule | ExternalScorer, micro_batch: MicroBatch) -> Tensor:
    """(n,) float32 score of each response, read from the very tokens that were sampled, or by an external model as text."""
    if isinstance(model, ExternalScorer):
        assert micro_batch.texts is not None
        return model.score(micro_batch.texts.prompts, micro_batch.texts.responses)
    backbone = model.backbone
    head = model.head
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
