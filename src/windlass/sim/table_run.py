"""Runs a recorded program (`core.program.OpTable`) on the virtual clock.

A row starts when the rows it depends on are done and the rows before it on its stream have started their turn; rows of
one stream run in table order. A collective starts when its last member is ready. Nothing is generated a row but its
events, so that programs of 10^5 operations stay cheap.
"""

from __future__ import annotations

from typing import Any

from windlass.core.errors import SimulationError, UsageError
from windlass.core.program import OpCost, OpTable
from windlass.sim.cost import CollectiveKind
from windlass.sim.engine import Deadlock, Event
from windlass.sim.report import SimReport, Span
from windlass.sim.world import World

_COLLECTIVES: dict[str, CollectiveKind] = {
    "ALL_REDUCE": "all_reduce",
    "ALL_GATHER": "all_gather",
    "REDUCE_SCATTER": "reduce_scatter",
    "ALL_TO_ALL": "all_to_all",
}


def run_table(world: World, table: OpTable) -> SimReport:
    """Run `table` to its end. Spans are named by the ids of the rows, in the order in which they ended.

    Raises:
        Deadlock: rows that can never start.
        UsageError: a row names a rank the cluster does not have.
    """
    from windlass.sim.executor import world_report

    run = _TableRun(world, table)
    run.start()
    world.sim.run()
    if run.left:
        waiting = [f"operation {table.id[row]} on rank {table.rank[row]}" for row in run.unfinished()]
        raise Deadlock(waiting)
    return world_report(world, run.spans, run.band)


class _TableRun:
    def __init__(self, world: World, table: OpTable) -> None:
        self.world, self.table = world, table
        self.rank: list[int] = table.rank.tolist()
        self.kind = [table.kinds[kind] for kind in table.kind.tolist()]
        self.stream = [table.streams[stream] for stream in table.stream.tolist()]
        self.left = count = len(self.rank)
        if count and not 0 <= min(self.rank) <= max(self.rank) < len(world.devices):
            raise UsageError(
                f"a program for rank {max(self.rank)} on {len(world.devices)} devices", hint="use a larger cluster"
            )
        starts, deps = table.dep_starts.tolist(), table.deps.tolist()
        self.missing = [0] * count
        self.followers: list[list[int]] = [[] for _ in range(count)]
        self.bands = [0.0] * count
        self.spans: list[Span] = []
        self.band = 0.0
        last: dict[tuple[int, str], int] = {}
        for row in range(count):
            before = set(deps[starts[row] : starts[row + 1]])
            lane = (self.rank[row], self.stream[row])
            if lane in last:
                before.add(last[lane])
            last[lane] = row
            self.missing[row] = len(before)
            for earlier in before:
                self.followers[earlier].append(row)
        self.partners = self._partners()
        self.arrived: dict[int, int] = {}

    def start(self) -> None:
        for row in [row for row, missing in enumerate(self.missing) if not missing]:
            self._ready(row)

    def unfinished(self) -> list[int]:
        return [row for row, missing in enumerate(self.missing) if missing >= 0]

    def _partners(self) -> dict[int, list[int]]:
        """Row -> the rows that communicate together with it, matched in table order within their group."""
        turns: dict[tuple[Any, ...], int] = {}
        meetings: dict[tuple[Any, ...], list[int]] = {}
        for row, kind in enumerate(self.kind):
            group = int(self.table.group[row])
            if kind in _COLLECTIVES or kind in ("SEND", "RECV"):
                what = "pair" if kind in ("SEND", "RECV") else kind
                turn = turns[group, what, kind, self.rank[row]] = turns.get((group, what, kind, self.rank[row]), -1) + 1
                meetings.setdefault((group, what, turn), []).append(row)
        return {row: rows for rows in meetings.values() for row in rows}

    def _ready(self, row: int) -> None:
        kind = self.kind[row]
        if row not in self.partners:
            self._local(row)
            return
        rows = self.partners[row]
        members = 2 if kind in ("SEND", "RECV") else len(self.table.groups[int(self.table.group[row])])
        if len(rows) != members:
            raise SimulationError(
                f"operation {self.table.id[row]} ({kind}) has {len(rows) - 1} partners instead of {members - 1}",
                hint="every member of a group calls its collectives, every SEND has its RECV",
            )
        head = rows[0]
        self.arrived[head] = self.arrived.get(head, 0) + 1
        if kind == "SEND" or (kind in _COLLECTIVES and self.arrived[head] == members):
            self._communicate(row, rows)
        elif kind == "RECV" and self.bands[row] < 0:
            self._finish(row, self.world.sim.now)  # the message was there first

    def _local(self, row: int) -> None:
        flops, nbytes = float(self.table.flops[row]), float(self.table.nbytes[row])
        begun = self.world.sim.now
        if not flops and not nbytes:
            self.world.sim.after(0.0, self._finish, row, begun)
            return
        cost = OpCost(flops, nbytes, self.table.dtype, "gemm" if flops else "copy", ())
        kernel, error = self.world.compute(self.rank[row], cost, self.stream[row], self.kind[row])
        self.bands[row] += kernel.seconds * error
        kernel.then(lambda event: self._settled(row, event, kernel.began))

    def _communicate(self, row: int, rows: list[int]) -> None:
        begun = self.world.sim.now
        nbytes = int(max(self.table.nbytes[each] for each in rows))
        if self.kind[row] == "SEND":
            src, dst = self.table.groups[int(self.table.group[row])]
            flow = self.world.send(src, dst, nbytes)
            receiver = next(each for each in rows if each != row)
            flow.sent.then(lambda event: self._settled(row, event, begun))
            flow.then(lambda event: self._received(receiver, event, begun, self.bands[row]))
            return
        group = self.table.groups[int(self.table.group[row])]
        kind = _COLLECTIVES[self.kind[row]]
        error = self.world.collective_error(kind, nbytes, group)
        band = max(self.bands[each] for each in rows)

        def over(event: Event) -> None:
            for each in rows:
                self.bands[each] = band + (self.world.sim.now - begun) * error
                self._settled(each, event, begun)

        self.world.collective(kind, nbytes, group).then(over)

    def _received(self, row: int, event: Event, begun: float, band: float) -> None:
        if event.error is not None:
            raise event.error
        if self.missing[row]:
            self.bands[row] = -1.0  # arrived before its receiver asked
        else:
            self.bands[row] = max(self.bands[row], band)
            self._finish(row, begun)

    def _settled(self, row: int, event: Event, begun: float) -> None:
        if event.error is not None:
            raise event.error
        self._finish(row, begun)

    def _finish(self, row: int, begun: float) -> None:
        self.left -= 1
        self.missing[row] = -1
        band = max(self.bands[row], 0.0)
        self.band = max(self.band, band)
        nbytes = float(self.table.nbytes[row])
        self.spans.append(
            Span(
                self.rank[row],
                self.stream[row],
                str(int(self.table.id[row])),
                self.kind[row],
                begun,
                self.world.sim.now,
                nbytes,
            )
        )
        for follower in self.followers[row]:
            self.bands[follower] = max(self.bands[follower], band) if self.bands[follower] >= 0 else -1.0
            self.missing[follower] -= 1
            if not self.missing[follower]:
                self._ready(follower)
