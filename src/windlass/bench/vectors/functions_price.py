"""What filtered search by functions would cost in a cloud, on a virtual clock; every figure of it is simulated.

A tree of allocators starts, and each calls one function for each near part. A function starts cold or warm, reads its
part from an object store unless it kept it from an earlier call, and computes. Paid are memory times seconds, calls,
and reads of the store.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from windlass.bench.report import Metric, metric
from windlass.sim.engine import AllOf, Sim
from windlass.vectors.functions import BATCH, LaunchTree


@dataclass(frozen=True)
class Cloud:
    """Prices and delays of a provider of functions, in dollars and seconds."""

    cold: float = 0.25
    warm: float = 0.015
    gigabytes: float = 1.77
    gigabyte_second: float = 1.66667e-5
    call: float = 2e-7
    read: float = 4e-7
    read_delay: float = 0.03
    read_bytes: float = 90e6
    row_seconds: float = 30e-9
    query_seconds: float = 2e-4


@dataclass
class _Bill:
    seconds: float = 0.0
    calls: int = 0
    reads: int = 0
    idle: dict[Any, int] = field(default_factory=dict)


def simulated_price(rows: int, parts: int, code_bytes: int, queries: int) -> list[Metric]:
    """The price of a thousand queries and the time of a round of them, with and without parts that are kept."""
    cloud = Cloud()
    kept, loaded = (_price(cloud, rows // parts, parts, code_bytes // parts, queries, keep) for keep in (True, False))
    note = "simulated: a tree of 84 allocators, five rounds, the first one cold"
    return [
        metric(
            "price of 1,000 queries, parts kept",
            "USD",
            kept[0],
            better="lower",
            peer=loaded[0],
            peer_name="parts read at each call",
            least_ratio=2.0,
            note=note,
        ),
        metric(
            "seconds of the last round, parts kept",
            "s",
            kept[1],
            better="lower",
            peer=loaded[1],
            peer_name="parts read at each call",
            note=note,
        ),
    ]


def _price(cloud: Cloud, rows: int, parts: int, part_bytes: int, queries: int, keep: bool) -> tuple[float, float]:
    sim, bill, tree, last = Sim(), _Bill(), LaunchTree(), 0.0
    rounds = 5

    def function(name: Any, seconds: float, load: int = 0) -> Generator[Any, Any, None]:
        cold = bill.idle.get(name, 0) == 0
        if not cold:
            bill.idle[name] -= 1
        bill.calls += 1
        yield cloud.cold if cold else cloud.warm
        if load and (cold or not keep):
            bill.reads += 1
            seconds += cloud.read_delay + load / cloud.read_bytes
        yield seconds
        bill.seconds += seconds
        bill.idle[name] = bill.idle.get(name, 0) + 1

    def allocator(number: int, level: int) -> Generator[Any, Any, None]:
        own = len(tree.share(number, queries)) if number >= 0 else 0
        cold = bill.idle.get("allocator", 0) == 0
        if number >= 0:
            bill.idle["allocator"] = max(0, bill.idle.get("allocator", 0) - 1)
            bill.calls += 1
            yield cloud.cold if cold else cloud.warm
        began = sim.now
        waiting = [sim.spawn(allocator(child, level + 1)) for child in tree.children(number, level) if child < queries]
        for start in range(0, own, BATCH):
            asked = min(BATCH, own - start)
            work = asked * (cloud.query_seconds + rows * cloud.row_seconds)
            waiting += [sim.spawn(function(("part", part), work, part_bytes)) for part in range(parts)]
        if waiting:
            yield AllOf(*waiting)
        if number >= 0:
            bill.seconds += sim.now - began
            bill.idle["allocator"] = bill.idle.get("allocator", 0) + 1

    def caller() -> Generator[Any, Any, None]:
        nonlocal last
        for _ in range(rounds):
            began = sim.now
            yield sim.spawn(allocator(-1, 0))
            last = sim.now - began

    sim.spawn(caller())
    sim.run()
    price = bill.seconds * cloud.gigabytes * cloud.gigabyte_second + bill.calls * cloud.call + bill.reads * cloud.read
    return price * 1000 / (rounds * queries), last
