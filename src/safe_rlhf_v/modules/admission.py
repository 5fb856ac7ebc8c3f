"""Records that can be decoded but that the model's processor refuses: named by shard and key, then an error or a masked row.

Which of the two is the data module's ``on_bad_sample``. A row is masked before anything of a step runs, every time it comes up
and on whichever rank, so that a resumed run, and one on other ranks, leaves out the same rows.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from safe_rlhf_v.data_modules.source import HINT
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.records.batches import Batch, without_rows
from safe_rlhf_v.shards.manifest import ShardError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
MOST_IN_A_ROW = 100
"""Records behind each other, in the order of a rank's rows, that may be refused: after so many the model's settings are at
fault, not the records."""


class Admission:
    """What was left out so far.

    Attributes:
        refused: Records left out.
    """

    def __init__(self) -> None:
        """Start with nothing left out."""
        self.refused = self._in_a_row = 0

    def admit(self, batch: Batch, prepare: Callable[[Batch], Result], on_bad_sample: str) -> tuple[Batch, Result]:
        """``prepare(batch)``, without the rows that are refused, and the batch as it was used.

        Args:
            batch: B rows.
            prepare: Uses the backbone's ``prepare`` or ``checked_prompts`` first of all.
            on_bad_sample: ``error``, or ``skip-and-count`` for masked rows.

        Raises:
            ShardError: Naming shard and key of the first row that is refused, or after too many in a row.
        """
        try:
            result = prepare(batch)
        except RefusedRows as error:
            if on_bad_sample == "error":
                raise complaint(batch, error) from None
            refused = error
        else:
            if self._in_a_row and batch.valid.any():
                self._in_a_row = 0
            return batch, result
        longest = 0
        for row, real in enumerate(batch.valid.tolist()):
            if real:  # padding stands between no records
                self._in_a_row = self._in_a_row + 1 if row in refused.problems else 0
                longest = max(longest, self._in_a_row)
        self.refused += len(refused.problems)
        for row, problem in refused.problems.items():
            log.warning("skipped a record (%d so far): %s", self.refused, _described(batch, row, problem))
        if longest >= MOST_IN_A_ROW:
            raise ShardError(f"{longest} records in a row are refused, the last: {_described(batch, row, problem)}")
        batch = without_rows(batch, set(refused.problems))
        return batch, prepare(batch)


def complaint(batch: Any, error: RefusedRows) -> ShardError:
    """The error that names the record, and what can be done.

    Args:
        batch: With ``keys`` and ``shards``.
        error: Which rows are refused.
    """
    row, problem = next(iter(error.problems.items()))
    return ShardError(f"{_described(batch, row, problem)}; {HINT}")


def _described(batch: Any, row: int, problem: str) -> str:
    shard = f"{batch.shards[row]}: " if batch.shards else ""
    return f"{shard}record {batch.keys[row]!r}: the model cannot take it: {problem}"
