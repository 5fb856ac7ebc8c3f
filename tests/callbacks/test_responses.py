"""Pictures of what a policy answers: which prompts, when they are asked, and what stands in the pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tests.callbacks.scripted import PromptData, Scripted, prompts

from safe_rlhf_v.callbacks import ResponseGallery, RewardCostPlane, response_gallery, reward_cost_plane
from safe_rlhf_v.callbacks.response_gallery import GalleryEntry, facts, tile
from safe_rlhf_v.callbacks.reward_cost_plane import Cloud, plane_figure
from safe_rlhf_v.callbacks.tiles import MUTED, RIGHT, WRONG, Line

RUN: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "max_steps": 4,
    "max_epochs": -1,
    "val_check_interval": 2,
    "check_val_every_n_epoch": None,
}


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Cloud], list[float]]]:
    """What the plane was asked to draw."""
    kept: list[Any] = []
    draw = plane_figure
    monkeypatch.setattr(reward_cost_plane, "plane_figure", lambda *a: (kept.append(a), draw(*a))[1])
    return kept


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[list[list[str]]]:
    """The text of every gallery that was drawn: pictures, tiles, lines."""
    kept: list[Any] = []
    draw = response_gallery.draw_grid

    def spy(tiles: list[Any]) -> np.ndarray:
        kept.append([[line.text for line in each.lines] for each in tiles])
        return draw(tiles)

    monkeypatch.setattr(response_gallery, "draw_grid", spy)
    return kept


def test_the_plane_compares_the_same_prompts_before_and_after(trainer: Any, board: Any, clouds: Any) -> None:
    module = Scripted()
    trainer([RewardCostPlane(prompts=6)], **RUN).fit(module, datamodule=PromptData())
    events = board()
    assert [e.step for e in events.Images("2_reward_cost_plane/validation")] == [0, 1, 3]
    assert [e.step for e in events.Images("2_reward_cost_plane/other")] == [1, 3]
    drawn = [drawing for split, drawing, _ in clouds if split == "validation"]
    assert [[cloud.when for cloud in drawing] for drawing in drawn] == [
        ["before training"], ["before training", "after 2 iterations"], ["before training", "after 4 iterations"],
    ]  # fmt: skip
    before, after = drawn[2]
    assert before.points.tolist() == [[n - 2.0, 0.0] for n in range(6)]  # cost n - 2, reward 0
    assert after.points.tolist() == [[n - 6.0, 2.0] for n in range(6)]
    # By hand: 3 of -2..3 are above 0, mean 0.5; after four iterations none of -6..-1 is.
    assert before.described() == "before training: 50% right of 0, mean cost +0.50, mean reward +0.00 (n = 6)"
    assert after.described() == "after 4 iterations: 0% right of 0, mean cost -3.50, mean reward +2.00 (n = 6)"
    assert all(budgets == [-0.5] for _, _, budgets in clouds)
    others = [[cloud.when for cloud in drawing] for split, drawing, _ in clouds if split == "other"]
    assert others == [["after 2 iterations"], ["after 2 iterations", "after 4 iterations"]]


def test_asking_before_the_first_step_changes_nothing(trainer: Any) -> None:
    modules = []
    for callbacks in ([], [RewardCostPlane(prompts=3), ResponseGallery(prompts=2)]):
        torch.manual_seed(3)
        module = Scripted()
        trainer(callbacks, **{**RUN, "max_steps": 1}).fit(module, datamodule=PromptData())
        modules.append((module.weight.tolist(), torch.get_rng_state().tolist()))
        assert not module.part.training  # what was in evaluation mode stays so
    assert modules[0] == modules[1]
    early = [asked for asked in module.asked if asked[0] == 0]
    assert [keys for *_, keys in early] == [("k0", "k1", "k2", "k3")] * 2  # one batch is enough, once per callback
    assert not any(training for _, training, _ in early)  # answered in evaluation mode
    assert module.training


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"fast_dev_run": True}])
def test_nothing_is_asked_where_nothing_is_shown(trainer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    module = Scripted()
    trainer([RewardCostPlane()], **{**RUN, **options}).fit(module, datamodule=PromptData())
    assert not [asked for asked in module.asked if asked[0] == 0]


def test_the_start_is_asked_once_and_not_in_every_epoch(trainer: Any) -> None:
    module = Scripted()
    trainer([RewardCostPlane(prompts=4)], **RUN, limit_train_batches=2).fit(module, datamodule=PromptData())
    assert [done for done, *_ in module.asked] == [0] + [2] * 4 + [
        4
    ] * 4  # two validations of two splits, two batches each


def test_no_more_is_asked_before_than_validation_sees(trainer: Any) -> None:
    module = Scripted()
    trainer([RewardCostPlane(prompts=200)], limit_val_batches=1, **RUN).fit(module, datamodule=PromptData())
    assert [keys for done, _, keys in module.asked if done == 0] == [("k0", "k1", "k2", "k3")]


def test_the_gallery_shows_the_same_prompts_and_the_answer_before(trainer: Any, board: Any, grids: Any) -> None:
    trainer([ResponseGallery(prompts=5)], **RUN).fit(Scripted(), datamodule=PromptData())
    assert [e.step for e in board().Images("1_responses/validation")] == [0, 1, 3]
    first, second, third = [grid for grid in grids if len(grid) == 5]  # the other split has four prompts
    assert [[lines[0] for lines in grid] for grid in (first, second, third)] == [
        [f"What is {n}?" for n in range(5)]
    ] * 3
    assert first[1] == ["What is 1?", "before training: reward +0.00, cost -1.00", "Response k1 at 0."]
    assert second[1] == [
        "What is 1?",
        "after 2 iterations: reward +1.00, cost -3.00",
        "Response k1 at 2.",
        "before training: reward +0.00, cost -1.00",
        "Response k1 at 0.",
    ]
    assert third[1][-1] == "the same response after 2 iterations"
    assert [[lines[0] for lines in grid] for grid in grids if len(grid) == 4] == [
        [f"What is {n}?" for n in range(4)]
    ] * 2


def test_without_comparison_only_the_answer_now_is_shown(trainer: Any, grids: Any) -> None:
    gallery = ResponseGallery(prompts=2, before=False, compare=False)
    trainer([gallery], **RUN).fit(Scripted(), datamodule=PromptData())
    assert len(grids) == 4 and all(len(lines) == 3 for grid in grids for lines in grid)


def test_padding_is_never_shown(trainer: Any, clouds: Any, grids: Any) -> None:
    data = PromptData({"validation": [prompts(4, padding=2)]})
    trainer([RewardCostPlane(), ResponseGallery()]).validate(Scripted(), datamodule=data)
    (((_, (cloud,), _)),) = clouds
    assert cloud.when == "this policy" and cloud.points[:, 0].tolist() == [-2.0, -1.0]
    assert [lines[0] for lines in grids[0]] == ["What is 0?", "What is 1?"]


@pytest.mark.slow
def test_what_is_compared_with_survives_a_resume(trainer: Any, tmp_path: Path, clouds: Any, grids: Any) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3)
    options = {**RUN, "enable_checkpointing": True}
    run = trainer([RewardCostPlane(), ResponseGallery(), saver], **{**options, "max_steps": 3})
    run.fit(Scripted(), datamodule=PromptData())
    clouds.clear()
    grids.clear()
    module, watchers = Scripted(), [RewardCostPlane(), ResponseGallery()]
    run = trainer(watchers, **{**RUN, "max_steps": 4})
    run.fit(module, datamodule=PromptData(), ckpt_path=saver.best_model_path, weights_only=True)
    assert [[cloud.when for cloud in drawing] for _, drawing, _ in clouds] == [
        ["before training", "after 4 iterations"],
        ["after 2 iterations", "after 4 iterations"],
    ]
    assert all(done == 4 for done, *_ in module.asked)  # the start is not asked again
    assert grids[0][0][-1] == "the same response after 2 iterations"
    clouds.clear()
    trainer(watchers, **RUN).fit(Scripted(), datamodule=PromptData())  # a new run with the same callbacks
    assert [cloud.when for cloud in clouds[0][1]] == ["before training"]


def test_two_ranks_share_the_prompts(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "drawn"

    def spy(split: str, clouds: list[Cloud], budgets: list[float]) -> np.ndarray:
        with kept.open("a") as file:
            file.write(f"{split}: {'; '.join(str(sorted(cloud.points[:, 0].tolist())) for cloud in clouds)}\n")
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(reward_cost_plane, "plane_figure", spy)
    data = PromptData({"validation": [prompts(4), prompts(4, first=4, padding=1)]})
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    callbacks: list[Callback] = [RewardCostPlane(prompts=6), ResponseGallery(prompts=3)]
    options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, **RUN, "max_steps": 2}
    trainer(callbacks, **options).fit(Scripted(), datamodule=data)
    assert kept.read_text().splitlines() == [
        "validation: [-2.0, -1.0, 0.0, 2.0, 3.0, 4.0]",  # prompts 0, 1, 2 of one rank and 4, 5, 6 of the other
        "validation: [-2.0, -1.0, 0.0, 2.0, 3.0, 4.0]; [-4.0, -3.0, -2.0, 0.0, 1.0, 2.0]",
    ]


@pytest.mark.parametrize("callback", [RewardCostPlane, ResponseGallery])
def test_other_modules_and_no_prompts_are_refused(callback: Any, trainer: Any, toy: Any) -> None:
    with pytest.raises(ValueError, match=f"{callback.__name__} is for constrained policies, not for ToyModule"):
        trainer([callback()]).validate(toy.module(), datamodule=toy.data({"validation": [toy.batch(4)]}))
    with pytest.raises(ValueError, match=f"{callback.__name__}: the number of prompts is 0"):
        callback(prompts=0)


def test_facts_are_in_words_and_levels_in_colour() -> None:
    row = {"response": "Yes.", "reward": 1.0, "cost": -0.5, "unfinished": 0.0}
    known = {**row, "level": -2.0, "harmful": 1.0, "helpfulness": 3.25, "refused": 0.0}
    assert facts(known) == ["level -2", "helpfulness 3.2"]
    assert facts({**known, "level": 0.0, "harmful": 0.0, "refused": 1.0}) == ["level 0", "helpfulness 3.2", "refuses"]
    assert facts({**row, "level": float("nan"), "helpfulness": float("nan"), "unfinished": 1.0}) == ["cut off"]
    assert facts({**row, "harmful": 1.0}) == ["harmful"] and facts({**row, "harmful": 0.0}) == ["harmless"]
    picture = np.zeros((8, 8, 3), np.uint8)
    for level, colour in ((-1.0, WRONG), (0.0, RIGHT), (3.0, RIGHT)):
        lines = tile(
            GalleryEntry("k", picture, (Line("Q?"),), {**known, "level": level, "harmful": float(level < 0)}),
            "now",
            None,
        ).lines
        assert lines[-1].colour == colour and lines[1].colour != WRONG  # the learned cost is below 0
    for unknown in ({"helpfulness": 1.0}, {"helpfulness": 1.0, "level": float("nan"), "harmful": float("nan")}):
        assert (
            tile(GalleryEntry("k", picture, (Line("Q?"),), {**row, **unknown}), "now", None).lines[-1].colour == MUTED
        )
    assert tile(GalleryEntry("k", picture, (Line("Q?"),), {**row, "cost": 0.1}), "now", None).lines[1].colour == WRONG
    assert (
        tile(GalleryEntry("k", picture, (Line("Q?"),), {**row, "response": ""}), "now", None).lines[2].text
        == "(nothing)"
    )


def test_the_plane_marks_budget_and_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    pixels = reward_cost_plane.pixels_of
    monkeypatch.setattr(reward_cost_plane, "pixels_of", lambda figure: (kept.append(figure), pixels(figure))[1])
    clouds = [Cloud("before training", np.array([[1.0, 0.0], [3.0, 2.0]])), Cloud("now", np.array([[-1.0, 1.0]]))]
    plane_figure("test", clouds, [-0.5])
    (axes,) = kept[0].axes
    assert [line.get_xdata()[0] for line in axes.lines] == [0, -0.5]
    big = [
        c.get_offsets().data.tolist() for c in axes.collections if len(c.get_offsets()) == 1 and c.get_sizes()[0] > 100
    ]
    assert big == [[[2.0, 1.0]], [[-1.0, 1.0]]]  # the means
    (arrow,) = [text for text in axes.texts if hasattr(text, "xyann")]
    assert tuple(arrow.xyann) == (2.0, 1.0) and tuple(arrow.xy) == (-1.0, 1.0)
    assert [text.get_text() for text in kept[0].legends[0].texts] == [cloud.described() for cloud in clouds]
    names = {text.get_text().strip(): text.get_window_extent() for text in axes.texts if text.get_text().strip()}
    assert names["budget -0.50"].x1 < names["judged harmful"].x0


@pytest.mark.parametrize("budgets", [[0.25], [-0.5, 0.25], [0.0]])
def test_any_cloud_can_be_drawn(budgets: list[float]) -> None:
    nothing, one = Cloud("a", np.empty((0, 2))), Cloud("b", np.array([[0.0, 0.0]]))
    assert "no response" in nothing.described()
    for clouds in ([one], [nothing, one], [one, one], [nothing, nothing]):
        assert plane_figure("x", clouds, budgets).shape[2] == 3
