"""What modules and callbacks ask of the data module that a trainer works with."""

from typing import Any, Protocol

from lightning.pytorch import Trainer

from safe_rlhf_v.records.taxonomy import Taxonomy


class EvaluatedData(Protocol):
    """A data module with named splits; :class:`~safe_rlhf_v.data_modules.base.ShardDataModule` is one."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Harm categories of the data set."""

    def evaluation_splits(self, stage: str) -> tuple[str, ...]:
        """Names of the loaders of a stage (``validate`` or ``test``), in order."""

    def val_dataloader(self) -> Any:
        """One loader per validation split."""


def data_of(trainer: Trainer | None) -> EvaluatedData | None:
    """The trainer's data module; ``None`` without one.

    Lightning declares no such attribute. A data module of somebody else may lack what :class:`EvaluatedData` promises: ask
    :func:`split_names` for names.
    """
    data: EvaluatedData | None = getattr(trainer, "datamodule", None)
    return data


def split_names(trainer: Trainer, stage: str) -> tuple[str, ...]:
    """Names of a stage's splits, in loader order; for data that do not name them ``validation``, ``validation_1``, ...

    Args:
        trainer: With its data module.
        stage: ``validate``, ``test`` or ``predict``; the splits of ``predict`` are those of ``test``.
    """
    data = data_of(trainer)
    if data is not None and hasattr(data, "evaluation_splits"):
        return data.evaluation_splits("test" if stage == "predict" else stage)
    name, loaders = {
        "validate": ("validation", trainer.num_val_batches),
        "test": ("test", trainer.num_test_batches),
        "predict": ("predict", trainer.num_predict_batches),
    }[stage]
    return (name, *(f"{name}_{number}" for number in range(1, len(loaders))))


def refuse_single_rows(data: Any, images: str) -> None:
    """Refuse batches of one row where pictures are to be shuffled within a batch: each row would keep its own.

    Args:
        data: A data module; one that says nothing of its batch sizes is not refused.
        images: The module's option.

    Raises:
        ValueError: Naming the option to change.
    """
    for name in ("batch_size", "eval_batch_size") if images == "shuffled" else ():
        if getattr(data, name, None) == 1:
            raise ValueError(
                f"images: shuffled exchanges the pictures of a batch, but data.{name} is 1: set it to 2 or more"
            )
