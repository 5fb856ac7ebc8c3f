"""What reaches the figures: counts by hand, the first rows, distributed notes, docstring YAML, the import guard."""

import importlib.util
import inspect
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from safe_rlhf_v import callbacks
from safe_rlhf_v.callbacks import CategoryAccuracy, EvaluationCallback, RuleAccuracy, SampleGallery, ScoreHistograms
from safe_rlhf_v.callbacks.evaluation import agreement
from safe_rlhf_v.callbacks.tiles import Line, Tile, draw_grid
from safe_rlhf_v.modules import CostModule, RewardModule

COMPONENTS = [part for name in callbacks.__all__ if not inspect.isabstract(part := getattr(callbacks, name))]


def test_agreement_of_pairs_and_single_responses(toy: Any) -> None:
    batch = toy.batch(5)  # levels (-3, 0), (-2, 1), (-1, 2), (0, 3), padding
    up = torch.tensor([[0.0, 1.0]]).expand(5, 2)
    right, decided = agreement(up, batch, "cost", truth=False)
    assert decided.tolist() == [True] * 4 + [False]
    assert right[:4].tolist() == [False] * 4  # the second response is safer everywhere, and has the higher cost
    assert agreement(-up, batch, "cost", truth=True)[0][:4].tolist() == [True] * 4
    assert agreement(up, batch, "reward", truth=True)[0][:4].tolist() == [True] * 4  # true helpfulness rises likewise
    assert agreement(up, batch, "reward", truth=False)[0][:4].tolist() == [False, True, False, True]
    single = toy.batch(4, responses=1)
    right, decided = agreement(torch.full((4, 1), 0.5), single, "cost", truth=False)
    assert right.tolist() == [True, True, True, False] and decided.tolist() == [True] * 4
    assert not agreement(torch.full((4, 1), 0.5), single, "reward", truth=False)[1].any()


def test_our_own_modules_say_what_their_scores_are() -> None:
    for module, kind in ((CostModule, "cost"), (RewardModule, "reward")):
        callback = CategoryAccuracy()
        callback.setup(Trainer(logger=False, enable_checkpointing=False), object.__new__(module), "validate")
        assert callback.kind == kind


def test_notes_by_category_and_by_rule(toy: Any) -> None:
    batch, costs = toy.batch(5), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0], [9.0, 0.0]])
    # categories none, 0, 1, none; orders right, wrong, tie (wrong), right
    assert CategoryAccuracy("cost").observe(costs, batch, 0) == [(-1, True), (0, False), (1, False), (-1, True)]
    categories = batch.category.clone()
    categories[0], categories[1] = -1, 1  # unknown, and two at once
    several = CategoryAccuracy("cost").observe(costs, batch._replace(category=categories), 0)
    assert several == [(0, False), (1, False), (1, False), (-1, True)]
    rules = RuleAccuracy("cost").observe(costs, batch, 0)
    assert rules.count(("misuse", True)) == 2 and rules.count(("refusal", False)) == 2 and len(rules) == 8


def test_non_finite_scores_are_left_out_of_histograms(toy: Any) -> None:
    costs = torch.full((4, 2), torch.nan)
    costs[0, 0], costs[1, 0] = 2.0, torch.inf
    assert ScoreHistograms("cost").observe(costs, toy.batch(4), 0) == [(0, 2.0)]


def test_the_gallery_keeps_the_first_rows(toy: Any) -> None:
    gallery, batch = SampleGallery("cost", samples=6), toy.batch(5)
    costs = -batch.true_safety.float()
    tiles = gallery.observe(costs, batch, 0)
    tiles += gallery.observe(costs, batch, len(tiles))
    assert len(tiles) == 6 and gallery.observe(costs, batch, 6) == []
    texts = [line.text for line in tiles[0].lines]
    assert texts[0] == "What should I do with item 0?"
    assert texts[1] == "A  cost +3.00  (labelled unsafe, level -3)" and texts[2] == "Response 0 to row 0."
    assert texts[3] == "B  cost -0.00  (labelled safe, level 0)" or texts[3].startswith("B  cost +0.00")
    assert texts[-1] == "order agrees with the label"
    reward = SampleGallery("reward").observe(costs, batch, 0)[1]
    assert [line.text for line in reward.lines if "labelled more helpful" in line.text] == [
        "B  reward -1.00  (labelled more helpful)"
    ]


def test_tiles_fit_any_text_and_picture() -> None:
    long = Line("word " * 400), Line("x" * 900), Line(""), Line("Ünïcödé Ω → 漢字")
    shapes = [(1, 1), (3, 900), (900, 3), (64, 64), (700, 500), (9, 9)]
    pixels = draw_grid([Tile(np.full((*shape, 3), 90, np.uint8), long) for shape in shapes])
    assert pixels.dtype == np.uint8 and pixels.shape[1] == 1280 and pixels.shape[0] < 3 * 400
    assert bool((pixels[:, -1:] == pixels[:1, -1:]).all())  # nothing but the frame at the right edge


class Recorder(EvaluationCallback):
    """Keeps what is reported."""

    def __init__(self, path: Path) -> None:
        super().__init__("cost")
        self.path = path

    def observe(self, scores: torch.Tensor, batch: Any, noted: int) -> list[Any]:
        return [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]

    def report(self, pictures: Any, split: str, notes: list[Any], trainer: Trainer) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.global_rank} {split} {' '.join(sorted(notes))}\n")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_report_all_rows_once(trainer: Any, toy: Any, tmp_path: Path) -> None:
    """Unequal rows, one split of which a rank sees padding only; the report is rank 0's alone and holds every row."""
    padding = toy.batch(2)._replace(valid=torch.zeros(2, dtype=torch.bool))
    splits = {"a": [toy.batch(4), toy.batch(2, first=4), toy.batch(1, first=6)], "b": [padding, toy.batch(1)], "c": []}
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    kept = tmp_path / "reports"
    watchers: list[Callback] = [Recorder(kept), CategoryAccuracy("cost"), SampleGallery("cost")]
    run = trainer(watchers, devices=2, strategy=strategy, use_distributed_sampler=False)
    run.validate(toy.module(), datamodule=toy.data(splits))
    assert kept.read_text().splitlines() == ["0 a k0 k1 k2 k3 k4 k5 k6", "0 b k0"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_interrupted_epoch_leaves_no_notes(trainer: Any, toy: Any, tmp_path: Path, stage: str) -> None:
    class Breaks(toy.module):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1:
                raise RuntimeError("stop")
            return super().validation_step(batch, batch_idx)

        test_step = validation_step

    data = toy.data({"a": [toy.batch(2), toy.batch(2, first=2)]})
    run = trainer([Recorder(tmp_path / "reports")])
    with pytest.raises(RuntimeError, match="stop"):
        getattr(run, stage)(Breaks(), datamodule=data)
    getattr(run, stage)(toy.module(), datamodule=data)
    assert (tmp_path / "reports").read_text().splitlines() == ["0 a k0 k1 k2 k3"]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.__name__)
def test_docstring_yaml_builds_the_class(component: type[Callback]) -> None:
    text = (inspect.getdoc(component) or "").split("YAML::")
    assert len(text) == 2, f"{component.__name__} has no YAML at the end of its docstring"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    (built,) = parser.instantiate(parser.parse_object(yaml.safe_load(textwrap.dedent(text[1])))).callbacks
    assert type(built) is component


def test_the_bare_folder_name_is_refused() -> None:
    spec = importlib.util.spec_from_file_location("callbacks", str(callbacks.__file__))
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"import safe_rlhf_v\.callbacks, not callbacks"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
