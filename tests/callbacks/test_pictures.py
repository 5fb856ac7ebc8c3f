"""Pictures go to every logger that takes them, otherwise into PNG files; only rank 0 writes."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from tests.callbacks.scripted import PromptData, Scripted

from safe_rlhf_v.callbacks import (
    CategoryAccuracy,
    ConstraintMonitor,
    ReliabilityDiagram,
    ResponseGallery,
    RewardCostPlane,
    RuleAccuracy,
    SampleGallery,
    ScoreHistograms,
)
from safe_rlhf_v.callbacks.pictures import Pictures

Build = Callable[..., Trainer]
FIGURES = ("1_samples", "2_scores", "3_reliability", "4_accuracy_by_category", "5_accuracy_by_rule")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class FakeLogger(Logger):
    """Takes numbers only."""

    name, version, save_dir = "fake", 0, None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class ImageLogger(FakeLogger):
    """Takes pictures as Lightning's WandbLogger does."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None and not kwargs
        for pixels in images:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.std() > 5
            self.images.append((key, step))


def everything() -> list[Callback]:
    by_kind = [ScoreHistograms, CategoryAccuracy, RuleAccuracy, SampleGallery]
    return [ReliabilityDiagram(), *(callback("cost") for callback in by_kind)]


def validated(build: Build, toy: Any, **options: Any) -> Trainer:
    trainer = build(everything(), **options)
    trainer.validate(toy.module(), datamodule=toy.data({"a": [toy.batch(4)], "b": [toy.batch(4)]}), verbose=False)
    return trainer


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


WANTED = sorted(f"{name}/{split}" for name in FIGURES for split in ("a", "b"))
FILES = sorted(f"{tag}-step=0.png" for tag in WANTED)


def test_without_a_logger_that_takes_pictures_they_are_files_beside_the_metrics(
    trainer: Build, toy: Any, tmp_path: Path
) -> None:
    validated(trainer, toy, logger=CSVLogger(tmp_path, name="csv", version="v"))
    assert written(tmp_path / "csv" / "v" / "pictures") == FILES
    validated(trainer, toy, logger=False, default_root_dir=tmp_path / "none")
    assert written(tmp_path / "none" / "pictures") == FILES
    validated(trainer, toy, logger=FakeLogger(), default_root_dir=tmp_path / "fake")
    assert written(tmp_path / "fake" / "pictures") == FILES
    pixels = np.asarray(Image.open(tmp_path / "none" / "pictures" / FILES[0]))
    assert pixels.ndim == 3 and pixels.std() > 5
    assert not list(tmp_path.rglob("*.part"))


def test_every_logger_that_takes_pictures_gets_all_of_them(
    trainer: Build, board: Callable[[], Any], toy: Any, tmp_path: Path
) -> None:
    first, second = ImageLogger(), ImageLogger()
    loggers = [TensorBoardLogger(tmp_path, name="board", version=""), first, CSVLogger(tmp_path, name="csv"), second]
    validated(trainer, toy, logger=loggers)
    assert sorted(board().Tags()["images"]) == WANTED
    assert sorted(first.images) == sorted(second.images) == [(tag, 0) for tag in WANTED]
    assert not list(tmp_path.rglob("*.png"))  # a logger takes them: they need not be kept twice


def test_the_call_is_one_that_weights_and_biases_takes() -> None:
    """Lightning's logger for it can be imported without its package."""
    call = inspect.signature(WandbLogger.log_image).bind(None, key="1_samples/a", images=[], step=3)
    assert call.arguments["images"] == [] and "kwargs" not in call.arguments


def test_policies_pictures_go_the_same_ways(trainer: Build, tmp_path: Path) -> None:
    callbacks = [ConstraintMonitor(), RewardCostPlane(prompts=4), ResponseGallery(prompts=2)]
    logger = ImageLogger()
    for loggers in (logger, CSVLogger(tmp_path, name="csv", version="")):
        trainer(callbacks, logger=loggers, max_steps=2, max_epochs=-1).fit(Scripted(), datamodule=PromptData())
    wanted = {"1_responses/validation", "2_reward_cost_plane/validation", "3_trajectory/constraint"}
    assert wanted <= {key for key, _ in logger.images}
    assert wanted <= {name.rpartition("-")[0] for name in written(tmp_path / "csv" / "pictures")}


def test_fast_dev_run_leaves_nothing(trainer: Build, toy: Any, tmp_path: Path) -> None:
    run = trainer(everything(), fast_dev_run=True, default_root_dir=tmp_path)
    run.fit(toy.module(), datamodule=toy.data({"validation": [toy.batch(4)]}))
    assert not list(tmp_path.rglob("*.png"))


class Touched(ImageLogger):
    """Notes which process writes a picture."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        (self.folder / f"{torch.distributed.get_rank()}-{key.replace('/', '-')}-{os.getpid()}").touch()


def test_only_rank_zero_writes(trainer: Build, toy: Any, tmp_path: Path) -> None:
    def two(logger: Any) -> None:
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
        options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, "logger": logger}
        run = trainer([CategoryAccuracy("cost"), SampleGallery("cost")], default_root_dir=tmp_path, **options)
        run.validate(toy.module(), datamodule=toy.data({"a": [toy.batch(4), toy.batch(4)]}), verbose=False)

    (tmp_path / "touched").mkdir()
    two(Touched(tmp_path / "touched"))
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "touched").iterdir())
    assert names == ["0-1_samples-a", "0-4_accuracy_by_category-a"]
    two(False)
    assert written(tmp_path / "pictures") == ["1_samples/a-step=0.png", "4_accuracy_by_category/a-step=0.png"]


def test_a_name_in_the_data_never_leads_out_of_the_folder(trainer: Build, tmp_path: Path) -> None:
    pictures = Pictures(trainer([], logger=False, default_root_dir=tmp_path / "run"))
    pictures.image("1_samples/../../a b:c", np.zeros((2, 2, 3), np.uint8))
    assert written(tmp_path / "run") == ["pictures/1_samples/a b_c-step=0.png"]
