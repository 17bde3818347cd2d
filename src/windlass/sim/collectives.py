"""How a collective is carried out: messages in rounds, and in how many seconds they are through.

`rounds` is what the simulator sends over the links. `seconds` prices the same rounds in closed form, for planners that
ask a million times: a round ends when its most loaded link has carried its bytes, and a latency later. With payload x,
N ranks, latency tau and bandwidth bw on a switch or a mesh this is

    ring       2 (N - 1) (tau + x / (N bw))          x / N travels round twice
    star       2 tau + 2 (N - 1) x / bw of the hub   everything to one rank and back
    direct     tau + (N - 1) x / bw of a card        everybody to everybody
    doubling   steps (tau + x / bw)                  partners at distance 1, 2, 4, ...
    two-level  reduce-scatter and all-gather inside each machine, all-reduce of the parts between machines

Doubling takes log2 N steps, and two more when N is no power of two: the ranks beyond it hand their vector to a partner
first and get the result afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from windlass.core.errors import UsageError
from windlass.sim.cluster import ClusterSpec, channel_key

Message = tuple[int, int, float]
ALGORITHMS = ("ring", "star", "direct", "doubling", "two-level")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")


def seconds(kind: str, nbytes: float, ranks: Sequence[int], cluster: ClusterSpec, algo: str = "auto") -> float:
    """Seconds of a collective by `algo`, or by the fastest one; see `CostModel.collective`."""
    if kind == "all_reduce" and algo == "auto":
        algo = best_algorithm(nbytes, ranks, cluster)
    key = (kind, tuple(ranks), algo if kind == "all_reduce" else "")
    found = cluster.prices.get(key)
    if found is None:
        latency = per_byte = 0.0
        for times, messages in _stages(kind, 1.0, ranks, algo, cluster):
            once = _price(messages, cluster)
            latency += times * once[0]
            per_byte += times * once[1]
        found = cluster.prices[key] = (latency, per_byte)
    return found[0] + nbytes * found[1]


def best_algorithm(nbytes: float, ranks: Sequence[int], cluster: ClusterSpec) -> str:
    """The fastest all-reduce.

    Example:
        >>> from windlass.sim.hardware import fabric, hardware
        >>> home = ClusterSpec.switch(hardware("laptop"), 8, fabric("edge"))
        >>> best_algorithm(1024, range(8), home), best_algorithm(1 << 28, range(8), home)
        ('direct', 'ring')
    """
    alike = len({len(members) for members in _machines(cluster, ranks)}) == 1
    usable = [name for name in ALGORITHMS if name != "two-level" or alike]
    return min(usable, key=lambda name: seconds("all_reduce", nbytes, ranks, cluster, name))


def rounds(
    kind: str, nbytes: float, ranks: Sequence[int], algo: str = "ring", cluster: ClusterSpec | None = None
) -> Iterator[list[Message]]:
    """The messages (source, destination, bytes) of a collective, one list a round; a round starts when the last ended.

    `two-level` reads from `cluster` who stands in which machine; machines must have equally many of the ranks.
    """
    for times, messages in _stages(kind, nbytes, ranks, algo, cluster):
        for _ in range(times):
            yield messages


def _stages(
    kind: str, nbytes: float, ranks: Sequence[int], algo: str, cluster: ClusterSpec | None
) -> Iterator[tuple[int, list[Message]]]:
    """How many times which messages."""
    count = len(ranks)
    if kind == "send_recv":
        yield 1, [(ranks[0], ranks[1], nbytes)]
    elif kind == "all_to_all" or (kind == "all_reduce" and algo == "direct"):
        share = nbytes / count if kind == "all_to_all" else nbytes
        yield 1, [(a, b, share) for a in ranks for b in ranks if a != b]
    elif kind in ("all_gather", "reduce_scatter") or (kind == "all_reduce" and algo == "ring"):
        ring = [(ranks[i], ranks[(i + 1) % count], nbytes / count) for i in range(count)]
        yield (2 if kind == "all_reduce" else 1) * (count - 1), ring
    elif kind != "all_reduce":
        raise UsageError(f"unknown collective {kind!r}", hint=f"one of {', '.join(KINDS)}")
    elif algo == "star":
        yield 1, [(rank, ranks[0], nbytes) for rank in ranks[1:]]
        yield 1, [(ranks[0], rank, nbytes) for rank in ranks[1:]]
    elif algo == "doubling":
        yield from _doubling(nbytes, ranks)
    elif algo == "two-level":
        yield from _two_levels(nbytes, _machines(cluster, ranks) if cluster is not None else [])
    else:
        raise UsageError(f"unknown algorithm {algo!r}", hint=f"auto, {', '.join(ALGORITHMS)}")


def _price(messages: list[Message], cluster: ClusterSpec) -> tuple[float, float]:
    """Latency of a round, and seconds in which its most loaded link has carried everything."""
    latency, load = 0.0, dict[tuple[str, ...], float]()
    for src, dst, nbytes in messages:
        path = cluster.path(src, dst)
        latency = max(latency, sum(link.latency for link in path))
        for link in path:
            key = channel_key(link)
            load[key] = load.get(key, 0.0) + nbytes / link.bandwidth
    return latency, max(load.values(), default=0.0)


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


def _doubling(x: float, ranks: Sequence[int]) -> Iterator[tuple[int, list[Message]]]:
    whole = 1 << (len(ranks).bit_length() - 1)
    extra = ranks[whole:]
    if extra:
        yield 1, [(rank, ranks[i], x) for i, rank in enumerate(extra)]
    distance = 1
    while distance < whole:
        yield 1, [(ranks[i], ranks[i ^ distance], x) for i in range(whole)]
        distance *= 2
    if extra:
        yield 1, [(ranks[i], rank, x) for i, rank in enumerate(extra)]


def _two_levels(nbytes: float, machines: list[list[int]]) -> Iterator[tuple[int, list[Message]]]:
    """Scatter inside every machine, reduce the i-th parts between machines, gather inside."""
    if len({len(members) for members in machines}) != 1:
        raise UsageError(
            "two-level needs several machines with equally many ranks", hint="ring, star, direct or doubling"
        )
    inside = len(machines[0])
    slices = [[members[i] for members in machines] for i in range(inside)]
    scatter = [_stages("reduce_scatter", nbytes, members, "", None) for members in machines]
    between = [_stages("all_reduce", nbytes / inside, part, "ring", None) for part in slices]
    stages = [(times, _joined(each)) for times, each in (_together(scatter), _together(between))]
    yield stages[0]
    yield stages[1]
    yield stages[0]


def _together(parts: list[Iterator[tuple[int, list[Message]]]]) -> tuple[int, list[list[Message]]]:
    """The one stage of each of several rings that run side by side."""
    found = [next(part) for part in parts]
    return found[0][0], [messages for _, messages in found]


def _joined(lists: list[list[Message]]) -> list[Message]:
    return [message for messages in lists for message in messages]


def _machines(cluster: ClusterSpec, ranks: Sequence[int]) -> list[list[int]]:
    """The ranks by machine when they stand on several, else nothing."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        node = cluster.node_of(rank)
        if node is None:
            return []
        found.setdefault(node.name, []).append(rank)
    return list(found.values()) if len(found) > 1 else []
