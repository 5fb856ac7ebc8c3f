"""A loader with an exact length and a position that can be restored."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from safe_rlhf_v.data_modules.plan import Plan, Position
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.data_modules.transfer import Arrived, Mailbox, Packed, SharedBlock, SharedBlocks
from safe_rlhf_v.records.batches import SupervisedBatch
from safe_rlhf_v.shards.manifest import OpenFilesError, ShardError

log = logging.getLogger(__name__)
THREADS = min(4, os.cpu_count() or 1)
"""Threads that decode in a process without workers; more of them would wait for the interpreter."""


class TooManyBadSamples(RuntimeError):
    """Many broken samples in a row, so that the data set and not a sample is at fault."""


class ResumableLoader:
    """Tells Lightning that a loader can resume; the data module holds the position, for all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """Empty, because the data module holds the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, because the data module holds the position."""


class PlannedLoader(ResumableLoader):
    """Typed batches in the plan's order.

    Worker processes get complete lists of sample numbers, so their count and start method cannot change the data. For
    training, the position advances *before* a batch is yielded (a checkpoint written while the batch is in use must not
    repeat it) and continues across passes, so that limited passes cover all data over time.

    It deliberately is not a ``DataLoader`` and has none of its attributes: Lightning would inject samplers.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        *,
        workers: int = 0,
        persistent: bool = False,
        start_method: str | None = None,
        max_bad_in_a_row: int = 100,
        threads: int = THREADS,
    ) -> None:
        """Create the loader.

        Args:
            source: The samples.
            plan: Their order for this rank.
            workers: Number of worker processes.
            persistent: Keep the workers between passes.
            start_method: ``fork``, ``spawn`` or ``forkserver``; ``None`` is the platform's default.
            max_bad_in_a_row: Stop after this many broken samples without a good one between.
            threads: Number of threads that decode where there are no worker processes.
        """
        self.plan = plan
        self.position = Position(0, 0)
        self.bad_samples = self.without_demonstration = self._without_in_a_row = 0
        self._bad_in_a_row = 0
        self._max_bad = max_bad_in_a_row
        self._numbers: list[list[int]] = []
        self._batches = _Batches(source, threads)
        self._persistent = persistent
        self._loader: DataLoader[Any] = DataLoader(
            self._batches,
            sampler=_Numbers(self._numbers),
            batch_size=None,
            collate_fn=_unchanged,  # the default would turn every tuple of a batch into a list
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            multiprocessing_context=start_method if workers else None,
            # Its own generator: drawing the workers' base seed must not touch the global random state.
            generator=torch.Generator().manual_seed(plan.seed or 0),
        )

    def __len__(self) -> int:
        """Number of batches of one pass."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        """One pass: ``len(self)`` batches from the position on, which may continue in the next epoch."""
        if self.plan.seed is None:
            self._numbers[:] = self.plan.batches(0)
            yield from self._checked()
            return
        if self.position.batch >= len(self):  # the last batch was yielded: code after a final yield never runs
            self.position = Position(self.position.epoch + 1, 0)
        epoch, batch = self.position
        remaining = self.plan.batches(epoch, batch)
        self._numbers[:] = remaining + self.plan.batches(epoch + 1)[: len(self) - len(remaining)]
        yield from self._checked(advance=True)

    def _checked(self, advance: bool = False) -> Iterator[Any]:
        """Batches as loaded, their broken samples counted and named."""
        if not self._persistent:  # these workers send to this pass only
            self._batches.mailbox = Mailbox()
        mailbox = self._batches.mailbox
        for loaded, problems in self._loader:
            batch = loaded
            if isinstance(loaded, Exception):
                raise loaded
            if isinstance(loaded, Arrived):
                batch = loaded.batch()
                del loaded
            for problem in problems:
                self._count(problem)
            if isinstance(batch, SupervisedBatch):
                self._count_demonstrations(batch)
            if advance:
                epoch, number = self.position
                self.position = Position(epoch, number + 1) if number < len(self) else Position(epoch + 1, 1)
            yield batch
        del mailbox  # held until here, because another pass may have opened its own meanwhile

    def _count_demonstrations(self, batch: SupervisedBatch) -> None:
        """Count records without a demonstration; if many in a row have none, the rule does not fit the data."""
        self.without_demonstration += batch.without_demonstration
        self._without_in_a_row = 0 if bool(batch.valid.any()) else self._without_in_a_row + batch.without_demonstration
        if self._without_in_a_row >= self._max_bad:
            raise ValueError(
                f"data.demonstrations_from: {self._without_in_a_row} records in a row give no demonstration, because none "
                "of their responses is labelled safe or preferred; with 'helpful' the safety of a demonstration does not count"
            )

    def _count(self, problem: str) -> None:
        """Count one sample; an empty ``problem`` is a good one."""
        if not problem:
            self._bad_in_a_row = 0
            return
        log.warning("skipped a broken sample: %s", problem)
        self.bad_samples += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self._max_bad:
            raise TooManyBadSamples(f"{self._bad_in_a_row} broken samples in a row, the last: {problem}")


def _unchanged(batch: Any) -> Any:
    return batch


class _Batches(Dataset[Any]):
    """The source as the inner loader's data set: an item is a batch of numbers.

    A worker process decodes in one thread, because there are as many workers as the user wants to be busy; without workers the
    processors are idle meanwhile, and several threads decode.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self.source = source
        self.threads = threads
        self.blocks: SharedBlocks | None = None
        self.mailbox = Mailbox()

    def __getitem__(self, batch: list[int]) -> tuple[Any, list[str]]:
        worker = get_worker_info()
        if worker is None:
            collated, problems, _ = self.source.load(batch, threads=self.threads)
            return collated, problems
        if self.blocks is None:
            self.blocks = SharedBlocks()
        try:
            collated, problems, block = self.source.load(batch, allocate=self.blocks)
        except (ShardError, OpenFilesError) as error:  # torch would wrap its one line in a traceback of this process
            return error, []
        assert isinstance(block, SharedBlock)
        return Packed(collated, block, worker.id, self.mailbox), problems


class _Numbers:
    """The inner loader's sampler: the lists of the current pass."""

    def __init__(self, numbers: list[list[int]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)
