"""Metrics of evaluated splits: made with a split's first batch, logged once when its last batch is counted."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from safe_rlhf_v.data_modules.contract import split_names
from safe_rlhf_v.metrics import Collected, mean

Gathered = TypeVar("Gathered")


class SplitMetrics(LightningModule):
    """What every module with evaluated splits shares; a step calls :meth:`metrics_of` and updates what it gives.

    A metric's ``compute`` gives a scalar, scalars by name, or ``None`` where no row could be counted. What has no value is not
    logged: a curve exists only where the data have the labels, or the truth, that it needs. The others are logged as
    ``{split}/{name}``.
    """

    @cached_property
    def split_metrics(self) -> dict[str, dict[str, Metric]]:
        """The metrics of splits that are being evaluated, by split and name."""
        return {}

    def split_name(self, stage: str, loader: int) -> str:
        """Name of a stage's ``loader``-th split, from the data module if it says."""
        return split_names(self.trainer, stage)[loader]

    def metrics_of(self, split: str, make: Callable[[], Mapping[str, Metric]]) -> dict[str, Metric]:
        """The metrics of a split, to be updated with a batch.

        Args:
            split: Its name.
            make: Makes them for the split's first batch.
        """
        if split not in self.split_metrics:
            self.split_metrics[split] = {name: metric.to(self.device) for name, metric in make().items()}
        return self.split_metrics[split]

    def log_split(self, split: str) -> None:
        """Log the values of a split and forget it; ranks bring their rows together, so all of them must call this.

        A name that only other ranks have, because no row of this one has such a value, must be a mean.
        """
        own = self.split_metrics.pop(split, {})
        for key in dict.fromkeys(name for names in of_all_ranks(list(own)) for name in names):
            value = (own[key] if key in own else _mean_of_nothing(self.device)).compute()
            if value is None:
                continue
            for name, number in (value if isinstance(value, Mapping) else {key: value}).items():
                # All ranks have the same number: the maximum keeps it to the bit.
                options: dict[str, Any] = {"reduce_fx": "max", "sync_dist": True, "add_dataloader_idx": False}
                self.log(f"{split}/{name}", number, prog_bar=name == "loss", batch_size=1, **options)

    def on_validation_epoch_start(self) -> None:
        """Forget an evaluation that was interrupted."""
        self.split_metrics.clear()

    def on_test_epoch_start(self) -> None:
        """Forget an evaluation that was interrupted."""
        self.split_metrics.clear()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log a split with its last batch: later its values would count as those of every loader."""
        self._log_last("validate", self.trainer.num_val_batches, batch_idx, dataloader_idx)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self._log_last("test", self.trainer.num_test_batches, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log what is left: splits of loaders without a length."""
        self._log_rest()

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_rest()

    def _log_last(self, stage: str, lengths: Sequence[int | float], batch_idx: int, loader: int) -> None:
        if batch_idx + 1 == lengths[loader]:
            self.log_split(self.split_name(stage, loader))

    def _log_rest(self) -> None:
        for split in list(self.split_metrics):
            self.log_split(split)


def _mean_of_nothing(device: torch.device) -> Metric:
    """A mean without rows; the update makes it take part when ranks bring their rows together."""
    metric = Collected(mean).to(device)
    none = torch.zeros(0, device=device)
    metric.update(none, none.long(), none.bool())
    return metric


def of_all_ranks(own: Gathered) -> list[Gathered]:
    """What every rank gives, in rank order; a collective operation: every rank must call it.

    Args:
        own: Of this rank; anything that can be pickled, without tensors on an accelerator.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return everyone
