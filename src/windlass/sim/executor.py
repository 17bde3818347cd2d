"""Runs policies on the virtual clock: the same generators that run on real processes.

Every rank's program is a process. `yield op` starts an operation and goes on; `yield Wait(...)` lets time pass until it
is done. Arrays are `Shape`s: functions of `Compute` are never called, what depends on data comes from an `Observe`.
Error bars follow the work: one after the other they add, side by side the larger one counts, along whatever chain of
operations finishes last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from windlass.core import program as work_of
from windlass.core.errors import SimulationError, UsageError
from windlass.core.program import OpTable, Policy, RankState, Shape, Wait
from windlass.sim.cluster import ClusterSpec
from windlass.sim.cost import CollectiveKind, CostModel
from windlass.sim.engine import AllOf, Event, Sim, Steps
from windlass.sim.report import Mark, SimReport, Slo, Span, request_metrics
from windlass.sim.sharing import Kernel
from windlass.sim.table_run import run_table
from windlass.sim.trace import RequestTrace
from windlass.sim.world import Fault, Lost, World

_KINDS: dict[type, CollectiveKind] = {
    work_of.AllReduce: "all_reduce",
    work_of.AllGather: "all_gather",
    work_of.ReduceScatter: "reduce_scatter",
    work_of.AllToAllV: "all_to_all",
}


class SimExecutor:
    """The simulated executor: `run` takes a policy, one policy a rank, or a recorded program.

    Args:
        cluster: Devices; rank r runs on device r.
        cost: Prices; None: the published calibration.
        seed: Of everything random.
        slo: What goodput counts as served well.
        faults: What goes wrong, and when.

    Example:
        >>> from windlass.core.program import AllReduce, Compute, OpCost
        >>> class Halves:
        ...     def program(self, state, request):
        ...         part = yield Compute("up", None, (), OpCost.gemm(512, 4096, 4096, "bf16"))
        ...         total = yield AllReduce((yield Wait(part)))
        ...         return (yield Wait(total))
        >>> report = SimExecutor(ClusterSpec.parse("1x2xH100")).run(Halves())
        >>> report.mode, report.results[0].shape, 1e-5 < report.seconds < 1e-3
        ('simulated', (512, 4096), True)
    """

    mode: work_of.Mode = "simulated"

    def __init__(
        self,
        cluster: ClusterSpec,
        cost: CostModel | None = None,
        seed: int = 0,
        *,
        slo: Slo | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        self.cluster = cluster
        self.cost = cost if cost is not None else CostModel(cluster)
        self.seed, self.slo, self.faults = seed, slo, tuple(faults)

    def run(
        self, work: Policy | Sequence[Policy] | OpTable, request: Any = None, state: Sequence[RankState] | None = None
    ) -> SimReport:
        """Run `work` to its end and report.

        Args:
            request: Handed to the programs. A `RequestTrace` starts one program a request and rank, at its arrival,
                and the report holds percentiles; a policy marks `first_token` where a request gets its first.
            state: What each rank keeps; None: fresh.

        Raises:
            Deadlock: programs wait for each other.
            SimulationError: ranks disagree about a collective, or a device they need was lost.
        """
        sim = Sim(self.seed)
        world = World(sim, self.cluster, self.cost, self.faults)
        if hasattr(work, "dep_starts"):
            return run_table(world, work)  # type: ignore[arg-type]
        run = _Run(world, work, state)  # type: ignore[arg-type]
        requests = request if isinstance(request, RequestTrace) else None
        if requests is None:
            run.start(request, -1)
        else:
            for index, arrival in enumerate(requests.arrival_s.tolist()):
                sim.at(arrival, run.start, requests.request(index), index)
        sim.run()
        report = run.report()
        if requests is not None:
            report.metrics |= run.request_metrics(requests, self.slo)
        return report


@dataclass(slots=True, eq=False)
class _Running:
    """An operation under way: what `yield op` returns."""

    op: work_of.Op
    done: Event
    value: Any = None
    band: float = 0.0  # seconds that the time of `done` may be off


@dataclass(slots=True, eq=False)
class _Meeting:
    """A collective that waits for its members."""

    kind: CollectiveKind
    algo: str
    members: dict[int, Any]
    runnings: dict[int, _Running]


class _Run:
    """One run of policies: mailboxes, meetings, and what happened."""

    def __init__(self, world: World, work: Policy | Sequence[Policy], state: Sequence[RankState] | None) -> None:
        self.world, self.sim = world, world.sim
        count = len(world.devices)
        self.policies: list[Policy] = list(work) if isinstance(work, Sequence) else [work] * count
        if len(self.policies) != count:
            raise UsageError(f"{len(self.policies)} policies for {count} devices", hint="one policy, or one a device")
        self.states = list(state) if state is not None else [RankState(rank, count) for rank in range(count)]
        self.spans: list[Span] = []
        self.marks: list[Mark] = []
        self.results: list[Any] = [None] * count
        self.band = 0.0
        self.ended: dict[int, float] = {}
        self.first_token: dict[int, float] = {}
        self._mail: dict[tuple[int, int, str, int], deque[_Running]] = {}
        self._readers: dict[tuple[int, int, str, int], deque[_Running]] = {}
        self._meetings: dict[tuple[tuple[int, ...], int, int], _Meeting] = {}
        self._met: dict[tuple[int, tuple[int, ...], int], int] = {}
        self._bands: dict[tuple[int, str], float] = {}
        self._observed: dict[int, int] = {}

    def start(self, request: Any, index: int) -> None:
        """Start the program of every rank for one request."""
        for rank, policy in enumerate(self.policies):
            generator = policy.program(self.states[rank], request)
            self.sim.spawn(self._drive(rank, generator, index), name=f"rank {rank}")

    def _drive(self, rank: int, generator: work_of.Program, index: int) -> Steps:
        value: Any = None
        lost: Lost | None = None
        band = 0.0
        while True:
            try:
                yielded = generator.send(value) if lost is None else generator.throw(lost)
            except StopIteration as stop:
                self.results[rank] = stop.value
                break
            lost = None
            if isinstance(yielded, Wait):
                joined: list[Any] = list(yielded.started)
                try:
                    yield AllOf(*(each.done for each in joined))
                except Lost as error:
                    lost = error  # the policy may know what to do without it
                    continue
                band = max(band, *(each.band for each in joined))
                value = joined[0].value if len(joined) == 1 else tuple(each.value for each in joined)
            else:
                value = self._begin(rank, yielded, index, band)
        self.band = max(self.band, band)
        self.ended[index] = self.sim.now

    def _begin(self, rank: int, op: work_of.Op, index: int, band: float) -> Any:
        if isinstance(op, work_of.Compute):
            return self._compute(rank, op, index, band)
        if isinstance(op, work_of.Send):
            return self._send(rank, op, index, band)
        if isinstance(op, work_of.Recv):
            return self._receive(rank, op, index)
        if isinstance(op, work_of.Move):
            return self._move(rank, op, index, band)
        if type(op) in _KINDS:
            return self._meet(rank, op, index, band)  # type: ignore[arg-type]
        if isinstance(op, work_of.Observe):
            self._observed[rank] = self._observed.get(rank, 0) + 1
            return self._at_once(op, op.stand_in(self.sim.rng(f"{op.name} {rank} {self._observed[rank]}")))
        if isinstance(op, work_of.Mark):
            self.marks.append(Mark(rank, op.name, self.sim.now, index))
            if op.name == "first_token":
                self.first_token.setdefault(index, self.sim.now)
            return self._at_once(op, None)
        raise UsageError(f"a policy yielded {op!r}", hint="an operation of core.program, or a Wait")

    def _compute(self, rank: int, op: work_of.Compute, index: int, band: float) -> _Running:
        kernel, error = self.world.compute(rank, op.cost, op.stream, op.name)
        before = self._bands.get((rank, op.stream), 0.0)
        running = _Running(op, kernel, _result(op), max(band, before) + kernel.seconds * error)
        self._bands[rank, op.stream] = running.band
        kernel.then(lambda _: self._note(rank, op.stream, op.name, op.cost.kind, kernel, op.cost.bytes, index))
        return running

    def _send(self, rank: int, op: work_of.Send, index: int, band: float) -> _Running:
        nbytes = _nbytes(op.x)
        flow = self.world.send(rank, op.dst, nbytes, f"send {rank}>{op.dst} {op.tag}")
        alone = self.world.cost.collective("send_recv", int(nbytes), (rank, op.dst)) if op.dst != rank else None
        own = alone.seconds * alone.error if alone is not None else 0.0
        begun = self.sim.now
        letter = _Running(op, flow, op.x, band + own)
        key = (rank, op.dst, op.tag, index)
        readers = self._readers.get(key)
        if readers:
            self._deliver(letter, readers.popleft())
        else:
            self._mail.setdefault(key, deque()).append(letter)
        flow.then(lambda _: self._span(rank, "send", flow.name, "send", begun, nbytes, index))
        return _Running(op, flow.sent, None, band + own)

    def _receive(self, rank: int, op: work_of.Recv, index: int) -> _Running:
        reader = _Running(op, self.sim.event(f"a message {op.src}>{rank} {op.tag}".rstrip()))
        key = (op.src, rank, op.tag, index)
        letters = self._mail.get(key)
        if letters:
            self._deliver(letters.popleft(), reader)
        else:
            self._readers.setdefault(key, deque()).append(reader)
        return reader

    def _deliver(self, letter: _Running, reader: _Running) -> None:
        def arrive(flow: Event) -> None:
            reader.value, reader.band = letter.value, letter.band
            reader.done.fail(flow.error) if flow.error is not None else reader.done.succeed()

        letter.done.then(arrive)

    def _move(self, rank: int, op: work_of.Move, index: int, band: float) -> _Running:
        nbytes, begun = _nbytes(op.block), self.sim.now
        flow = self.world.move(rank, nbytes, op.to_tier, op.from_tier)
        flow.then(lambda _: self._span(rank, "move", flow.name, "move", begun, nbytes, index))
        return _Running(op, flow, op.block, band)

    def _meet(self, rank: int, op: work_of.Collective, index: int, band: float) -> _Running:
        group = op.group if op.group is not None else tuple(range(len(self.policies)))
        if rank not in group:
            raise SimulationError(f"rank {rank} joined a collective of {group}", hint="a member of its group")
        turn = self._met.get((rank, group, index), 0)
        self._met[rank, group, index] = turn + 1
        kind, algo = _KINDS[type(op)], op.algo if isinstance(op, work_of.AllReduce) else "auto"
        meeting = self._meetings.setdefault((group, turn, index), _Meeting(kind, algo, {}, {}))
        if (meeting.kind, meeting.algo) != (kind, algo):
            raise SimulationError(
                f"rank {rank} called {kind} where another member of {group} called {meeting.kind}",
                hint="all members call the same collectives in the same order",
            )
        running = _Running(op, self.sim.event(f"{kind} number {turn + 1} of {group}"), None, band)
        meeting.members[rank] = op.xs if isinstance(op, work_of.AllToAllV) else op.x
        meeting.runnings[rank] = running
        if len(meeting.members) == len(group):
            del self._meetings[group, turn, index]
            self._go(meeting, group, index)
        return running

    def _go(self, meeting: _Meeting, group: tuple[int, ...], index: int) -> None:
        sizes = {rank: _nbytes(x) for rank, x in meeting.members.items()}
        payload = int(sum(sizes.values()) if meeting.kind == "all_gather" else max(sizes.values()))
        begun = self.sim.now
        band = max(running.band for running in meeting.runnings.values())
        done = self.world.collective(meeting.kind, payload, group, meeting.algo)
        error = self.world.collective_error(meeting.kind, payload, group, meeting.algo)

        def finish(event: Event) -> None:
            for rank, running in meeting.runnings.items():
                self._span(rank, "comm", meeting.kind, meeting.kind, begun, sizes[rank], index)
                running.value = _outcome(meeting.kind, meeting.members, group, rank)
                running.band = band + (self.sim.now - begun) * error
                running.done.fail(event.error) if event.error is not None else running.done.succeed()

        done.then(finish)

    def _at_once(self, op: work_of.Op, value: Any) -> _Running:
        done = self.sim.event()
        done.succeed()
        return _Running(op, done, value)

    def _note(self, rank: int, stream: str, name: str, kind: str, kernel: Kernel, nbytes: float, index: int) -> None:
        self.spans.append(Span(rank, stream, name, kind, kernel.began, self.sim.now, nbytes, index))

    def _span(self, rank: int, stream: str, name: str, kind: str, begun: float, nbytes: float, index: int) -> None:
        self.spans.append(Span(rank, stream, name, kind, begun, self.sim.now, nbytes, index))

    def report(self) -> SimReport:
        """What happened."""
        report = world_report(self.world, self.spans, self.band)
        return replace(report, marks=self.marks, results=self.results)

    def request_metrics(self, trace: RequestTrace, slo: Slo | None) -> dict[str, float]:
        """Percentiles over the requests that ended."""
        count = len(trace.arrival_s)
        done = [self.ended.get(i, float("nan")) for i in range(count)]
        first = [self.first_token.get(i, float("nan")) for i in range(count)]
        return request_metrics(trace.arrival_s.tolist(), first, done, trace.output_tokens.tolist(), slo)


def world_report(world: World, spans: list[Span], band: float) -> SimReport:
    """The part of a report that does not depend on what ran."""
    seconds = world.sim.now
    utilisation = {device.name: device.busy / seconds for device in world.devices if seconds}
    carried = {channel.name.removeprefix("link "): channel for channel in world.channels.values()}
    utilisation |= {
        f"link {name}": channel.carried / (channel.capacity * seconds)
        for name, channel in carried.items()
        if seconds and channel.capacity
    }
    specs = world.cluster.devices
    joules = sum(spec.idle_w * seconds + above for spec, above in zip(specs, world.joules, strict=True))
    names = sorted({spec.name for spec in specs})
    return SimReport(
        mode="simulated",
        seconds=seconds,
        error=band / seconds if seconds else 0.0,
        assumptions=[_assumption(world, name) for name in names],
        spans=spans,
        utilisation=utilisation,
        link_bytes={name: channel.carried for name, channel in carried.items()},
        joules=joules,
    )


def _assumption(world: World, name: str) -> str:
    spec = next(spec for spec in world.cluster.devices if spec.name == name)
    fitted = world.cost.efficiency(spec)
    basis = f"fitted on {fitted.fitted_on}" if fitted.fitted_on else "guessed from the data sheet"
    checked = "checked" if spec.verified else "not checked"
    return f"{name}: data sheet {checked}; efficiencies {basis}, matrix products off by {fitted.error:.0%} on average"


def _result(op: work_of.Compute) -> Any:
    if op.out is not None:
        return op.out
    if op.cost.kind == "gemm" and len(op.cost.shape) == 3:
        return Shape(op.cost.shape[:2], op.cost.dtype)
    return op.args[0] if op.args else None


def _nbytes(x: Any) -> float:
    if isinstance(x, tuple | list):
        return float(sum(_nbytes(each) for each in x))
    size = getattr(x, "nbytes", None)
    if size is None:
        raise UsageError(f"{type(x).__name__} has no size in bytes", hint="send an array or a core.program.Shape")
    return float(size)


def _outcome(kind: str, members: dict[int, Any], group: tuple[int, ...], rank: int) -> Any:
    mine = members[rank]
    if kind == "all_to_all":
        return tuple(members[other][group.index(rank)] for other in group)
    if kind == "all_reduce" or not isinstance(mine, Shape):
        return mine
    first = sum(members[other].shape[0] for other in group) if kind == "all_gather" else mine.shape[0] // len(group)
    return Shape((first, *mine.shape[1:]), mine.dtype)
