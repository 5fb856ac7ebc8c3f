"""Demonstrations for supervised training."""

from collections.abc import Callable
from typing import Any

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.collate import CollateSupervised, DemonstrationsFrom
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.records.batches import SupervisedBatch
from safe_rlhf_v.shards import ShardedSplit


class SupervisedDataModule(ShardDataModule):
    """One response per record to learn: its only one, or the more helpful one; a record without one is masked and counted.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.SupervisedDataModule
          init_args: {path: data/world, train_split: supervised, batch_size: 64}
    """

    gives = SupervisedBatch

    def __init__(self, path: str, demonstrations_from: DemonstrationsFrom = "helpful", **options: Any) -> None:
        """Choose the options; shards are opened later.

        Args:
            path: Shard folder (with ``manifest.json``).
            demonstrations_from: ``helpful`` is the more helpful response whatever its safety; ``safe`` the safer of the safe
                ones, ``helpful_and_safe`` the more helpful of the safe ones.
            options: Further options of :class:`ShardDataModule`.

        Raises:
            ValueError: If ``demonstrations_from`` is not one of them.
        """
        super().__init__(path, **options)
        self._collate = CollateSupervised(demonstrations_from)

    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """To :class:`safe_rlhf_v.records.batches.SupervisedBatch`."""
        return self._collate
