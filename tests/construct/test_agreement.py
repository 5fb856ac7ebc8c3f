"""Agreement between judges: alpha and ceiling by hand, families as one rater."""

import math

import pytest

from safe_rlhf_v.construct.agreement import alpha_by_level, ceiling, families, ordinal_alpha, pooled


def test_alpha_of_two_raters_by_hand() -> None:
    """Two values make ordinal and nominal alpha the same: alpha = 1 - (n - 1) * disagreements / (n0 * n1), Krippendorff 2011."""
    one = {0: 0, 1: 0, 2: 1, 3: 1, 4: 0}
    two = {0: 0, 1: 1, 2: 1, 3: 1, 4: 0}
    # Ten values, of which five are 0 and five 1. One unit disagrees: observed 2 / 10, expected 2 * 5 * 5 / (10 * 9).
    expected = 1 - (2 / 10) / (2 * 25 / 90)
    assert ordinal_alpha({"one": one, "two": two}, range(2)).value == pytest.approx(expected, abs=1e-6)
    assert alpha_by_level({"one": one, "two": two}, range(2))["1"] == pytest.approx(expected, abs=1e-6)


def test_ordinal_alpha_of_three_values_by_hand() -> None:
    """The ordinal distance of 0 and 2 counts the values between: (n0 / 2 + n1 + n2 / 2) squared."""
    one = {0: 0, 1: 1, 2: 2, 3: 0}
    two = {0: 0, 1: 1, 2: 2, 3: 2}
    n = [3, 2, 3]  # of eight values

    def distance(a: int, b: int) -> float:
        return (sum(n[a : b + 1]) - (n[a] + n[b]) / 2) ** 2

    observed = 2 * distance(0, 2) / 8
    expected = sum(2 * n[a] * n[b] * distance(a, b) for a in range(3) for b in range(a + 1, 3)) / (8 * 7)
    assert ordinal_alpha({"one": one, "two": two}, range(3)).value == pytest.approx(1 - observed / expected, abs=1e-6)


def test_perfect_agreement_is_one_and_a_constant_is_undefined() -> None:
    ratings = {i: i % 4 for i in range(12)}
    alpha = ordinal_alpha({"one": ratings, "two": ratings}, range(4))
    assert (alpha.value, alpha.low, alpha.high, alpha.units) == (1, 1, 1, 12)
    constant = dict.fromkeys(range(5), 1)
    assert ordinal_alpha({"one": constant, "two": constant}, range(4)).value is None
    assert ordinal_alpha({"one": ratings}, range(4)).value is None
    assert ordinal_alpha({}, range(4)) == (None, None, None, 0)
    assert alpha_by_level({"one": constant, "two": constant}, range(4))["1"] is None


def test_judges_of_one_family_are_one_rater() -> None:
    named = {"a": ("qwen",), "b": (), "c": ("llama",), "d": ("llama", "qwen"), "e": ("gpt",)}
    assert families(named) == {"a+c+d": ["a", "c", "d"], "b": ["b"], "e": ["e"]}
    ratings = {"a": {1: 0.0, 2: 3.0}, "c": {1: 2.0}, "d": {1: 3.0, 2: 1.0}, "b": {1: 1.0}, "e": {}}
    table = pooled(ratings, families(named))
    assert table == {"a+c+d": {1: 2.0, 2: 1.0}, "b": {1: 1.0}, "e": {}}


def test_copies_of_one_judge_confirm_nothing() -> None:
    noisy = {i: (i * 7) % 4 for i in range(40)}
    other = {i: (i * 5 + 1) % 4 for i in range(40)}
    copies = {"a": noisy, "b": noisy, "c": other}
    alone = ordinal_alpha({"a": noisy, "c": other}, range(4)).value
    one_family = pooled(copies, families({"a": ("qwen",), "b": ("qwen",), "c": ()}))
    assert ordinal_alpha(one_family, range(4)).value == alone
    assert (ordinal_alpha(copies, range(4)).value or 0) > (alone or 0)


def test_the_ceiling_by_hand() -> None:
    """Three raters agree on 80 % of the pairs: p = (1 + sqrt(0.6)) / 2, and two of three are right in 3 p^2 - 2 p^3."""
    votes = {"a": {}, "b": {}, "c": {}}
    for i in range(10):
        votes["a"][str(i)] = votes["b"][str(i)] = votes["c"][str(i)] = 0
    votes["a"]["0"] = votes["b"]["1"] = votes["c"]["2"] = 1  # each pair of raters disagrees on two of ten
    best = ceiling(votes)
    p = (1 + math.sqrt(0.6)) / 2
    assert best.agreement == pytest.approx(0.8)
    assert best.accuracy == pytest.approx(3 * p**2 - 2 * p**3, abs=1e-6)
    two = ceiling({"a": votes["a"], "b": votes["b"]})
    assert two.accuracy == pytest.approx(p, abs=1e-6)  # a draw of two is decided by chance


def test_the_ceiling_needs_two_raters_who_decide() -> None:
    assert ceiling({"a": {"x": 0}}).accuracy is None
    assert ceiling({"a": {"x": 0}, "b": {"x": -1}}).accuracy is None
    assert ceiling({}).accuracy is None
    opposite = ceiling({"a": {"x": 0, "y": 1}, "b": {"x": 1, "y": 0}})
    assert opposite.accuracy == 0.5
