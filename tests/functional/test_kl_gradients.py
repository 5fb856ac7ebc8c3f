"""Which divergence each KL estimate descends: exact expectations over a small vocabulary, against autograd of the divergences."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_rlhf_v.functional.policy import Estimator, generalised_advantage, kl_estimate, terminal_signal

V = 5  # tokens
SEEDS = st.integers(0, 2**31)
FAR = st.floats(0.05, 2.0)  # how far policy and reference are apart


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(seed: int, far: float) -> tuple[Tensor, Tensor]:
    """(V,) logits of the policy, a leaf, and log-probabilities of the reference."""
    start = logits(seed, V)
    return (start + far * logits(seed + 1, V)).requires_grad_(), start.log_softmax(0)


def gradient(of: Callable[[Tensor], Tensor], policy: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(of(policy.log_softmax(0)), policy)
    return found


def reverse(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def estimates(log_p: Tensor, log_q: Tensor, estimator: Estimator) -> Tensor:
    """(V,) the estimate for each token that could have been sampled."""
    return kl_estimate(log_p[None], log_q[None], torch.ones(1, V, dtype=torch.bool), estimator=estimator)[0]


def as_charge(policy: Tensor, log_q: Tensor, estimator: Estimator) -> Tensor:
    """Mean over the policy's tokens of k times grad log p: the policy gradient with k in the score."""
    return gradient(lambda p: (p.detach().exp() * estimates(p.detach(), log_q, estimator) * p).sum(), policy)


def as_loss(policy: Tensor, log_q: Tensor, estimator: Estimator, weights: Tensor | None = None) -> Tensor:
    """Mean over the policy's (or otherwise weighted) tokens of grad k."""
    weights = policy.detach().softmax(0) if weights is None else weights
    return gradient(lambda p: (weights * estimates(p, log_q, estimator)).sum(), policy)


@settings(max_examples=40, deadline=None)
@given(SEEDS, FAR)
def test_every_cell_of_the_table(seed: int, far: float) -> None:
    policy, log_q = pair(seed, far)
    to_reference = gradient(lambda p: reverse(p, log_q), policy)  # KL(policy || reference)
    from_reference = gradient(lambda p: reverse(log_q, p), policy)  # KL(reference || policy)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(as_charge(policy, log_q, "k1"), to_reference, **close)
    torch.testing.assert_close(as_charge(policy, log_q, "k3"), to_reference - from_reference, **close)
    torch.testing.assert_close(as_loss(policy, log_q, "k1"), torch.zeros_like(to_reference), **close)
    torch.testing.assert_close(as_loss(policy, log_q, "k2"), to_reference, **close)
    torch.testing.assert_close(as_loss(policy, log_q, "k3"), from_reference, **close)


def test_k3_as_a_charge_has_next_to_no_gradient_near_the_reference() -> None:
    """The two divergences agree there; the further away, the more is left of their difference."""
    shares = []
    for far in (0.01, 0.1):
        policy, log_q = pair(3, far)
        shares.append(float(as_charge(policy, log_q, "k3").norm() / as_charge(policy, log_q, "k1").norm()))
    assert shares[0] < 0.01 < shares[1] < 0.1


def test_k2_as_a_charge_is_neither() -> None:
    policy, log_q = pair(3, 1.0)
    found = as_charge(policy, log_q, "k2")
    for exact in (gradient(lambda p: reverse(p, log_q), policy), gradient(lambda p: reverse(log_q, p), policy)):
        assert float((found - exact).norm()) > 0.3 * float(exact.norm())


def test_tokens_of_an_older_policy_bias_a_loss_term() -> None:
    """Later updates of one rollout: the plain mean is off, and only weighting by the ratio would mend it."""
    policy, log_q = pair(3, 1.0)
    exact = gradient(lambda p: reverse(p, log_q), policy)
    for moved, least, most in ((0.01, 0.0, 0.05), (0.5, 0.05, 10.0)):
        older = policy.detach() + moved * logits(9, V)
        off = float((as_loss(policy, log_q, "k2", older.softmax(0)) - exact).norm() / exact.norm())
        assert least < off < most
        ratio = (policy.detach().log_softmax(0) - older.log_softmax(0)).exp()
        mended = as_loss(policy, log_q, "k2", older.softmax(0) * ratio)
        torch.testing.assert_close(mended, exact)


@pytest.mark.parametrize("seed", [0, 1])
def test_only_signals_charge_a_token_for_what_it_leads_to(seed: int) -> None:
    """Two tokens; the second depends on the first. k1 in the signals is exact, k2 in the loss for the second only."""
    first, second = logits(seed, V).requires_grad_(), logits(seed + 1, V, V).requires_grad_()
    log_q1, log_q2 = logits(seed + 2, V).log_softmax(0), logits(seed + 3, V, V).log_softmax(1)
    log_1, log_2 = first.log_softmax(0), second.log_softmax(1)
    joint, joint_q = log_1[:, None] + log_2, log_q1[:, None] + log_q2  # (V, V)
    exact = torch.autograd.grad((joint.exp() * (joint - joint_q)).sum(), (first, second), retain_graph=True)
    pairs = [torch.stack([a[:, None].expand(V, V), b], -1).flatten(0, 1) for a, b in ((log_1, log_2), (log_q1, log_q2))]
    log_p, reference = pairs  # (V * V, 2): every response once
    mask, weights = torch.ones(V * V, 2, dtype=torch.bool), joint.detach().exp().flatten()[:, None]
    kl = kl_estimate(log_p.detach(), reference, mask)
    signal = terminal_signal(torch.zeros(V * V, dtype=torch.float64), mask, kl=kl, kl_weight=1.0)
    to_go, _ = generalised_advantage(signal, torch.zeros_like(signal), mask, gamma=1.0, lam=1.0)
    in_signals = torch.autograd.grad((weights * to_go * log_p).sum(), (first, second), retain_graph=True)
    for found, wanted in zip(in_signals, exact, strict=True):
        torch.testing.assert_close(found, wanted)
    k2 = kl_estimate(log_p, reference, mask, estimator="k2")
    in_loss = torch.autograd.grad((weights * k2).sum(), (first, second))
    torch.testing.assert_close(in_loss[1], exact[1])
    own = torch.autograd.grad(reverse(first.log_softmax(0), log_q1), first)[0]
    torch.testing.assert_close(in_loss[0], own)
    assert float((in_loss[0] - exact[0]).norm()) > 0.05 * float(exact[0].norm())
