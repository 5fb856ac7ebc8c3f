"""Where pictures go: to every logger that takes them, otherwise into PNG files beside the metrics."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from safe_rlhf_v.records.user_files import write_whole

FOLDER = "pictures"


class Pictures:
    """Writes pictures at the step of ``self.log``, from rank 0 only.

    * TensorBoard takes pictures, distributions and declared charts.
    * A logger with a method ``log_image(key=..., images=[...], step=...)`` (Weights & Biases and others) takes pictures.
    * If no logger takes pictures (``CSVLogger``, no logger), each becomes ``pictures/TAG-step=N.png`` in the logger's folder, or
      in ``trainer.default_root_dir``.

    TensorBoard and Weights & Biases sort by tag. A tag is ``{place}_{kind}/{split}``: the number puts what matters first on top,
    and a kind's splits stand together.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Find out where pictures go.

        Args:
            trainer: Whose loggers and step to use.
        """
        loggers = trainer.loggers if trainer.is_global_zero and draws(trainer) else []
        self.writers: list[Any] = [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
        self.image_loggers: list[Any] = [logger for logger in loggers if hasattr(logger, "log_image")]
        self.folder: Path | None = None
        if trainer.is_global_zero and draws(trainer) and not self.writers and not self.image_loggers:
            homes = [home for logger in loggers if (home := logger.log_dir or logger.save_dir)]
            self.folder = Path(homes[0] if homes else trainer.default_root_dir) / FOLDER
        # The counter behind the curves of self.log; trainer.global_step is one ahead of it during validation.
        self.step = trainer.fit_loop.epoch_loop._batches_that_stepped

    def image(self, tag: str, pixels: np.ndarray) -> None:
        """Write a picture.

        Args:
            tag: ``{place}_{kind}/{split}``.
            pixels: The picture, uint8 (H, W, 3).
        """
        for writer in self.writers:
            writer.add_image(tag, pixels, self.step, dataformats="HWC")
        for logger in self.image_loggers:
            logger.log_image(key=tag, images=[pixels], step=self.step)
        if self.folder is not None:
            parts = [re.sub(r"[^\w .()-]", "_", part).lstrip(".") for part in tag.split("/")]  # names come from data
            path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}-step={self.step}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _png(pixels))

    def histogram(self, tag: str, values: np.ndarray) -> None:
        """Write the distribution of (n,) values to TensorBoard; an empty one is left out, as TensorBoard cannot hold it."""
        for writer in self.writers:
            if values.size:
                writer.add_histogram(tag, values, self.step)

    def charts(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Declare charts of several curves to TensorBoard, once per run: they stay in the run's one event file.

        Args:
            layout: By category and chart ``["Multiline", [regular expressions of tags]]``.
        """
        for writer in self.writers:
            writer.add_custom_scalars(layout)


def draws(trainer: Trainer) -> bool:
    """Whether pictures are made at all: not in a ``fast_dev_run``, which leaves nothing behind. The same on every rank."""
    return not getattr(trainer, "fast_dev_run", False)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
