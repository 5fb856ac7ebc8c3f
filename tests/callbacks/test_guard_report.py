"""The guard's pictures: counted by hand, and written by a real run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from safe_rlhf_v.callbacks import GuardReport
from safe_rlhf_v.callbacks.guard_report import (
    Judgement,
    _categories,
    _right_by,
    confusion_figure,
    risk_coverage_figure,
)
from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.world import WORLD


class Pictures(dict):
    """Takes the place of a board."""

    def image(self, tag, pixels):
        self[tag] = pixels


def test_it_notes_every_levelled_answer_and_pictures_mistakes(world):
    batch = next(iter(PreferenceDataModule(str(world), batch_size=4).train_dataloader()))
    batch = batch._replace(valid=torch.tensor([True, True, True, False]))
    levels = batch.true_safety
    right = torch.full((4, 2, 7), -9.0).scatter(-1, (levels + 3)[..., None], -0.01)
    callback = GuardReport(mistakes=2)
    notes = callback.observe(right, batch, 0)
    assert [note.level for note in notes] == levels[:3].flatten().tolist()
    assert all(note.decided == note.level and not note.tiles for note in notes)
    wrong = callback.observe(right.flip(-1), batch, 0)
    assert all(note.decided == -note.level for note in wrong)
    assert sum(len(note.tiles) for note in wrong) == 2
    assert all(note.level < 0 or note.decided < 0 for note in wrong if note.tiles)
    board = Pictures()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(taxonomy=WORLD))
    callback.report(board, "test", [*notes, *wrong], trainer)
    names = (
        "confusion",
        "worst_mistakes",
        "reliability",
        "risk_coverage",
        "harm_by_category",
        "harm_by_rule",
        "harm_by_level",
    )
    assert set(board) == {f"{place}_{name}/test" for place, name in enumerate(names, start=1)}
    assert all(pixels.dtype == np.uint8 and pixels.ndim == 3 for pixels in board.values())
    without = [note._replace(rule="") for note in notes]
    callback.report(clean := Pictures(), "test", without, trainer)
    assert not {"2_worst_mistakes/test", "6_harm_by_rule/test"} & set(clean)


def test_groups_are_counted_by_hand():
    note = Judgement(0.9, -2, -1, (0,), "vague", [])
    notes = [
        note,
        note._replace(harm=0.2),
        note._replace(level=1, rule=""),
        note._replace(harm=0.1, level=0, category=(-1,)),
    ]
    assert _right_by([("a_b",), ("a_b", "c"), (), ("c",)], notes) == {"a_b": (1, 2), "c": (1, 2)}
    assert _right_by([("a_b",), ("a b",)], notes[:2]) == {"a_b": (1, 1), "a b": (0, 1)}
    names = _categories(notes, SimpleNamespace(datamodule=SimpleNamespace(taxonomy=WORLD)))
    assert names == [*[(WORLD.categories[0],)] * 3, ("(no category)",)]


def test_only_the_worst_mistakes_keep_a_picture():
    """A thousand mistakes in random order: the most confident ones are kept, and few others ever were."""
    callback = GuardReport(mistakes=5)
    confidence = np.random.default_rng(0).permutation(1000) / 2000
    tiles = [[] for _ in confidence]
    kept = []
    for number, (c, own) in enumerate(zip(confidence, tiles, strict=True)):
        if callback._is_among_the_worst((c, number, own)):
            own.append("tile")
            kept.append(c)
    assert sorted(confidence)[-5:] == sorted(kept)[-5:] and len(kept) < 60
    assert sorted(c for c, own in zip(confidence, tiles, strict=True) if own) == sorted(confidence)[-5:]
    assert callback._is_among_the_worst((0.6, 1000, [])) and not callback._is_among_the_worst((0.1, 1001, []))
    assert not GuardReport(mistakes=0)._is_among_the_worst((0.4, 0, []))


def test_figures_stand_the_extremes():
    assert confusion_figure("x", np.zeros((7, 7), int)).shape[2] == 3
    one = torch.tensor([0.9])
    for harmful in (True, False):
        assert risk_coverage_figure("x", one, torch.tensor([harmful])).shape[2] == 3


def test_other_modules_are_refused():
    from lightning.pytorch import LightningModule

    with pytest.raises(ValueError, match="GuardReport is for guards"):
        GuardReport().setup(None, LightningModule(), "fit")
