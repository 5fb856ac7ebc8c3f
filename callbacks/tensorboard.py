"""The one place that knows about TensorBoard loggers."""

from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class Board:
    """Writes to every TensorBoard logger of a trainer, at the step of ``self.log``; other ranks' writers do nothing."""

    def __init__(self, trainer: Trainer) -> None:
        """Find the writers.

        Args:
            trainer: Whose loggers and step to use.
        """
        self.writers: list[Any] = [log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)]
        # The counter behind the curves of self.log; trainer.global_step is one ahead of it during validation.
        self.step = trainer.fit_loop.epoch_loop._batches_that_stepped

    def image(self, tag: str, pixels: np.ndarray) -> None:
        """Write a picture, uint8 (H, W, 3)."""
        for writer in self.writers:
            writer.add_image(tag, pixels, self.step, dataformats="HWC")

    def histogram(self, tag: str, values: np.ndarray) -> None:
        """Write the distribution of (n,) values; an empty one is left out, as TensorBoard cannot hold it."""
        for writer in self.writers:
            if values.size:
                writer.add_histogram(tag, values, self.step)

    def charts(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Declare charts of several curves, once per run: they stay in the run's one event file.

        Args:
            layout: By category and chart ``["Multiline", [regular expressions of tags]]``.
        """
        for writer in self.writers:
            writer.add_custom_scalars(layout)


def has_board(trainer: Trainer) -> bool:
    """Whether any logger is a TensorBoard logger; the same on every rank."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
