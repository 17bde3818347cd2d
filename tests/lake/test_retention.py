"""Plans against enumeration of all of them, and against an integer program where its solver is installed."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.randomness import integers
from windlass.lake.retention import PRICES, Prices, Rebuild, RetentionPlan, plan_retention

SIMPLE = Prices(store=1e9, maintain=0, read=1e8, write=1e8, million_rows=0, read_speed=1e6, write_speed=1e6)


def cost_of(sizes: dict[str, int], options: list[Rebuild], kept: set[str]) -> float:
    """What a plan costs that keeps these and rebuilds each of the others in the cheapest way; infinite if it cannot."""
    total = float(sum(sizes[name] for name in kept))
    for child in sizes.keys() - kept:
        ways = [
            0.1 * 0.1 * (sizes[o.parent] + sizes[o.child]) + o.recipe_bytes
            for o in options
            if o.child == child and o.parent in kept
        ]
        total += min(ways, default=float("inf"))
    return total


def check_sound(plan: RetentionPlan, sizes: dict[str, int], options: list[Rebuild]) -> None:
    assert set(plan.keep) | set(plan.rebuild) == set(sizes)
    assert not set(plan.keep) & set(plan.rebuild)
    assert all(way.parent in plan.keep and way in options and way.child == child for child, way in plan.rebuild.items())
    assert plan.cost_after == pytest.approx(cost_of(sizes, options, set(plan.keep)))
    assert plan.cost_before == pytest.approx(sum(sizes.values()))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, int], list[Rebuild]]:
    names = "abcdefgh"[: draw(st.integers(1, 8))]
    sizes = {name: draw(st.integers(1, 1000)) for name in names}
    pairs = [(child, parent) for child in names for parent in names if child != parent]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    return sizes, [Rebuild(child, parent, draw(st.integers(0, 300))) for child, parent in chosen]


@settings(deadline=None, max_examples=300)
@given(problems())
def test_no_plan_is_cheaper(problem: tuple[dict[str, int], list[Rebuild]]) -> None:
    sizes, options = problem
    plan = plan_retention(sizes, options, prices=SIMPLE, latency_limit_s=1e9)
    check_sound(plan, sizes, options)
    names = sorted(sizes)
    best = min(cost_of(sizes, options, set(kept)) for r in range(len(names) + 1) for kept in combinations(names, r))
    assert plan.gap == 0
    assert plan.cost_after == pytest.approx(best)


def test_of_duplicates_exactly_one_is_kept() -> None:
    sizes = dict.fromkeys("abcd", 500)
    plan = plan_retention(sizes, [Rebuild(a, b) for a in sizes for b in sizes if a != b])
    assert len(plan.keep) == 1 and len(plan.rebuild) == 3


def chain_optimum(sizes: list[int], recipes: list[int]) -> float:
    """A chain in which each file can be rebuilt from the one before: by dynamic program over kept or not."""
    kept, rebuilt = float(sizes[0]), float("inf")
    for number in range(1, len(sizes)):
        from_before = kept + 0.01 * (sizes[number - 1] + sizes[number]) + recipes[number]
        kept, rebuilt = min(kept, rebuilt) + sizes[number], from_before
    return min(kept, rebuilt)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_chains_cost_what_their_dynamic_program_says(length: int, seed: int) -> None:
    draws = integers(seed, size=2 * length, high=1000).tolist()
    sizes, recipes = [draw + 1 for draw in draws[:length]], [draw // 3 for draw in draws[length:]]
    options = [Rebuild(f"{n:02}", f"{n - 1:02}", recipes[n]) for n in range(1, length)]
    plan = plan_retention(
        {f"{n:02}": size for n, size in enumerate(sizes)}, options, prices=SIMPLE, latency_limit_s=1e9
    )
    assert plan.gap == 0 and plan.cost_after == pytest.approx(chain_optimum(sizes, recipes))


def test_pins_latency_accesses_and_price_sheets_are_heeded() -> None:
    sizes, options = {"all": 10**9, "some": 5 * 10**8}, [Rebuild("some", "all", 100)]
    for prices in PRICES.values():
        assert plan_retention(sizes, options, prices=prices).keep == ("all",)
    assert len(plan_retention(sizes, options, pin={"some"}).keep) == 2
    assert len(plan_retention(sizes, options, latency_limit_s=1.0).keep) == 2
    assert len(plan_retention(sizes, options, access_per_month={"some": 1e6}).keep) == 2
    with pytest.raises(UsageError, match="no size"):
        plan_retention({"some": 1}, options)
    assert plan_retention({}, []).keep == ()


def random_lake(files: int, seed: int) -> tuple[dict[str, int], list[Rebuild]]:
    """Files of which each may be rebuilt from up to four larger ones near it."""
    draws = integers(seed, size=(files * 9), high=1 << 30).reshape(files, 9).tolist()
    sizes = {f"{n:05}": 1 + row[0] % 100_000 for n, row in enumerate(draws)}
    names = list(sizes)
    options = []
    for n, row in enumerate(draws):
        for k in range(row[1] % 5):
            other = (n + 1 + row[2 + k] % 40) % files
            if other != n:
                options.append(Rebuild(names[n], names[other], row[5] % (sizes[names[n]] + 1) // 2))
    return sizes, options


def test_two_thousand_files_are_planned_close_to_the_bound() -> None:
    sizes, options = random_lake(2_000, 4)
    plan = plan_retention(sizes, options, prices=SIMPLE, latency_limit_s=1e9)
    check_sound(plan, sizes, options)
    assert plan.gap <= 0.01 and plan.cost_after < 0.8 * plan.cost_before


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(8))
def test_the_integer_program_finds_nothing_cheaper(seed: int) -> None:
    optimize: Any = pytest.importorskip("scipy.optimize")
    sizes, options = random_lake(80, seed)
    names = list(sizes)
    places = {name: place for place, name in enumerate(names)}
    count, ways = len(names), len(options)
    costs = [sizes[n] for n in names] + [0.01 * (sizes[o.parent] + sizes[o.child]) + o.recipe_bytes for o in options]
    served, linked = np.zeros((count, count + ways)), np.zeros((ways, count + ways))
    served[:, :count] = np.eye(count)
    for number, option in enumerate(options):
        served[places[option.child], count + number] = 1
        linked[number, count + number], linked[number, places[option.parent]] = 1, -1
    found = optimize.milp(
        costs,
        constraints=[optimize.LinearConstraint(served, 1, 1), optimize.LinearConstraint(linked, -np.inf, 0)],
        integrality=np.ones(count + ways),
        bounds=optimize.Bounds(0, 1),
    )
    plan = plan_retention(sizes, options, prices=SIMPLE, latency_limit_s=1e9)
    assert found.success and plan.gap == 0
    assert plan.cost_after == pytest.approx(found.fun, rel=1e-6)
