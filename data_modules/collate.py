"""Samples to typed batches. A masked row (record ``None``) has empty text, no images and unknown labels."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from safe_rlhf_v.batches import UNKNOWN_LEVEL, PolicyBatch, PreferenceBatch, Prompts, Records, SupervisedBatch
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.taxonomy import Taxonomy, is_harmful


def prompts(samples: list[Sample]) -> Prompts:
    """The prompt part of a batch."""
    return Prompts(
        images=tuple(tuple(torch.from_numpy(image) for image in sample.images) for sample in samples),
        image_ids=tuple(tuple(image.id for image in s.record.images) if s.record else () for s in samples),
        questions=tuple(sample.record.question if sample.record else "" for sample in samples),
    )


def demonstration(record: Record) -> str:
    """The response to imitate: the only one, or the more helpful one.

    Raises:
        ValueError: If the record has neither.
    """
    if len(record.responses) == 1:
        return record.responses[0].text
    if record.more_helpful is None:
        raise ValueError(
            f"record {record.key!r}: {len(record.responses)} responses and no 'more_helpful': nothing to imitate"
        )
    return record.responses[record.more_helpful].text


def collate_supervised(samples: list[Sample]) -> SupervisedBatch:
    """Demonstrations and, for synthetic data, what the pictures show."""
    truths = [sample.record.truth.attributes if sample.record and sample.record.truth else {} for sample in samples]
    names = sorted({name for truth in truths for name in truth})
    return SupervisedBatch(
        prompts=prompts(samples),
        responses=tuple(demonstration(sample.record) if sample.record else "" for sample in samples),
        attributes={name: torch.tensor([truth.get(name, -1) for truth in truths]) for name in names},
        valid=torch.tensor([sample.record is not None for sample in samples]),
        keys=tuple(sample.record.key if sample.record else "" for sample in samples),
    )


class CollatePrompts:
    """Prompts alone; what is known about them travels along for judges."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Args:
        taxonomy: Names of the categories.
        """
        self.taxonomy = taxonomy

    def __call__(self, samples: list[Sample]) -> PolicyBatch:
        """Collate."""
        records = [sample.record for sample in samples]
        return PolicyBatch(
            prompts=prompts(samples),
            category=_category(self.taxonomy, records),
            records=Records(dataclasses.replace(x, images=()) if x else None for x in records),
            valid=torch.tensor([x is not None for x in records]),
            keys=tuple(x.key if x else "" for x in records),
        )


class CollatePreference:
    """Records with K responses each, and every label they have."""

    def __init__(self, taxonomy: Taxonomy, responses: int) -> None:
        """Args:
        taxonomy: Names of the categories.
        responses: K, responses per record.
        """
        self.taxonomy, self.k = taxonomy, responses

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
            is_safe=self._grid(records, lambda x, k: _is_safe(x.responses[k]), -1),
            category=_category(self.taxonomy, records),
            true_helpfulness=self._grid(
                records, lambda x, k: x.truth.helpfulness[k] if x.truth else None, math.nan, torch.float32
            ),
            true_safety=self._grid(records, lambda x, k: x.truth.safety[k] if x.truth else None, UNKNOWN_LEVEL),
            rules=tuple(x.truth.rule if x and x.truth and x.truth.rule else ("",) * self.k for x in records),
            valid=torch.tensor([x is not None for x in records]),
            keys=tuple(x.key if x else "" for x in records),
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
    """(B, C) int64: 1 of the category, 0 not, -1 unknown."""
    rows = [taxonomy.labels(record.category if record else None) for record in records]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(taxonomy.categories))


def _ints(values: Iterable[int | None], unknown: int) -> Tensor:
    return torch.tensor([unknown if value is None else value for value in values])


def _is_safe(response: Response) -> bool | None:
    """The yes/no label, or what the level says where only that is given (below 0 is harmful)."""
    if response.is_safe is None and response.safety is not None:
        return not is_harmful(response.safety)
    return response.is_safe
