"""Settings of the policy: numbers by hand, and what is refused."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from safe_rlhf_v.policy.advantages import GAE, GroupRelative
from safe_rlhf_v.policy.settings import KLPenalty, ScoreSettings, StartSettings, UpdateSettings
from safe_rlhf_v.policy.start import (
    FirstScores,
    ScoreScale,
    check_cost_model,
    check_reference,
    check_stored,
    real_scores,
    refuse_unexpressed,
    start_line,
)
from safe_rlhf_v.training.checkpoints import CheckpointError


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
        (lambda: UpdateSettings(max_grad_norm=-1.0), "update.max_grad_norm is -1.0"),  # would turn gradients round
        (lambda: UpdateSettings(max_grad_norm=0.0), "update.max_grad_norm"),
        (lambda: UpdateSettings(max_grad_norm=math.nan), "update.max_grad_norm"),
        (lambda: UpdateSettings(value_clip=-5.0), "update.value_clip"),
        (lambda: UpdateSettings(value_weight=-1.0), "update.value_weight"),
        (lambda: UpdateSettings(value_weight=math.nan), "update.value_weight"),
        (lambda: UpdateSettings(ptx_weight=-0.5), "update.ptx_weight"),
        (lambda: UpdateSettings(ptx_weight=math.inf), "update.ptx_weight"),
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


def first(valid, **changed):
    n = len(valid)
    columns = {name: torch.zeros(n) for name in ("reward", "cost", "kl")}
    columns |= {name: torch.tensor(values) for name, values in changed.items()}
    return FirstScores(**columns, constraint_mask=torch.tensor(valid)[:, None], valid=torch.tensor(valid))


def test_padding_is_told_by_its_mask_and_not_by_its_scores():
    real = real_scores(first([True, False, True], reward=[1.0, math.nan, 3.0], kl=[0.0, 9.0, 0.0]))
    assert real.reward.tolist() == [1.0, 3.0] and real.kl.tolist() == [0.0, 0.0] and len(real.constraint_mask) == 2
    with pytest.raises(ValueError, match="none of the first prompts"):
        real_scores(first([False, False]))


@pytest.mark.parametrize("name", ["reward", "cost", "kl"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_first_scores_that_are_no_numbers_are_refused(name, broken):
    with pytest.raises(ValueError, match=f"the {name} of 1 of 2 responses is NaN or infinite"):
        real_scores(first([True, True, False], **{name: [0.0, broken, broken]}))


def test_measures_that_are_no_numbers_pass_no_limit():
    check_reference(0.0)
    for kl in (math.nan, 0.03):
        with pytest.raises(CheckpointError, match="KL"):
            check_reference(kl)
    labels = torch.tensor([[0, 1], [1, 0]])
    batch = SimpleNamespace(is_safe=labels, valid=torch.ones(2, dtype=torch.bool))
    good = 1.0 - 2.0 * labels
    check_cost_model([(batch, good)], 0.9, torch.device("cpu"))
    with pytest.raises(ValueError, match="sign accuracy on labelled responses is nan"):
        check_cost_model([(batch, torch.where(good > 0, math.nan, good))], 0.0, torch.device("cpu"))


def test_multipliers_go_to_the_constraints_they_were_trained_for():
    stored = {"roles": {"cost": "a"}, "constraints": ["fraud", "violence"]}
    check_stored(stored, {"cost": "a"}, ["fraud", "violence"])
    check_stored({"roles": {"cost": "a"}}, {"cost": "a"}, ["violence", "fraud"])  # an old one does not say
    for names in (["violence", "fraud"], ["fraud", "theft"], ["fraud"]):
        with pytest.raises(CheckpointError, match="multipliers of the constraints fraud, violence, in this order"):
            check_stored(stored, {"cost": "a"}, names)
    with pytest.raises(CheckpointError, match="another cost model"):
        check_stored(stored, {"cost": "b"}, ["fraud", "violence"])
