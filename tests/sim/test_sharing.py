"""Shared devices and links, against the laws that define them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.sim.engine import Sim
from windlass.sim.sharing import Channel, Flow, Network, OutOfTier, Processor, SimTier, fair_rates


def random_network(generator, flows, channels):
    sim = Sim()
    wires = [Channel(str(i), float(generator.uniform(1, 100))) for i in range(channels)]
    made = []
    for _ in range(flows):
        path = generator.choice(channels, size=generator.integers(1, min(4, channels) + 1), replace=False)
        flow = Flow(sim, 1.0, tuple(wires[i] for i in path), 0.0, "flow")
        for wire in flow.channels:
            wire.flows[flow] = None
        made.append(flow)
    return wires, made


@pytest.mark.parametrize("seed", range(200))
def test_every_flow_has_a_bottleneck(seed):
    # The definition: an allocation is max-min fair exactly when each flow crosses a full channel on which no other
    # flow is faster.
    generator = np.random.default_rng(seed)
    wires, flows = random_network(generator, int(generator.integers(1, 25)), int(generator.integers(1, 12)))
    rates = fair_rates(flows)
    load = {wire: sum(rates[flow] for flow in wire.flows) for wire in wires}
    assert all(load[wire] <= wire.capacity * (1 + 1e-9) for wire in wires)
    for flow in flows:
        assert any(
            load[wire] == pytest.approx(wire.capacity, rel=1e-9)
            and rates[flow] >= max(rates[other] for other in wire.flows) * (1 - 1e-9)
            for wire in flow.channels
        )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 50.0)), min_size=1, max_size=12))
def test_a_wire_carries_what_it_can_and_no_more(transfers):
    sim = Sim()
    network, wire, arrived = Network(sim), Channel("wire", 10.0), []
    for at, nbytes in transfers:
        sim.at(at, lambda nbytes=nbytes: network.transfer(nbytes, [wire]).then(lambda _: arrived.append(sim.now)))
    end = sim.run().now
    # A single server that is never idle while there is work ends when a queue of the same work would.
    free = 0.0
    for at, nbytes in sorted(transfers):
        free = max(free, at) + nbytes / 10.0
    assert end == pytest.approx(free, rel=1e-9)
    assert len(arrived) == len(transfers)
    assert wire.carried == pytest.approx(sum(nbytes for _, nbytes in transfers))


def test_latency_is_paid_once_and_the_wire_is_free_before_it():
    sim, times = Sim(), {}
    network, wire = Network(sim), Channel("wire", 10.0)
    flow = network.transfer(10, [wire, Channel("second", 20.0)], latency=0.5)
    flow.sent.then(lambda _: times.update(sent=sim.now))
    flow.then(lambda _: times.update(arrived=sim.now))
    sim.run()
    assert times == {"sent": 1.0, "arrived": 1.5}


def test_capacity_may_change_and_flows_may_be_lost():
    sim, heard = Sim(), []
    network, wire = Network(sim), Channel("wire", 10.0)
    flow = network.transfer(20, [wire])
    sim.at(1.0, network.set_capacity, wire, 0.0)
    sim.at(4.0, network.set_capacity, wire, 5.0)
    flow.then(lambda event: heard.append((sim.now, event.error)))
    sim.run()
    assert heard == [(6.0, None)]
    lost = network.transfer(100, [wire])
    lost.then(lambda event: heard.append(type(event.error)))
    sim.after(1.0, network.fail, wire, ConnectionError("cut"))
    sim.run()
    assert heard[1:] == [ConnectionError]


def test_one_stream_is_the_sum_and_two_streams_are_the_longest():
    sim = Sim()
    device = Processor(sim, units=4)
    for seconds in (1.0, 2.0, 3.0):
        device.submit(seconds)
    assert sim.run().now == 6.0
    sim = Sim()
    device = Processor(sim, units=4)
    for name, seconds in (("a", 2.0), ("b", 5.0)):
        device.submit(seconds, units=2, stream=name)
    assert sim.run().now == 5.0
    assert device.busy == 5.0


kernels = st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(1, 8), st.sampled_from("abc")), min_size=1, max_size=15)


@settings(max_examples=60, deadline=None)
@given(kernels)
def test_a_device_conserves_work(queued):
    sim = Sim()
    device = Processor(sim, units=4)
    for seconds, units, stream in queued:
        device.submit(seconds, units=units, stream=stream)
    end = sim.run().now
    work = sum(seconds for seconds, _, _ in queued)
    unit_work = sum(seconds * min(units, 4) for seconds, units, _ in queued)
    longest = max(sum(s for s, _, name in queued if name == stream) for stream in "abc")
    assert device.work == pytest.approx(work)
    assert end >= max(longest, unit_work / 4) * (1 - 1e-9)
    assert end <= work * (1 + 1e-9)
    assert device.busy == pytest.approx(end)


def test_bandwidth_is_shared_too():
    sim = Sim()
    device = Processor(sim, units=100)
    for name in ("a", "b"):
        device.submit(1.0, units=10, bandwidth=0.8, stream=name)
    assert sim.run().now == pytest.approx(1.6)


def test_a_slow_device_and_a_dead_one():
    sim, heard = Sim(), []
    device = Processor(sim, units=1)
    device.submit(4.0)
    sim.at(2.0, device.set_speed, 0.5)
    assert sim.run().now == 6.0
    device.submit(1.0).then(lambda event: heard.append(type(event.error)))
    device.submit(1.0).then(lambda event: heard.append(type(event.error)))
    device.fail(ConnectionError("gone"))
    sim.run()
    assert heard == [ConnectionError] * 2


@pytest.mark.parametrize("capacity", [0.0, -1.0, math.nan, math.inf])
def test_a_channel_has_a_bandwidth(capacity):
    with pytest.raises(UsageError, match="bytes/s"):
        Channel("wire", capacity)


@pytest.mark.parametrize("nbytes", [-1.0, math.nan, math.inf])
def test_sizes_are_sizes(nbytes):
    with pytest.raises(UsageError):
        Network(Sim()).transfer(nbytes, [Channel("wire", 1.0)])


def test_a_tier_is_full_when_it_is_full():
    sim = Sim()
    network = Network(sim)
    disk = SimTier(network, "disk", 1e6, read_bw=10.0, write_bw=5.0)
    host = SimTier(network, "host", 100, read_bw=50.0, write_bw=40.0, latency=0.25)
    host.reserve(80)
    with pytest.raises(OutOfTier, match="tier host") as caught:
        host.reserve(21)
    assert (caught.value.need, caught.value.have) == (21, 20)
    disk.move_to(host, 80)
    assert sim.run().now == 8.25
    host.release(80)
    assert (host.used, host.peak) == (0, 80)
