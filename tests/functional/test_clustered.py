"""Clustered intervals against numbers worked out by hand, at their limits, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from scipy.stats import t as student_t

from safe_rlhf_v.functional.clustered import clustered_mean, clustered_share, prediction_powered_mean
from safe_rlhf_v.functional.clusters import by_cluster, few_clusters, mean_variance
from safe_rlhf_v.functional.win_rates import length_controlled_win_rate, win_rate

EVERY = [
    clustered_mean,
    clustered_share,
    win_rate,
    lambda x, c, **k: length_controlled_win_rate(x, [0.0] * len(x), c, **k),
    lambda x, c, **k: prediction_powered_mean(x, x, c, **k),
]
NAMES = ["mean", "share", "wins", "length", "powered"]


def test_the_mean_of_two_clusters_by_hand():
    """Sums 3 and 9 of two rows each: mean 3, deviations -3 and 3, V = (9 + 9) / (1 - 2/4) / 16 = 2.25, one degree of freedom."""
    found = clustered_mean([1, 2, 4, 5], ["a", "a", "b", "b"])
    reach = 1.5 * student_t.ppf(0.975, 1)
    assert found == pytest.approx((3, 3 - reach, 3 + reach, 4, 2))


def test_unequal_clusters_by_hand():
    """Sizes 1, 1, 2; sums 0, 4, 4; mean 2, deviations of the sums -2, 2, 0, of the rows -2, 2, -1, 1.

    CR2 is (4 + 4) / (3/4) / 16 = 2/3. The correlation: products of rows -2, squares 2, a pair that agrees 10/4: (-2 + 2.5) /
    (2 + 2.5) = 1/9, and so V = 2.5 / 16 (1 + 1 + 2 (1 + 1/9)), which is less. For the degrees of freedom it is that of the one
    pair, -1 to the squares 2.5, and so none.
    """
    sizes = np.array([1, 1, 2.0])
    centred = np.eye(3) - np.outer(sizes, np.ones(3)) / 4
    product = np.diag(1 / (1 - sizes / 4)) @ centred @ np.diag(sizes) @ centred.T
    freedom = np.trace(product) ** 2 / np.trace(product @ product)
    found = clustered_mean([0, 4, 1, 3], [7, 8, 9, 9], confidence=0.9)
    assert found.high - 2 == pytest.approx(math.sqrt(2 / 3) * student_t.ppf(0.95, freedom))


def test_a_large_cluster_without_a_hit_does_not_hide_that_rows_of_one_are_alike():
    """Two clusters of two, both hit twice, beside one of 16 without: the correlation is 1, and rows of a cluster count as one.

    p = 0.2; V = p (1 - p) (4 + 4 + 256) / 20^2, where CR2 has (2 1.6^2 / 0.9 + 3.2^2 / 0.2) / 20^2.
    """
    hits = np.array([1.0, 1, 1, 1, *[0] * 16])
    sums, sizes, squares = by_cluster(hits, np.repeat([0, 1, 2], [2, 2, 16]))
    variance, _ = mean_variance(sums, sizes, squares)
    assert variance == pytest.approx(max(0.16 * 264, 2 * 1.6**2 / 0.9 + 3.2**2 / 0.2) / 400)
    lone = by_cluster(hits[4:] * 0 + np.arange(16) % 2, np.arange(16))
    assert mean_variance(*lone) == pytest.approx((0.25 / 15, 15))


@pytest.mark.parametrize("large", [20, 50, 200])
def test_a_large_cluster_without_a_hit_widens_no_further_than_if_it_were_unknown(large):
    """Six of 300 clusters of one row are hits."""
    clusters = [*range(300), *[300] * large]
    alone = clustered_share([1] * 6 + [0] * 294, range(300))
    weight = large / (300 + large)
    for hits in (0, 1, 2, large):
        found = clustered_share([1] * 6 + [0] * 294 + [1] * hits + [0] * (large - hits), clusters)
        assert (1 - weight) * alone.low - 1e-12 <= found.low <= found.value <= found.high
        assert found.high <= weight + (1 - weight) * alone.high + 1e-12


def test_few_clusters_count_by_their_sizes():
    """Six of one size decide, by 2 / 2^6 < 0.05; one of half of all rows is as good as none."""
    for sizes, few in (
        ([1] * 6, False),
        ([3] * 6, False),
        ([1] * 5, True),
        ([100, *[1] * 60], True),
        ([2, *[1] * 8], False),
    ):
        assert few_clusters(np.array(sizes, float)) is few
    assert few_clusters(np.ones(7), 0.99) and not few_clusters(np.ones(8), 0.99)
    assert win_rate([1] * 5, range(5)).low <= 0.5 < win_rate([1] * 6, range(6)).low


def test_clusters_of_one_row_give_the_t_interval_and_its_correction():
    symmetric = np.array([-3, -1, -1, 0, 0, 1, 1, 3.0])
    reach = student_t.ppf(0.975, 7) * symmetric.std(ddof=1) / math.sqrt(8)
    assert clustered_mean(symmetric, range(8)) == pytest.approx((0, -reach, reach, 8, 8))
    found = clustered_mean(
        [0, 0, 0, 8], range(4)
    )  # mean 2, skewness of the sum 192 / 48^1.5, corrected by sqrt(12) / 2
    k = 192 / 48**1.5 * math.sqrt(12) / 2
    t = student_t.ppf(0.975, 3)
    assert found.low == pytest.approx(2 - 2 * t)  # never moved inward
    assert found.high == pytest.approx(2 - 2 * 3 / k * (np.cbrt(1 + k * (-t - k / 6)) - 1))
    assert found.high - 2 > 2 * t
    mirrored = clustered_mean([0, 0, 0, -8], range(4))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert clustered_mean([5, 5, 5], range(3))[:3] == (5, 5, 5)


@pytest.mark.parametrize("times", [2, 7])
def test_rows_that_repeat_their_cluster_add_nothing(times):
    x = np.random.default_rng(1).random(30) < 0.3
    once = clustered_share(x, range(30))
    assert clustered_share(np.repeat(x, times), np.repeat(range(30), times))[:3] == pytest.approx(once[:3], rel=0.05)
    once = clustered_mean(x, range(30))
    assert clustered_mean(np.repeat(x, times), np.repeat(range(30), times))[:3] == pytest.approx(once[:3])


def test_a_share_of_independent_rows_is_nearly_clopper_pearson():
    """V has the divisor n - 1, so that the effective size is n - 1."""
    found = clustered_share([1] * 3 + [0] * 57, range(60))
    assert found[1:3] == pytest.approx(
        (beta.ppf(0.025, 59 * 0.05, 59 * 0.95 + 1), beta.ppf(0.975, 59 * 0.05 + 1, 59 * 0.95))
    )


def test_no_hit_has_an_upper_bound_that_counts_clusters():
    """1 - 0.025^(1/n): 50 rows alone, the same in 10 clusters, and in two of which one has nearly all."""
    for clusters, effective in ((range(50), 50), ([i // 5 for i in range(50)], 10), ([0] * 49 + [1], 2500 / 2402)):
        found = clustered_share([0] * 50, clusters)
        assert found[:3] == pytest.approx((0, 0, 1 - 0.025 ** (1 / effective)))
        found = clustered_share([True] * 50, clusters)
        assert found[:3] == pytest.approx((1, 0.025 ** (1 / effective), 1))


def test_a_win_rate_by_hand():
    """Ten wins: two clusters more, 11 of 12; V = (11/12)(1/12)/11, eleven degrees of freedom. Ten ties: 0.5, V = 0.5 / 12 / 11."""
    found = win_rate([1] * 10, range(10))
    low = 11 / 12 - student_t.ppf(0.975, 11) / 12
    assert found == pytest.approx((1, low, 1, 10, 10))
    reach = student_t.ppf(0.975, 11) * math.sqrt(0.5 / 12 / 11)
    assert win_rate([0.5] * 10, range(10)) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach, 10, 10))


def test_without_lengths_a_controlled_win_rate_is_the_win_rate():
    wins = [1, 1, 0.5, 0, 1, 1, 0, 1, 0.5, 1] * 8
    plain = win_rate(wins, range(80))
    for differences in ([0.0] * 80, [7.0, -7.0] * 40):  # none; and without effect on the wins' mean
        found = length_controlled_win_rate(wins, differences, range(80))
        assert found == pytest.approx(plain, abs=0.03)


def test_a_judge_that_likes_length_is_seen_through():
    """Wins at +300 tokens: 9 of 10, at -100: 1 of 10; the longer policy wins 70 %, at equal length about half."""
    wins = ([1] * 9 + [0]) * 6 + ([0] * 9 + [1]) * 2
    differences = [300] * 60 + [-100] * 20
    assert win_rate(wins, range(80)).low > 0.55
    a = np.log(9) * np.tanh(100 / np.std(differences)) - np.log(9) * np.tanh(300 / np.std(differences))
    a = a / (
        np.tanh(100 / np.std(differences)) + np.tanh(300 / np.std(differences))
    )  # the line through both logits, at 0
    found = length_controlled_win_rate(wins, differences, range(80))
    assert found.value == pytest.approx(1 / (1 + np.exp(-a)), abs=0.06)
    assert found.low < found.value < 0.5 < found.high


def test_where_length_decides_everything_the_fit_stays_finite():
    found = length_controlled_win_rate([1] * 20 + [0] * 20, [5] * 20 + [-5] * 20, range(40))
    assert found.value == pytest.approx(0.5) and 0 < found.low < 0.5 < found.high < 1
    found = length_controlled_win_rate([1] * 20, [1] * 20, range(20))
    assert found.low <= found.value <= found.high <= 1


def test_a_corrected_mean_by_hand():
    """Judged 1, 3 (audited: 12, 18), 2, 6: cov(y, f) = 6, var(f) = 3.5, lambda = 6 / (2 * 3.5); y - lambda f and the others' f."""
    found = prediction_powered_mean([1, 3, 2, 6], [12, 18, math.nan, None], range(4))
    tuned = 6 / 7
    assert found.value == pytest.approx((12 - tuned + 18 - 3 * tuned) / 2 + tuned * 4)
    # audited deviations +-(6 - 2 lambda) / 4, the others' +-lambda; 2 clusters: G/(G-1) = 2, and 2 / 1 for lambda
    error = math.sqrt((2 * ((6 - 2 * tuned) / 4) ** 2 + 2 * tuned**2) * 2 * 2)
    assert found.high - found.value == pytest.approx(student_t.ppf(0.975, 1) * error)
    assert found[3:] == (4, 4)


def test_where_all_is_audited_the_judge_does_not_matter():
    truth = np.random.default_rng(2).normal(size=40) * 10
    judged = truth[::-1].copy()
    clusters = [i // 2 for i in range(40)]
    assert prediction_powered_mean(judged, truth, clusters) == pytest.approx(clustered_mean(truth, clusters))


def test_a_corrected_rate_by_hand():
    """40 judged harmful, 60 not; audited 10 and 10, of which 8 and 1 are: 0.4 * 0.8 + 0.6 * 0.1 = 0.38, where the judge says 0.4."""
    judged = [1] * 40 + [0] * 60
    truth = [math.nan] * 100
    truth[:10] = [1] * 8 + [0] * 2
    truth[40:50] = [1] + [0] * 9
    found = prediction_powered_mean(judged, truth, range(100))
    assert found.value == pytest.approx(0.38)
    a, b, share = (
        clustered_share(truth[:10], range(10)),
        clustered_share(truth[40:50], range(10)),
        clustered_share(judged, range(100)),
    )
    reach = math.hypot(0.4 * (a.high - 0.8), 0.6 * (b.high - 0.1), 0.7 * (share.high - 0.4))
    assert found.high == pytest.approx(0.38 + reach)


def test_an_audit_without_error_or_without_a_verdict_stays_open():
    judged = [0] * 200
    truth = [0.0] * 50 + [math.nan] * 150
    assert prediction_powered_mean(judged, truth, range(200)).high == pytest.approx(1 - 0.025 ** (1 / 50), abs=0.02)
    judged[199] = 1  # judged harmful, and nobody looked at it
    found = prediction_powered_mean(judged, truth, range(200))
    assert found.value == pytest.approx(1 / 200) and found.low == 0 and found.high > 0.06


@pytest.mark.parametrize("function", EVERY, ids=NAMES)
class TestEvery:
    def test_rows_without_a_value_are_left_out(self, function):
        x = [0, 1, 1, 0, 1, 0.5]
        plain = function(x, "aabbcd")
        assert function([*x, None, math.nan], "aabbcdae") == pytest.approx(plain)
        assert function(torch.tensor([*x, math.nan]), [*"aabbcde"]) == pytest.approx(plain)

    def test_of_nothing_nothing_is_known(self, function):
        for x in ([], [None], [math.nan] * 3):
            found = function(x, range(len(x)))
            assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high) and found[3:] == (0, 0)

    def test_one_cluster_leaves_everything_open(self, function):
        found = function([0, 1, 0.5], [1, 1, 1])
        assert found.n == 3 and found.clusters == 1
        assert math.isnan(found.high) or found.high - found.low > 0.9

    def test_names_of_clusters_and_the_order_of_rows_do_not_matter(self, function):
        x = np.random.default_rng(3).random(40).round(1)
        codes = np.arange(40) // 3
        order = np.random.default_rng(4).permutation(40)
        first = function(x, codes)
        assert function(x[order], [("Bild", f"ä{code}") for code in codes[order]]) == pytest.approx(first)
        assert function(list(x), torch.tensor(codes)) == pytest.approx(first)

    def test_more_confidence_is_wider(self, function):
        x = np.random.default_rng(5).random(40).round(1)
        wide, narrow = (function(x, range(40), confidence=confidence) for confidence in (0.99, 0.8))
        assert wide.low < narrow.low < narrow.high < wide.high

    @pytest.mark.parametrize(
        ("x", "clusters", "words"),
        [
            ([1, 0], ["a"], "2 rows, clusters has 1"),
            ([1, math.inf], ["a", "b"], "of row 1 is infinite"),
            ([-1e200, 0], ["a", "b"], "of row 0 is infinite or beyond"),
            (["1", 0], ["a", "b"], "one number a row"),
            (["much", 0], ["a", "b"], "one number a row"),
            ([[1, 0]], ["a"], "one number a row"),
            ([1, 0], ["a", None], "row 1 has no cluster"),
            ([1, 0], [math.nan, 2], "row 0 has no cluster"),
            ([1, 0], ["a", ["b"]], "cluster of row 1 is a list"),
            ([1, 0], ["a", object()], "cluster of row 1 is a object"),
            ([1, 0], [torch.tensor(0), torch.tensor(0)], "cluster of row 0 is a Tensor"),
        ],
    )
    def test_bad_rows_are_refused(self, function, x, clusters, words):
        with pytest.raises(ValueError, match=words):
            function(x, clusters)

    @pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
    def test_confidence_lies_between_0_and_1(self, function, confidence):
        with pytest.raises(ValueError, match="confidence is"):
            function([1, 0], "ab", confidence=confidence)


@pytest.mark.parametrize("function", EVERY[1:4], ids=NAMES[1:4])
def test_a_share_lies_in_0_to_1(function):
    for wrong in (-0.1, 3):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            function([1, wrong], "ab")
