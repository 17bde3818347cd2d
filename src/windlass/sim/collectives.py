"""How a collective is carried out: messages in rounds, and in how many seconds by formula.

`rounds` is what the simulator sends over the links; `seconds` is the closed form over the same links, for planners
that ask a million times. Payload x, N ranks, latency tau, bandwidth bw of the narrowest link on the way:

    ring       2 (N - 1) (tau + x / (N bw))          x / N travels round twice
    star       2 tau + 2 (N - 1) x / bw of the hub   everything to one rank and back
    direct     tau + (N - 1) x / bw of a card        everybody to everybody
    doubling   steps (tau + x / bw)                  partners at distance 1, 2, 4, ...
    two-level  reduce-scatter and all-gather inside each machine, one all-reduce of a part between machines

Doubling takes log2 N steps, and two more when N is no power of two: the ranks beyond it hand their vector to a partner
first and get the result afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from windlass.core.errors import UsageError
from windlass.sim.cluster import ClusterSpec

Message = tuple[int, int, float]
ALGORITHMS = ("ring", "star", "direct", "doubling", "two-level")


def seconds(kind: str, nbytes: float, ranks: Sequence[int], cluster: ClusterSpec, algo: str = "auto") -> float:
    """Seconds of a collective by the formula of `algo`, or of the fastest one; see `CostModel.collective`."""
    if kind == "send_recv":
        return cluster.latency(ranks[0], ranks[1]) + nbytes / cluster.bandwidth(ranks[0], ranks[1])
    if kind == "all_to_all":
        return _farthest(cluster, ranks) + nbytes * (len(ranks) - 1) / len(ranks) / _card(cluster, ranks)
    if kind in ("all_gather", "reduce_scatter"):
        return _ring(nbytes, ranks, cluster) / 2
    if kind != "all_reduce":
        raise UsageError(f"unknown collective {kind!r}", hint="all_reduce, all_gather, reduce_scatter, all_to_all")
    if algo != "auto":
        return _all_reduce(algo, nbytes, ranks, cluster)
    return _all_reduce(best_algorithm(nbytes, ranks, cluster), nbytes, ranks, cluster)


def best_algorithm(nbytes: float, ranks: Sequence[int], cluster: ClusterSpec) -> str:
    """The all-reduce that the formulas call fastest.

    Example:
        >>> from windlass.sim.hardware import fabric, hardware
        >>> home = ClusterSpec.switch(hardware("laptop"), 8, fabric("edge"))
        >>> best_algorithm(32_768, range(8), home), best_algorithm(1 << 28, range(8), home)
        ('direct', 'ring')
    """
    machines = _machines(cluster, ranks)
    alike = len({len(members) for members in machines}) == 1
    usable = [name for name in ALGORITHMS if name != "two-level" or alike]
    return min(usable, key=lambda name: _all_reduce(name, nbytes, ranks, cluster))


def rounds(
    kind: str, nbytes: float, ranks: Sequence[int], algo: str = "ring", cluster: ClusterSpec | None = None
) -> Iterator[list[Message]]:
    """The messages (source, destination, bytes) of a collective, one list a round; a round starts when the last ended.

    `two-level` reads from `cluster` who stands in which machine; machines must have equally many of the ranks.
    """
    count = len(ranks)
    if kind == "all_to_all" or (kind == "all_reduce" and algo == "direct"):
        share = nbytes / count if kind == "all_to_all" else nbytes
        yield [(a, b, share) for a in ranks for b in ranks if a != b]
    elif kind in ("all_gather", "reduce_scatter") or algo == "ring":
        for _ in range((2 if kind == "all_reduce" else 1) * (count - 1)):
            yield [(ranks[i], ranks[(i + 1) % count], nbytes / count) for i in range(count)]
    elif algo == "star":
        yield [(rank, ranks[0], nbytes) for rank in ranks[1:]]
        yield [(ranks[0], rank, nbytes) for rank in ranks[1:]]
    elif algo == "doubling":
        yield from _doubling(nbytes, ranks)
    elif algo == "two-level":
        yield from _two_levels(nbytes, _machines(cluster, ranks) if cluster is not None else [])
    else:
        raise UsageError(f"no messages for {kind} by {algo!r}", hint=f"one of {', '.join(ALGORITHMS)}")


def fabric_name(cluster: ClusterSpec, ranks: Sequence[int]) -> tuple[str, int]:
    """The name of the fabric that joins `ranks` as fits are keyed (`nvlink3`, `nvlink3+ib`), and on how many machines.

    An empty name when they do not stand in machines, or are not alike.
    """
    nodes = [cluster.node_of(rank) for rank in ranks]
    links = {spec.link.name if spec.link else "" for spec in (cluster.devices[rank] for rank in ranks)}
    names = {node.name for node in nodes if node is not None}
    if None in nodes or len(links) != 1 or not (link := links.pop()):
        return "", 0
    if len(names) == 1:
        return link, 1
    kinds = {node.nic.kind for node in nodes if node is not None and node.nic is not None}
    return (f"{link}+{kinds.pop()}", len(names)) if len(kinds) == 1 else ("", 0)


def _all_reduce(algo: str, x: float, ranks: Sequence[int], cluster: ClusterSpec) -> float:
    count = len(ranks)
    if algo == "ring":
        return _ring(x, ranks, cluster)
    if algo == "star":
        hub = ranks[0]
        way = max(cluster.latency(rank, hub) for rank in ranks[1:])
        narrow = min(cluster.bandwidth(rank, hub) for rank in ranks[1:])
        return 2 * way + 2 * (count - 1) * x / min(_port(cluster, hub, ranks), narrow * (count - 1))
    if algo == "direct":
        return _farthest(cluster, ranks) + (count - 1) * x / _card(cluster, ranks)
    if algo == "doubling":
        total = 0.0
        for messages in _doubling(x, ranks):
            total += max(cluster.latency(a, b) + n / cluster.bandwidth(a, b) for a, b, n in messages)
        return total
    if algo == "two-level":
        machines = _machines(cluster, ranks)
        if not machines:
            raise UsageError("two-level needs devices on several machines", hint="use ring, star, direct or doubling")
        inside = max(_ring(x, members, cluster) if len(members) > 1 else 0.0 for members in machines)
        heads = [members[0] for members in machines]
        # Each rank's part crosses at the same time, so a card carries the whole vector between machines.
        return inside + _ring(x, heads, cluster)
    raise UsageError(f"unknown algorithm {algo!r}", hint=f"auto, {', '.join(ALGORITHMS)}")


def _ring(x: float, ranks: Sequence[int], cluster: ClusterSpec) -> float:
    count = len(ranks)
    steps = [(ranks[i], ranks[(i + 1) % count]) for i in range(count)]
    tau = max(cluster.latency(a, b) for a, b in steps)
    narrow = min(cluster.bandwidth(a, b) for a, b in steps)
    return 2 * (count - 1) * (tau + x / (count * narrow))


def _doubling(x: float, ranks: Sequence[int]) -> Iterator[list[Message]]:
    whole = 1 << (len(ranks).bit_length() - 1)
    extra = ranks[whole:]
    if extra:
        yield [(rank, ranks[i], x) for i, rank in enumerate(extra)]
    distance = 1
    while distance < whole:
        yield [(ranks[i], ranks[i ^ distance], x) for i in range(whole)]
        distance *= 2
    if extra:
        yield [(ranks[i], rank, x) for i, rank in enumerate(extra)]


def _two_levels(nbytes: float, machines: list[list[int]]) -> Iterator[list[Message]]:
    """Scatter inside every machine, reduce the i-th parts between machines, gather inside."""
    if len({len(members) for members in machines}) != 1:
        raise UsageError("two-level needs machines with equally many ranks", hint="ring, star, direct or doubling")
    inside = len(machines[0])
    slices = [[members[i] for members in machines] for i in range(inside)]
    scatter = [list(rounds("reduce_scatter", nbytes, members)) for members in machines if inside > 1]
    between = [list(rounds("all_reduce", nbytes / inside, part)) for part in slices]
    for stage in (scatter, between, scatter):
        for together in zip(*stage, strict=True):
            yield [message for messages in together for message in messages]


def _farthest(cluster: ClusterSpec, ranks: Sequence[int]) -> float:
    return max(cluster.latency(a, b) for a in ranks for b in ranks if a != b)


def _port(cluster: ClusterSpec, rank: int, ranks: Sequence[int]) -> float:
    """Bytes/s in which `rank` can talk to all others at once: the sum of its own links towards them, each once."""
    own = {}
    for other in ranks:
        if other != rank:
            link = cluster.path(rank, other)[0]
            own[link.dst] = link.bandwidth
    return sum(own.values())


def _card(cluster: ClusterSpec, ranks: Sequence[int]) -> float:
    """Bytes/s of the slowest rank towards all others at once, cards of machines shared by their devices."""
    slowest = min(_port(cluster, rank, ranks) for rank in ranks)
    for members in _machines(cluster, ranks):
        outside = [rank for rank in ranks if rank not in members]
        crossing = len(members) * len(outside) / (len(ranks) - 1)  # of what each rank sends, the part that leaves
        slowest = min(slowest, cluster.bandwidth(members[0], outside[0]) / crossing)
    return slowest


def _machines(cluster: ClusterSpec, ranks: Sequence[int]) -> list[list[int]]:
    """The ranks by machine when they stand on several, else nothing."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        node = cluster.node_of(rank)
        if node is None:
            return []
        found.setdefault(node.name, []).append(rank)
    return list(found.values()) if len(found) > 1 else []
