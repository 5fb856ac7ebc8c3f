"""All callbacks in real Lightning runs, read back from the event file."""

import io
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from safe_rlhf_v.callbacks import (
    CategoryAccuracy,
    MetricsFile,
    PredictionsFile,
    ReliabilityDiagram,
    RuleAccuracy,
    SampleGallery,
    ScoreHistograms,
)

Build = Callable[..., Trainer]
Read = Callable[[], EventAccumulator]
FIGURES = ("1_samples", "2_scores", "3_reliability", "4_accuracy_by_category", "5_accuracy_by_rule")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def everything(kind: Any = "cost") -> list[Callback]:
    return [
        ScoreHistograms(kind),
        ReliabilityDiagram(),
        CategoryAccuracy(kind),
        RuleAccuracy(kind),
        SampleGallery(kind, samples=3),
    ]


def test_fit_writes_each_figure_per_split_at_the_step_of_self_log(trainer: Build, board: Read, toy: Any) -> None:
    splits = {"validation": [toy.batch(5), toy.batch(3, first=5)], "verdict": [toy.batch(4, responses=1)]}
    # Sanity checking is on: it must not leave figures at step 0. One optimizer step takes both batches of an epoch.
    run = trainer(everything(), num_sanity_val_steps=2, accumulate_grad_batches=2)
    run.fit(toy.module(), datamodule=toy.data(splits))
    events = board()
    assert sorted(events.Tags()["images"]) == sorted(f"{name}/{split}" for split in splits for name in FIGURES)
    curve = [event.step for event in events.Scalars("validation/curve")]
    assert len(curve) == 2
    for tag in events.Tags()["images"]:
        assert [event.step for event in events.Images(tag)] == curve, tag
        pixels = np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))
        assert pixels.ndim == 3 and pixels.std() > 5, f"{tag} is empty"


def test_histograms_hold_the_scores_of_valid_rows(trainer: Build, board: Read, toy: Any) -> None:
    batch = toy.batch(6)
    trainer([ScoreHistograms("cost")]).validate(toy.module(), datamodule=toy.data({"validation": [batch]}))
    events = board()
    for name, label in (("unsafe", 0), ("safe", 1)):
        wanted = (-batch.true_safety / 2)[(batch.is_safe == label) & batch.valid[:, None]]
        histogram = events.Histograms(f"validation/scores/{name}")[0].histogram_value
        assert histogram.num == len(wanted) and histogram.sum == pytest.approx(wanted.sum().item())


def test_reward_histograms_are_of_pairs(trainer: Build, board: Read, toy: Any) -> None:
    batch = toy.batch(6)
    trainer([ScoreHistograms("reward")]).test(toy.module(), datamodule=toy.data({"test": [batch]}))
    scores = (-batch.true_safety / 2)[batch.valid]
    better = scores.gather(1, batch.more_helpful[batch.valid][:, None])
    histogram = board().Histograms("test/scores/more_helpful")[0].histogram_value
    assert histogram.num == 5 and histogram.sum == pytest.approx(better.sum().item())
    assert board().Histograms("test/scores/less_helpful")[0].histogram_value.num == 5


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_nothing_labelled_and_nothing_there_never_fails(trainer: Build, board: Read, toy: Any, kind: str) -> None:
    splits = {"empty": [], "unlabelled": [toy.unlabelled(toy.batch(4))], "one": [toy.batch(1)]}
    trainer(everything(kind)).validate(toy.module(), datamodule=toy.data(splits))
    tags = board().Tags()["images"]
    assert [tag for tag in tags if not tag.endswith("/one")] == ["1_samples/unlabelled"]


def test_errors_name_the_mend(trainer: Build, toy: Any) -> None:
    class Mute(toy.module):  # type: ignore[misc]
        def validation_step(self, *args: Any) -> None:
            return None

    data = toy.data({"validation": [toy.batch(4)]})
    with pytest.raises(ValueError, match="RuleAccuracy: set scores to 'reward' or 'cost', ToyModule does not say"):
        trainer([RuleAccuracy()]).validate(toy.module(), datamodule=data)
    with pytest.raises(ValueError, match="SampleGallery: scores is 'harm', expected 'reward' or 'cost'"):
        SampleGallery("harm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ReliabilityDiagram needs validation_step to return \{'scores': \(B, K\)\}"):
        trainer([ReliabilityDiagram()]).validate(Mute(), datamodule=data)
    data.trainer = trainer([])
    with pytest.raises(ValueError, match="figures by category need a data module with a taxonomy"):
        trainer([CategoryAccuracy("cost")]).validate(toy.module(), dataloaders=data.val_dataloader())


def test_loaders_without_a_data_module_have_names_too(trainer: Build, board: Read, toy: Any) -> None:
    data = toy.data({"a": [toy.batch(4)], "b": [toy.batch(4)]})
    data.trainer = trainer([])
    trainer([ReliabilityDiagram()]).validate(toy.module(), dataloaders=data.val_dataloader())
    assert board().Tags()["images"] == ["3_reliability/validation", "3_reliability/validation_1"]


def test_files_of_measurements_are_json_even_where_a_number_is_missing(tmp_path: Any) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    run = SimpleNamespace(
        callback_metrics={"test/b": torch.tensor(0.5), "test/a": torch.tensor(torch.nan)},
        is_global_zero=True, global_rank=0, world_size=1, datamodule=None,
        strategy=SimpleNamespace(barrier=lambda name: None),
    )  # fmt: skip
    MetricsFile(str(tmp_path / "metrics.json")).on_test_end(run, None)  # type: ignore[arg-type]
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert list(metrics.items()) == [("test/a", None), ("test/b", 0.5)]
    predictions: Any = PredictionsFile(str(tmp_path / "predictions.jsonl"))
    predictions.on_predict_start(run, None)
    rows = [{"key": "a", "over_refused": math.nan, "scores": [1.0, math.inf]}, {"key": "b", "over_refused": 1.0}]
    predictions.write_on_batch_end(run, None, rows, None, None, 0, 0)
    predictions.on_predict_end(run, None)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=refuse) for line in lines]
    assert read == [{"key": "a", "over_refused": None, "scores": [1.0, None]}, rows[1]]
