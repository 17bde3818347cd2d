"""Which files to keep and which to rebuild from a kept one when they are asked for, at the least cost.

The integer program of R2D2 (Shah et al., SIGMOD 2024): every file is kept or rebuilt from exactly one kept file that
can do so within the latency limit; keeping costs storage and maintenance, rebuilding costs reading the parent and
writing the child as often as the child is asked for, and the recipe's own bytes are stored. That is uncapacitated
facility location in which a file serves itself for nothing, solved here per connected component by branch and bound
on Erlenkotter's dual ascent (1978), without a solver library. A component that is not finished within its number of
nodes keeps the best plan found, and the gap that is left is reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from windlass.core.errors import UsageError

_GIGABYTE = 1e9
_NODES = 2_000
_ROUNDS = 20
_EQUAL = 1e-12


@dataclass(frozen=True)
class Prices:
    """What a month costs, in any one currency. The presets are orders of magnitude from public price lists.

    Attributes:
        store: Of a gigabyte that lies there for a month.
        maintain: Of a gigabyte that is scanned for maintenance, for each scan.
        read, write: Of a gigabyte.
        million_rows: Of going through a million rows.
        read_speed, write_speed: Bytes a second.
    """

    store: float
    maintain: float
    read: float
    write: float
    million_rows: float
    read_speed: float
    write_speed: float


PRICES = {
    "local_ssd": Prices(0.002, 1e-5, 1e-5, 5e-5, 1e-6, 1e9, 4e8),
    "azure_hot": Prices(0.018, 5e-4, 5e-4, 6e-3, 1e-5, 1e8, 1e8),
    "s3_standard": Prices(0.023, 4e-4, 4e-4, 5e-3, 1e-5, 1e8, 1e8),
}
"""Price sheets by name."""


@dataclass(frozen=True)
class Rebuild:
    """One way to do without a file: `child` from `parent`, by a recipe of some bytes, going through some rows."""

    child: str
    parent: str
    recipe_bytes: int = 0
    rows: int = 0


@dataclass(frozen=True)
class RetentionPlan:
    """What to keep and what to rebuild from what.

    Attributes:
        keep: Ids that stay; sorted.
        rebuild: How each of the others is rebuilt.
        cost_before, cost_after: A month with everything kept, and by this plan.
        gap: How far the cost may be above the least possible, as a share of it; 0 when it is the least.
    """

    keep: tuple[str, ...]
    rebuild: dict[str, Rebuild]
    cost_before: float
    cost_after: float
    gap: float


def plan_retention(
    sizes: Mapping[str, int],
    options: Iterable[Rebuild],
    *,
    prices: Prices = PRICES["local_ssd"],
    latency_limit_s: float = 60.0,
    access_per_month: Mapping[str, float] | None = None,
    maintenance_per_month: float = 0.0,
    pin: Collection[str] = (),
) -> RetentionPlan:
    """The cheapest plan.

    Args:
        sizes: Bytes of every file.
        options: What can be rebuilt from what; both sides are keys of `sizes`.
        prices: A price sheet, see `PRICES`.
        latency_limit_s: The longest that rebuilding may take.
        access_per_month: How often each file is asked for; 0.1 where nothing is said.
        maintenance_per_month: How often everything that is kept is scanned.
        pin: Ids that stay in any case.

    Raises:
        UsageError: An option names a file that has no size.

    Example:
        >>> plan = plan_retention({"all": 9_000, "some": 4_000}, [Rebuild("some", "all", 40)])
        >>> plan.keep, sorted(plan.rebuild)
        (('all',), ['some'])
    """
    names = sorted(sizes)
    place = {name: number for number, name in enumerate(names)}
    accesses = access_per_month or {}
    keep = [(prices.store + prices.maintain * maintenance_per_month) * sizes[name] / _GIGABYTE for name in names]
    arcs: dict[tuple[int, int], float] = {}
    best: dict[tuple[int, int], Rebuild] = {}
    for option in options:
        if option.child not in place or option.parent not in place:
            raise UsageError(f"no size of {option.child} or {option.parent}", hint="give the size of every file")
        parent, child = place[option.parent], place[option.child]
        read, write = sizes[option.parent], sizes[option.child]
        seconds = read / prices.read_speed + write / prices.write_speed
        if seconds > latency_limit_s or option.child in pin or parent == child:
            continue
        once = (prices.read * read + prices.write * write) / _GIGABYTE + prices.million_rows * option.rows / 1e6
        cost = accesses.get(option.child, 0.1) * once + prices.store * option.recipe_bytes / _GIGABYTE
        if cost < keep[child] and cost < arcs.get((parent, child), math.inf):
            arcs[parent, child] = cost
            best[parent, child] = option
    unit = max(keep, default=0.0) or 1.0  # the solver's tolerances are for numbers around one
    served, total, bound = _solve([cost / unit for cost in keep], {arc: cost / unit for arc, cost in arcs.items()})
    rebuild = {names[child]: best[parent, child] for child, parent in enumerate(served) if parent != child}
    kept = tuple(name for name in names if name not in rebuild)
    gap = (total - bound) / bound if bound > 0 else 0.0
    return RetentionPlan(kept, rebuild, sum(keep), total * unit, gap if gap > 1e-9 else 0.0)


def _solve(keep: Sequence[float], arcs: Mapping[tuple[int, int], float]) -> tuple[list[int], float, float]:
    """(who serves each file, cost, lower bound); a file that serves itself is kept."""
    neighbours: dict[int, set[int]] = defaultdict(set)
    for parent, child in arcs:
        neighbours[parent].add(child)
        neighbours[child].add(parent)
    served = list(range(len(keep)))
    total = sum(cost for number, cost in enumerate(keep) if number not in neighbours)
    bound = total
    seen: set[int] = set()
    for start in sorted(neighbours):
        if start in seen:
            continue
        members, waiting = [], [start]
        seen.add(start)
        while waiting:
            member = waiting.pop()
            members.append(member)
            waiting += neighbours[member] - seen
            seen |= neighbours[member]
        component = _Component(sorted(members), keep, arcs, neighbours)
        component.solve()
        for member, server in component.assignment().items():
            served[member] = server
        total += component.cost
        bound += component.bound
    return served, total, bound


class _Component:
    """One connected component: its best plan so far, and what no plan can beat."""

    def __init__(
        self,
        members: list[int],
        keep: Sequence[float],
        arcs: Mapping[tuple[int, int], float],
        neighbours: Mapping[int, set[int]],
    ) -> None:
        self.members = members
        self.keep = {member: keep[member] for member in members}
        self.servers: dict[int, list[tuple[float, int]]] = {member: [(0.0, member)] for member in members}
        self.children: dict[int, list[int]] = {member: [] for member in members}
        for member in members:
            for other in sorted(neighbours[member]):
                if (other, member) in arcs:
                    self.servers[member].append((arcs[other, member], other))
                    self.children[other].append(member)
            self.servers[member].sort()
        self.best = set(members)
        self.cost = sum(self.keep.values())
        self.bound = 0.0

    def assignment(self) -> dict[int, int]:
        """Who serves each member in the best plan."""
        return {child: next(s for _, s in self.servers[child] if s in self.best) for child in self.members}

    def solve(self) -> None:
        pending: list[tuple[float, frozenset[int], frozenset[int]]] = [(0.0, frozenset(), frozenset())]
        done = 0
        while pending:
            pending.sort(key=lambda node: -node[0])
            floor, opened, closed = pending[-1]
            if floor >= self.cost * (1 - _EQUAL) or done == _NODES:
                break
            pending.pop()
            done += 1
            bound, chosen, slack = self._ascend(opened, closed)
            if bound >= self.cost * (1 - _EQUAL):
                continue
            self._improve(chosen)
            undecided = [i for i in chosen if i not in opened and slack[i] <= _EQUAL and self.children[i]]
            if bound >= self.cost * (1 - _EQUAL) or not undecided:
                undecided = [i for i in self.members if i not in opened and i not in closed and self.children[i]]
                if bound >= self.cost * (1 - _EQUAL) or not undecided:
                    continue
            branch = max(undecided, key=lambda i: (len(self.children[i]), self.keep[i], -i))
            pending.append((bound, opened | {branch}, closed))
            pending.append((bound, opened, closed | {branch}))
        floors = [floor for floor, _, _ in pending]
        self.bound = min([self.cost, *floors]) if floors else self.cost

    def _ascend(self, opened: frozenset[int], closed: frozenset[int]) -> tuple[float, set[int], dict[int, float]]:
        """Dual ascent: a lower bound, and the files that it would keep."""
        slack = {i: 0.0 if i in opened else cost for i, cost in self.keep.items() if i not in closed}
        prices: dict[int, float] = {}
        levels: dict[int, list[tuple[float, int]]] = {}
        for child in self.members:
            levels[child] = [(cost, server) for cost, server in self.servers[child] if server not in closed]
            if not levels[child]:
                return math.inf, set(), slack
            prices[child] = levels[child][0][0]
        active = list(self.members)
        while active:
            still = []
            for child in active:
                price = prices[child]
                near = [server for cost, server in levels[child] if cost <= price + _EQUAL * 1e-6]
                following = next((cost for cost, _ in levels[child] if cost > price + _EQUAL * 1e-6), math.inf)
                room = min(slack[server] for server in near)
                step = min(room, following - price)
                for server in near:
                    slack[server] -= step
                prices[child] = price + step
                if room > following - price:
                    still.append(child)
            active = still
        chosen = set(opened)
        tight = 1e-9 * max(self.keep.values())
        for child in sorted(self.members, key=lambda j: prices[j]):
            reach = [server for cost, server in levels[child] if cost <= prices[child] + tight]
            if not any(server in chosen for server in reach):
                chosen.add(min(reach, key=lambda server: (slack[server] > tight, -len(self.children[server]), server)))
        return sum(prices.values()) + sum(self.keep[i] for i in opened), chosen, slack

    def _improve(self, chosen: set[int]) -> None:
        """Make a plan of the chosen files: keep what nothing else serves, then open and close single files."""
        kept = set(chosen)
        for child in self.members:
            if not any(server in kept for _, server in self.servers[child]):
                kept.add(child)
        for _ in range(_ROUNDS):
            changed = False
            for member in self.members:
                before = self._local_cost(member, kept)
                kept ^= {member}
                if self._local_cost(member, kept) < before - _EQUAL * max(before, 1e-300) * 100:
                    changed = True
                else:
                    kept ^= {member}
            if not changed:
                break
        cost = sum(self._served_cost(child, kept) for child in self.members) + sum(self.keep[i] for i in kept)
        if cost < self.cost:
            self.best, self.cost = kept, cost

    def _local_cost(self, member: int, kept: set[int]) -> float:
        """The part of a plan's cost that changes when `member` is kept or not."""
        own = self.keep[member] if member in kept else 0.0
        return own + sum(self._served_cost(child, kept) for child in (member, *self.children[member]))

    def _served_cost(self, child: int, kept: set[int]) -> float:
        return next((cost for cost, server in self.servers[child] if server in kept), math.inf)
