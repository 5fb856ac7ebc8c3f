"""Responses with their preferences and labels, for reward, cost and guard models."""

from collections.abc import Callable
from typing import Any

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.collate import CollatePreference, responses_per_record
from safe_rlhf_v.data_modules.ptx import PTXDataModule
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.records.batches import PreferenceBatch
from safe_rlhf_v.shards import ShardedSplit


class PreferenceDataModule(ShardDataModule):
    """K responses per record (two for preference pairs) with all labels of the record.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.PreferenceDataModule
          init_args: {path: data/world, batch_size: 32}
    """

    gives = PreferenceBatch

    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """To :class:`safe_rlhf_v.records.batches.PreferenceBatch`; K is the first record's."""
        return CollatePreference(split.manifest.taxonomy, responses_per_record(split))


class PTXPreferenceDataModule(PTXDataModule, PreferenceDataModule):
    """Preference pairs with demonstrations beside them, for :class:`~safe_rlhf_v.modules.PreferenceOptimisationModule`.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.PTXPreferenceDataModule
          init_args: {path: data/world, batch_size: 32, demonstrations: supervised}
    """
