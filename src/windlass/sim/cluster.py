"""Devices and the links between them.

Endpoints are texts: `d0`, `d1`, ... are the devices in order, everything else is a switch. A link stands for both
directions of a wire; with `duplex="half"` both share its bandwidth, and all links of one `medium` (a Wi-Fi cell) share
one.
"""

from __future__ import annotations

import heapq
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from windlass.core.errors import SimulationError, UsageError
from windlass.sim.hardware import Duplex, Fabric, HardwareSpec, fabric, hardware, not_negative, positive

NicKind = Literal["ib", "roce", "ethernet", "wifi"]
_NIC_FABRIC: dict[NicKind, str] = {"ib": "ib400", "roce": "roce200", "ethernet": "gige", "wifi": "wifi"}
_NIC_WORDS: dict[str, NicKind] = {
    "ib": "ib",
    "infiniband": "ib",
    "roce": "roce",
    "eth": "ethernet",
    "ethernet": "ethernet",
    "wifi": "wifi",
}


class NoPath(SimulationError):
    """Two endpoints that nothing connects.

    Attributes:
        src, dst: The endpoints.
    """

    def __init__(self, src: str, dst: str) -> None:
        self.src, self.dst = src, dst
        super().__init__(f"no path from {src} to {dst}", hint="add a link, or choose devices that are connected")


@dataclass(frozen=True, slots=True)
class Link:
    """A wire between two endpoints; bandwidth in bytes/s a direction, latency in seconds."""

    src: str
    dst: str
    latency: float
    bandwidth: float
    duplex: Duplex = "full"
    medium: str | None = None

    def __post_init__(self) -> None:
        positive(f"link {self.src} - {self.dst}", bandwidth=self.bandwidth)
        not_negative(f"link {self.src} - {self.dst}", latency=self.latency)


@dataclass(frozen=True, slots=True)
class Nic:
    """How a node reaches other nodes; the last three are settings of real communication libraries."""

    kind: NicKind
    bandwidth: float
    iface: str | None = None
    hca: str | None = None
    gid_index: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: the numbers of its devices, the cluster it stands in, and its network card."""

    name: str
    cluster: str
    devices: tuple[int, ...]
    nic: Nic | None = None


def channel_key(link: Link) -> tuple[str, ...]:
    """What limits this direction of a link: itself, both directions together, or its medium."""
    if link.medium is not None:
        return ("medium", link.medium)
    return (link.src, link.dst) if link.duplex == "full" else (min(link.src, link.dst), "=", max(link.src, link.dst))


def endpoint(device: int) -> str:
    """The endpoint of the device with this number."""
    return f"d{device}"


@dataclass(frozen=True)
class ClusterSpec:
    """Devices, links and machines.

    Attributes:
        devices: In order of their ranks.
        links: Wires between endpoints.
        nodes: Machines; devices that stand in none belong to no machine.
        prices: Seconds and seconds a byte of collectives that were asked for; kept by `sim.collectives`.

    Example:
        >>> cluster = ClusterSpec.parse("2x8xA100-IB")
        >>> len(cluster.devices), [link.dst for link in cluster.path(0, 9)]
        (16, ['node0', 'spine', 'node1', 'd9'])
    """

    devices: tuple[HardwareSpec, ...]
    links: tuple[Link, ...] = ()
    nodes: tuple[Node, ...] = ()
    prices: dict[tuple[str, tuple[int, ...], str], tuple[float, float]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _paths: dict[tuple[str, str], tuple[Link, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.devices:
            raise UsageError("a cluster without devices", hint="give it at least one")

    @classmethod
    def single(cls, device: HardwareSpec) -> ClusterSpec:
        """One device alone."""
        return cls((device,), (), (Node("node0", "local", (0,)),))

    @classmethod
    def mesh(cls, device: HardwareSpec, count: int, wire: Fabric) -> ClusterSpec:
        """A wire between every two devices."""
        links = [_wire(a, b, wire) for a in range(count) for b in range(a + 1, count)]
        return cls(_many(device, count), tuple(links))

    @classmethod
    def ring(cls, device: HardwareSpec, count: int, wire: Fabric) -> ClusterSpec:
        """A wire from each device to the next, and from the last to the first."""
        links = [_wire(a, (a + 1) % count, wire) for a in range(count if count > 2 else count - 1)]
        return cls(_many(device, count), tuple(links))

    @classmethod
    def switch(cls, device: HardwareSpec, count: int, wire: Fabric) -> ClusterSpec:
        """Every device on one switch. The latency of `wire` is the whole way from device to device."""
        return cls(_many(device, count), tuple(_to_switch(range(count), "switch", wire)))

    @classmethod
    def wifi(cls, device: HardwareSpec, count: int, wire: Fabric | None = None) -> ClusterSpec:
        """Devices that share the air."""
        return cls.switch(device, count, wire if wire is not None else fabric("wifi"))

    @classmethod
    def two_level(
        cls, device: HardwareSpec, nodes: int, per_node: int, *, inner: Fabric | None = None, outer: Fabric
    ) -> ClusterSpec:
        """Machines of `per_node` devices, joined through one network card each."""
        nic = Nic("ib", outer.bandwidth)
        return cls._of([_Group("cluster", nodes, per_node, device, inner or _inside(device), nic, outer)])

    @classmethod
    def parse(cls, text: str) -> ClusterSpec:
        """`NODESxDEVICESxNAME-NIC` parts joined by `+`; NIC is IB, ROCE, ETH or WIFI, with Gbit/s if you like.

        Raises:
            UsageError: not of this form.
            UnknownDevice: no such device.

        Example:
            >>> len(ClusterSpec.parse("3x8xA100-IB+1x8xRTX4090-ETH100").devices)
            32
        """
        groups = []
        for number, part in enumerate(text.split("+")):
            found = re.fullmatch(r"(\d+)x(\d+)x(.+?)(?:-(ib|roce|eth|ethernet|wifi)(\d*))?", part.strip(), re.I)
            if found is None or not int(found[1]) or not int(found[2]):
                raise UsageError(
                    f"{part.strip()!r} is no part of a cluster", hint='write it like "3x8xA100-IB+1x8xRTX4090-ETH"'
                )
            kind: NicKind = _NIC_WORDS[(found[4] or "eth").lower()]
            groups.append(_group(f"cluster{number}", int(found[1]), int(found[2]), found[3], kind, found[5]))
        return cls._of(groups)

    @classmethod
    def from_toml(cls, path: Path | str) -> ClusterSpec:
        """Read `[[cluster]]` (name, nodes, devices_per_node, device, nic, nic_gbps, iface, hca, gid_index) and
        `[[link]]` (a, b, gbps, latency_us) between clusters. nic_gbps and gbps are Gbit/s.

        Raises:
            UsageError: a field is missing, unknown, or of the wrong kind.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}", hint="check the place it names") from error
        return cls.from_document(document, str(path))

    @classmethod
    def from_document(cls, document: dict[str, Any], where: str) -> ClusterSpec:
        """The same from TOML that is read already; `where` names it in messages."""
        groups = []
        for number, row in enumerate(document.get("cluster", [])):
            place = f"{where}, cluster {row.get('name', number + 1)}"
            _check_fields(place, row, required=("device",), known=_CLUSTER_FIELDS)
            word = str(row.get("nic", "ethernet")).lower()
            if word not in _NIC_WORDS:
                raise UsageError(f"{place}: unknown nic {word!r}", hint=f"one of {', '.join(_NIC_WORDS)}")
            made = _group(
                row.get("name", f"cluster{number}"),
                _count(place, row, "nodes"),
                _count(place, row, "devices_per_node"),
                row["device"],
                _NIC_WORDS[word],
                row.get("nic_gbps", ""),
            )
            extra = {key: row[key] for key in ("iface", "hca", "gid_index") if key in row}
            groups.append(replace(made, nic=replace(made.nic, **extra)))
        if not groups:
            raise UsageError(f"{where} has no [[cluster]]", hint='[[cluster]] with device = "A100"')
        return cls._of(groups, [_between(where, row) for row in document.get("link", [])])

    @classmethod
    def _of(cls, groups: Sequence[_Group], between: Iterable[tuple[str, str, Fabric]] = ()) -> ClusterSpec:
        devices: list[HardwareSpec] = []
        links: list[Link] = []
        nodes: list[Node] = []
        single_spine = len(groups) == 1
        for group in groups:
            spine = "spine" if single_spine else f"spine {group.name}"
            for _ in range(group.nodes):
                name = f"node{len(nodes)}"
                ranks = range(len(devices), len(devices) + group.per_node)
                devices += [group.device] * group.per_node
                links += _to_switch(ranks, name, group.inner)
                links.append(_half_way(name, spine, group.outer))
                nodes.append(Node(name, group.name, tuple(ranks), group.nic))
        joined = list(between)
        if not joined and not single_spine:
            # Between clusters only what both have: the slowest card, as plain Ethernet.
            slowest = min((group.outer for group in groups), key=lambda outer: outer.bandwidth)
            joined = [(groups[0].name, group.name, slowest) for group in groups[1:]]
        links += [Link(f"spine {a}", f"spine {b}", wire.latency, wire.bandwidth) for a, b, wire in joined]
        return cls(tuple(devices), tuple(links), tuple(nodes))

    def path(self, src: int | str, dst: int | str) -> list[Link]:
        """The links from one endpoint to another in order, each turned so that it leads onward.

        The fewest links, among those the least latency.

        Raises:
            NoPath: nothing connects them.
        """
        a, b = (endpoint(end) if isinstance(end, int) else end for end in (src, dst))
        if (a, b) not in self._paths:
            self._paths[a, b] = tuple(self._search(a, b))
        return list(self._paths[a, b])

    def latency(self, src: int, dst: int) -> float:
        """Seconds of an empty message."""
        return sum(link.latency for link in self.path(src, dst))

    def bandwidth(self, src: int, dst: int) -> float:
        """Bytes/s of one flow alone; infinite from a device to itself."""
        return min((link.bandwidth for link in self.path(src, dst)), default=float("inf"))

    def node_of(self, device: int) -> Node | None:
        """The machine that `device` stands in."""
        return next((node for node in self.nodes if device in node.devices), None)

    @cached_property
    def _neighbours(self) -> dict[str, list[Link]]:
        found: dict[str, list[Link]] = {}
        for link in self.links:
            found.setdefault(link.src, []).append(link)
            found.setdefault(link.dst, []).append(replace(link, src=link.dst, dst=link.src))
        return found

    def _search(self, a: str, b: str) -> list[Link]:
        best: dict[str, tuple[int, float]] = {a: (0, 0.0)}
        came: dict[str, Link] = {}
        waiting = [(0, 0.0, a)]
        while waiting:
            hops, latency, here = heapq.heappop(waiting)
            if here == b:
                way: list[Link] = []
                while here != a:
                    way.append(came[here])
                    here = came[here].src
                return way[::-1]
            if best[here] < (hops, latency):
                continue
            for link in self._neighbours.get(here, ()):
                cost = (hops + 1, latency + link.latency)
                if link.dst not in best or cost < best[link.dst]:
                    best[link.dst], came[link.dst] = cost, link
                    heapq.heappush(waiting, (*cost, link.dst))
        raise NoPath(a, b)


@dataclass(frozen=True, slots=True)
class _Group:
    """Like machines."""

    name: str
    nodes: int
    per_node: int
    device: HardwareSpec
    inner: Fabric
    nic: Nic
    outer: Fabric


_CLUSTER_FIELDS = ("name", "nodes", "devices_per_node", "device", "nic", "nic_gbps", "iface", "hca", "gid_index")


def _group(name: str, nodes: int, per_node: int, device_name: str, kind: NicKind, gigabits: Any) -> _Group:
    device = hardware(device_name)
    wire = fabric(_NIC_FABRIC[kind])
    if gigabits not in ("", None):
        speed = float(gigabits)
        positive(f"cluster {name}", nic_gbps=speed)
        latency = fabric("eth25").latency if kind == "ethernet" and speed > 1 else wire.latency
        wire = replace(wire, name=f"{kind}{speed:g}", bandwidth=speed * 1e9 / 8, latency=latency)
    return _Group(name, nodes, per_node, device, _inside(device), Nic(kind, wire.bandwidth), wire)


def _inside(device: HardwareSpec) -> Fabric:
    """What joins the devices of one machine: their own links, else the host's."""
    return device.link or device.host or fabric("pcie3")


def _many(device: HardwareSpec, count: int) -> tuple[HardwareSpec, ...]:
    if count < 1:
        raise UsageError(f"{count} devices", hint="at least one")
    return (device,) * count


def _wire(a: int, b: int, wire: Fabric) -> Link:
    return Link(endpoint(a), endpoint(b), wire.latency, wire.bandwidth, wire.duplex, wire.medium)


def _half_way(a: str, b: str, wire: Fabric) -> Link:
    return Link(a, b, wire.latency / 2, wire.bandwidth, wire.duplex, wire.medium)


def _to_switch(ranks: Iterable[int], switch: str, wire: Fabric) -> list[Link]:
    return [_half_way(endpoint(rank), switch, wire) for rank in ranks]


def _between(where: str, row: dict[str, Any]) -> tuple[str, str, Fabric]:
    _check_fields(f"{where}, link", row, required=("a", "b", "gbps"), known=("a", "b", "gbps", "latency_us"))
    wire = fabric("gige")
    latency = row["latency_us"] * 1e-6 if "latency_us" in row else wire.latency
    return row["a"], row["b"], replace(wire, name="between", bandwidth=row["gbps"] * 1e9 / 8, latency=latency)


def _check_fields(place: str, row: dict[str, Any], *, required: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in required if name not in row]
    unknown = [name for name in row if name not in known]
    if missing or unknown:
        words = [f"{name} is missing" for name in missing] + [f"unknown field {name}" for name in unknown]
        raise UsageError(f"{place}: {', '.join(words)}", hint=f"fields: {', '.join(known)}")


def _count(place: str, row: dict[str, Any], name: str) -> int:
    value = row.get(name, 1)
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{place}: {name} is {value!r}", hint="a whole number above 0")
    return value
