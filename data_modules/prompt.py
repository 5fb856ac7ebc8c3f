"""Prompts for a policy to respond to, with demonstrations beside them."""

from collections.abc import Callable
from typing import Any

from safe_rlhf_v.data_modules.collate import CollatePreference, CollatePrompts, responses_per_record
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import nested_subset
from safe_rlhf_v.data_modules.ptx import PTXDataModule
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.shards import ShardedSplit


class PromptDataModule(PTXDataModule):
    """Prompts to respond to and, beside each batch, PTX demonstrations, both with exact positions.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.PromptDataModule
          init_args: {path: data/world, batch_size: 64, demonstrations: supervised, demonstration_batch_size: 32}
    """

    def __init__(self, path: str, labelled_split: str | None = None, **options: Any) -> None:
        """Choose the options; shards are opened later.

        Args:
            path: Shard folder (with ``manifest.json``).
            labelled_split: Preference pairs with safety labels, on which a cost model is checked before it is used.
            options: Further options of :class:`PTXDataModule`.
        """
        super().__init__(path, **options)
        self.labelled_split = labelled_split

    gives = PolicyBatch

    def other_splits(self, stage: str) -> list[tuple[str, str]]:
        """See :class:`ShardDataModule`."""
        labelled = [("labelled_split", self.labelled_split)] if stage == "fit" and self.labelled_split else []
        return super().other_splits(stage) + labelled

    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """To :class:`safe_rlhf_v.records.batches.PolicyBatch`."""
        return CollatePrompts(split.manifest.taxonomy)

    def first_prompts(self, count: int) -> PlannedLoader:
        """About ``count`` training prompts, always the same, in evaluation order; the training position does not change."""
        split = self.split(self.train_split)
        rows = nested_subset(self._chosen(split), count, self.seed)
        return self._make(split, rows, self.eval_batch_size, None)

    def labelled(self, count: int) -> PlannedLoader | None:
        """About ``count`` records of ``labelled_split`` as batches of preferences; ``None`` without such a split."""
        if self.labelled_split is None:
            return None
        split = self.split(self.labelled_split)
        rows = nested_subset(range(len(split)), count, self.seed)
        collate = CollatePreference(split.manifest.taxonomy, responses_per_record(split))
        return self._make(split, rows, self.eval_batch_size, None, collate)
