"""Dual controllers: trajectories by hand, bounds, windows, padding, resume and precision."""

import copy
import io
import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dual.controllers import ADAPTIVE, EVERY, Make, feed, rollouts, same, state

from safe_rlhf_v.dual import (
    ExactPenalty,
    FixedDual,
    LogSpaceDual,
    PIDDual,
    ProjectedDual,
    RectifiedDual,
)

# Trajectories by hand.


def test_log_space_by_hand() -> None:
    """Each factor is exp(rate * lambda * gap); the first four steps at gap 0.5 lead from 1 to 1.24."""
    expected, lam = [], 1.0
    for _ in range(4):
        lam *= math.exp(0.1 * lam * 0.5)
        expected.append(lam)
    found = feed(LogSpaceDual(0.5, window=1), *[[1.0]] * 4)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[0] == pytest.approx(1.0512711, rel=1e-6) and found[3] == pytest.approx(1.24, abs=0.005)


def test_log_space_as_released_is_a_switch() -> None:
    """At lambda 10 and rate 0.1 the factor is exp(J - d): 0.58 too much leads from 10 to 17.86 and to the cap of 20."""
    released: dict[str, Any] = {"initial": 10.0, "maximum": 20.0, "window": 1}
    assert feed(LogSpaceDual(-0.5, **released), [0.08], [0.08]) == pytest.approx([17.860, 20.0], rel=1e-4)
    assert feed(LogSpaceDual(-0.5, **released), [-3.5]) == pytest.approx([10 / math.exp(3)], rel=1e-5)
    assert feed(LogSpaceDual(-0.5, **released), [-4.0], [-4.0], [-4.0]) == pytest.approx([0.30, 0.27, 0.25], abs=0.005)
    mild = feed(LogSpaceDual(-0.5, initial=1.0, window=1), [0.08], [-3.5])
    assert 1.0 < mild[0] < 1.1 and mild[1] > 0.7  # the defaults take steps


@pytest.mark.parametrize(("rate", "gap"), [(0.1, 1.0), (0.1, 2.0), (0.2, 1.0)])
def test_log_space_sticks_near_zero(rate: float, gap: float) -> None:
    """From 0.01 to 1 takes (1 / 0.01 - 1 / 1) / (rate * gap) updates: 990 at rate 0.1 and gap 1."""
    controller, steps = LogSpaceDual(0.0, rate, initial=0.01, window=1), 0
    while controller.lam.item() < 1:
        feed(controller, [gap])
        steps += 1
    assert steps == pytest.approx(99 / (rate * gap), rel=0.01)
    projected = feed(ProjectedDual(0.0, rate, initial=0.01, window=1), *[[gap]] * math.ceil(1 / (rate * gap)))
    assert projected[-1] > 1


def test_projected_by_hand() -> None:
    controller = ProjectedDual(-0.5, 0.5, initial=1.0, maximum=3.0, window=1)
    found = feed(controller, [1.5], [1.5], [1.5], [-1.5], [-100.0], [0.0])
    assert found == pytest.approx([2.0, 3.0, 3.0, 2.5, 0.0, 0.25], rel=1e-6)


def test_pid_by_hand() -> None:
    """Smoothed costs 1, 1.5, 0.75, -1.625; integral 1.1, 1.3, 1.3, 0.9; one rise, of 0.5."""
    controller = PIDDual(0.0, 2.0, 0.1, 0.5, smoothing=0.5, window=1)
    found = feed(controller, [1.0], [2.0], [0.0], [-4.0])
    assert found == pytest.approx([2 + 1.1, 3 + 1.3 + 0.25, 1.5 + 1.3, 0.0], rel=1e-6)
    assert controller.state_dict()["accumulated"].item() == pytest.approx(0.9)


def test_the_integral_does_not_wind_up() -> None:
    """Twenty steps at the cap are forgotten at once; so are twenty at 0."""
    controller = PIDDual(0.0, 0.0, 1.0, 0.0, maximum=2.0, window=1)
    assert feed(controller, *[[10.0]] * 20, [-1.0])[-2:] == [2.0, 1.0]
    assert feed(controller, *[[-10.0]] * 20, [0.5])[-2:] == [0.0, 0.5]


def test_pid_without_its_p_and_d_is_the_projected_rule() -> None:
    costs = np.random.default_rng(0).normal(size=(30, 4)).tolist()
    pid = feed(PIDDual(0.1, 0.0, 0.2, 0.0, window=8), *costs)
    assert pid == feed(ProjectedDual(0.1, 0.2, window=8), *costs)


def test_only_a_rising_cost_has_a_derivative() -> None:
    def last(*costs: float) -> float:
        with_it, without = (PIDDual(0.0, 0.0, 1e-9, gain, smoothing=0.0, window=1) for gain in (3.0, 0.0))
        return feed(with_it, *([c] for c in costs))[-1] - feed(without, *([c] for c in costs))[-1]

    assert last(0.25, 0.75) == pytest.approx(1.5)
    assert last(0.75, 0.25) == 0
    assert last(5.0) == 0  # the first cost is no rise
    late = PIDDual([0.0, 0.0], 0.0, 1e-9, 3.0, window=1)  # not even if the other constraint was there before
    late.update(torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]]))
    assert late.update(torch.tensor([[1.0, 5.0]]), torch.tensor([True])).tolist() == pytest.approx([1.0, 1.0])


def test_fixed_never_moves_and_still_follows_the_cost() -> None:
    controller = FixedDual(0.5, weight=25.0, window=4)
    assert feed(controller, [1.0, 2.0], [-50.0, 3.0], [100.0]) == [25.0] * 3
    assert controller.mean_cost.item() == pytest.approx((2 - 50 + 3 + 100) / 4)
    assert controller.gap.item() == pytest.approx((2 - 50 + 3 + 100) / 4 - 0.5)
    assert feed(FixedDual(0.0, weight=0.0), [9.0]) == [0.0]


def test_the_exact_penalty_is_a_switch() -> None:
    controller = ExactPenalty(0.5, weight=7.0, window=2)
    assert controller.lam.item() == 0
    assert feed(controller, [1.0], [0.0], [0.25], [2.0]) == [7.0, 0.0, 0.0, 7.0]  # means 1, 0.5, 0.125, 1.125


def test_rectified_by_hand() -> None:
    """Excesses over 0.5: 1 and 0, then 0 and 2, averaged over the window; half of lambda is forgotten each time."""
    controller = RectifiedDual(0.5, 0.1, decay=0.5, window=4)
    found = feed(controller, [1.5, -3.0], [0.5, 2.5])
    assert found == pytest.approx([0.5 + 0.1 * 0.5, 0.275 + 0.1 * 0.75], rel=1e-6)
    assert controller.mean_excess.item() == pytest.approx(0.75)
    assert controller.mean_cost.item() == pytest.approx(1.5 / 4)
    costs = torch.tensor([[1.5], [-3.0], [0.5]])
    assert controller.penalty(costs).tolist() == [[1.0], [0.0], [0.0]]
    for make in (*ADAPTIVE, FixedDual, ExactPenalty):
        assert torch.equal(make(0.5).penalty(costs), costs)


def test_rectified_only_grows_unless_it_forgets() -> None:
    costs = np.random.default_rng(0).normal(-2, 1, (150, 8)).tolist()  # the mean is far within the budget
    growing = feed(RectifiedDual(0.0, 1.0, window=8, maximum=1.5), *costs)
    assert growing == sorted(growing) and growing[-1] == 1.5
    assert feed(RectifiedDual(0.0, 1.0), *[[-1.0]] * 5) == [1.0] * 5
    forgetting = feed(RectifiedDual(0.0, 0.1, decay=0.05, window=1), *[[0.5]] * 200)
    assert forgetting[-1] == pytest.approx(0.1 * 0.5 / 0.05, rel=1e-4)


def reference(kind: str, costs: list[list[float]], budget: float, window: int, smoothing: float) -> list[float]:
    """The formulas once more, in plain Python and float64, with a queue for the window."""
    kept: deque[float] = deque()
    lam, total, smooth, found = 1.0, 1.0, None, []
    for rollout in costs:
        kept = deque([*kept, *rollout], maxlen=max(window, len(rollout)))
        mean = sum(kept) / len(kept)
        before, smooth = smooth, mean if smooth is None else smoothing * smooth + (1 - smoothing) * mean
        if kind == "log":
            lam = min(max(math.exp(math.log(lam) + 0.3 * lam * (smooth - budget)), 1e-3), 10.0)
        elif kind == "projected":
            lam = min(max(lam + 0.3 * (smooth - budget), 0.0), 10.0)
        else:
            total = min(max(total + 0.2 * (mean - budget), 0.0), 10.0)
            rise = 0.0 if before is None else max(0.0, smooth - before)
            lam = min(max(0.7 * (smooth - budget) + total + 0.4 * rise, 0.0), 10.0)
        found.append(lam)
    return found


@pytest.mark.parametrize("window", [1, 5, 128])
@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_long_trajectories_against_float64(window: int, smoothing: float) -> None:
    rng = np.random.default_rng(window)
    costs = [rng.normal(0.3 * math.sin(i / 9), 1.0, int(rng.integers(1, 12))).tolist() for i in range(120)]
    options: dict[str, Any] = {"window": window, "smoothing": smoothing}
    for kind, controller in {
        "log": LogSpaceDual(0.1, 0.3, **options),
        "projected": ProjectedDual(0.1, 0.3, **options),
        "pid": PIDDual(0.1, 0.7, 0.2, 0.4, **options),
    }.items():
        expected = reference(kind, costs, 0.1, **options)
        assert feed(controller, *costs) == pytest.approx(expected, rel=1e-4, abs=1e-4), kind
        assert max(expected) - min(expected) > 0.5


# Direction, bounds, deadband, delay, smoothing, several constraints.


@pytest.mark.parametrize("make", ADAPTIVE)
@pytest.mark.parametrize("budget", [-0.5, 0.0, 2.0])
def test_too_much_cost_raises_lambda_and_too_little_lowers_it(make: Make, budget: float) -> None:
    up, down = make(budget), make(budget)
    raised, lowered = feed(up, [budget + 0.5, budget + 0.1]), feed(down, [budget - 0.5, budget - 0.1])
    assert up.gap.item() > 0 > down.gap.item()
    assert raised[0] > 1 > lowered[0]


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=5), min_size=1, max_size=20),
    kind=st.sampled_from(EVERY),
    window=st.integers(1, 6),
)
def test_lambda_stays_within_its_bounds(costs: list[list[float]], kind: Make, window: int) -> None:
    controller = kind(0.3, window=window)
    low, high = (torch.tensor(bound).item() for bound in (controller.minimum, controller.maximum))
    for lam in feed(controller, *costs):
        assert low <= lam <= high


@pytest.mark.parametrize(
    "make", [LogSpaceDual, ProjectedDual, lambda d, **o: PIDDual(d, derivative=0.0, smoothing=0.0, **o)]
)
def test_within_the_deadband_lambda_rests(make: Make) -> None:
    options: dict[str, Any] = {"deadband": 0.25, "window": 1}
    assert feed(make(1.0, **options), [1.25], [1.0], [0.75]) == [1.0] * 3
    assert feed(make(1.0, **options), [1.375])[0] > 1.0
    assert feed(make(1.0, **options), [0.625])[0] < 1.0


def test_a_rise_within_the_deadband_still_has_a_derivative() -> None:
    pid = PIDDual(1.0, derivative=0.5, smoothing=0.0, deadband=0.25, window=1)
    assert feed(pid, [0.75], [1.25], [1.25]) == [1.0, 1.25, 1.0]


@pytest.mark.parametrize("make", [*ADAPTIVE, RectifiedDual])
def test_a_delay_only_watches(make: Make) -> None:
    controller = make(0.0, delay=2, window=8)
    first = feed(controller, [1.0], [3.0])
    assert first == [1.0, 1.0] and controller.mean_cost.item() == 2.0
    assert feed(controller, [2.0])[0] > 1.0


def test_smoothing_by_hand() -> None:
    """Means 1, 3, 3 with a share of 0.75 for the old: 1, 1.5, 1.875. The gap that is reported is not smoothed."""
    controller = ProjectedDual(0.0, 1.0, smoothing=0.75, window=1)
    assert feed(controller, [1.0], [3.0], [3.0]) == [2.0, 3.5, 5.375]
    assert controller.gap.item() == 3.0 and controller.smoothed.item() == 1.875


@pytest.mark.parametrize("make", EVERY)
def test_constraints_move_independently(make: Make) -> None:
    """Two constraints at once are two controllers with one each, bit for bit."""
    together = make([0.1, -0.4], window=7)
    alone = [make(budget, window=7) for budget in (0.1, -0.4)]
    for costs, valid in rollouts(25, 5, 2):
        lam = together.update(costs, valid)
        for i, controller in enumerate(alone):
            assert torch.equal(controller.update(costs[:, i : i + 1], valid[:, i : i + 1]), lam[i : i + 1])
    assert torch.equal(together.mean_cost, torch.cat([controller.mean_cost for controller in alone]))
    assert lam.dtype == torch.float32 and lam.shape == (2,)


# The window.


def test_the_window_holds_the_last_valid_costs_of_each_constraint() -> None:
    controller = ProjectedDual([0.0, 0.0], window=3)
    assert controller.mean_cost.isnan().all() and controller.gap.isnan().all()
    nan = torch.nan
    controller.update(torch.tensor([[1.0, nan], [2.0, nan]]), torch.tensor([[True, False], [True, False]]))
    assert controller.mean_cost[0] == 1.5 and controller.mean_cost[1].isnan()
    assert controller.lam.tolist() == pytest.approx([1.15, 1.0])
    controller.update(torch.tensor([[3.0, 9.0], [nan, 5.0], [4.0, nan]]), torch.tensor([[1, 1], [0, 1], [1, 0]]).bool())
    assert controller.mean_cost.tolist() == [3.0, 7.0]  # 2 3 4, and 9 5
    controller.update(torch.tensor([[float(i), nan] for i in range(10, 15)]), torch.tensor([[True, False]] * 5))
    assert controller.mean_cost.tolist() == [12.0, 7.0]  # a rollout larger than the window counts as a whole
    controller.update(torch.full((2, 2), nan), torch.zeros(2, 2, dtype=torch.bool))
    assert controller.mean_cost.tolist() == [12.0, 7.0]
    controller.update(torch.tensor([[nan, 6.0]]), torch.tensor([[False, True]]))
    assert controller.mean_cost.tolist() == [12.0, pytest.approx(20 / 3)]  # 9 5 6
    controller.update(torch.tensor([[18.0, nan]]), torch.tensor([[True, False]]))
    assert controller.mean_cost.tolist() == [15.0, pytest.approx(20 / 3)]  # 13 14 18: the last three again
    assert controller.updates.tolist() == [4, 2]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("rows", [40, 200])
def test_the_order_of_ranks_does_not_matter_even_beyond_the_window(make: Make, rows: int) -> None:
    one, other = make([0.1, 0.4], window=16), make([0.1, 0.4], window=16)
    for costs, valid in rollouts(8, 2 * rows, 2):
        first, second = (costs[:rows], valid[:rows]), (costs[rows:], valid[rows:])
        swapped = [torch.cat(parts) for parts in zip(second, first, strict=True)]
        torch.testing.assert_close(one.update(costs, valid), other.update(*swapped))
        torch.testing.assert_close(one.mean_cost, other.mean_cost)


@pytest.mark.parametrize("make", EVERY)
def test_without_a_new_cost_nothing_moves(make: Make) -> None:
    controller = make(0.0)
    feed(controller, [1.0, 2.0])
    before = state(controller)
    controller.update(torch.full((4, 1), torch.nan), torch.zeros(4, dtype=torch.bool))
    controller.update(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.bool))
    assert same(before, state(controller))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), kind=st.sampled_from(EVERY))
def test_padding_rows_never_matter(data: st.DataObject, kind: Make) -> None:
    """Rows of junk anywhere between the real ones: the same state, bit for bit."""
    plain, padded = kind(0.2, window=5), kind(0.2, window=5)
    for costs in data.draw(st.lists(st.lists(st.floats(-9, 9, width=32), max_size=7), min_size=1, max_size=6)):
        feed(plain, costs)
        rows = [(cost, True) for cost in costs]
        junk = st.sampled_from([math.nan, math.inf, -math.inf, 1e38])
        for _ in range(data.draw(st.integers(0, 5))):
            rows.insert(data.draw(st.integers(0, len(rows))), (data.draw(junk), False))
        values = torch.tensor([cost for cost, _ in rows], dtype=torch.float32)[:, None]
        padded.update(values, torch.tensor([real for _, real in rows], dtype=torch.bool))
        assert same(state(plain), state(padded))


@pytest.mark.parametrize("make", EVERY)
def test_ranks_with_the_same_costs_agree_and_a_lambda_handed_out_stays(make: Make) -> None:
    ranks = [make([0.0, 0.3]) for _ in range(2)]
    first = ranks[0].update(*rollouts(1, 16, 2, seed=9)[0])
    ranks[1].update(*rollouts(1, 16, 2, seed=9)[0])
    handed_out = first.clone()
    for costs, valid in rollouts(20, 16, 2):
        a, b = (rank.update(costs.clone(), valid.clone()) for rank in ranks)
        assert torch.equal(a, b)
    assert same(state(ranks[0]), state(ranks[1])) and torch.equal(first, handed_out)


# Resume and precision.


@pytest.mark.parametrize(
    ("make", "options"),
    [*((make, {}) for make in EVERY), *((make, {"delay": 9, "smoothing": 0.9}) for make in ADAPTIVE)],
)
def test_a_resumed_run_goes_on_bit_for_bit(make: Make, options: dict[str, Any]) -> None:
    whole, resumed, fresh = (make([0.1, 0.4], window=20, **options) for _ in range(3))
    data = rollouts(24, 4, 2)
    for costs, valid in data[:6]:
        whole.update(costs, valid)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for costs, valid in data[6:]:
        assert torch.equal(whole.update(costs, valid), resumed.update(costs, valid))
        fresh.update(costs, valid)
        assert same(state(whole), state(resumed))
    assert not same(state(whole), state(fresh))


def test_on_resume_the_users_budget_and_bounds_hold() -> None:
    old, new = ProjectedDual(0.0, 1.0, window=2), ProjectedDual(2.0, 1.0, maximum=3.0, delay=9, window=2)
    feed(old, [5.0])
    new.load_state_dict(old.state_dict())
    assert new.lam.item() == 6.0 and new.gap.item() == 3.0
    assert feed(new, [5.0]) == [3.0]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("window", [3, 8, 40])
def test_another_window_takes_effect_on_resume(make: Make, window: int) -> None:
    """A shorter one forgets the oldest costs at once; a longer one fills up."""
    old, new = make([0.1, 0.4], window=8), make([0.1, 0.4], window=window)
    data = rollouts(30, 4, 2)
    for costs, valid in data[:10]:
        old.update(costs, valid)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.lam, old.lam) and torch.equal(new.mean_cost, old.mean_cost)
    for costs, valid in data[10:]:
        new.update(costs, valid)
    all_costs, all_valid = (torch.cat(parts) for parts in zip(*data, strict=True))
    for i, mean in enumerate(new.mean_cost):
        length = max(window, int(data[-1][1][:, i].sum()))
        torch.testing.assert_close(mean, all_costs[all_valid[:, i], i][-length:].mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", EVERY)
def test_casts_do_not_touch_the_state(make: Make, dtype: torch.dtype) -> None:
    controller, cast = make(0.1, window=9), make(0.1, window=9)
    for costs, valid in rollouts(12, 4, 1):
        cast = cast.to(dtype)
        assert torch.equal(controller.update(costs, valid), cast.update(costs, valid))
    assert same(state(controller), state(cast)) and cast.lam.dtype == torch.float32


def test_a_half_precision_default_and_half_precision_costs() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        controller = PIDDual(0.1, initial=1.001)
        lam = controller.update(torch.tensor([[0.5], [0.25]]), torch.tensor([True, True]))
    finally:
        torch.set_default_dtype(torch.float32)
    floats = {name: value.dtype for name, value in controller.named_buffers() if value.is_floating_point()}
    assert set(floats.values()) == {torch.float32} and lam.dtype == torch.float32
    assert controller.mean_cost.item() == 0.375
    assert lam.item() == pytest.approx(0.275 + 1.001 + 0.0275, rel=1e-6)  # three digits would be lost


def test_updates_keep_no_graph_and_move_in_place() -> None:
    """Whoever holds the buffer sees the new value, and a deep copy is its own."""
    controller = ProjectedDual(0.0)
    held, twin = controller.lam, copy.deepcopy(controller)
    lam = controller.update(torch.ones(3, 1, requires_grad=True), torch.ones(3, dtype=torch.bool))
    assert held is controller.lam and not lam.requires_grad and not list(controller.parameters())
    assert held.item() > 1 and twin.lam.item() == 1


# A problem with a known response: maximise -(x - 3)^2 subject to x <= d, where lambda* = 2 (3 - d).


# Options, errors, configuration.
