"""Offline objectives: which records teach what, parts, padding, the equivalence that makes SACPO stepwise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from safe_rlhf_v.functional.preference_optimisation import LabelledPairs
from safe_rlhf_v.objectives import DPO, SACPO, DirectObjective, SafeDPO
from safe_rlhf_v.records.batches import PreferenceBatch

Build = Callable[..., PreferenceBatch]
RATIOS = torch.tensor([[2.0, 0.5], [1.0, -1.0], [0.3, 0.9], [4.0, -4.0]])
OBJECTIVES = [DPO(), DPO("safer", label_smoothing=0.1), SACPO(lam=2.0), SafeDPO(offset=2.0)]
FULL = {
    "more_helpful": [0, 1, 1, 0],
    "safer": [1, 0, 1, 0],
    "is_safe": [[0, 1], [1, 1], [1, 0], [1, 0]],
}


def by_name(objective: DirectObjective) -> str:
    return f"{type(objective).__name__}-{getattr(objective, 'preference', '')}"


def test_dpo_on_either_label_in_float64(preference_batch: Build) -> None:
    rng = np.random.default_rng(0)
    ratios, helpful, safer = rng.normal(size=(16, 2)) * 5, rng.integers(0, 2, 16), rng.integers(0, 2, 16)
    batch = preference_batch(16, more_helpful=helpful.tolist(), safer=safer.tolist())
    for preference, target in (("more_helpful", helpful), ("safer", safer)):
        margin = [0.3 * (row[t] - row[1 - t]) for row, t in zip(ratios, target, strict=True)]
        parts = DPO(preference, beta=0.3)(torch.tensor(ratios), batch)  # type: ignore[arg-type]
        assert parts["loss"].item() == pytest.approx(np.mean([math.log1p(math.exp(-m)) for m in margin]), rel=1e-5)
        assert parts["margin"].item() == pytest.approx(np.mean(margin), rel=1e-5)
        assert parts["accuracy"].item() == pytest.approx(np.mean([m > 0 for m in margin]))
        winners = [0.3 * row[t] for row, t in zip(ratios, target, strict=True)]
        assert parts["reward_winner"].item() == pytest.approx(np.mean(winners), rel=1e-5)
        assert parts["margin"].item() == pytest.approx(
            (parts["reward_winner"] - parts["reward_loser"]).item(), abs=1e-6
        )
        assert parts["kept"].item() == 1.0


def test_safe_dpo_by_hand(preference_batch: Build) -> None:
    """Swapped; kept, both safe; kept, safe against unsafe; dropped, both unsafe; dropped, unknown."""
    ratios = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0], [50.0, -50.0], [50.0, -50.0]])
    batch = preference_batch(5, more_helpful=[0, 0, 1, 0, 0], is_safe=[[0, 1], [1, 1], [0, 1], [0, 0], [1, -1]])
    parts = SafeDPO(beta=0.5, offset=4.0)(ratios, batch)
    expected = [math.log1p(math.exp(4 - 1)), math.log1p(math.exp(1)), math.log1p(math.exp(4 - 1))]
    assert parts["loss"].item() == pytest.approx(sum(expected) / 3)
    assert parts["margin"].item() == pytest.approx((1 - 1 + 1) / 3)
    assert parts["accuracy"].item() == pytest.approx(2 / 3)
    assert parts["kept"].item() == pytest.approx(3 / 5)


def test_two_unsafe_responses_teach_nothing(preference_batch: Build) -> None:
    ratios = RATIOS.clone().requires_grad_()
    batch = preference_batch(4, more_helpful=[0, 1, 0, 1], is_safe=[[0, 0], [1, 0], [0, 0], [1, 1]])
    SafeDPO()(ratios, batch)["loss"].backward()
    assert ratios.grad is not None
    assert bool((ratios.grad[[0, 2]] == 0).all()) and bool((ratios.grad[[1, 3]] != 0).all())


def test_tied_safety_teaches_dpo_safe_nothing(preference_batch: Build) -> None:
    ratios = RATIOS.clone().requires_grad_()
    batch = preference_batch(4, safer=[0, 1, 0, 1], safety_tie=[True, False, True, False])
    parts = DPO("safer")(ratios, batch)
    parts["loss"].backward()
    assert ratios.grad is not None
    assert bool((ratios.grad[[0, 2]] == 0).all()) and ratios.grad[[1, 3]].sign().tolist() == [[1, -1], [1, -1]]
    assert parts["kept"].item() == 0.5


@pytest.mark.parametrize("objective", OBJECTIVES, ids=by_name)
def test_swapping_responses_and_labels_changes_nothing(objective: DirectObjective, preference_batch: Build) -> None:
    swapped = {name: [1 - x for x in FULL[name]] for name in ("more_helpful", "safer")}  # type: ignore[operator]
    swapped["is_safe"] = [row[::-1] for row in FULL["is_safe"]]  # type: ignore[index]
    before = objective(RATIOS, preference_batch(4, **FULL))
    after = objective(RATIOS.flip(1), preference_batch(4, **swapped))
    for name, value in before.items():
        torch.testing.assert_close(value, after[name])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=by_name)
@pytest.mark.parametrize("junk", [100.0, torch.nan, torch.inf])
def test_padding_and_unlabelled_rows_weigh_nothing(
    objective: DirectObjective, junk: float, preference_batch: Build
) -> None:
    labels = {name: value[:2] for name, value in FULL.items()}
    padded = torch.cat([RATIOS[:3], torch.full((1, 2), junk)]).requires_grad_()
    more = {"more_helpful": [-1, 0], "safer": [-1, 0], "is_safe": [[-1, -1], [1, 0]]}
    rows = {name: labels[name] + more[name] for name in labels}  # type: ignore[operator]
    found = objective(padded, preference_batch(4, **rows, valid=[True, True, True, False]))
    alone = objective(RATIOS[:2], preference_batch(2, **labels))
    for name in ("loss", "accuracy", "margin", "reward_winner", "reward_loser"):
        torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=0)
    assert found["kept"].item() == pytest.approx(2 / 3)
    found["loss"].backward()
    assert padded.grad is not None and bool((padded.grad[2:] == 0).all()) and bool((padded.grad[:2] != 0).all())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=by_name)
def test_nothing_labelled_is_zero_with_a_graph(objective: DirectObjective, preference_batch: Build) -> None:
    ratios = torch.full((2, 2), 3.0, requires_grad=True)
    for batch in (preference_batch(2), preference_batch(2, more_helpful=[0, 1], valid=[False, False])):
        parts = objective(ratios, batch)
        assert all(part.item() == 0.0 for part in parts.values())
        assert {name for name, part in parts.items() if part.requires_grad} == {"loss"}
        parts["loss"].backward()
    assert ratios.grad is not None and bool((ratios.grad == 0).all())


def test_sacpo_is_dpo_on_safety_with_beta_over_lambda(preference_batch: Build) -> None:
    assert SACPO(beta=0.2, lam=4.0).beta == pytest.approx(0.05)
    batch = preference_batch(4, **FULL)
    torch.testing.assert_close(SACPO(beta=0.2, lam=4.0)(RATIOS, batch), DPO("safer", beta=0.05)(RATIOS, batch))


def test_two_steps_of_sacpo_reach_the_policy_of_the_joint_problem() -> None:
    """On three responses: the best policies of both steps, found as the optimum of DPO's own likelihood, compose.

    DPO's optimum on Bradley-Terry labels of a utility u is reference x exp(u / beta) up to a constant. Step one with the
    reward, step two with the safety and beta / lam must give reference x exp((reward + lam safety) / beta).
    """
    reference = np.log([0.5, 0.3, 0.2])
    reward, safety, beta, lam = np.array([2.0, 1.0, 0.0]), np.array([-1.0, 0.5, 1.0]), 0.4, 1.5

    def optimum(start: np.ndarray, utility: np.ndarray, b: float) -> np.ndarray:
        log_policy = torch.tensor(start).requires_grad_()
        optimiser = torch.optim.LBFGS([log_policy], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = torch.zeros((), dtype=torch.float64)
            ratio = log_policy - torch.tensor(start)
            for i in range(3):
                for j in range(3):
                    if i != j:  # exact label probabilities instead of samples
                        wins = 1 / (1 + math.exp(-(utility[i] - utility[j])))
                        loss = loss - wins * torch.nn.functional.logsigmoid(b * (ratio[i] - ratio[j]))
            loss.backward()
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return log_policy.detach().log_softmax(0).numpy()

    found = optimum(optimum(reference, reward, DPO(beta=beta).beta), safety, SACPO(beta=beta, lam=lam).beta)
    joint = torch.tensor(reference + (reward + lam * safety) / beta).log_softmax(0).numpy()
    assert found == pytest.approx(joint, abs=1e-4)


def test_users_own_objective(preference_batch: Build) -> None:
    class Hinge(DirectObjective):
        def pairs(self, batch: PreferenceBatch) -> LabelledPairs:
            return LabelledPairs(batch.more_helpful, torch.tensor([1.0, 3.0]))

        def losses(self, winner: torch.Tensor, loser: torch.Tensor, batch: PreferenceBatch) -> torch.Tensor:
            return (1 - self.beta * (winner - loser)).clamp(min=0)

    parts = Hinge(beta=1.0)(torch.tensor([[1.0, 0.5], [0.0, 0.0]]), preference_batch(2, more_helpful=[0, 1]))
    assert parts["loss"].item() == pytest.approx((0.5 + 3 * 1.0) / 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPO(beta=0.0), "beta is 0.0, expected a number above 0"),
        (lambda: DPO(beta=math.nan), "beta is nan, expected a number above 0"),
        (lambda: DPO(label_smoothing=0.6), r"label_smoothing is 0.6, expected a number in \[0, 0.5\]"),
        (lambda: DPO("safe"), "preference is 'safe', expected 'more_helpful' or 'safer'"),  # type: ignore[arg-type]
        (lambda: SACPO(lam=0.0), "lam is 0.0, expected a number above 0"),
        (lambda: SACPO(beta=-1.0), "beta is -1.0, expected a number above 0"),
        (lambda: SafeDPO(offset=-1.0), r"offset is -1.0, expected a number in \[0, inf\]"),
    ],
)
def test_wrong_options(build: Callable[[], DirectObjective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_single_responses_are_refused(preference_batch: Build) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(rows, responses\) = \(2, 2\)"):
        DPO()(torch.zeros(2, 1), preference_batch(2, responses=1))
