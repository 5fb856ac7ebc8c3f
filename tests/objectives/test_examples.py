"""The classes under examples/: what they compute, and that they cost no more than what they are built on."""

import math

import pytest
import torch
from tests.docs.blocks import ROOT

from safe_rlhf_v.objectives import BradleyTerry


@pytest.fixture
def downstream(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "downstream"))


def test_the_hinge_is_the_mean_shortfall_of_labelled_pairs(downstream, preference_batch):
    from hinge_objective import HingeBradleyTerry

    batch = preference_batch(4, more_helpful=[0, 1, -1, 0], valid=[True, True, True, False])
    scores = torch.tensor([[2.0, 0.0], [0.5, 0.0], [9.0, 0.0], [0.0, 9.0]], requires_grad=True)
    loss = HingeBradleyTerry(lead=1.0, hinge=0.5)(scores, batch)
    plain = BradleyTerry()(scores, batch)
    assert loss["shortfall"].item() == pytest.approx((0.0 + 1.5) / 2)
    assert loss["loss"].item() == pytest.approx(plain["loss"].item() + 0.5 * 0.75)
    loss["loss"].backward()
    assert not scores.grad[2:].any()


def test_the_step_dual_takes_steps_of_one_size_within_its_bounds(downstream):
    from step_dual import StepDual

    dual = StepDual(budget=[0.0, 0.0], size=0.25, initial=0.5, maximum=0.6, window=1)
    costs, valid = torch.tensor([[3.0, -0.01]]), torch.ones(1, dtype=torch.bool)
    assert dual.update(costs, valid).tolist() == pytest.approx([0.6, 0.25])
    assert dual.update(-costs, valid).tolist() == pytest.approx([0.35, 0.5])


def test_the_word_judge_names_the_same_values_for_any_text(downstream):
    from word_judge import WordJudge

    rows = [WordJudge().score(None, text) for text in ("I can not help with that.", "", "please be careful")]
    assert rows[0]["refused"] == 1.0 and rows[2] == {"refused": 0.0, "warns": 1.0}
    assert all(set(row) == set(rows[0]) and not any(math.isnan(x) for x in row.values()) for row in rows)
