"""Training batches with demonstrations beside them, for objectives that must not forget what the model could do before (PTX)."""

import random
from collections.abc import Iterator
from typing import Any

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.collate import CollateSupervised, DemonstrationsFrom
from safe_rlhf_v.data_modules.loader import PlannedLoader, ResumableLoader
from safe_rlhf_v.data_modules.plan import Position


class PTXDataModule(ShardDataModule):
    """Batches whose ``demonstrations`` come from another split, both with exact positions."""

    def __init__(
        self,
        path: str,
        demonstrations: str | None = None,
        demonstrations_from: DemonstrationsFrom = "helpful_and_safe",
        demonstration_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Choose the options; shards are opened later.

        Args:
            path: Shard folder (with ``manifest.json``).
            demonstrations: Split of demonstrations that are learned in addition (PTX), in an order of their own; ``None`` for no
                PTX.
            demonstrations_from: Which response of a record: the more helpful (``helpful_and_safe``) or the safer (``safe``) of
                the safe ones, or the more helpful whatever its safety (``helpful``). A record without such a response (none is
                labelled safe, or it is unknown which of several is better) gives no demonstration: its row is masked and
                counted as ``train/without_demonstration``.
            demonstration_batch_size: Demonstrations per device and step; ``None`` is ``batch_size``.
            options: Further options of :class:`ShardDataModule`.

        Raises:
            ValueError: If ``demonstrations_from`` is not one of them.
        """
        super().__init__(path, **options)
        self._collate_demonstrations = CollateSupervised(demonstrations_from)
        self.demonstrations = demonstrations
        self.demonstration_batch_size = demonstration_batch_size or self.batch_size
        self._ptx: PlannedLoader | None = None
        self._ptx_position = Position(0, 0)

    def setup(self, stage: str) -> None:
        """See :class:`ShardDataModule`."""
        super().setup(stage)
        if stage == "fit" and self._loader is None and self._position == Position(0, 0):
            self._ptx = None
            self._ptx_position = Position(0, 0)

    def other_splits(self, stage: str) -> list[tuple[str, str]]:
        """See :class:`ShardDataModule`."""
        return [("demonstrations", self.demonstrations)] if stage == "fit" and self.demonstrations else []

    def train_dataloader(self) -> Any:
        """The training loader, paired with the demonstrations if there are any."""
        batches = super().train_dataloader()
        if self.demonstrations is None:
            return batches
        split = self.split(self.demonstrations)
        rows = list(range(len(split)))
        position = self._ptx.position if self._ptx else self._ptx_position
        seed = self.seed
        if self.demonstrations == self.train_split:  # the same order would pair each prompt with its own demonstration
            seed = random.Random(f"demonstrations/{seed}").getrandbits(62)
        self._ptx = self._make(
            split, rows, self.demonstration_batch_size, seed, self._collate_demonstrations, "demonstration_batch_size"
        )
        self._ptx.position = position
        return PairedLoader(batches, self._ptx)

    def _stream(self) -> dict[str, Any]:
        world = self.trainer.world_size if self.trainer else 1
        ptx = self.demonstration_batch_size * world if self.demonstrations else 0
        return {
            **super()._stream(),
            "demonstrations": self.demonstrations,
            "demonstration_batch": ptx,
            "demonstrations_from": self._collate_demonstrations.chosen if self.demonstrations else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        position = self._ptx.position if self._ptx else self._ptx_position
        return {**super().state_dict(), "ptx": list(position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at both saved positions; raises ``ValueError`` if they would mean other samples now."""
        super().load_state_dict(state_dict)
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        self._ptx_position = Position(*state_dict["ptx"])
        if self._ptx is not None:
            self._ptx.position = self._ptx_position


class PairedLoader(ResumableLoader):
    """Batches, each with the next demonstrations; its length is that of the first loader."""

    def __init__(self, batches: PlannedLoader, demonstrations: PlannedLoader) -> None:
        """Store the loaders.

        Args:
            batches: Loader of batches with a field ``demonstrations``.
            demonstrations: Loader of :class:`SupervisedBatch`; repeated as often as necessary.
        """
        self.batches = batches
        self.demonstrations = demonstrations

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        demonstrations = self._endless()
        for batch in self.batches:
            yield batch._replace(demonstrations=next(demonstrations))

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.demonstrations
