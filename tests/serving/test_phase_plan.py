"""Plans for keys and values that outgrow the fast memory: against an exhaustive search and the transfers' formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.serving.phase_plan import (
    DROPPED,
    PhaseCost,
    PhaseShape,
    in_rounds_seconds,
    plan_phases,
    static_split_seconds,
)


def costs(link: float, again: float) -> PhaseCost:
    return PhaseCost(lambda read: 1e-3 + 1e-6 * read, lambda tokens: again * tokens, link)


def exhaustive(shape: PhaseShape, capacity: float, ratio: float, cost: PhaseCost) -> float:
    """Every beginning and every share, step by step, written apart from the planner."""
    token = shape.sequences * shape.token_bytes
    room = capacity / token
    best = math.inf
    for p2 in range(shape.made + 1):
        for beta in DROPPED:
            total = 0.0
            for made in range(shape.made):
                n = shape.prompt + made + 1
                off, off_before = max(0.0, n - room), max(0.0, n - 1 - room) if made else 0.0
                local = ratio * n / 2 if ratio < 1 else 0.0
                selected_below = (ratio * n - local) * min(1.0, off / (n - local))
                dropping = made >= p2
                again = beta * selected_below if dropping else 0.0
                down = (off - off_before) * (1 - beta if dropping else 1)
                moved = token * (selected_below - again + down)
                total += max(cost.step(ratio * n), moved / cost.link) + (cost.again(again) if again else 0)
            best = min(best, total)
    return best


@settings(max_examples=20, deadline=None)
@given(
    sequences=st.integers(1, 8),
    prompt=st.integers(1, 60),
    made=st.integers(2, 20),
    share=st.floats(0.3, 1.2),
    ratio=st.sampled_from([0.2, 0.5, 1.0]),
    link=st.floats(1e3, 1e7),
    again=st.floats(1e-7, 1e-2),
)
def test_the_plan_is_within_a_hundredth_of_the_best(
    sequences: int, prompt: int, made: int, share: float, ratio: float, link: float, again: float
) -> None:
    shape, cost = PhaseShape(sequences, prompt, made, 8.0), costs(link, again)
    capacity = max(share, ratio / 2 + 0.01) * sequences * 8.0 * (prompt + made)
    plan = plan_phases(shape, capacity, ratio, cost, grid=made + 1)
    assert plan.predicted_s <= 1.01 * exhaustive(shape, capacity, ratio, cost)
    assert 0 <= plan.p1 <= plan.p2 <= made and 0 <= plan.alpha < 1


def test_everything_fits_so_nothing_moves() -> None:
    shape = PhaseShape(2, 10, 20, 8.0)
    plan = plan_phases(shape, 1e9, 0.2, costs(1.0, 1.0))
    assert (plan.alpha, plan.beta, plan.p1, plan.p2) == (0.0, 0.0, 20, 20)
    assert plan.loaded_bytes == plan.stored_bytes == 0


def test_the_second_phase_begins_when_the_memory_is_full() -> None:
    shape = PhaseShape(1, 10, 50, 1.0)
    plan = plan_phases(shape, 30.0, 0.2, costs(1e9, 1e9))
    assert plan.p1 == 20 and plan.beta == 0.0
    assert plan.stored_bytes == pytest.approx(30.0) and plan.alpha == pytest.approx(0.5)


def test_a_slow_link_makes_computing_again_worth_it() -> None:
    shape = PhaseShape(4, 10, 100, 100.0)
    fast, slow = (plan_phases(shape, 2e4, 0.5, costs(link, 1e-5)) for link in (1e9, 1e4))
    assert fast.beta == 0.0 and slow.beta > 0.0 and slow.p2 < 100


def test_baselines_count_what_they_read() -> None:
    shape = PhaseShape(4, 10, 10, 1.0)
    cost = PhaseCost(lambda read: 0.0, lambda tokens: 0.0, 1.0)
    stored = sum(range(11, 21))
    assert static_split_seconds(shape, 4 * 15.0, cost) == pytest.approx(0.25 * 4 * stored)
    assert static_split_seconds(shape, 4 * 20.0, cost) == 0
    seconds, fit = in_rounds_seconds(shape, 60.0, lambda size: PhaseCost(lambda read: size, lambda tokens: 0.0, 1.0))
    assert fit == 3 and seconds == 10 * 3 + 10 * 1
    assert in_rounds_seconds(shape, 5.0, lambda size: cost) == (math.inf, 0)


def test_senseless_plans_are_refused() -> None:
    shape = PhaseShape(1, 10, 10, 1.0)
    for ratio in (0.0, 1.5, -1.0):
        with pytest.raises(UsageError, match="ratio"):
            plan_phases(shape, 100.0, ratio, costs(1.0, 1.0))
    with pytest.raises(UsageError, match="newest"):
        plan_phases(shape, 1.0, 0.5, costs(1.0, 1.0))
