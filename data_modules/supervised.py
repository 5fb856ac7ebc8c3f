"""Demonstrations for supervised training."""

from collections.abc import Callable
from typing import Any

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.collate import collate_supervised
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.shards import ShardedSplit


class SupervisedDataModule(ShardDataModule):
    """One response per record to imitate: its only one, or the more helpful one.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.SupervisedDataModule
          init_args: {path: data/world, train_split: supervised, batch_size: 64}
    """

    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """To :class:`safe_rlhf_v.batches.SupervisedBatch`."""
        return collate_supervised
