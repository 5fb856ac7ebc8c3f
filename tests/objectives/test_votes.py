"""Objectives with votes: float64 references, unanimity and no votes exactly as labels, masks, both orders."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from safe_rlhf_v.functional.ordinal import ordinal_loss
from safe_rlhf_v.objectives import (
    DPO,
    SACPO,
    BradleyTerry,
    ClassifierTerm,
    CostObjective,
    GradedTerm,
    OrdinalTerm,
    PreferenceObjective,
    SignTerm,
    WeightedSignTerm,
)
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, VoteShares, without_order

Build = Callable[..., PreferenceBatch]
TERMS = (SignTerm, GradedTerm, WeightedSignTerm, ClassifierTerm, OrdinalTerm)


def cost(votes: bool) -> CostObjective:
    return CostObjective([term() for term in TERMS], tie_smoothing=0.2, votes=votes)


OBJECTIVES: dict[str, Callable[[bool], PreferenceObjective]] = {
    "reward": lambda votes: BradleyTerry(margin=0.3, label_smoothing=0.1, votes=votes),
    "safer": lambda votes: BradleyTerry(preference="safer", tie_smoothing=0.3, votes=votes),
    "cost": cost,
    "DPO": lambda votes: DPO(beta=0.5, label_smoothing=0.1, votes=votes),
    "SACPO": lambda votes: SACPO(beta=0.5, votes=votes),
}
SCORES = torch.tensor([[2.0, 0.5], [1.0, -1.0], [0.3, 0.9], [4.0, -4.0]])
LABELS = {
    "more_helpful": [0, 1, 1, 0],
    "safer": [1, 0, 1, 0],
    "safety_tie": [False, False, True, False],
    "safety": [[-3, 2], [0, -1], [1, 3], [-2, 1]],
    "is_safe": [[0, 1], [1, 0], [1, 1], [0, 1]],
}


def unanimous() -> VoteShares:
    """Every annotator says what the label says."""
    levels = torch.nn.functional.one_hot(torch.tensor(LABELS["safety"]) + 3, 7).float()
    pairs = [torch.tensor(LABELS[name]).float() for name in ("more_helpful", "safer")]
    return VoteShares(*pairs, torch.tensor(LABELS["is_safe"]).float(), levels)


def random_votes(rows: int) -> VoteShares:
    draws = torch.Generator().manual_seed(0)
    levels = torch.rand(rows, 2, 7, generator=draws)
    return VoteShares(
        *torch.rand(2, rows, generator=draws),
        torch.rand(rows, 2, generator=draws),
        levels / levels.sum(-1, keepdim=True),
    )


def without(votes: VoteShares, rows: list[int]) -> VoteShares:
    """Nobody voted on these rows."""
    votes = VoteShares(*(shares.clone() for shares in votes))
    for shares in votes:
        shares[rows] = math.nan
    return votes


def results(objective: PreferenceObjective, scores: torch.Tensor, batch: PreferenceBatch) -> dict[str, torch.Tensor]:
    scores = scores.clone().requires_grad_()
    parts = objective(scores, batch)
    parts["loss"].backward()
    assert scores.grad is not None
    return {**{name: part.detach() for name, part in parts.items()}, "gradient": scores.grad}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_the_option_or_votes_and_with_unanimous_votes_labels_decide(name: str, preference_batch: Build) -> None:
    expected = results(OBJECTIVES[name](False), SCORES, preference_batch(4, **LABELS))
    some = without(unanimous(), [1, 3])
    nobody = without(unanimous(), [0, 1, 2, 3])
    for use, votes in ((False, random_votes(4)), (True, None), (True, nobody), (True, some), (True, unanimous())):
        found = results(OBJECTIVES[name](use), SCORES, preference_batch(4, **LABELS, votes=votes))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[part], value) for part, value in expected.items())
    divided = results(OBJECTIVES[name](True), SCORES, preference_batch(4, **LABELS, votes=random_votes(4)))
    assert not torch.equal(divided["gradient"], expected["gradient"])


def test_the_cost_objective_in_float64(preference_batch: Build) -> None:
    """Every term is its expectation over the votes, computed apart with numpy."""
    votes = random_votes(4)
    c, safe, levels, share = SCORES.double().numpy(), *(votes[i].double().numpy() for i in (2, 3, 1))
    smooth = np.where(LABELS["safety_tie"], 0.2, 0.0)
    second = smooth + (1 - 2 * smooth) * share  # that response 1 is safer, and so costs less
    pair = second * np.logaddexp(0, c[:, 1] - c[:, 0]) + (1 - second) * np.logaddexp(0, c[:, 0] - c[:, 1])
    sign = safe * np.logaddexp(0, c) + (1 - safe) * np.logaddexp(0, -c)
    graded = sum(levels[..., k] * np.logaddexp(0, (k - 3) * c) for k in range(7))
    weighted = sum(levels[..., k] * max(abs(k - 3), 1) * np.logaddexp(0, c if k >= 3 else -c) for k in range(7))
    thresholds = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    table = [ordinal_loss(-SCORES.double(), thresholds, torch.full((4, 2), k)).numpy() for k in range(7)]
    ordinal = sum(levels[..., k] * table[k] for k in range(7))
    parts = cost(True)(SCORES, preference_batch(4, **LABELS, votes=votes))
    assert parts["pair"].item() == pytest.approx(pair.mean(), rel=1e-5)
    for name, value in {
        "sign": sign,
        "classifier": sign,
        "graded": graded,
        "weighted_sign": weighted,
        "ordinal": ordinal,
    }.items():
        assert parts[name].item() == pytest.approx(2 * value.mean(), rel=1e-5), name


@pytest.mark.parametrize("name", ["reward", "DPO", "SACPO"])
def test_pairs_in_float64(name: str, preference_batch: Build) -> None:
    votes = without(random_votes(4), [1])
    parts = OBJECTIVES[name](True)(SCORES, preference_batch(4, **LABELS, votes=votes))
    beta, margin, smooth = {"reward": (1.0, 0.3, 0.1), "DPO": (0.5, 0.0, 0.1), "SACPO": (0.5, 0.0, 0.0)}[name]
    label = LABELS["safer" if name == "SACPO" else "more_helpful"]
    share = (votes.safer if name == "SACPO" else votes.more_helpful).double().numpy()
    share = np.where(np.isnan(share), label, share)
    second = smooth + (1 - 2 * smooth) * share
    d = beta * (SCORES[:, 1] - SCORES[:, 0]).double().numpy()
    losses = second * np.logaddexp(0, margin - d) + (1 - second) * np.logaddexp(0, margin + d)
    counted = ~np.array(LABELS["safety_tie"]) if name == "SACPO" else np.ones(4, dtype=bool)  # DPO leaves ties out
    assert parts["pair"].item() == pytest.approx(losses[counted].mean(), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_swapping_the_responses_changes_nothing(name: str, preference_batch: Build) -> None:
    votes = random_votes(4)
    swapped = VoteShares(1 - votes.more_helpful, 1 - votes.safer, votes.is_safe.flip(1), votes.safety.flip(1))
    labels = {**{k: [1 - x for x in LABELS[k]] for k in ("more_helpful", "safer")}}  # type: ignore[operator]
    labels |= {k: [row[::-1] for row in LABELS[k]] for k in ("safety", "is_safe")}  # type: ignore[index]
    before = results(OBJECTIVES[name](True), SCORES, preference_batch(4, **LABELS, votes=votes))
    after = results(OBJECTIVES[name](True), SCORES.flip(1), preference_batch(4, **{**LABELS, **labels}, votes=swapped))
    torch.testing.assert_close(after["gradient"].flip(1), before["gradient"])
    torch.testing.assert_close(after["loss"], before["loss"])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("junk", [100.0, torch.nan, torch.inf])
def test_votes_alone_count_and_padding_does_not(name: str, junk: float, preference_batch: Build) -> None:
    """Row 2 has neither label nor votes, row 3 is padding; rows 0 and 1 have votes only."""
    votes = without(random_votes(4), [2])
    scores = SCORES.clone()
    scores[3] = junk
    batch = preference_batch(4, votes=votes, valid=[True, True, True, False])
    found = results(OBJECTIVES[name](True), scores, batch)
    alone = preference_batch(2, votes=VoteShares(*(shares[:2] for shares in votes)))
    torch.testing.assert_close(found["loss"], results(OBJECTIVES[name](True), SCORES[:2], alone)["loss"])
    assert bool((found["gradient"][2:] == 0).all()) and bool((found["gradient"][:2] != 0).all())
    off = results(OBJECTIVES[name](False), scores, batch)
    assert off["loss"] == 0 and not off["gradient"].any()


def test_measures_of_dpo_go_by_the_labels(preference_batch: Build) -> None:
    """Votes 3 to 1 against the label, and a pair of votes without a label."""
    votes = random_votes(2)._replace(more_helpful=torch.tensor([0.75, 0.5]))
    parts = DPO(votes=True)(SCORES[:2], preference_batch(2, more_helpful=[0, -1], votes=votes))
    assert parts["accuracy"].item() == 1.0 and parts["kept"].item() == 1.0
    assert parts["margin"].item() == pytest.approx(0.1 * 1.5)


def test_responses_that_are_the_same_have_no_voted_order(preference_batch: Build) -> None:
    batch = without_order(preference_batch(4, **LABELS, votes=random_votes(4)), torch.tensor([True, False, True, True]))
    assert batch.votes is not None
    assert batch.votes.more_helpful.isnan().tolist() == batch.votes.safer.isnan().tolist() == [True, False, True, True]
    assert not batch.votes.safety.isnan().any() and not batch.votes.is_safe.isnan().any()
    gradient = results(BradleyTerry(votes=True), SCORES, batch)["gradient"]
    assert gradient.any(1).tolist() == [False, True, False, False]


def test_unknown_levels_do_not_hide_votes(preference_batch: Build) -> None:
    """One response of a pair has a label, the other one votes."""
    votes = without(random_votes(1), [0])
    votes.safety[0, 1] = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0])
    batch = preference_batch(1, safety=[[-2, UNKNOWN_LEVEL]], votes=votes)
    value = CostObjective([GradedTerm()], votes=True)(torch.tensor([[1.0, 2.0]]), batch)["graded"]
    expected = math.log1p(math.exp(-2)) + 0.5 * math.log1p(math.exp(-4)) + 0.5 * math.log1p(math.exp(2))
    assert value.item() == pytest.approx(expected, rel=1e-6)
