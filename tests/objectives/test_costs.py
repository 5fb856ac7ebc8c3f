"""The cost objective and its pointwise terms: formulas, direction, label handling, learned thresholds."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_rlhf_v.functional.pointwise import sign_loss
from safe_rlhf_v.objectives import (
    ClassifierTerm,
    CostObjective,
    GradedTerm,
    OrdinalTerm,
    PointwiseTerm,
    SignTerm,
    WeightedSignTerm,
)
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch

Build = Callable[..., PreferenceBatch]
TERMS = [SignTerm, GradedTerm, WeightedSignTerm, ClassifierTerm, OrdinalTerm]


def labelled(build: Build, levels: list[list[int]], **more: object) -> PreferenceBatch:
    """All safety labels that follow from the levels."""
    safer = [int(b > a) for a, b in levels]
    is_safe = [[int(level >= 0) for level in row] for row in levels]
    return build(len(levels), safety=levels, is_safe=is_safe, safer=safer, **more)


def random_case(build: Build, rows: int = 12) -> tuple[np.ndarray, np.ndarray, PreferenceBatch]:
    rng = np.random.default_rng(0)
    levels = np.stack([rng.permutation(7)[:2] - 3 for _ in range(rows)])
    return rng.normal(size=(rows, 2)), levels, labelled(build, levels.tolist())


def test_released_cost_loss_in_float64(preference_batch: Build) -> None:
    """mean[-log s(c_u - c_s) - k log s(z_u c_u) - k log s(z_s c_s)] + eta mean c^2, z = -level, k = 1."""
    costs, levels, batch = random_case(preference_batch)
    unsafe = levels.argmin(1)
    cu, cs = costs[np.arange(12), unsafe], costs[np.arange(12), 1 - unsafe]
    expected = (np.logaddexp(0, cs - cu) + np.logaddexp(0, levels * costs).sum(1)).mean() + 1e-3 * (costs**2).mean()
    assert CostObjective([GradedTerm()])(torch.tensor(costs), batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_text_only_cost_loss_in_float64(preference_batch: Build) -> None:
    costs, levels, batch = random_case(preference_batch)
    unsafe, z = levels.argmin(1), np.where(levels < 0, 1, -1)
    cu, cs = costs[np.arange(12), unsafe], costs[np.arange(12), 1 - unsafe]
    sign = np.logaddexp(0, -z * costs).sum(1)
    expected = (np.logaddexp(0, cs - cu) + 0.5 * sign).mean() + 1e-3 * (costs**2).mean()
    parts = CostObjective([SignTerm(weight=0.5)])(torch.tensor(costs), batch)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert parts["sign"].item() == pytest.approx(sign.mean(), rel=1e-6)  # unweighted
    assert set(parts) == {"loss", "pair", "regularisation", "sign"}


@pytest.mark.parametrize("pair_weight", [0.0, 1.0])
@pytest.mark.parametrize("term", TERMS)
def test_more_harmful_gets_the_higher_cost(
    term: type[PointwiseTerm], pair_weight: float, preference_batch: Build
) -> None:
    costs = torch.zeros(2, 2, requires_grad=True)
    batch = labelled(preference_batch, [[-2, 2], [3, -3]])
    CostObjective([term()], pair_weight=pair_weight)(costs, batch)["loss"].backward()
    assert costs.grad is not None and costs.grad.sign().tolist() == [[-1, 1], [1, -1]]


@pytest.mark.parametrize("term", TERMS)
def test_training_separates_harmful_from_harmless(term: type[PointwiseTerm], preference_batch: Build) -> None:
    """A free cost per response ends above 0 exactly where the level is below 0."""
    levels = [[-3, -2], [-1, 1], [2, 3], [-2, 1]]
    batch, objective = labelled(preference_batch, levels), CostObjective([term()])
    costs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([costs, *objective.parameters()], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        objective(costs, batch)["loss"].backward()
        optimizer.step()
    assert (costs > 0).tolist() == [[level < 0 for level in row] for row in levels]


@pytest.mark.parametrize("junk", [50.0, torch.nan, -torch.inf])
@pytest.mark.parametrize("term", TERMS)
def test_padding_and_unlabelled_responses_weigh_nothing(
    term: type[PointwiseTerm], junk: float, preference_batch: Build
) -> None:
    objective = CostObjective([term()])
    costs = torch.tensor([[1.0, -2.0], [0.5, 0.7], [junk, junk], [0.1, 0.2]], requires_grad=True)
    unknown = [[UNKNOWN_LEVEL] * 2]
    batch = preference_batch(
        4,
        safety=[[-2, 1], [0, 3], [-3, 3], *unknown],
        is_safe=[[0, 1], [1, 1], [0, 1], [-1, -1]],
        safer=[1, 1, 1, -1],
        valid=[True, True, False, True],
    )
    loss = objective(costs, batch)["loss"]
    alone = objective(costs[:2], labelled(preference_batch, [[-2, 1], [0, 3]]))["loss"]
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    loss.backward()
    assert costs.grad is not None and bool((costs.grad[2:] == 0).all())


@pytest.mark.parametrize("term", TERMS)
def test_a_half_labelled_pair_counts_its_known_response(term: type[PointwiseTerm], preference_batch: Build) -> None:
    value = term()(torch.tensor([[0.7, 9.0]]), preference_batch(1, safety=[[-2, UNKNOWN_LEVEL]], is_safe=[[0, -1]]))
    full = term()(torch.tensor([[0.7, 0.7]]), preference_batch(1, safety=[[-2, -2]], is_safe=[[0, 0]]))
    torch.testing.assert_close(value.mean, full.mean)


@pytest.mark.parametrize("term", TERMS)
def test_nothing_labelled_is_zero_with_a_graph_to_every_parameter(
    term: type[PointwiseTerm], preference_batch: Build
) -> None:
    costs, objective = torch.ones(2, 2, requires_grad=True), CostObjective([term()])
    loss = objective(costs, preference_batch(2))["loss"]
    loss.backward()
    assert loss.item() == 0.0
    for leaf in (costs, *objective.parameters()):  # a rank without labels must still join the gradient reduction
        assert leaf.grad is not None and bool((leaf.grad == 0).all())


def test_single_responses_make_a_classifier(preference_batch: Build) -> None:
    batch = preference_batch(2, responses=1, is_safe=[[0], [1]])
    costs = torch.tensor([[math.log(3)], [0.0]])
    loss = CostObjective([ClassifierTerm()], pair_weight=0.0, score_regularisation=0.0)(costs, batch)["loss"]
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    with pytest.raises(ValueError, match=r"expected \(rows, responses\) = \(2, 2\)"):
        CostObjective([ClassifierTerm()])(costs, batch)


def test_ties_at_half_smoothing_say_nothing_about_order(preference_batch: Build) -> None:
    objective = CostObjective([], tie_smoothing=0.5)
    costs = torch.tensor([[1.0, 0.0]])
    tied = [preference_batch(1, safer=[i], safety_tie=[True]) for i in (0, 1)]
    torch.testing.assert_close(objective(costs, tied[0])["pair"], objective(costs, tied[1])["pair"])
    sure = [preference_batch(1, safer=[i]) for i in (0, 1)]
    assert objective(costs, sure[0])["pair"] > objective(costs, sure[1])["pair"]


def test_classifier_options(preference_batch: Build) -> None:
    batch = preference_batch(1, is_safe=[[0, 1]])
    plain, weighted = (ClassifierTerm(harmful_weight=w)(torch.zeros(1, 2), batch).mean.item() for w in (1.0, 3.0))
    assert plain == pytest.approx(2 * math.log(2)) and weighted == pytest.approx(4 * math.log(2))
    smooth = ClassifierTerm(label_smoothing=0.5)
    ones = torch.ones(1, 2)
    torch.testing.assert_close(smooth(ones, batch).mean, smooth(-ones, batch).mean)


class TestOrdinalTerm:
    def test_thresholds_start_as_given_and_learn(self, preference_batch: Build) -> None:
        term = OrdinalTerm(thresholds=[-4, -1.5, 0, 0.5, 2, 5])
        assert term.thresholds.tolist() == pytest.approx([-4, -1.5, 0, 0.5, 2, 5], abs=1e-5)
        optimizer = torch.optim.SGD(term.parameters(), lr=5.0)
        for _ in range(20):
            optimizer.zero_grad()
            term(torch.zeros(1, 2), preference_batch(1, safety=[[-1, 1]])).mean.backward()
            optimizer.step()
        after = term.thresholds
        assert after[2] == 0 and bool((after.diff() > 0).all())
        assert after[1] < -1.5  # level -1 was seen at cost 0: its room grows

    def test_fixed_thresholds(self) -> None:
        assert [p for p in OrdinalTerm(learn_thresholds=False).parameters() if p.requires_grad] == []

    def test_hand_value(self, preference_batch: Build) -> None:
        a = math.log(3)
        term = OrdinalTerm(thresholds=[-2 * a, -a, 0, a, 2 * a, 3 * a])
        # cost 0, level 0: sigma(0) - sigma(-ln 3) = 1/4; level -1: sigma(ln 3) - sigma(0) = 1/4
        value = term(torch.zeros(1, 2), preference_batch(1, safety=[[0, -1]])).mean
        assert value.item() == pytest.approx(2 * math.log(4), rel=1e-5)

    def test_state_round_trips_and_keeps_float32(self) -> None:
        term = OrdinalTerm(thresholds=[-3, -1, 0, 2, 3, 9])
        other = OrdinalTerm()
        other.load_state_dict(term.state_dict())
        torch.testing.assert_close(other.thresholds, term.thresholds)
        assert CostObjective([term]).to(torch.bfloat16).terms[0].free_gaps.dtype == torch.float32

    @pytest.mark.parametrize("thresholds", [[0, 1, 2], [-2, -1, 0.5, 1, 2, 3], [-2, -1, 0, 1, 1, 3]])
    def test_wrong_thresholds(self, thresholds: list[float]) -> None:
        with pytest.raises(ValueError, match=r"thresholds (are|must)"):
            OrdinalTerm(thresholds=thresholds)


def test_users_own_term(preference_batch: Build) -> None:
    class HingeFree(PointwiseTerm):
        name = "mine"

        def losses(self, costs: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
            return 10 * sign_loss(costs, batch.is_safe == 0), batch.is_safe >= 0

    parts = CostObjective([SignTerm(), HingeFree()])(torch.zeros(1, 2), preference_batch(1, is_safe=[[0, 1]]))
    assert parts["mine"].item() == pytest.approx(10 * parts["sign"].item())


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match=r"terms are named \['sign', 'sign'\]: each name once"):
        CostObjective([SignTerm(), SignTerm()])
    with pytest.raises(ValueError, match=r"pair_weight is -1, expected a number in \[0, inf\]"):
        CostObjective([], pair_weight=-1)
    with pytest.raises(ValueError, match="weight is -2"):
        SignTerm(weight=-2)
