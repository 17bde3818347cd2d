# ruff: noqa: PERF401, UP028 (a comprehension cannot yield, a tuple cannot be sent to)
"""Policies and recorded programs on the virtual clock."""

import gzip
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from windlass.core.errors import SimulationError, TensorValueInSimulation, UsageError
from windlass.core.program import (
    AllGather,
    AllReduce,
    AllToAllV,
    Compute,
    Mark,
    Move,
    Observe,
    OpCost,
    Recv,
    ReduceScatter,
    Send,
    Shape,
    Wait,
)
from windlass.sim.cluster import ClusterSpec
from windlass.sim.cost import CostModel
from windlass.sim.engine import Deadlock
from windlass.sim.executor import SimExecutor
from windlass.sim.hardware import fabric, hardware
from windlass.sim.report import Slo, busy_seconds, quantile
from windlass.sim.trace import RequestTrace
from windlass.sim.world import Fault, Lost

LAPTOP, EDGE = hardware("laptop"), fabric("edge")
PAIR = ClusterSpec.switch(LAPTOP, 2, EDGE)
WORK = OpCost.gemm(64, 1024, 1024, "fp32")
ONE = CostModel().op(WORK, LAPTOP).seconds


class Plan:
    """A policy from a function."""

    def __init__(self, function):
        self.function = function

    def program(self, state, request):
        return self.function(state, request)


def run(function, cluster=PAIR, request=None, **options):
    return SimExecutor(cluster, **options).run(Plan(function), request)


def yields(*steps):
    """A program that only yields."""

    def program(state, request):
        for step in steps:
            yield step

    return program


def product(stream="main", units=None):
    cost = WORK if units is None else OpCost(WORK.flops, WORK.bytes, "fp32", "gemm", WORK.shape, units)
    return Compute("product", None, (), cost, stream)


def test_a_chain_is_the_sum_and_streams_side_by_side_are_the_longest():
    def chain(state, request):
        for _ in range(5):
            yield Wait((yield product()))

    report = run(chain, ClusterSpec.single(LAPTOP))
    assert report.seconds == pytest.approx(5 * ONE)
    assert report.utilisation["device 0"] == pytest.approx(1.0)
    assert report.error == pytest.approx(LAPTOP.efficiency.error)

    half = CostModel().op(OpCost(WORK.flops, 0, "fp32", "gemm", WORK.shape, 2), LAPTOP).seconds

    def side_by_side(state, request):
        cost = OpCost(WORK.flops, 0, "fp32", "gemm", WORK.shape, 2)
        both = []
        for name in ("a", "b"):
            both.append((yield Compute("half", None, (), cost, name)))
        yield Wait(*both)

    assert run(side_by_side, ClusterSpec.single(LAPTOP)).seconds == pytest.approx(half)


def test_two_ranks_at_once_do_not_add_their_errors():
    def alone(state, request):
        if state.rank == 0 or request == "both":
            yield Wait((yield product()))

    one, both = run(alone), run(alone, request="both")
    assert one.seconds == both.seconds
    assert one.error == both.error == pytest.approx(LAPTOP.efficiency.error)


def test_a_message_takes_its_latency_and_its_bytes():
    nbytes = 1_000_000

    def talk(state, request):
        if state.rank == 0:
            yield Wait((yield Send(1, Shape((nbytes,), "int8"), "word")))
            return None
        return (yield Wait((yield Recv(0, Shape((nbytes,), "int8"), "word"))))

    report = run(talk)
    assert report.seconds == pytest.approx(EDGE.latency + nbytes / EDGE.bandwidth)
    assert report.results == [None, Shape((nbytes,), "int8")]
    assert report.link_bytes["d0>switch"] == nbytes == report.link_bytes["switch>d1"]


def test_messages_of_one_tag_arrive_in_order_whoever_asks_first():
    def talk(state, request):
        if state.rank == 0:
            sent = []
            for size in (30, 20, 10):
                sent.append((yield Send(1, Shape((size,), "int8"))))
            yield Wait(*sent)
            return None
        if request == "late":
            yield Wait((yield product()))
        got = []
        for _ in range(3):
            got.append((yield Wait((yield Recv(0, None)))).shape[0])
        return got

    for request in ("early", "late"):
        assert run(talk, request=request).results[1] == [30, 20, 10]


def test_collectives_give_the_shapes_that_real_ones_give():
    def all_of_them(state, request):
        x = Shape((8, 3), "fp32")
        reduced = yield Wait((yield AllReduce(x, "ring")))
        gathered = yield Wait((yield AllGather(x)))
        scattered = yield Wait((yield ReduceScatter(x)))
        parts = tuple(Shape((state.rank + 1, other + 1), "fp32") for other in range(state.world))
        swapped = yield Wait((yield AllToAllV(parts)))
        return [reduced.shape, gathered.shape, scattered.shape, [part.shape for part in swapped]]

    report = run(all_of_them, ClusterSpec.switch(LAPTOP, 4, EDGE))
    for rank, found in enumerate(report.results):
        assert found == [(8, 3), (32, 3), (2, 3), [(other + 1, rank + 1) for other in range(4)]]


def test_a_collective_starts_when_its_last_member_comes():
    def late(state, request):
        if state.rank == 1:
            yield Wait((yield product()))
        yield Wait((yield AllReduce(Shape((250_000,), "fp32"), "ring")))

    alone = run(lambda state, request: iter_reduce())
    assert run(late).seconds == pytest.approx(ONE + alone.seconds)


def iter_reduce():
    yield Wait((yield AllReduce(Shape((250_000,), "fp32"), "ring")))


def test_groups_reduce_apart():
    def pairs(state, request):
        group = (0, 1) if state.rank < 2 else (2, 3)
        yield Wait((yield AllReduce(Shape((1000,), "fp32"), "ring", group)))

    four = ClusterSpec.mesh(LAPTOP, 4, EDGE)
    assert run(pairs, four).seconds == pytest.approx(2 * (EDGE.latency + 2000 / EDGE.bandwidth))


def test_ranks_that_disagree_or_wait_for_nobody_are_told():
    def disagree(state, request):
        x = Shape((4,), "fp32")
        yield Wait((yield AllReduce(x) if state.rank else AllGather(x)))

    with pytest.raises(SimulationError, match="another member"):
        run(disagree)

    def forgotten(state, request):
        if state.rank == 0:
            yield Wait((yield Recv(1, None, "answer")))

    with pytest.raises(Deadlock, match="a message 1>0 answer"):
        run(forgotten)

    def lonely(state, request):
        if state.rank == 0:
            yield Wait((yield AllReduce(Shape((4,), "fp32"))))

    with pytest.raises(Deadlock, match="all_reduce number 1"):
        run(lonely)


def test_values_are_out_of_reach_and_observed_ones_are_drawn():
    def peeks(state, request):
        x = yield Wait((yield AllReduce(Shape((4,), "fp32"))))
        if x[0] > 0:
            yield product()

    with pytest.raises(TensorValueInSimulation):
        run(peeks)

    def observes(state, request):
        return (yield Wait((yield Observe("choice", lambda: 1 / 0, lambda generator: int(generator.integers(1000))))))

    first, again, other = run(observes), run(observes), run(observes, seed=9)
    assert first.results == again.results != other.results
    with pytest.raises(UsageError, match="a policy yielded 7"):
        run(yields(7))


def test_moves_take_the_slower_memory():
    def load(state, request):
        yield Wait((yield Move(Shape((10**9,), "int8"), "ram")))

    report = run(load, ClusterSpec.single(LAPTOP))
    disk = LAPTOP.tiers[1]
    assert report.seconds == pytest.approx(disk.latency + 10**9 / disk.read_bw)
    with pytest.raises(UsageError, match="no memory tier 'hbm'"):
        run(yields(Move(Shape((1,), "int8"), "hbm")))


def test_the_same_seed_leaves_the_same_trace(tmp_path):
    def mixed(state, request):
        for _ in range(3):
            count = yield Wait((yield Observe("n", int, lambda generator: int(generator.integers(1, 4)))))
            started = []
            for number in range(count):
                started.append((yield product(f"stream {number}")))
            yield Wait(*started)
            yield Wait((yield AllReduce(Shape((1000 * count,), "fp32"), "ring")))

    same = {run(mixed, seed=3).trace_hash() for _ in range(3)}
    assert len(same) == 1
    assert run(mixed, seed=4).trace_hash() not in same
    report = run(mixed, seed=3)
    report.to_chrome_trace(tmp_path / "trace.json.gz")
    stored = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    spans = [event for event in stored["traceEvents"] if event["ph"] == "X"]
    assert stored["mode"] == "simulated" and len(spans) == len(report.spans)
    assert max(event["ts"] + event["dur"] for event in spans) == pytest.approx(report.seconds * 1e6)


def test_energy_is_idle_power_and_what_work_adds():
    def work(state, request):
        if state.rank == 0:
            yield Wait((yield product()))

    report = run(work)
    estimate = CostModel().op(WORK, LAPTOP)
    assert report.joules == pytest.approx(estimate.joules + LAPTOP.idle_w * report.seconds)


def test_requests_arrive_and_are_counted():
    def serve(state, request):
        for token in range(request.output_tokens):
            yield Wait((yield product()))
            if token == 0:
                yield Mark("first_token")

    count, tokens = 20, 5
    trace = RequestTrace(np.arange(count) * 10.0 * ONE, np.ones(count), np.full(count, tokens))
    report = run(serve, ClusterSpec.single(LAPTOP), trace, slo=Slo(ttft=1.5 * ONE, tpot=1.5 * ONE))
    metrics = report.metrics
    assert metrics["requests"] == count
    assert (metrics["ttft p50 s"], metrics["ttft p99 s"]) == pytest.approx((ONE, ONE))
    assert metrics["tpot p95 s"] == pytest.approx(ONE)
    assert metrics["latency p99 s"] == pytest.approx(tokens * ONE)
    assert metrics["goodput requests/s"] == pytest.approx(metrics["requests/s"])
    busy = RequestTrace(np.zeros(count), np.ones(count), np.full(count, tokens))
    crowded = run(serve, ClusterSpec.single(LAPTOP), busy, slo=Slo(ttft=1.5 * ONE)).metrics
    assert crowded["goodput requests/s"] < crowded["requests/s"]


def test_faults_slow_stop_and_cut():
    def work(state, request):
        yield Wait((yield product()))
        yield Wait((yield AllReduce(Shape((250_000,), "fp32"), "ring")))

    plain = run(work).seconds
    slow = run(work, faults=[Fault(0.0, "slow_device", 1, 0.5)]).seconds
    assert slow == pytest.approx(plain + ONE)
    narrow = run(work, faults=[Fault(0.0, "slow_link", ("d0", "switch"), 0.5)]).seconds
    assert narrow == pytest.approx(plain + 1e6 / EDGE.bandwidth, rel=1e-6)
    with pytest.raises(Lost, match="device 1 failed at 0 s"):
        run(work, faults=[Fault(0.0, "fail_device", 1)])
    with pytest.raises(Lost, match="link between d0 and switch"):
        run(work, faults=[Fault(ONE * 1.5, "fail_link", ("d0", "switch"))])


def test_who_sends_over_a_cut_link_is_told():
    def talk(state, request):
        if state.rank == 0:
            try:
                yield Wait((yield Send(1, Shape((10**9,), "int8"))))
            except Lost:
                return "told"

    assert run(talk, faults=[Fault(1.0, "fail_link", ("d0", "switch"))]).results[0] == "told"


@dataclass
class Table:
    id: np.ndarray
    rank: np.ndarray
    kind: np.ndarray
    stream: np.ndarray
    group: np.ndarray
    nbytes: np.ndarray
    flops: np.ndarray
    dep_starts: np.ndarray
    deps: np.ndarray
    kinds: tuple = ("F", "SEND", "RECV", "ALL_REDUCE", "WAIT")
    streams: tuple = ("compute", "comm")
    groups: tuple = ((0, 1),)
    dtype: str = "fp32"


def table(rows):
    """rows: (rank, kind, stream, nbytes, flops, deps)."""
    names = Table.kinds
    deps = [row[5] for row in rows]
    return Table(
        np.arange(len(rows)) + 100,
        np.array([row[0] for row in rows]),
        np.array([names.index(row[1]) for row in rows]),
        np.array([Table.streams.index(row[2]) for row in rows]),
        np.array([-1 if row[1] in "FWAIT" else 0 for row in rows]),
        np.array([row[3] for row in rows]),
        np.array([float(row[4]) for row in rows]),
        np.cumsum([0, *map(len, deps)]),
        np.array([dep for each in deps for dep in each], np.int64),
    )


def test_a_recorded_program_keeps_its_order():
    flops = 1e9
    seconds = CostModel().op(OpCost(flops, 0, "fp32", "gemm", ()), LAPTOP).seconds
    message = EDGE.latency + 1000 / EDGE.bandwidth
    rows = [
        (0, "F", "compute", 0, flops, []),
        (0, "SEND", "comm", 1000, 0, [0]),
        (1, "RECV", "comm", 1000, 0, []),
        (1, "F", "compute", 0, flops, [2]),
        (0, "F", "compute", 0, flops, []),
        (0, "ALL_REDUCE", "comm", 4000, 0, [4]),
        (1, "ALL_REDUCE", "comm", 4000, 0, [3]),
        (0, "WAIT", "compute", 0, 0, [5]),
    ]
    report = SimExecutor(PAIR).run(table(rows))
    reduce = run(lambda state, request: reduce_1000()).seconds
    assert report.seconds == pytest.approx(seconds + message + seconds + reduce)
    order = [int(span.name) for span in report.spans]
    assert sorted(order) == list(range(100, 108))
    place = {name - 100: position for position, name in enumerate(order)}
    for row, (_, _, _, _, _, deps) in enumerate(rows):
        assert all(place[dep] < place[row] for dep in deps)
    assert 0 < report.error < 0.5


def reduce_1000():
    yield Wait((yield AllReduce(Shape((1000,), "fp32"))))


def test_a_message_may_be_there_before_its_receiver():
    rows = [
        (0, "SEND", "comm", 1000, 0, []),
        (1, "F", "compute", 0, 1e12, []),
        (1, "RECV", "comm", 1000, 0, [1]),
    ]
    report = SimExecutor(PAIR).run(table(rows))
    assert report.seconds == pytest.approx(CostModel().op(OpCost(1e12, 0, "fp32", "gemm", ()), LAPTOP).seconds)
    assert len(report.spans) == 3


def test_a_recorded_program_that_cannot_end_says_where():
    cycle = [(0, "F", "compute", 0, 1e9, [1]), (0, "F", "comm", 0, 1e9, [0])]
    with pytest.raises(Deadlock, match="operation 100 on rank 0"):
        SimExecutor(PAIR).run(table(cycle))
    with pytest.raises(SimulationError, match="0 partners instead of 1"):
        SimExecutor(PAIR).run(table([(0, "SEND", "comm", 10, 0, [])]))
    with pytest.raises(UsageError, match="rank 5"):
        SimExecutor(PAIR).run(table([(5, "F", "compute", 0, 1e9, [])]))


def test_quantiles_are_numpys_and_busy_time_is_a_union():
    values = sorted(np.random.default_rng(0).random(37).tolist())
    for q in (0.0, 0.5, 0.95, 0.99, 1.0):
        assert quantile(values, q) == pytest.approx(np.quantile(values, q))
    report = run(yields(product("a"), product("b")), ClusterSpec.single(LAPTOP))
    assert busy_seconds(report.spans) == pytest.approx(report.seconds)
    assert not math.isnan(report.seconds)
