"""Distributions over levels: against their definitions, at the limits, and what ordered means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_rlhf_v.functional.ordinal import corn_log_probs, correct_prior, level_log_probs, median_level
from safe_rlhf_v.models.links import CornLink, CumulativeLink, SoftmaxLink

LINKS = [CumulativeLink, lambda: CumulativeLink(scale=False), CornLink, SoftmaxLink]


def test_corn_by_hand():
    """Three levels, P(>0) = 0.8, P(>1 | >0) = 0.25: 0.2, 0.6, 0.2."""
    logits = torch.tensor([math.log(4), math.log(1 / 3)], dtype=torch.float64)
    torch.testing.assert_close(corn_log_probs(logits).exp(), torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64))


def test_corn_likelihood_is_the_loss_of_the_conditional_questions():
    """Level y responses the questions 0..min(y, K-2): yes to all below y, no to y's own (arXiv 2111.08851, equation 5)."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.tensor([0, 1, 2, 3, 4])
    got = -corn_log_probs(logits).gather(1, levels[:, None]).squeeze(1)
    for row, level in enumerate(levels.tolist()):
        asked = logits[row, : min(level + 1, 4)]
        responses = torch.tensor([1.0] * min(level, 4) + [0.0] * (level < 4), dtype=torch.float64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(asked, responses, reduction="sum")
        torch.testing.assert_close(got[row], loss)


@pytest.mark.parametrize("make", LINKS)
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_probabilities_sum_to_one_and_gradients_stay_finite(make, size):
    link = make()
    outputs = (torch.randn(20, link.features, generator=torch.Generator().manual_seed(1)) * size).requires_grad_()
    log_probs = link.log_probs(outputs)
    assert log_probs.shape == (20, 7) and log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(20), rtol=1e-5, atol=1e-5)
    log_probs[:, 2].clamp(min=-50).sum().backward()
    assert torch.isfinite(outputs.grad).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=5, max_size=5), st.floats(-10, 10), st.floats(-9, 9), st.floats(-9, 9))
def test_thresholds_stay_ordered_whatever_is_learned(gaps, first, latent, scale):
    link = CumulativeLink()
    with torch.no_grad():
        link.free_gaps.copy_(torch.tensor(gaps))
        link.first.fill_(first)
    assert (link.thresholds.diff() > 0).all()
    above = link.log_probs(torch.tensor([[latent, scale]])).exp().flip(1).cumsum(1).flip(1)[0, 1:]
    assert (above.diff() <= 1e-6).all()


def test_scale_is_bounded_and_flattens():
    link = CumulativeLink()
    sharp, flat, extreme = link.log_probs(torch.tensor([[0.3, -1.0], [0.3, 1.0], [0.3, 1e6]]))
    entropy = [-(row.exp() * row).sum() for row in (sharp, flat)]
    assert entropy[0] < entropy[1]
    bound = level_log_probs(torch.tensor(0.3), link.thresholds, torch.tensor(1.5))
    torch.testing.assert_close(extreme, bound)
    plain = level_log_probs(torch.tensor(0.3), link.thresholds)
    torch.testing.assert_close(level_log_probs(torch.tensor(0.3), link.thresholds, torch.tensor(0.0)), plain)


def test_two_levels_are_logistic_regression():
    link = CumulativeLink(levels=2, scale=False)
    z = torch.tensor([[-2.0], [0.0], [3.0]])
    torch.testing.assert_close(link.log_probs(z)[:, 1].exp(), torch.sigmoid(z[:, 0] - link.thresholds[0]))
    corn = CornLink(levels=2).log_probs(z)
    torch.testing.assert_close(corn[:, 1].exp(), torch.sigmoid(z[:, 0]))


def test_wrong_thresholds_are_refused():
    with pytest.raises(ValueError, match="expected 6 numbers for 7 levels"):
        CumulativeLink(thresholds=[0, 1])
    with pytest.raises(ValueError, match="increase"):
        CumulativeLink(levels=3, thresholds=[1, 0])


def test_median_and_prior_by_hand():
    probs = torch.tensor([[0.4, 0.3, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    assert median_level(probs.log()).tolist() == [1, 0, 2, 0]
    prior = torch.tensor([0.8, 0.1, 0.1])
    corrected = correct_prior(torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1]]).log(), prior).exp()
    weights = torch.tensor([0.5 / 0.8, 4.0, 1.0])
    torch.testing.assert_close(corrected, torch.stack([torch.full((3,), 1 / 3), weights / weights.sum()]))


@pytest.mark.parametrize("make", LINKS)
def test_links_are_never_cast(make):
    link = make().to(torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in link.parameters())
    assert link.log_probs(torch.zeros(1, link.features, dtype=torch.bfloat16)).dtype == torch.float32
