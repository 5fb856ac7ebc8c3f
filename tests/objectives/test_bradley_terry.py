"""The reward objective: the released formula, label handling, padding and options."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from safe_rlhf_v.objectives import BradleyTerry
from safe_rlhf_v.records.batches import PreferenceBatch

Build = Callable[..., PreferenceBatch]
SCORES = torch.tensor([[2.0, 0.5], [1.0, -1.0], [0.3, 0.9], [4.0, -4.0]])


def test_released_reward_loss_in_float64(preference_batch: Build) -> None:
    scores = np.random.default_rng(0).normal(size=(16, 2))
    better = np.random.default_rng(1).integers(0, 2, 16)
    win, lose = scores[np.arange(16), better], scores[np.arange(16), 1 - better]
    expected = np.logaddexp(0, lose - win).mean() + 1e-3 * (win**2 + lose**2).sum() / 32
    parts = BradleyTerry()(torch.tensor(scores), preference_batch(16, more_helpful=better.tolist()))
    assert parts["loss"].dtype == torch.float32
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert parts["pair"].item() == pytest.approx(np.logaddexp(0, lose - win).mean(), rel=1e-6)
    assert parts["regularisation"].item() == pytest.approx((scores**2).mean(), rel=1e-6)


def test_the_labelled_response_rises_and_the_other_falls(preference_batch: Build) -> None:
    scores = torch.zeros(2, 2, requires_grad=True)
    BradleyTerry()(scores, preference_batch(2, more_helpful=[0, 1]))["loss"].backward()
    assert scores.grad is not None and scores.grad.sign().tolist() == [[-1, 1], [1, -1]]


def test_swapping_responses_and_labels_changes_nothing(preference_batch: Build) -> None:
    objective = BradleyTerry(margin=0.5, label_smoothing=0.1)
    loss = objective(SCORES, preference_batch(4, more_helpful=[0, 1, 1, 0]))["loss"]
    swapped = objective(SCORES.flip(1), preference_batch(4, more_helpful=[1, 0, 0, 1]))["loss"]
    torch.testing.assert_close(loss, swapped)


@pytest.mark.parametrize("junk", [100.0, torch.nan, torch.inf])
def test_padding_and_unlabelled_rows_weigh_nothing(junk: float, preference_batch: Build) -> None:
    objective, target = BradleyTerry(), [0, 1, -1, 0]
    padded = SCORES.clone()
    padded[3] = junk
    padded.requires_grad_()
    loss = objective(padded, preference_batch(4, more_helpful=target, valid=[True, True, True, False]))["loss"]
    alone = objective(SCORES[:2], preference_batch(2, more_helpful=target[:2]))["loss"]
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    loss.backward()
    assert padded.grad is not None and bool((padded.grad[2:] == 0).all()) and bool((padded.grad[:2] != 0).all())


def test_nothing_labelled_is_zero_with_a_graph(preference_batch: Build) -> None:
    scores = torch.full((2, 2), 3.0, requires_grad=True)
    for batch in (preference_batch(2), preference_batch(2, more_helpful=[0, 1], valid=[False, False])):
        loss = BradleyTerry()(scores, batch)["loss"]
        assert loss.item() == 0.0
        loss.backward()
    assert scores.grad is not None and bool((scores.grad == 0).all())


def test_margin_and_smoothing_reach_the_loss(preference_batch: Build) -> None:
    batch, scores = preference_batch(1, more_helpful=[0]), torch.tensor([[math.log(3), 0.0]])
    assert BradleyTerry(margin=math.log(3))(scores, batch)["pair"].item() == pytest.approx(math.log(2))
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert BradleyTerry(label_smoothing=0.1)(scores, batch)["pair"].item() == pytest.approx(expected)


def test_safety_order_and_its_ties(preference_batch: Build) -> None:
    """``safer`` orders the pair; a tied rating at 0.5 has the same loss whichever response was picked."""
    objective = BradleyTerry(preference="safer", tie_smoothing=0.5, score_regularisation=0.0)
    scores = torch.tensor([[1.0, 0.0]])
    right = objective(scores, preference_batch(1, safer=[0]))["loss"]
    wrong = objective(scores, preference_batch(1, safer=[1]))["loss"]
    assert right < wrong
    ties = [objective(scores, preference_batch(1, safer=[i], safety_tie=[True]))["loss"] for i in (0, 1)]
    torch.testing.assert_close(ties[0], ties[1])


def test_only_the_loss_carries_a_graph(preference_batch: Build) -> None:
    parts = BradleyTerry()(SCORES.clone().requires_grad_(), preference_batch(4, more_helpful=[0, 1, 1, 0]))
    assert {name for name, part in parts.items() if part.requires_grad} == {"loss"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, r"margin is -1\.0, expected a number in \[0, inf\]"),
        ({"label_smoothing": 0.7}, r"label_smoothing is 0\.7, expected a number in \[0, 0\.5\]"),
        ({"tie_smoothing": 0.2}, "set preference to 'safer'"),
        ({"preference": "better"}, "preference is 'better'"),
    ],
)
def test_wrong_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BradleyTerry(**options)  # type: ignore[arg-type]


def test_wrong_shape(preference_batch: Build) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(rows, responses\) = \(2, 2\)"):
        BradleyTerry()(torch.zeros(2, 1), preference_batch(2))
