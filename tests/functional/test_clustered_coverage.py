"""How often intervals cover, in simulation: at their stated rate where they should, and clearly less where care is left out."""

import math

import numpy as np
import pytest

from safe_rlhf_v.functional.clustered import clustered_mean, clustered_share, prediction_powered_mean
from safe_rlhf_v.functional.win_rates import length_controlled_win_rate, win_rate

TRIALS = 500


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def share_covered(draw, trials=TRIALS):
    """Share of trials whose interval holds the truth; draw() gives both."""
    covered = 0
    for _ in range(trials):
        interval, truth = draw()
        covered += interval.low <= truth <= interval.high
    return covered / trials


def correlated(rng, groups, size, share):
    """Standard normal values of rows, of whose variance clusters share a part, and the clusters."""
    clusters = np.repeat(np.arange(groups), size)
    own = rng.normal(size=groups * size)
    return rng.normal(size=groups)[clusters] * math.sqrt(share) + own * math.sqrt(1 - share), clusters


def harms(rng, groups, size, rate, share):
    """Harm of rows, whose rate differs between clusters so that rows of one are correlated, and the clusters."""
    clusters = np.repeat(np.arange(groups), size)
    scale = (1 - share) / share
    chance = rng.beta(rate * scale, (1 - rate) * scale, size=groups)[clusters]
    return (rng.random(groups * size) < chance).astype(float), clusters


def judge(rng, truth, misses, false_alarms):
    return np.where(truth == 1, rng.random(len(truth)) >= misses, rng.random(len(truth)) < false_alarms).astype(float)


def audit(rng, truth, samples):
    audited = np.full(len(truth), np.nan)
    rows = rng.choice(len(truth), samples, replace=False)
    audited[rows] = truth[rows]
    return audited


SKEWED = {
    "normal": (lambda z: z, 0.0),
    "long tail": (lambda z: np.exp(0.7 * z), math.exp(0.245)),
    "long tail below": (lambda z: -np.exp(0.7 * z), -math.exp(0.245)),
}


@pytest.mark.parametrize("name", ["long tail", *map(slow, ("normal", "long tail below"))])
@pytest.mark.parametrize("groups", [25, *map(slow, (6, 100))])
def test_means_of_correlated_rows_cover(name, groups):
    rng = np.random.default_rng(0)
    shape, truth = SKEWED[name]

    def draw():
        x, clusters = correlated(rng, groups, 4, 0.5)
        return clustered_mean(shape(x), clusters), truth

    assert share_covered(draw) >= (0.90 if groups == 6 and name != "normal" else 0.93)


@pytest.mark.parametrize("rate", [0.01, *map(slow, (0.005, 0.02, 0.05))])
def test_differences_of_few_rows_cover_zero(rate):
    """Two policies that are equally harmful, of which most prompts give equal outcomes: a false answer in 5 %, as stated."""
    rng = np.random.default_rng(3)

    def draw():
        first, second = (rng.random((2, 200)) < rate).astype(float)
        return clustered_mean(first - second, range(200)), 0.0

    assert share_covered(draw) >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("changed", [1, 2, 3])
@pytest.mark.parametrize("rows", [50, 1000])
def test_few_changed_rows_of_many_decide_nothing(changed, rows):
    """The sign test of three changes that agree has p = 0.25."""
    interval = clustered_mean([1.0] * changed + [0.0] * (rows - changed), range(rows))
    assert interval.low < 0 < interval.high


def test_rows_counted_as_independent_do_not_cover():
    rng = np.random.default_rng(1)

    def draw():
        x, _ = correlated(rng, 25, 4, 0.8)
        return clustered_mean(x, range(len(x))), 0.0

    assert share_covered(draw, 200) < 0.8


@pytest.mark.parametrize("rate", [0.005, *map(slow, (0.05, 0.5, 0.98))])
@pytest.mark.parametrize(("groups", "size", "share"), [(40, 3, 0.3), slow(8, 6, 0.1), slow(150, 2, 0.6)])
def test_shares_cover_also_near_their_limits(rate, groups, size, share):
    rng = np.random.default_rng(2)

    def draw():
        x, clusters = harms(rng, groups, size, rate, share)
        return clustered_share(x, clusters), rate

    assert share_covered(draw, 300) >= 0.93


UNEVEN = {
    "five large": [20] * 5 + [1] * 100,
    "three large": [30] * 3 + [2] * 60,
    "a long tail": [max(1, 60 // k) for k in range(1, 61)],
}
"""Prompts of each image."""


def uneven_harms(rng, sizes, rate, share):
    """As :func:`harms`, of clusters with these sizes; a share of 1 gives the rows of a cluster one value."""
    chance = rng.random(len(sizes)) < rate
    if share < 1:
        scale = (1 - share) / share
        chance = rng.beta(rate * scale, (1 - rate) * scale, size=len(sizes))
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    return (rng.random(len(clusters)) < chance[clusters]).astype(float), clusters


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize(
    ("rate", "share_of_variance"), [(0.2, 0.5), *map(slow, (0.05, 0.05, 0.2, 0.5, 0.5), (0.5, 1.0, 1.0, 0.2, 1.0))]
)
def test_images_with_many_prompts_do_not_hide_harm(name, rate, share_of_variance):
    """Shares, and means of costs of -1 and 1, which hold 0.91 where an image in twenty tells of half the rows."""
    rng = np.random.default_rng(11)

    def share():
        return clustered_share(*uneven_harms(rng, UNEVEN[name], rate, share_of_variance)), rate

    def mean():
        x, clusters = uneven_harms(rng, UNEVEN[name], rate, share_of_variance)
        interval = clustered_mean(2 * x - 1, clusters)
        return interval if x.any() else interval._replace(high=1.0), 2 * rate - 1  # nothing follows from equal costs

    assert share_covered(share) >= 0.93
    assert share_covered(mean) >= 0.91


@pytest.mark.parametrize("ties", [0.5, *map(slow, (0.0, 0.97, 1.0))])
def test_a_policy_against_itself_holds_half(ties):
    """Other sampling seeds: either response is better with equal chance, images favour one side or the other."""
    rng = np.random.default_rng(3)

    def draw():
        better, clusters = correlated(rng, 60, 3, 0.4)
        wins = np.where(rng.random(len(better)) < ties, 0.5, (better > 0).astype(float))
        return win_rate(wins, clusters), 0.5

    assert share_covered(draw) >= 0.93


@pytest.mark.parametrize("rate", [0.5, *map(slow, (0.3, 0.7))])
@pytest.mark.parametrize("sizes", [[50] * 2 + [2] * 50, slow([40] * 3 + [2] * 40), slow([5] * 40)])
def test_win_rates_cover_beside_a_few_large_images(sizes, rate):
    """All prompts of an image have one outcome."""
    rng = np.random.default_rng(9)
    clusters = np.repeat(np.arange(len(sizes)), sizes)

    def draw(function):
        wins = (rng.random(len(sizes)) < rate).astype(float)[clusters]
        return function(wins, clusters), rate

    assert share_covered(lambda: draw(win_rate)) >= 0.93
    controlled = share_covered(lambda: draw(lambda wins, own: length_controlled_win_rate(wins, wins * 0, own)), 200)
    assert controlled >= 0.93


@pytest.mark.slow
def test_a_win_rate_near_its_limit_covers():
    rng = np.random.default_rng(4)

    def draw():
        x, clusters = harms(rng, 80, 2, 0.98, 0.3)
        return win_rate(x, clusters), 0.98

    assert share_covered(draw) >= 0.93


@pytest.mark.parametrize("longer", [60.0, slow(0.0)])
def test_a_judge_with_a_taste_for_length_is_corrected(longer):
    """The policy is no better, but longer by ``longer`` tokens on average; the judge prefers long responses."""
    rng = np.random.default_rng(5)

    def draw(function):
        clusters = np.repeat(np.arange(100), 2)
        differences = longer + rng.normal(size=100)[clusters] * 40 + rng.normal(size=200) * 60
        taste = 1.5 * np.tanh(differences / math.sqrt(40**2 + 60**2))
        wins = (rng.random(200) < 1 / (1 + np.exp(-taste))).astype(float)
        return function(wins, differences, clusters), 0.5

    assert share_covered(lambda: draw(length_controlled_win_rate), 300) >= 0.93
    naive = share_covered(lambda: draw(lambda wins, _, clusters: win_rate(wins, clusters)), 300)
    assert naive < 0.2 if longer else naive >= 0.93


ERRORS = {
    "20 % both": (0.2, 0.2),
    "misses, after training against it": (0.4, 0.05),
    "false alarms": (0.02, 0.3),
    "none": (0.0, 0.0),
}
"""Misses and false alarms of one judge on the responses of different policies."""


@pytest.mark.parametrize(
    ("name", "rate", "samples"),
    [
        ("20 % both", 0.3, 50),
        ("misses, after training against it", 0.3, 50),
        ("none", 0.02, 50),
        *(slow(name, rate, 200) for name in ERRORS for rate in (0.3, 0.02)),
        *(slow(name, rate, 50) for name in ("20 % both", "false alarms") for rate in (0.1, 0.02)),
    ],
)
def test_corrected_rates_cover_whatever_the_errors(name, rate, samples):
    rng = np.random.default_rng(6)

    def draw():
        truth, clusters = harms(rng, 200, 2, rate, 0.3)
        return prediction_powered_mean(judge(rng, truth, *ERRORS[name]), audit(rng, truth, samples), clusters), rate

    assert share_covered(draw) >= 0.93


@pytest.mark.parametrize(
    ("groups", "errors", "samples", "share"),
    [(60, 0.5, 600, 0.99), slow(60, 0.4, 200, 0.99), slow(100, 0.2, 200, 0.8), slow(40, 0.4, 100, 0.8)],
)
def test_corrected_rates_cover_where_an_image_has_both_verdicts(groups, errors, samples, share):
    """A judge that errs often, on images with many prompts: both verdicts are about the same images."""
    rng = np.random.default_rng(10)

    def draw():
        truth, clusters = harms(rng, groups, 10, 0.3, share)
        return prediction_powered_mean(judge(rng, truth, errors, errors), audit(rng, truth, samples), clusters), 0.3

    assert share_covered(draw, 400) >= 0.93


def rogan_gladen(judged, misses, false_alarms):
    """The rate from the judge's and its error rates (Am. J. Epidemiol. 107, 1978), with the interval of the judge's share."""
    interval = clustered_share(judged, range(len(judged)))
    corrected = [min(max((p - false_alarms) / (1 - misses - false_alarms), 0.0), 1.0) for p in interval[:3]]
    return interval._replace(value=corrected[0], low=corrected[1], high=corrected[2])


def test_error_rates_of_another_policy_do_not_correct():
    """Rogan-Gladen with the judge's own rates covers; with those on the start's responses, 20 % each, it does not."""
    rng = np.random.default_rng(7)
    own = ERRORS["misses, after training against it"]

    def draw(errors):
        truth = (rng.random(400) < 0.3).astype(float)
        return rogan_gladen(judge(rng, truth, *own), *errors), 0.3

    assert share_covered(lambda: draw(own), 200) >= 0.93
    assert share_covered(lambda: draw(ERRORS["20 % both"]), 200) < 0.3


def test_what_the_judge_says_does_not_cover():
    rng = np.random.default_rng(8)

    def draw():
        truth, clusters = harms(rng, 200, 2, 0.1, 0.3)
        return clustered_share(judge(rng, truth, 0.2, 0.2), clusters), 0.1

    assert share_covered(draw, 100) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("samples", [50, 200])
def test_corrected_means_of_costs_cover_and_gain_by_a_good_judge(samples):
    rng = np.random.default_rng(9)
    widths = []

    def draw():
        x, clusters = correlated(rng, 200, 2, 0.3)
        truth = np.exp(0.5 * x)
        audited = audit(rng, truth, samples)
        interval = prediction_powered_mean(2 + 0.8 * truth + 0.2 * rng.normal(size=400), audited, clusters)
        alone = clustered_mean(audited, clusters)
        widths.append((interval.high - interval.low) / (alone.high - alone.low))
        return interval, math.exp(0.125)

    assert share_covered(draw) >= 0.92
    assert np.mean(widths) < 0.9
