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
_NODE_BUDGET = 4_000_000
_SEARCH_EVERY = 10
_ROUNDS = 20
_ADJUSTMENTS = 12
_WORTH = 1e-5
_EQUAL = 1e-12
_TIGHT = 1e-9


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
        self.servers: dict[int, list[tuple[float, int]]] = {member: [] for member in members}
        self.children: dict[int, list[int]] = {member: [] for member in members}
        for member in members:
            for other in sorted(neighbours[member]):
                if (other, member) in arcs:
                    self.servers[member].append((arcs[other, member], other))
                    self.children[other].append(member)
        # A file that rebuilds nothing decides nothing: keeping it is one more way to serve it.
        self.deciding = [member for member in members if self.children[member]]
        self.keep = {member: keep[member] if self.children[member] else 0.0 for member in members}
        for member in members:
            self.servers[member].append((0.0 if self.children[member] else keep[member], member))
            self.servers[member].sort()
        self.best = set(members)
        self.cost = sum(keep[member] for member in members)
        self.bound = 0.0

    def assignment(self) -> dict[int, int]:
        """Who serves each member in the best plan."""
        return {child: next(s for _, s in self.servers[child] if s in self.best) for child in self.members}

    def solve(self) -> None:
        most = max(1, _NODE_BUDGET // len(self.members) ** 2)
        pending: list[tuple[float, frozenset[int], frozenset[int]]] = [(0.0, frozenset(), frozenset())]
        for done in range(most + 1):
            pending.sort(key=lambda node: -node[0])
            if not pending or pending[-1][0] >= self.cost * (1 - _EQUAL) or done == most:
                break
            _, opened, closed = pending.pop()
            bound, chosen, slack = self._ascend(opened, closed)
            if bound < self.cost * (1 - _EQUAL):
                self._try_plan(chosen, search=done % _SEARCH_EVERY == 0)
            if bound >= self.cost * (1 - _EQUAL):
                continue
            # What could not be opened, or not be left closed, without costing more than the best plan, is settled.
            room = self.cost - bound
            closed |= {i for i, left in slack.items() if left > room and i not in opened}
            open_ones = [i for i in self.deciding if i not in opened and i not in closed]
            if open_ones:
                tight = [i for i in open_ones if i in chosen] or open_ones
                branch = max(tight, key=lambda i: (len(self.children[i]), self.keep[i], -i))
                pending.append((bound, opened | {branch}, closed))
                pending.append((bound, opened, closed | {branch}))
            else:
                self._try_plan(set(opened), search=False)
        floors = [floor for floor, _, _ in pending]
        self.bound = min([self.cost, *floors])

    def _ascend(self, opened: frozenset[int], closed: frozenset[int]) -> tuple[float, set[int], dict[int, float]]:
        """A lower bound, the files that it would keep, and what each could still be paid."""
        slack = {i: 0.0 if i in opened else cost for i, cost in self.keep.items() if i not in closed}
        levels = self.servers
        if closed:
            levels = {j: [level for level in levels[j] if level[1] not in closed] for j in self.members}
            if not all(levels.values()):
                return math.inf, set(), slack
        dual = _Dual(levels, slack)
        dual.rise(self.members)
        for _ in range(_ADJUSTMENTS):
            before = dual.total()
            dual.adjust()
            if dual.total() < before * (1 + _WORTH):
                break
        chosen = dual.support(opened, {i: len(self.children[i]) for i in slack})
        return dual.total() + sum(self.keep[i] for i in opened), chosen, slack

    def _try_plan(self, chosen: set[int], *, search: bool) -> None:
        """Take a plan if it is the best so far: keep what nothing else serves, then maybe open and close files."""
        kept = {*chosen, *(member for member in self.members if not self.children[member])}
        for child in self.members:
            if not any(server in kept for _, server in self.servers[child]):
                kept.add(child)
        waiting = self.deciding if search else []
        for _ in range(_ROUNDS):
            changed: set[int] = set()
            for member in waiting:
                around = [*self.children[member], *(server for _, server in self.servers[member])]
                moves = [(member,), *((member, other) for other in around if other != member and self.children[other])]
                if any(self._flip(move, kept) for move in moves):
                    changed |= {member, *around}
            waiting = sorted(member for member in changed if self.children[member])
            if not waiting:
                break
        cost = sum(self._served_cost(child, kept) for child in self.members) + sum(self.keep[i] for i in kept)
        if cost < self.cost:
            self.best, self.cost = kept, cost

    def _flip(self, members: tuple[int, ...], kept: set[int]) -> bool:
        """Open what is closed of some and close what is open, if that makes the plan cheaper."""
        touched = {child for member in members for child in (member, *self.children[member])}
        before = self._part(members, touched, kept)
        kept ^= set(members)
        if self._part(members, touched, kept) < before * (1 - _EQUAL) - _EQUAL:
            return True
        kept ^= set(members)
        return False

    def _part(self, members: tuple[int, ...], touched: set[int], kept: set[int]) -> float:
        """The part of a plan's cost that depends on whether `members` are kept."""
        own = sum(self.keep[member] for member in members if member in kept)
        return own + sum(self._served_cost(child, kept) for child in touched)

    def _served_cost(self, child: int, kept: set[int]) -> float:
        return next((cost for cost, server in self.servers[child] if server in kept), math.inf)


class _Dual:
    """What each file would pay to be served, raised until every server that it could pay for is paid for."""

    def __init__(self, levels: Mapping[int, list[tuple[float, int]]], slack: dict[int, float]) -> None:
        self.levels = levels
        self.slack = slack
        self.prices = {child: own[0][0] for child, own in levels.items()}

    def total(self) -> float:
        return sum(self.prices.values())

    def rise(self, children: Iterable[int]) -> None:
        """Raise the prices of some as far as it goes, level by level, in turn."""
        active = list(children)
        while active:
            still = []
            for child in active:
                own, price = self.levels[child], self.prices[child]
                count = self._near(own, price + _EQUAL)
                room = min(self.slack[server] for _, server in own[:count])
                rise = own[count][0] - price if count < len(own) else math.inf
                step = min(room, rise)
                if step > 0:
                    for _, server in own[:count]:
                        self.slack[server] -= step
                    self.prices[child] = price + step
                if room > rise:
                    still.append(child)
            active = still

    def adjust(self) -> None:
        """Take from those who pay several servers, and let others who pay one of those rise instead."""
        payers: dict[int, list[int]] = defaultdict(list)
        for child, own in self.levels.items():
            for cost, server in own:
                if cost < self.prices[child] - _TIGHT:
                    payers[server].append(child)
        for child, own in self.levels.items():
            price = self.prices[child]
            paid = [(cost, server) for cost, server in own if cost < price - _TIGHT]
            if len(paid) < 2:
                continue
            below = paid[-1][0]
            for _, server in paid:
                self.slack[server] += price - below
            self.prices[child] = below
            # First those whom only one of these servers holds back.
            others = {other for _, server in paid for other in payers[server] if other != child}
            single = [other for other in sorted(others) if sum(self.slack[s] <= _TIGHT for s in self._paid(other)) == 0]
            self.rise(single)
            self.rise(sorted(others))
            self.rise([child])

    def support(self, opened: Iterable[int], weight: Mapping[int, int]) -> set[int]:
        """Servers that are paid in full, enough of them for everybody."""
        chosen = set(opened)
        for child in sorted(self.levels, key=lambda j: self.prices[j]):
            own = self.levels[child]
            reach = [server for _, server in own[: self._near(own, self.prices[child] + _TIGHT)]]
            if not any(server in chosen for server in reach):
                chosen.add(min(reach, key=lambda server: (self.slack[server] > _TIGHT, -weight[server], server)))
        return chosen

    def _paid(self, child: int) -> list[int]:
        own = self.levels[child]
        return [server for _, server in own[: self._near(own, self.prices[child] + _EQUAL)]]

    @staticmethod
    def _near(own: list[tuple[float, int]], price: float) -> int:
        count = 1
        while count < len(own) and own[count][0] <= price:
            count += 1
        return count
