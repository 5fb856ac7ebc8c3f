"""Typed batches: the output of data modules and the input of every module.

Images are uint8 and questions and responses are strings: the backbone's ``prepare`` applies tokenizer, template and tiling.
Labels are tensors. B rows (prompts), K responses per row (2 for preference pairs).
Unknown labels are -1 for indices and booleans, ``UNKNOWN_LEVEL`` for levels, NaN for floats.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from safe_rlhf_v.records import Context, Record, Turn

UNKNOWN_LEVEL = -128

Moved = TypeVar("Moved")
Batch = TypeVar("Batch", "SupervisedBatch", "PreferenceBatch", "PolicyBatch")
ImageMode = Literal["real", "shuffled", "blank"]


class _PromptFields(NamedTuple):
    images: tuple[tuple[Tensor, ...], ...]
    image_ids: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]
    contexts: tuple[Context, ...]


class Prompts(_PromptFields):
    """B prompts.

    Attributes:
        images: Per row a tuple (may be empty) of uint8 tensors (H, W, 3), RGB, in the order of the conversation.
        image_ids: Same nesting: equal ids mean equal pixels (the key of image-feature caches).
        questions: B strings: the user's last turns.
        contexts: Per row what stands before the question: system text and earlier turns.
    """

    __slots__ = ()

    def __new__(
        cls,
        images: tuple[tuple[Tensor, ...], ...],
        image_ids: tuple[tuple[str, ...], ...],
        questions: tuple[str, ...],
        contexts: tuple[Context, ...] | None = None,
    ) -> Self:
        """Without ``contexts`` nothing stands before any question."""
        return super().__new__(cls, images, image_ids, questions, contexts or (Context(),) * len(questions))

    def turns(self, row: int) -> tuple[Turn, ...]:
        """All turns of one row, with the question last."""
        return self.contexts[row].turns(self.questions[row], len(self.images[row]))

    def texts(self, row: int) -> tuple[str, ...]:
        """All texts of one row, as a model reads them: the system text if there is one, then the turns."""
        context = self.contexts[row]
        turns = (*(turn.text for turn in context.history), self.questions[row])
        return (context.system, *turns) if context.system else turns

    def take(self, rows: Sequence[int]) -> "Prompts":
        """The prompts at these row numbers."""
        return Prompts(
            tuple(self.images[row] for row in rows),
            tuple(self.image_ids[row] for row in rows),
            tuple(self.questions[row] for row in rows),
            tuple(self.contexts[row] for row in rows),
        )

    def with_pictures(
        self, images: tuple[tuple[Tensor, ...], ...], image_ids: tuple[tuple[str, ...], ...]
    ) -> "Prompts":
        """The same texts with these pictures; earlier turns keep theirs as long as there are any.

        Args:
            images: Per row a tuple.
            image_ids: Same nesting.
        """
        contexts = tuple(c.with_images(len(row)) for c, row in zip(self.contexts, images, strict=True))
        return Prompts(images, image_ids, self.questions, contexts)

    def with_images(self, mode: ImageMode, valid: Tensor | None = None) -> "Prompts":
        """The same texts with other pictures, to measure how much a model reads from the pictures.

        Args:
            mode: ``real`` keeps the pictures; ``shuffled`` gives each row the pictures of the row before it, the first those of
                the last: which ones depends on the batch, and a row alone gets its own; ``blank`` paints every picture mid-grey.
            valid: (B,) bool, which rows take part in ``shuffled``; ``None`` for all. Padding has no pictures to give.
        """
        if mode == "real":
            return self
        if mode == "shuffled":
            rows = list(range(len(self.images))) if valid is None else valid.nonzero().flatten().tolist()
            before = dict(zip(rows, rows[-1:] + rows[:-1], strict=True))
            other = self.take([before.get(row, row) for row in range(len(self.images))])
            return self.with_pictures(other.images, other.image_ids)
        return self._replace(
            images=tuple(tuple(torch.full_like(image, 127) for image in row) for row in self.images),
            image_ids=tuple(tuple(f"blank-{i.shape[0]}x{i.shape[1]}" for i in row) for row in self.images),
        )


class SupervisedBatch(NamedTuple):
    """B demonstrations.

    Attributes:
        prompts: B prompts.
        responses: B demonstrated responses.
        attributes: Class index of what the picture shows, by name; each (B,) int64, -1 unknown (synthetic data only).
        valid: (B,) bool; False marks a row that must not count: padding, or a record without a demonstration.
        keys: B record keys.
        shards: B paths of the shards they are stored in, for messages.
        without_demonstration: Number of records that gave no demonstration.
    """

    prompts: Prompts
    responses: tuple[str, ...]
    attributes: dict[str, Tensor]
    valid: Tensor
    keys: tuple[str, ...]
    shards: tuple[str, ...] = ()
    without_demonstration: int = 0


class TrueValues(NamedTuple):
    """Noise-free values behind the labels of B prompts with K responses each; only synthetic data have them.

    Attributes:
        helpfulness: (B, K) float32, NaN where a record has no truth.
        safety: (B, K) int64 level, ``UNKNOWN_LEVEL`` where a record has no truth.
        rules: B tuples of K names of the rule that decides each response's level, "" unknown.
    """

    helpfulness: Tensor
    safety: Tensor
    rules: tuple[tuple[str, ...], ...]


class VoteShares(NamedTuple):
    """What the annotators said of B prompts with K responses each, as shares of their votes; NaN where nobody voted.

    Attributes:
        more_helpful: (B,) float32 share that found response 1 more helpful, a tie counting half; all NaN unless K is 2.
        safer: (B,) float32 share that found response 1 safer, likewise.
        is_safe: (B, K) float32 share that called the response safe; of a response whose yes/no label follows from its level,
            the share that gave it a level of 0 or higher.
        safety: (B, K, 7) float32 share that gave each safety level, -3 first.
    """

    more_helpful: Tensor
    safer: Tensor
    is_safe: Tensor
    safety: Tensor


class PreferenceBatch(NamedTuple):
    """B prompts with K responses each and their labels.

    Attributes:
        prompts: B prompts.
        responses: B tuples of K responses, in record order.
        more_helpful: (B,) int64 index of the more helpful response, -1 unknown.
        safer: (B,) int64 index of the safer response, -1 unknown.
        safety_tie: (B,) bool, both responses have the same safety rating.
        safety: (B, K) int64 safety level -3..3, ``UNKNOWN_LEVEL`` unknown.
        is_safe: (B, K) int64 1 safe, 0 unsafe, -1 unknown.
        category: (B, C) int64 of the manifest's categories: 1 the prompt is of it, 0 it is not, -1 unknown (a whole row).
        valid: (B,) bool; False marks a padding row that must not count.
        keys: B record keys.
        shards: B paths of the shards they are stored in, for messages.
        truth: Noise-free values, or ``None`` if no record has any.
        votes: What the annotators said, or ``None`` if no record has votes. Losses use it if they are asked to; measures never.
        demonstrations: Learned beside these (PTX), or ``None``.
    """

    prompts: Prompts
    responses: tuple[tuple[str, ...], ...]
    more_helpful: Tensor
    safer: Tensor
    safety_tie: Tensor
    safety: Tensor
    is_safe: Tensor
    category: Tensor
    valid: Tensor
    keys: tuple[str, ...]
    shards: tuple[str, ...] = ()
    truth: TrueValues | None = None
    votes: VoteShares | None = None
    demonstrations: SupervisedBatch | None = None

    @property
    def true_helpfulness(self) -> Tensor:
        """(B, K) float32, NaN unknown; all of it without truth."""
        return (
            torch.full(self.safety.shape, torch.nan, device=self.safety.device)
            if self.truth is None
            else self.truth.helpfulness
        )

    @property
    def true_safety(self) -> Tensor:
        """(B, K) int64 level, ``UNKNOWN_LEVEL`` unknown; all of it without truth."""
        return torch.full_like(self.safety, UNKNOWN_LEVEL) if self.truth is None else self.truth.safety

    @property
    def rules(self) -> tuple[tuple[str, ...], ...]:
        """B tuples of K names of the rule that decides each response's true level, "" unknown."""
        return tuple(("",) * len(row) for row in self.responses) if self.truth is None else self.truth.rules


def hazard(category: Tensor) -> Tensor:
    """(B,) int64 whether each prompt has a harm category: 1 yes, 0 no, -1 unknown.

    If the data define no categories (C = 0), it is unknown for every prompt.

    Args:
        category: (B, C) as in :class:`PreferenceBatch`.
    """
    return torch.nn.functional.pad(category, (1, 0), value=-1).amax(1)


def category_groups(category: Tensor) -> list[tuple[int, ...]]:
    """Per row the groups that tables count it under: its category indices, (-1,) if it has none, () if unknown.

    Args:
        category: (B, C) as in :class:`PreferenceBatch`.
    """
    hazards = hazard(category).tolist()
    indices = [tuple(i for i, value in enumerate(row) if value == 1) for row in category.tolist()]
    return [index or ((-1,) if hazardous == 0 else ()) for index, hazardous in zip(indices, hazards, strict=True)]


class Records:
    """B records, ``None`` in padding rows.

    This is not a ``Sequence``, because Lightning rebuilds sequences from their elements when it moves a batch.
    """

    def __init__(self, records: Iterable[Record | None]) -> None:
        """Store the records.

        Args:
            records: Records without their image bytes.
        """
        self._records = tuple(records)

    def __iter__(self) -> Iterator[Record | None]:
        """In row order."""
        return iter(self._records)

    def __len__(self) -> int:
        """B."""
        return len(self._records)

    def __getitem__(self, row: int) -> Record | None:
        """The record of a row."""
        return self._records[row]


class PolicyBatch(NamedTuple):
    """B prompts to answer, and demonstrations to learn beside (PTX).

    Attributes:
        prompts: B prompts.
        category: (B, C) int64 of the manifest's categories: 1 the prompt is of it, 0 it is not, -1 unknown (a whole row).
        records: B records without their image bytes, for judges that know more than the prompt.
        valid: (B,) bool; False marks a padding row that must not count.
        keys: B record keys.
        shards: B paths of the shards they are stored in, for messages.
        demonstrations: What the policy should not forget; ``None`` without PTX.
    """

    prompts: Prompts
    category: Tensor
    records: Records
    valid: Tensor
    keys: tuple[str, ...]
    shards: tuple[str, ...] = ()
    demonstrations: SupervisedBatch | None = None


def without_rows(batch: Batch, rows: Collection[int]) -> Batch:
    """The batch with some rows masked: their pictures and texts are removed, and ``valid`` is false.

    Args:
        batch: B rows.
        rows: Numbers of the rows to mask.
    """

    def emptied(values: tuple[Any, ...], empty: Any) -> tuple[Any, ...]:
        return tuple(empty if row in rows else value for row, value in enumerate(values))

    images, ids, questions, contexts = batch.prompts
    valid = batch.valid.clone()
    valid[list(rows)] = False
    prompts = Prompts(emptied(images, ()), emptied(ids, ()), emptied(questions, ""), emptied(contexts, Context()))
    changed: dict[str, Any] = {"prompts": prompts, "valid": valid, "keys": emptied(batch.keys, "")}
    if isinstance(batch, PolicyBatch):
        changed["records"] = Records(emptied(tuple(batch.records), None))
    elif isinstance(batch, SupervisedBatch):
        changed["responses"] = emptied(batch.responses, "")
    else:
        changed["responses"] = emptied(batch.responses, ("",) * batch.safety.shape[1])
    return batch._replace(**changed)


def without_order(batch: PreferenceBatch, same: Tensor) -> PreferenceBatch:
    """The batch without preferences, annotated, voted or true, between responses that have the same tokens.

    Labels of single responses stay; the true values, known for synthetic data only, are removed.

    Args:
        batch: B rows.
        same: (B,) bool.
    """
    truth = batch.truth
    if truth is not None:
        truth = truth._replace(
            helpfulness=truth.helpfulness.masked_fill(same[:, None], torch.nan),
            safety=truth.safety.masked_fill(same[:, None], UNKNOWN_LEVEL),
        )
    votes = batch.votes
    if votes is not None:
        votes = votes._replace(
            more_helpful=votes.more_helpful.masked_fill(same, torch.nan), safer=votes.safer.masked_fill(same, torch.nan)
        )
    return batch._replace(
        more_helpful=batch.more_helpful.masked_fill(same, -1),
        safer=batch.safer.masked_fill(same, -1),
        truth=truth,
        votes=votes,
    )


def to_device(value: Moved, device: torch.device) -> Moved:
    """Move every tensor in nested tuples and dicts; strings and numbers stay."""
    moved: Moved = exchanged(value, Tensor, lambda tensor: tensor.to(device, non_blocking=True))
    return moved


def exchanged(value: Any, kind: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """Nested tuples and dicts with every leaf of some types replaced; what is of another type stays.

    Args:
        value: The nested value.
        kind: The type, or several.
        change: Gives the replacement of a leaf.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: exchanged(part, kind, change) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [exchanged(part, kind, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
