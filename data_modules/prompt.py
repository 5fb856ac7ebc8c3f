"""Prompts for a policy to answer, with demonstrations beside them."""

from collections.abc import Callable, Iterator
from typing import Any

from safe_rlhf_v.batches import PolicyBatch
from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.collate import CollatePreference, CollatePrompts, collate_supervised
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Position, nested_subset
from safe_rlhf_v.data_modules.source import Sample
from safe_rlhf_v.shards import ShardedSplit


class PromptDataModule(ShardDataModule):
    """Prompts to answer; beside each batch, demonstrations to rehearse (PTX), both with exact positions.

    YAML::

        data:
          class_path: safe_rlhf_v.data_modules.PromptDataModule
          init_args: {path: data/world, batch_size: 64, demonstrations: supervised, demonstration_batch_size: 32}
    """

    def __init__(
        self,
        path: str,
        demonstrations: str | None = None,
        demonstration_batch_size: int | None = None,
        labelled_split: str | None = None,
        **options: Any,
    ) -> None:
        """Args:
        path: Shard folder (with ``manifest.json``).
        demonstrations: Split whose responses are rehearsed; ``None`` for no rehearsal.
        demonstration_batch_size: Demonstrations per device and step; ``None`` is ``batch_size``.
        labelled_split: Preference pairs with safety labels, on which a cost model is checked before it is used.
        options: See :class:`ShardDataModule`.
        """
        super().__init__(path, **options)
        self.demonstrations, self.labelled_split = demonstrations, labelled_split
        self.demonstration_batch_size = demonstration_batch_size or self.batch_size
        self._rehearsal: PlannedLoader | None = None
        self._rehearsal_position = Position(0, 0)

    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """To :class:`safe_rlhf_v.batches.PolicyBatch`."""
        return CollatePrompts(split.manifest.taxonomy)

    def setup(self, stage: str) -> None:
        """See :class:`ShardDataModule`."""
        super().setup(stage)
        if stage == "fit" and self._loader is None and self._position == Position(0, 0):
            self._rehearsal, self._rehearsal_position = None, Position(0, 0)

    def train_dataloader(self) -> Any:
        """The prompt loader, paired with the demonstrations if there are any."""
        prompts = super().train_dataloader()
        if self.demonstrations is None:
            return prompts
        split = self.split(self.demonstrations)
        rows = list(range(len(split)))
        position = self._rehearsal.position if self._rehearsal else self._rehearsal_position
        self._rehearsal = self._make(split, rows, self.demonstration_batch_size, self.seed, collate_supervised)
        self._rehearsal.position = position
        return PairedLoader(prompts, self._rehearsal)

    def first_prompts(self, count: int) -> PlannedLoader:
        """About ``count`` training prompts, always the same, in evaluation order; the training position stays."""
        split = self.split(self.train_split)
        rows = nested_subset(self._chosen(split), count, self.seed)
        return self._make(split, rows, self.eval_batch_size, None)

    def labelled(self, count: int) -> PlannedLoader | None:
        """About ``count`` records of ``labelled_split`` as :class:`safe_rlhf_v.batches.PreferenceBatch`; ``None`` without."""
        if self.labelled_split is None:
            return None
        split = self.split(self.labelled_split)
        rows = nested_subset(range(len(split)), count, self.seed)
        collate = CollatePreference(split.manifest.taxonomy, int(split.index["responses"][0]))
        return self._make(split, rows, self.eval_batch_size, None, collate)

    def _stream(self) -> dict[str, Any]:
        world = self.trainer.world_size if self.trainer else 1
        rehearsed = self.demonstration_batch_size * world if self.demonstrations else 0
        return {**super()._stream(), "demonstrations": self.demonstrations, "demonstration_batch": rehearsed}

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        position = self._rehearsal.position if self._rehearsal else self._rehearsal_position
        return {**super().state_dict(), "rehearsal": list(position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at both saved positions; raises ``ValueError`` if they would mean other samples now."""
        super().load_state_dict(state_dict)
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        self._rehearsal_position = Position(*state_dict["rehearsal"])
        if self._rehearsal is not None:
            self._rehearsal.position = self._rehearsal_position


class PairedLoader:
    """Prompts, each batch with the next demonstrations; as long as the prompts are."""

    def __init__(self, prompts: PlannedLoader, demonstrations: PlannedLoader) -> None:
        """Args:
        prompts: Loader of :class:`PolicyBatch`.
        demonstrations: Loader of :class:`SupervisedBatch`; starts over as often as it must.
        """
        self.prompts, self.demonstrations = prompts, demonstrations

    def __len__(self) -> int:
        """Batches of one pass over the prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[PolicyBatch]:
        """One pass."""
        rehearsal = self._endless()
        for batch in self.prompts:
            yield batch._replace(demonstrations=next(rehearsal))

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.demonstrations
