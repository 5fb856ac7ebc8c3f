"""Settings of the policy: numbers by hand, and what is refused."""

import math
import re

import pytest
import torch

from safe_rlhf_v.policy.advantages import GAE, GroupRelative
from safe_rlhf_v.policy.settings import KLPenalty, ScoreSettings, StartSettings, UpdateSettings
from safe_rlhf_v.policy.start import ScoreScale, refuse_unexpressed, start_line


def test_kl_weights_by_hand():
    assert KLPenalty(0.1, "split").weights == (-0.05, 0.05)
    assert KLPenalty(0.1, "both").weights == (-0.1, 0.1)
    assert KLPenalty(0.1, "reward").weights == (-0.1, 0.0)
    assert KLPenalty(0.1, "loss").weights == (0.0, 0.0)


def test_an_estimator_whose_gradient_is_no_divergences_is_refused():
    assert KLPenalty(where="loss").loss_estimator == "k2"
    assert KLPenalty(where="loss", estimator="k3").loss_estimator == "k3"
    KLPenalty(estimator="k1")
    for estimator in ("k2", "k3"):
        for where in ("split", "both", "reward"):
            with pytest.raises(ValueError, match=f"kl.estimator {estimator} in token signals"):
                KLPenalty(where=where, estimator=estimator)
    with pytest.raises(ValueError, match=r"kl\.estimator k1 has no gradient"):
        KLPenalty(where="loss", estimator="k1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KLPenalty(-0.1), "kl.coefficient"),
        (lambda: KLPenalty(math.inf), "kl.coefficient"),
        (lambda: ScoreSettings(clip=0.0), "scores.clip"),
        (lambda: ScoreSettings(clip=math.nan), "scores.clip"),
        (lambda: ScoreSettings(unfinished_penalty=-1.0), "scores.unfinished_penalty"),
        (lambda: StartSettings(prompts=0), "start.prompts"),
        (lambda: UpdateSettings(epochs=0), "update.epochs"),
        (lambda: GAE(floor=-1.0), "advantages.floor"),
        (lambda: GroupRelative(floor=math.nan), "advantages.floor"),
        (lambda: GroupRelative(eps=0.0), "advantages.eps"),
    ],
)
def test_numbers_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_start_is_said_in_one_line():
    costs = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    behind = start_line(costs, 0.7, normalised=True)
    assert "mean cost +0.50" in behind and "50% of 4 responses above 0" in behind
    assert "WARNING" in behind and "RISE" in behind
    ahead = start_line(costs, -0.5, normalised=True)
    assert "budget -0.50 is 1.00 below it" in ahead and "WARNING" not in ahead
    assert "\n" not in ahead
    named = start_line(costs, -0.5, normalised=True, name="fraud")
    assert named.startswith("starting policy, fraud: mean cost +0.50")
    assert "was not checked" in start_line(costs[:0], -0.5, normalised=True, name="fraud")


@pytest.mark.parametrize("clip", [0.3, 1.0, 5.0, None])
@pytest.mark.parametrize("where", [-6.8, 0.0, 40.0])
def test_every_recommended_budget_can_be_expressed(where, clip):
    """The recommended ones were refused in effect: cut off at -5 for a start at -6.8."""
    costs = where + torch.randn(200, generator=torch.Generator().manual_seed(0)).exp()  # lopsided
    line = start_line(costs, where, normalised=True, clip=clip)
    strict, mild = (float(x) for x in re.findall(r"([+-][0-9.]+) \((?:strict|mild)\)", line))
    for budget in (strict, mild):
        refuse_unexpressed(costs, min(max(budget, strict + 0.01), mild - 0.0), clip)


def test_a_budget_beyond_the_signal_is_refused_in_one_line():
    costs = torch.tensor([-8.0, -7.0, -6.0])
    for budget in (-12.1, -1.9):
        with pytest.raises(ValueError, match=r"reaches from -12\.00 to -2\.00") as error:
            refuse_unexpressed(costs, budget, 5.0)
        assert str(error.value).startswith(f"dual.budget {budget:+.2f}: with scores.clip 5 ")
        assert "\n" not in str(error.value)
        refuse_unexpressed(costs, budget, None)
        refuse_unexpressed(costs[:0], budget, 5.0)
    for budget in (-12.0, -7.8, -2.0):
        refuse_unexpressed(costs, budget, 5.0)
    with pytest.raises(ValueError, match=r"dual.budget \+3.00 of fraud: "):
        refuse_unexpressed(costs, 3.0, 5.0, "fraud")


def test_costs_are_scaled_but_not_centred():
    scale = ScoreScale()
    scale.measure(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0]))
    reward, cost = scale.normalise(torch.tensor([2.0]), torch.tensor([4.0]))
    assert reward.item() == pytest.approx(0.0) and cost.item() == pytest.approx(4 / 8**0.5)
    assert scale.unit == (1.0, 1.0)
    scale.to(torch.bfloat16)
    assert scale.spread.dtype == torch.float32


def test_raw_scores_stay_as_they_are_but_their_spread_is_known():
    scale = ScoreScale(normalises=False)
    scale.measure(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0]))
    reward, cost = scale.normalise(torch.tensor([2.5]), torch.tensor([4.0]))
    assert reward.item() == 2.5 and cost.item() == 4.0
    assert scale.unit == pytest.approx((2**0.5, 8**0.5))
    mean, spread = scale.applied
    assert mean.tolist() == [0.0, 0.0] and spread.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scores", [[0.3] * 4, [0.3, 0.3 + 3e-8, 0.3, 0.3], [-7.0, -7.000001, -7.0, -7.0], [2.0]])
def test_rounding_is_no_spread(scores):
    scale = ScoreScale()
    scale.measure(torch.tensor(scores), torch.tensor(scores))
    assert scale.spread.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan, math.inf])
def test_a_cap_that_is_none_is_refused(cap):
    with pytest.raises(ValueError, match=r"update\.importance_cap is"):
        UpdateSettings(importance_cap=cap)
