"""The event queue: order, waiting, errors, deadlock, and queues whose mean wait is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.program import Clock
from windlass.sim.engine import AllOf, AnyOf, Deadlock, Sim, SimClock


def test_time_passes_in_order_and_ties_keep_the_order_of_making():
    sim, seen = Sim(), []
    for name, at in (("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.0)):
        sim.at(at, seen.append, (name, at))
    stats = sim.run()
    assert seen == [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 2.0)]
    assert (stats.events, stats.now, stats.pending) == (4, 2.0, 0)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=30))
def test_now_never_runs_backwards_and_everything_runs_once(times):
    sim, seen = Sim(), []

    def then(extra):
        seen.append(sim.now)
        sim.after(extra, lambda: seen.append(sim.now))

    for at, extra in times:
        sim.at(at, then, extra)
    sim.run()
    assert seen == sorted(seen)
    assert sorted(seen) == sorted([at for at, _ in times] + [at + extra for at, extra in times])


@pytest.mark.parametrize("t", [-1.0, math.nan, math.inf])
def test_the_past_is_refused(t):
    with pytest.raises(UsageError):
        Sim().at(t, print)


@pytest.mark.parametrize("wrong", [-0.5, math.nan, math.inf, "soon", None])
def test_a_process_hears_what_it_yielded_wrong(wrong):
    heard = []

    def process():
        try:
            yield wrong
        except UsageError as error:
            heard.append(str(error))
        yield 1.0

    sim = Sim()
    sim.spawn(process())
    assert sim.run().now == 1.0
    assert len(heard) == 1


def test_until_and_max_events_stop_and_go_on():
    sim, seen = Sim(), []

    def process():
        for i in range(10):
            seen.append(i)
            yield 1.0

    sim.spawn(process())
    assert sim.run(until=2.5).now == 2.5
    assert seen == [0, 1, 2]
    assert sim.run(max_events=1).events == 4
    assert seen == [0, 1, 2, 3]
    assert sim.run(until=100).now == 100


def test_cancelled_timers_do_nothing_and_do_not_count():
    sim, seen = Sim(), []
    timers = [sim.after(1.0, seen.append, 1), sim.after(3.0, seen.append, 3)]
    sim.after(2.0, seen.append, 2)
    for timer in timers:
        timer.cancel()
    stats = sim.run()
    assert (stats.events, stats.now) == (1, 2.0)
    assert seen == [2]


def test_values_errors_and_joins_reach_who_waits():
    sim, got = Sim(), []

    def child(value, dt):
        yield dt
        return value

    def failing():
        yield 1
        raise KeyError("lost")

    def parent():
        got.append((yield sim.spawn(child("one", 1.0))))
        got.append((yield AllOf(sim.spawn(child("slow", 3.0)), sim.spawn(child("fast", 1.0)))))
        first = yield AnyOf(slow := sim.spawn(child("later", 5.0)), sim.after(2.0))
        got.append(first is slow)
        got.append((yield slow))
        got.append((yield AllOf()))
        try:
            yield sim.spawn(failing())
        except KeyError as error:
            got.append(error.args[0])

    sim.spawn(parent())
    assert sim.run().now == 10.0
    assert got == ["one", ["slow", "fast"], False, "later", [], "lost"]


def test_an_event_that_already_happened_does_not_block():
    sim, got = Sim(), []
    door = sim.event()
    door.succeed("open")

    def process():
        got.append((yield door))
        got.append((yield AnyOf(door)).value)

    sim.spawn(process())
    sim.run()
    assert got == ["open", "open"]


def test_an_error_nobody_waits_for_ends_the_run():
    def process():
        yield 1.0
        raise RuntimeError("boom")

    sim = Sim()
    sim.spawn(process())
    with pytest.raises(RuntimeError, match="boom"):
        sim.run()


def test_an_interrupt_forgets_what_was_waited_for():
    sim, seen = Sim(), []

    def process():
        try:
            yield sim.event("never")
        except InterruptedError:
            seen.append(sim.now)
        yield 1.0
        seen.append(sim.now)

    made = sim.spawn(process())
    sim.after(2.0, made.interrupt, InterruptedError())
    sim.run()
    assert seen == [2.0, 3.0]


@pytest.mark.parametrize("sleeps", [True, False])
def test_an_interrupt_ends_a_sleep_for_good(sleeps):
    sim, seen = Sim(), []

    def process():
        try:
            yield 10.0 if sleeps else sim.after(10.0)
        except InterruptedError:
            seen.append(sim.now)
        yield 20.0
        seen.append(sim.now)

    made = sim.spawn(process())
    sim.after(2.0, made.interrupt, InterruptedError())
    sim.run()
    assert seen == [2.0, 22.0]


def test_a_deadlock_names_who_waits_and_for_what():
    sim = Sim()
    one, other = sim.event("a word from the other"), sim.event("a word from the one")

    def process(mine, yours):
        yield mine
        yours.succeed()

    sim.spawn(process(one, other), name="the one")
    sim.spawn(process(other, one), name="the other")
    with pytest.raises(Deadlock) as caught:
        sim.run()
    assert caught.value.waiting == ["the one for a word from the other", "the other for a word from the one"]


def test_a_server_may_wait_forever_in_the_background():
    sim = Sim()

    def server():
        yield sim.event()

    sim.spawn(server(), background=True)
    assert sim.run().now == 0.0


def test_streams_of_random_numbers_do_not_shift_each_other():
    one, two = Sim(seed=5), Sim(seed=5)
    two.rng("another").random(100)
    assert one.rng("arrivals").random() == two.rng("arrivals").random()
    assert Sim(seed=6).rng("arrivals").random() != one.rng("arrivals").random()


def test_the_clock_is_a_clock():
    sim, seen = Sim(), []
    clock: Clock = SimClock(sim)
    clock.call_later(1.0, seen.append, "called")
    clock.sleep(5.0)
    assert clock.now() == 5.0
    assert seen == ["called"]


@pytest.mark.parametrize(
    ("service", "theory"),
    [
        ("exponential", lambda rho, mean: rho / (1 - rho) * mean),  # M/M/1: mean wait in the queue
        ("fixed", lambda rho, mean: rho / (2 * (1 - rho)) * mean),  # M/D/1
    ],
)
def test_queues_wait_as_long_as_theory_says(service, theory):
    sim, rho, count = Sim(seed=3), 0.6, 100_000
    gaps = sim.rng("gaps").exponential(1 / rho, count)
    works = sim.rng("works").exponential(1.0, count) if service == "exponential" else [1.0] * count
    waits, free = [], [sim.event()]
    free[0].succeed()

    def server(arrival, work, before, after):
        yield before
        waits.append(sim.now - arrival)
        yield float(work)
        after.succeed()

    def arrivals():
        for gap, work in zip(gaps, works, strict=True):
            yield float(gap)
            before, after = free[0], sim.event()
            free[0] = after
            sim.spawn(server(sim.now, work, before, after))

    sim.spawn(arrivals())
    sim.run()
    assert len(waits) == count
    assert sum(waits) / count == pytest.approx(theory(rho, 1.0), rel=0.02)
