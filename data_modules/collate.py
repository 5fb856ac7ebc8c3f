"""Collate samples to typed batches; a masked row (record ``None``) has empty text, no images and unknown labels."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from safe_rlhf_v.data_modules.source import MASKED, Sample
from safe_rlhf_v.records import Context, Record, Response
from safe_rlhf_v.records.batches import (
    UNKNOWN_LEVEL,
    PolicyBatch,
    PreferenceBatch,
    Prompts,
    Records,
    SupervisedBatch,
    TrueValues,
    VoteShares,
)
from safe_rlhf_v.records.taxonomy import Taxonomy, is_harmful
from safe_rlhf_v.records.votes import PairVotes, Votes, level_shares, second_share
from safe_rlhf_v.shards.split import ShardedSplit

DemonstrationsFrom = Literal["helpful", "safe", "helpful_and_safe"]
"""Which response of a record is learned; see :func:`demonstration`."""


def prompts(samples: list[Sample]) -> Prompts:
    """The prompt part of a batch."""
    return Prompts(
        images=tuple(tuple(torch.from_numpy(image) for image in sample.images) for sample in samples),
        image_ids=tuple(tuple(image.id for image in s.record.images) if s.record else () for s in samples),
        questions=tuple(sample.record.question if sample.record else "" for sample in samples),
        contexts=tuple(sample.record.context if sample.record else Context() for sample in samples),
    )


def responses_per_record(split: ShardedSplit) -> int:
    """Number K of responses of the first record, which the others must have too.

    Raises:
        ValueError: If the split is empty.
    """
    if not len(split):
        raise ValueError(f"{split.root}: split {split.name!r} holds no records; name another split")
    return int(split.index["responses"][0])


def demonstration(record: Record, chosen: DemonstrationsFrom) -> str | None:
    """The response to learn from, ``None`` if the record has none of that kind.

    This is the only response of the kind; of several the one that the record's preference names, or without a preference the
    one with the highest rating. A response is safe by its safety label, or by its level if it has no safety label; without
    both it counts as not safe.

    Args:
        record: The record.
        chosen: ``helpful``: the more helpful response, whatever its safety; ``safe``: the safer of the safe responses;
            ``helpful_and_safe``: the more helpful of the safe responses.
    """
    kind = [i for i, x in enumerate(record.responses) if chosen == "helpful" or is_safe(x)]
    preferred = record.safer if chosen == "safe" else record.more_helpful
    if len(kind) == 1 or preferred in kind:
        return record.responses[preferred if preferred in kind else kind[0]].text
    rated = [(x.safety if chosen == "safe" else x.helpfulness, i) for i in kind for x in [record.responses[i]]]
    ranking = sorted((rating, i) for rating, i in rated if rating is not None)
    if not ranking or len(ranking) < len(rated) or ranking[-1][0] == ranking[-2][0]:
        return None
    return record.responses[ranking[-1][1]].text


class CollateSupervised:
    """Demonstrations and, for synthetic data, what the pictures show; a record without a demonstration is a masked row."""

    def __init__(self, chosen: DemonstrationsFrom) -> None:
        """Choose the demonstrations.

        Args:
            chosen: Which response of a record is learned; see :func:`demonstration`.

        Raises:
            ValueError: If ``chosen`` is not one of them.
        """
        if chosen not in get_args(DemonstrationsFrom):
            names = ", ".join(get_args(DemonstrationsFrom))
            raise ValueError(f"data.demonstrations_from is {chosen!r}, it must be one of: {names}")
        self.chosen = chosen

    def __call__(self, samples: list[Sample]) -> SupervisedBatch:
        """Collate."""
        texts = [demonstration(sample.record, self.chosen) if sample.record else None for sample in samples]
        without = sum(s.record is not None and text is None for s, text in zip(samples, texts, strict=True))
        rows = [s if text is not None else MASKED for s, text in zip(samples, texts, strict=True)]
        truths = [sample.record.truth.attributes if sample.record and sample.record.truth else {} for sample in rows]
        names = sorted({name for truth in truths for name in truth})
        return SupervisedBatch(
            prompts=prompts(rows),
            responses=tuple(text or "" for text in texts),
            attributes={name: torch.tensor([truth.get(name, -1) for truth in truths]) for name in names},
            valid=torch.tensor([sample.record is not None for sample in rows]),
            keys=tuple(sample.record.key if sample.record else "" for sample in rows),
            shards=tuple(sample.shard for sample in rows),
            without_demonstration=without,
        )


class CollatePrompts:
    """Prompts alone, with their records for judges."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Choose the categories.

        Args:
            taxonomy: Harm categories of the records.
        """
        self.taxonomy = taxonomy

    def __call__(self, samples: list[Sample]) -> PolicyBatch:
        """Collate."""
        records = [sample.record for sample in samples]
        return PolicyBatch(
            prompts=prompts(samples),
            category=_category(self.taxonomy, records),
            records=Records(_without_bytes(x) if x else None for x in records),
            valid=torch.tensor([x is not None for x in records]),
            keys=tuple(x.key if x else "" for x in records),
            shards=tuple(sample.shard for sample in samples),
        )


def _without_bytes(record: Record) -> Record:
    """The record without the bytes of its images."""
    return dataclasses.replace(record, images=tuple(dataclasses.replace(image, data=b"") for image in record.images))


class CollatePreference:
    """Records with K responses each, and all their labels."""

    def __init__(self, taxonomy: Taxonomy, responses: int) -> None:
        """Choose categories and number of responses.

        Args:
            taxonomy: Harm categories of the records.
            responses: Number K of responses per record.
        """
        self.taxonomy = taxonomy
        self.k = responses

    def problem(self, record: Record) -> str:
        """Why a record does not fit into a batch, or ""."""
        count = len(record.responses)
        return "" if count == self.k else f"has {count} responses, the others have {self.k}"

    def __call__(self, samples: list[Sample]) -> PreferenceBatch:
        """Collate; raises ``ValueError`` for a record with another number of responses."""
        records = [sample.record for sample in samples]
        for record in records:
            if record is not None and len(record.responses) != self.k:
                raise ValueError(
                    f"record {record.key!r} has {len(record.responses)} responses, the others have {self.k}"
                )
        return PreferenceBatch(
            prompts=prompts(samples),
            responses=tuple(tuple(r.text for r in x.responses) if x else ("",) * self.k for x in records),
            more_helpful=_ints((x.more_helpful if x else None for x in records), -1),
            safer=_ints((x.safer if x else None for x in records), -1),
            safety_tie=torch.tensor([bool(x and x.safety_tie) for x in records]),
            safety=self._grid(records, lambda x, k: x.responses[k].safety, UNKNOWN_LEVEL),
            is_safe=self._grid(records, lambda x, k: is_safe(x.responses[k]), -1),
            category=_category(self.taxonomy, records),
            valid=torch.tensor([x is not None for x in records]),
            keys=tuple(x.key if x else "" for x in records),
            shards=tuple(sample.shard for sample in samples),
            truth=self._truth(records),
            votes=self._votes(records),
        )

    def _truth(self, records: list[Record | None]) -> TrueValues | None:
        """Noise-free values, if any record has them."""
        if not any(record is not None and record.truth is not None for record in records):
            return None
        return TrueValues(
            self._grid(records, lambda x, k: x.truth.helpfulness[k] if x.truth else None, math.nan, torch.float32),
            self._grid(records, lambda x, k: x.truth.safety[k] if x.truth else None, UNKNOWN_LEVEL),
            tuple(x.truth.rule if x and x.truth and x.truth.rule else ("",) * self.k for x in records),
        )

    def _votes(self, records: list[Record | None]) -> VoteShares | None:
        """Shares of the votes, if any record has votes."""
        if not any(x and (x.votes or any(response.votes for response in x.responses)) for x in records):
            return None
        none = (Response(""),) * self.k
        pairs = [(x.votes if x and self.k == 2 else None) or PairVotes() for x in records]
        single = [[response.votes or Votes() for response in (x.responses if x else none)] for x in records]
        return VoteShares(
            torch.tensor([second_share(votes.more_helpful) for votes in pairs]),
            torch.tensor([second_share(votes.safer) for votes in pairs]),
            self._grid(records, lambda x, k: safe_share(x.responses[k]), math.nan, torch.float32),
            torch.tensor([[level_shares(votes.safety) for votes in row] for row in single]),
        )

    def _grid(
        self,
        records: list[Record | None],
        value: Callable[[Record, int], float | None],
        unknown: float,
        dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """(B, K) tensor of ``value(record, k)``, ``unknown`` where it is ``None``."""
        rows = [[value(x, k) if x else None for k in range(self.k)] for x in records]
        return torch.tensor([[unknown if v is None else v for v in row] for row in rows], dtype=dtype)


def _category(taxonomy: Taxonomy, records: list[Record | None]) -> Tensor:
    """(B, C) int64: 1 if the record has the category, 0 if not, -1 unknown."""
    rows = [taxonomy.labels(record.category if record else None) for record in records]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(taxonomy.categories))


def _ints(values: Iterable[int | None], unknown: int) -> Tensor:
    return torch.tensor([unknown if value is None else value for value in values])


def safe_share(response: Response) -> float | None:
    """Share of the annotators who called a response safe; like the label itself by their levels if there is no safety label."""
    if response.votes is None:
        return None
    votes = response.votes.is_safe
    if not votes and response.is_safe is None:
        votes = tuple(not is_harmful(level) for level in response.votes.safety)
    return sum(votes) / len(votes) if votes else None


def is_safe(response: Response) -> bool | None:
    """The binary safety label, or, if there is none, whether the level is 0 or higher."""
    if response.is_safe is None and response.safety is not None:
        return not is_harmful(response.safety)
    return response.is_safe
