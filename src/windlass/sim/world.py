"""A cluster in virtual time: its devices, its wires, and what is under way on them.

Every executor of the simulator asks for the same four things here: a kernel on a device, a message between two, a
collective among several, a copy between the memories of one. Each is an event; its error bar travels with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from windlass.core.errors import SimulationError, UsageError
from windlass.core.program import OpCost
from windlass.sim import collectives
from windlass.sim.cluster import ClusterSpec, Link, channel_key
from windlass.sim.cost import CollectiveKind, CostModel
from windlass.sim.engine import AllOf, Event, Sim, Steps
from windlass.sim.sharing import Channel, Flow, Kernel, Network, Processor, SimTier

FaultKind = Literal["slow_device", "fail_device", "slow_link", "fail_link"]


class Lost(SimulationError):
    """A device or a link went down while something needed it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a time.

    Attributes:
        at: Virtual seconds.
        kind: `slow_device` and `slow_link` run at `factor` of their speed from then on; the other two are gone.
        target: A rank, or the two endpoints of a link.
    """

    at: float
    kind: FaultKind
    target: int | tuple[str, str]
    factor: float = 1.0


class World:
    """Devices and wires of a cluster on a simulation's clock.

    Args:
        cost: Prices kernels, and collectives on fabrics that somebody measured.
        faults: What goes wrong, and when.
    """

    def __init__(self, sim: Sim, cluster: ClusterSpec, cost: CostModel, faults: Iterable[Fault] = ()) -> None:
        self.sim, self.cluster, self.cost = sim, cluster, cost
        self.network = Network(sim)
        self.devices = [Processor(sim, spec.units, f"device {i}") for i, spec in enumerate(cluster.devices)]
        self.channels: dict[tuple[str, ...], Channel] = {}
        self.joules = [0.0] * len(self.devices)  # above idle
        self._tiers: dict[tuple[int, str], SimTier] = {}
        self._gone: dict[int | tuple[str, ...], Lost] = {}
        for fault in faults:
            sim.at(fault.at, self._strike, fault)

    def compute(self, rank: int, cost: OpCost, stream: str = "main", name: str = "kernel") -> tuple[Kernel, float]:
        """Start a kernel; returns it and its relative error."""
        spec = self.cluster.devices[rank]
        estimate = self.cost.op(cost, spec)
        share = min(1.0, cost.bytes / spec.mem_bw / estimate.seconds) if estimate.seconds else 0.0
        kernel = self.devices[rank].submit(
            estimate.seconds, units=cost.units, bandwidth=share, stream=stream, name=name
        )
        if rank in self._gone:
            self.devices[rank].fail(self._gone[rank])
        if estimate.joules is not None:
            self.joules[rank] += estimate.joules - spec.idle_w * estimate.seconds
        return kernel, estimate.error

    def send(self, src: int, dst: int, nbytes: float, name: str = "message") -> Flow:
        """Start a message; `Flow.sent` happens when it left, the flow itself when it arrived."""
        path = self.cluster.path(src, dst) if src != dst else []
        flow = self.network.transfer(
            nbytes, [self.channel(link) for link in path], sum(link.latency for link in path), name
        )
        for link in path:
            lost = self._gone.get(channel_key(link))
            if lost is not None:
                self.network.fail(self.channel(link), lost)
        return flow

    def collective(self, kind: CollectiveKind, nbytes: int, ranks: Sequence[int], algo: str = "auto") -> Event:
        """Start a collective: by its measured line where there is one, else message by message over the wires."""
        fit = self.cost.fit_for(kind, ranks) if algo == "auto" and len(ranks) > 1 else None
        if fit is not None:
            return self.sim.after(fit.seconds(nbytes))
        return self.sim.spawn(self._exchange(kind, nbytes, ranks, algo), name=f"{kind} among {len(ranks)}")

    def collective_error(self, kind: CollectiveKind, nbytes: int, ranks: Sequence[int], algo: str = "auto") -> float:
        """Relative error of a collective."""
        return self.cost.collective(kind, nbytes, ranks, algo).error

    def move(self, rank: int, nbytes: float, to_tier: str, from_tier: str | None) -> Flow:
        """Copy between two memories of a device; from the slowest one unless told otherwise."""
        source = self.tier(rank, from_tier if from_tier is not None else self.cluster.devices[rank].tiers[-1].name)
        return source.move_to(self.tier(rank, to_tier), nbytes)

    def tier(self, rank: int, name: str) -> SimTier:
        """The memory of a device called `name`.

        Raises:
            UsageError: it has none of that name.
        """
        key = (rank, name)
        if key not in self._tiers:
            known = {tier.name: tier for tier in self.cluster.devices[rank].tiers}
            if name not in known:
                raise UsageError(f"device {rank} has no memory tier {name!r}", hint=f"it has {', '.join(known)}")
            row = known[name]
            self._tiers[key] = SimTier(
                self.network, f"{name} of {rank}", row.capacity, row.read_bw, row.write_bw, row.latency
            )
        return self._tiers[key]

    def channel(self, link: Link) -> Channel:
        """What limits a direction of a link: itself, both directions together, or its medium."""
        key = channel_key(link)
        if key not in self.channels:
            self.channels[key] = Channel("link " + ">".join(key), link.bandwidth)
        return self.channels[key]

    def _exchange(self, kind: str, nbytes: float, ranks: Sequence[int], algo: str) -> Steps:
        if len(ranks) < 2:
            return
        if kind == "all_reduce" and algo == "auto":
            algo = collectives.best_algorithm(nbytes, ranks, self.cluster)
        for messages in collectives.rounds(kind, nbytes, ranks, algo, self.cluster):
            yield AllOf(*(self.send(a, b, size, f"{kind} {a}>{b}") for a, b, size in messages))

    def _strike(self, fault: Fault) -> None:
        if isinstance(fault.target, int):
            device = self.devices[fault.target]
            if fault.kind == "slow_device":
                device.set_speed(device.speed * fault.factor)
            elif fault.kind == "fail_device":
                lost = Lost(f"device {fault.target} failed at {fault.at:g} s")
                self._gone[fault.target] = lost
                device.fail(lost)
            else:
                raise UsageError(f"{fault.kind} of device {fault.target}", hint="a link is two endpoints")
            return
        for a, b in (fault.target, fault.target[::-1]):
            for link in self.cluster.path(a, b):
                channel = self.channel(link)
                if fault.kind == "slow_link":
                    self.network.set_capacity(channel, link.bandwidth * fault.factor)
                elif fault.kind == "fail_link":
                    lost = Lost(f"the link between {a} and {b} failed at {fault.at:g} s")
                    self._gone[channel_key(link)] = lost
                    self.network.fail(channel, lost)
                else:
                    raise UsageError(f"{fault.kind} of the link {a} - {b}", hint="a device is one rank")
