"""What is shared while time passes: a device by its kernels, links by the flows that cross them, memory by its blocks.

A device runs the head of each of its streams. A kernel asks for processors and for a part of the memory bandwidth;
when the sum exceeds the device, grants are proportional, and a kernel runs at the worse of its two shares. Rates
change only when a kernel starts or ends.

A flow crosses channels (one direction of a link, a medium, a side of a memory tier) and gets the max-min fair rate:
all rates grow together until a channel is full, its flows are fixed, the others grow on (progressive filling).
Rates change only when a flow starts or ends, and only those of flows that share a channel, however far along.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from windlass.core.errors import SimulationError, UsageError
from windlass.sim.engine import Event, Sim, Timer

_SAME = 1e-12  # relative; smaller changes of a rate are rounding


class OutOfTier(SimulationError):
    """Something does not fit in a memory tier.

    Attributes:
        tier: Its name.
        need, have: Bytes asked for, and free.
    """

    def __init__(self, tier: str, need: float, have: float) -> None:
        self.tier, self.need, self.have = tier, need, have
        super().__init__(
            f"{need:,.0f} bytes do not fit in tier {tier}, which has {have:,.0f} free",
            hint="use a larger tier, smaller blocks, or evict first",
        )


class Kernel(Event):
    """One operation on a device; it happens when it is done.

    Attributes:
        seconds: When it runs alone.
        units, bandwidth: Processors, and part of the memory bandwidth, that it keeps busy.
        began: When it started to run; NaN while it waits in its stream.
    """

    __slots__ = ("bandwidth", "began", "left", "rate", "seconds", "units")

    def __init__(self, sim: Sim, seconds: float, units: float, bandwidth: float, name: str) -> None:
        super().__init__(sim, name)
        self.seconds, self.units, self.bandwidth = seconds, units, bandwidth
        self.left, self.rate, self.began = seconds, 0.0, math.nan


class Processor:
    """A device: streams that run side by side, kernels of one stream in order.

    Args:
        units: Processors it has (SMs, cores).
        speed: 1.0 as it should be; 0.5 half as fast; may be changed with `set_speed`.

    Attributes:
        busy: Seconds during which at least one kernel ran.
        work: Seconds of kernels finished, as if each had run alone.

    Example:
        >>> sim = Sim()
        >>> device = Processor(sim, units=8)
        >>> both = [device.submit(1.0, units=8, stream=name) for name in ("compute", "copy")]
        >>> sim.run().now  # each wants all processors, so each runs at half speed
        2.0
    """

    def __init__(self, sim: Sim, units: float, name: str = "device", speed: float = 1.0) -> None:
        if not 0 < units < math.inf:
            raise UsageError(f"{name}: {units} units", hint="a device has at least one processor")
        self.sim, self.units, self.name, self.speed = sim, units, name, speed
        self.busy = self.work = 0.0
        self._streams: dict[str, deque[Kernel]] = {}
        self._running: dict[Kernel, str] = {}
        self._since = 0.0
        self._timer: Timer | None = None

    def submit(
        self,
        seconds: float,
        *,
        units: float | None = None,
        bandwidth: float = 0.0,
        stream: str = "main",
        name: str = "kernel",
    ) -> Kernel:
        """Queue a kernel on `stream`.

        Args:
            seconds: How long it takes alone.
            units: Processors it occupies; None: all.
            bandwidth: Part of the device's memory bandwidth that it uses when alone, 0 to 1.
        """
        if not (0 <= seconds < math.inf and 0 <= bandwidth <= 1):
            raise UsageError(
                f"{self.name}: a kernel of {seconds} s that uses {bandwidth} of the bandwidth",
                hint="seconds are finite and not negative, the part is 0 to 1",
            )
        wanted = self.units if units is None else min(units, self.units)
        kernel = Kernel(self.sim, seconds, wanted, bandwidth, name)
        queue = self._streams.setdefault(stream, deque())
        queue.append(kernel)
        if len(queue) == 1:
            self._advance()
            self._start(kernel, stream)
            self._share()
        return kernel

    def set_speed(self, speed: float) -> None:
        """Run at `speed` from now on; 0 stands still."""
        if not 0 <= speed < math.inf:
            raise UsageError(f"{self.name}: speed {speed}", hint="a speed is finite and not negative")
        self._advance()
        self.speed = speed
        self._share()

    def fail(self, error: BaseException) -> None:
        """Everything queued or running fails with `error`."""
        self._advance()
        lost = [kernel for queue in self._streams.values() for kernel in queue]
        self._streams.clear()
        self._running.clear()
        self._share()
        for kernel in lost:
            kernel.fail(error)

    def _advance(self) -> None:
        passed = self.sim.now - self._since
        self._since = self.sim.now
        if passed > 0 and self._running:
            self.busy += passed
            for kernel in self._running:
                kernel.left -= passed * kernel.rate

    def _share(self) -> None:
        units = sum(kernel.units for kernel in self._running)
        bandwidth = sum(kernel.bandwidth for kernel in self._running)
        of_units = min(1.0, self.units / units) if units > 0 else 1.0
        of_bandwidth = min(1.0, 1.0 / bandwidth) if bandwidth > 0 else 1.0
        soonest = math.inf
        for kernel in self._running:
            kernel.rate = self.speed * min(of_units if kernel.units else 1.0, of_bandwidth if kernel.bandwidth else 1.0)
            if kernel.rate > 0:
                soonest = min(soonest, max(kernel.left, 0.0) / kernel.rate)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.sim.after(soonest, self._finish) if soonest < math.inf else None

    def _finish(self) -> None:
        self._timer = None
        self._advance()
        over = [kernel for kernel in self._running if kernel.left <= _SAME * max(kernel.seconds, self.sim.now)]
        for kernel in over:
            self.work += kernel.seconds
            stream = self._running.pop(kernel)
            queue = self._streams[stream]
            queue.popleft()
            if queue:
                self._start(queue[0], stream)
        self._share()
        for kernel in over:
            kernel.succeed()

    def _start(self, kernel: Kernel, stream: str) -> None:
        kernel.began = self.sim.now
        self._running[kernel] = stream


class Channel:
    """A capacity in bytes/s that flows share.

    Attributes:
        carried: Bytes that finished flows brought through it.
    """

    __slots__ = ("capacity", "carried", "flows", "name")

    def __init__(self, name: str, capacity: float) -> None:
        if not 0 < capacity < math.inf:
            raise UsageError(f"channel {name}: {capacity} bytes/s", hint="a bandwidth is finite and above 0")
        self.name, self.capacity, self.carried = name, capacity, 0.0
        self.flows: dict[Flow, None] = {}


class Flow(Event):
    """Bytes on their way. It happens when the last one has arrived; `sent` when the last one has left."""

    __slots__ = ("channels", "latency", "left", "nbytes", "rate", "sent", "since", "timer")

    def __init__(self, sim: Sim, nbytes: float, channels: tuple[Channel, ...], latency: float, name: str) -> None:
        super().__init__(sim, name)
        self.nbytes, self.channels, self.latency = nbytes, channels, latency
        self.sent = sim.event(name)
        self.left, self.rate, self.since = float(nbytes), 0.0, sim.now
        self.timer: Timer | None = None


class Network:
    """Channels and the flows that cross them.

    Example:
        >>> sim = Sim()
        >>> network = Network(sim)
        >>> wire = Channel("wire", 100.0)
        >>> flows = [network.transfer(100, [wire]), network.transfer(50, [wire])]
        >>> sim.run().now
        1.5
    """

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self._changed: dict[Channel, None] = {}
        self._due = False

    def transfer(self, nbytes: float, channels: Sequence[Channel], latency: float = 0.0, name: str = "flow") -> Flow:
        """Send `nbytes` through all `channels` at once; they arrive `latency` seconds after the last one left."""
        if not (0 <= nbytes < math.inf and 0 <= latency < math.inf):
            raise UsageError(f"{name}: {nbytes} bytes with {latency} s latency", hint="finite and not negative")
        flow = Flow(self.sim, nbytes, tuple(dict.fromkeys(channels)), latency, name)
        if not flow.channels or not nbytes:
            self._drained(flow)
            return flow
        for channel in flow.channels:
            channel.flows[flow] = None
        self._touch(flow.channels)
        return flow

    def set_capacity(self, channel: Channel, capacity: float) -> None:
        """Change what `channel` carries from now on; 0 makes its flows wait."""
        if not 0 <= capacity < math.inf:
            raise UsageError(f"channel {channel.name}: {capacity} bytes/s", hint="finite and not negative")
        channel.capacity = capacity
        self._touch((channel,))

    def fail(self, channel: Channel, error: BaseException) -> None:
        """Flows that cross `channel` now are lost: they fail with `error`."""
        for flow in list(channel.flows):
            self._remove(flow)
            flow.sent.fail(error)
            flow.fail(error)

    def _touch(self, channels: Iterable[Channel]) -> None:
        # One computation for all that changes at one moment: a collective starts and ends many flows together.
        self._changed.update(dict.fromkeys(channels))
        if not self._due:
            self._due = True
            self.sim.after(0.0, self._recompute)

    def _recompute(self) -> None:
        self._due = False
        flows = _connected(self._changed)
        self._changed.clear()
        now = self.sim.now
        for flow, rate in fair_rates(flows).items():
            if abs(rate - flow.rate) <= _SAME * rate:
                continue
            flow.left -= (now - flow.since) * flow.rate
            flow.since, flow.rate = now, rate
            if flow.timer is not None:
                flow.timer.cancel()
            flow.timer = self.sim.after(max(flow.left, 0.0) / rate, self._drained, flow) if rate > 0 else None

    def _drained(self, flow: Flow) -> None:
        self._remove(flow)
        for channel in flow.channels:
            channel.carried += flow.nbytes
        flow.sent.succeed()
        if flow.latency:
            self.sim.after(flow.latency, flow.succeed)
        else:
            flow.succeed()

    def _remove(self, flow: Flow) -> None:
        if flow.timer is not None:
            flow.timer.cancel()
        for channel in flow.channels:
            channel.flows.pop(flow, None)
        self._touch(flow.channels)


def fair_rates(flows: Iterable[Flow]) -> dict[Flow, float]:
    """Max-min fair rates, bytes/s, of `flows`, which must be all that cross any of their channels.

    Every flow has a bottleneck: a full channel on which no other flow is faster.
    """
    open_flows = dict.fromkeys(flows)
    left = {channel: channel.capacity for flow in open_flows for channel in flow.channels}
    count = {channel: len(channel.flows) for channel in left}
    rates: dict[Flow, float] = {}
    while open_flows:
        tightest = min((channel for channel in left if count[channel]), key=lambda each: left[each] / count[each])
        share = left[tightest] / count[tightest]
        for flow in [flow for flow in tightest.flows if flow in open_flows]:
            rates[flow] = share
            del open_flows[flow]
            for channel in flow.channels:
                left[channel] = max(left[channel] - share, 0.0)
                count[channel] -= 1
    return rates


class SimTier:
    """A memory tier in virtual time: how full it is, and the two channels that moves from and to it go through.

    Args:
        capacity: Bytes.
        read_bw, write_bw: Bytes/s.
        latency: Seconds before the first byte.
    """

    def __init__(
        self, network: Network, name: str, capacity: float, read_bw: float, write_bw: float, latency: float = 0.0
    ) -> None:
        self.network, self.name, self.capacity, self.latency = network, name, capacity, latency
        self.reading, self.writing = Channel(f"{name} read", read_bw), Channel(f"{name} write", write_bw)
        self.used = self.peak = 0.0

    def reserve(self, nbytes: float) -> None:
        """Take room for `nbytes`.

        Raises:
            OutOfTier: it does not fit.
        """
        if self.used + nbytes > self.capacity:
            raise OutOfTier(self.name, nbytes, self.capacity - self.used)
        self.used += nbytes
        self.peak = max(self.peak, self.used)

    def release(self, nbytes: float) -> None:
        """Give room back."""
        if nbytes > self.used:
            raise SimulationError(f"tier {self.name}: {nbytes} bytes given back, {self.used} were in use")
        self.used -= nbytes

    def move_to(self, other: SimTier, nbytes: float, between: Sequence[Channel] = ()) -> Flow:
        """Copy `nbytes` to `other` through `between`; room there must have been reserved."""
        channels = [self.reading, *between, other.writing]
        latency = max(self.latency, other.latency)
        return self.network.transfer(nbytes, channels, latency, f"move {self.name} to {other.name}")


def _connected(channels: Iterable[Channel]) -> dict[Flow, None]:
    """Every flow whose rate may depend on `channels`, in a fixed order."""
    seen, waiting = dict.fromkeys(channels), deque(channels)
    flows: dict[Flow, None] = {}
    while waiting:
        for flow in waiting.popleft().flows:
            if flow not in flows:
                flows[flow] = None
                for channel in flow.channels:
                    if channel not in seen:
                        seen[channel] = None
                        waiting.append(channel)
    return flows
