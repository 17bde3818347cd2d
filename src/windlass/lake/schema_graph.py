"""Which predicted joins to believe together: minimum-cost k-arborescences, after Auto-BI (Lin, He, Chaudhuri 2023).

Every table is a vertex and every possible join an edge from the table with the foreign key to the one with the key, at
the cost -ln P. A model of the tables is a forest of trees rooted at fact tables; each tree more than one costs -ln 0.5,
so an edge is worth having when it is more likely right than wrong. Without constraints that is one minimum-cost
arborescence from an artificial root. That a foreign key column refers to one table only (FK-once) makes it hard; it is
solved exactly by branch and bound over conflicting columns, within a time limit that reports its gap.

The forest reaches every table once. Dimensions that several facts share come back in a second step, which adds likely
edges as long as no column refers twice and no cycle closes; there, a table may also refer to itself. Last, references
to a table that only extends another one, key for key, go to that other one.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError
from windlass.kernels.arborescence import cheapest_tree

_TREE_COST = -math.log(0.5)
_LEAST_PROBABILITY = 1e-6
_MOST_STATES = 100_000
_EQUAL = 1e-12


class Join(NamedTuple):
    """A possible join: `columns` of the table `child` refer to `keys` of the table `parent`, with a probability.

    `mutual` says that each side has every value once, so that the join is one to one and could point either way;
    `why` says in words what speaks for it and against it.
    """

    child: str
    columns: tuple[str, ...]
    parent: str
    keys: tuple[str, ...]
    probability: float
    mutual: bool = False
    why: str = ""


@dataclass(frozen=True)
class Forest:
    """Chosen edges (positions in the input, sorted), their cost with that of the trees, and how far it may be off.

    `gap` is the cost minus a proven lower bound: 0 when nothing can be cheaper.
    """

    edges: tuple[int, ...]
    cost: float
    gap: float


class EdgeList(NamedTuple):
    """Directed edges between vertices `0..n - 1`: where each starts and ends, what it costs, and its column group.

    At most one edge of a group may be chosen: they start from one foreign key column.
    """

    tails: NDArray[np.int64]
    heads: NDArray[np.int64]
    costs: NDArray[np.float64]
    groups: NDArray[np.int64]


def k_mca(vertices: int, edges: EdgeList, tree_cost: float = _TREE_COST) -> Forest:
    """The cheapest forest of rooted trees that covers all vertices; column groups are not heeded.

    Example:
        >>> edges = EdgeList(np.array([0, 1]), np.array([1, 0]), np.array([0.1, 0.2]), np.array([0, 1]))
        >>> k_mca(2, edges).edges
        (0,)
    """
    chosen, cost = _cheapest(vertices, edges, tree_cost, np.ones(len(edges.tails), np.bool_))
    return Forest(tuple(sorted(chosen)), cost, 0.0)


def k_mca_cc(vertices: int, edges: EdgeList, tree_cost: float = _TREE_COST, *, time_limit_s: float = 5.0) -> Forest:
    """The cheapest forest in which no two edges are of one column group.

    Best first over sets of forbidden edges: of a group that is used more than once, every solution keeps at most one
    edge, so the branches, each of which forbids all but one, lose none.
    """
    deadline = time.monotonic() + time_limit_s
    members: dict[int, list[int]] = defaultdict(list)
    for edge, group in enumerate(edges.groups.tolist()):
        members[group].append(edge)
    everything = np.ones(len(edges.tails), np.bool_)
    first, bound = _cheapest(vertices, edges, tree_cost, everything)
    best, best_cost = _repaired(first, edges, tree_cost, vertices)
    # Each state: bound, order of arrival (ties), forbidden edges, the forest they leave.
    waiting: list[tuple[float, int, frozenset[int], list[int]]] = [(bound, 0, frozenset(), first)]
    seen: set[frozenset[int]] = {frozenset()}
    arrivals = 0
    while waiting:
        bound, _, forbidden, chosen = waiting[0]
        if bound >= best_cost - _EQUAL or arrivals >= _MOST_STATES or time.monotonic() > deadline:
            break
        heapq.heappop(waiting)
        conflict = _largest_conflict(chosen, edges.groups)
        if conflict is None:
            best, best_cost = chosen, bound
            continue
        rivals = members[conflict]
        for kept in [*(edge for edge in rivals if edge in chosen), -1]:
            # Of the edges of the group, only `kept` stays; with -1, only those that the forest did not want.
            leaves = [edge for edge in rivals if edge != kept and (kept >= 0 or edge in chosen)]
            state = forbidden | frozenset(leaves)
            if state in seen:
                continue
            seen.add(state)
            allowed = everything.copy()
            allowed[list(state)] = False
            found, cost = _cheapest(vertices, edges, tree_cost, allowed)
            repaired, repaired_cost = _repaired(found, edges, tree_cost, vertices)
            if repaired_cost < best_cost:
                best, best_cost = repaired, repaired_cost
            if cost < best_cost - _EQUAL:
                arrivals += 1
                heapq.heappush(waiting, (cost, arrivals, state, found))
    least = min([best_cost, *(entry[0] for entry in waiting[:1])])
    gap = best_cost - least
    return Forest(tuple(sorted(best)), best_cost, gap if gap > _EQUAL else 0.0)


def _cheapest(vertices: int, edges: EdgeList, tree_cost: float, allowed: NDArray[np.bool_]) -> tuple[list[int], float]:
    """The cheapest forest of allowed edges: a tree from a root that reaches every vertex for `tree_cost`."""
    count = len(edges.tails)
    tails = np.concatenate([edges.tails, np.full(vertices, vertices)]).astype(np.int64)
    heads = np.concatenate([edges.heads, np.arange(vertices)]).astype(np.int64)
    costs = np.concatenate([edges.costs, np.full(vertices, tree_cost)])
    usable = np.concatenate([allowed, np.ones(vertices, np.bool_)])
    entering = cheapest_tree(vertices + 1, vertices, tails, heads, costs, usable)[:vertices]
    chosen = [int(edge) for edge in entering if edge < count]
    return chosen, _cost(chosen, edges, tree_cost, vertices)


def _cost(chosen: Sequence[int], edges: EdgeList, tree_cost: float, vertices: int) -> float:
    return float(sum(edges.costs[edge] for edge in chosen)) + (vertices - len(chosen) - 1) * tree_cost


def _repaired(chosen: list[int], edges: EdgeList, tree_cost: float, vertices: int) -> tuple[list[int], float]:
    """A forest that heeds the groups: of each only the cheapest edge; whoever loses its edge becomes a root."""
    kept: dict[int, int] = {}
    for edge in sorted(chosen, key=lambda edge: (edges.costs[edge], edge)):
        kept.setdefault(int(edges.groups[edge]), edge)
    left = list(kept.values())
    return left, _cost(left, edges, tree_cost, vertices)


def _largest_conflict(chosen: Sequence[int], groups: NDArray[np.int64]) -> int | None:
    counts: dict[int, int] = defaultdict(int)
    for edge in chosen:
        counts[int(groups[edge])] += 1
    worst = min(counts, key=lambda group: (-counts[group], group), default=None)
    return worst if worst is not None and counts[worst] > 1 else None


@dataclass(frozen=True)
class SchemaGraph:
    """How tables fit together.

    Attributes:
        tables: All of them, sorted.
        joins: The joins that are believed, most probable first.
        backbone: Those of the forest.
        rejected: The others, most probable first.
        gap: Of the forest's cost, see `Forest`.
    """

    tables: tuple[str, ...]
    joins: tuple[Join, ...]
    backbone: tuple[Join, ...]
    rejected: tuple[Join, ...]
    gap: float

    @property
    def facts(self) -> tuple[str, ...]:
        """Tables that refer to others and that none refers to."""
        others = [join for join in self.joins if join.child != join.parent]
        return tuple(sorted({join.child for join in others} - {join.parent for join in others}))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Tables that others refer to."""
        return tuple(sorted({join.parent for join in self.joins if join.child != join.parent}))

    def why(self, join: Join) -> str:
        """What speaks for a join, and what the same columns could have referred to instead."""
        others = [other for other in self.rejected if (other.child, other.columns) == (join.child, join.columns)]
        instead = [f"{other.parent}.{', '.join(other.keys)} ({other.probability:.0%})" for other in others[:2]]
        return "; ".join([join.why] * bool(join.why) + [f"next likely: {' and '.join(instead)}"] * bool(instead))

    def to_mermaid(self) -> str:
        """The graph as a Mermaid entity-relationship diagram."""
        names = {table: f"t{number}" for number, table in enumerate(self.tables)}
        lines = ["erDiagram"]
        lines += [f'    {names[table]}["{table.replace(chr(34), "")}"]' for table in self.tables]
        for join in self.joins:
            sign = "||--||" if join.mutual else "}o--||"
            label = f"{', '.join(join.columns)} = {', '.join(join.keys)}".replace('"', "")
            lines.append(f'    {names[join.child]} {sign} {names[join.parent]} : "{label} ({join.probability:.0%})"')
        return "\n".join(lines) + "\n"

    def to_sql(self) -> str:
        """One view a fact table, with all that it refers to, at any distance, joined to it."""
        return "\n".join(self._view(fact) for fact in self.facts)

    def _view(self, fact: str) -> str:
        lines = [f"CREATE VIEW {_quoted(fact + ' with all')} AS SELECT * FROM {_quoted(fact)}"]
        reached, waiting = {fact}, [(fact, fact)]
        while waiting:
            table, alias = waiting.pop(0)
            for join in self.joins:
                if join.child != table:
                    continue
                # A table that is reached over two columns stands there twice, under names of its own.
                name = join.parent if join.parent not in reached else f"{join.parent} by {' '.join(join.columns)}"
                if name in reached:
                    continue
                reached.add(name)
                waiting.append((join.parent, name))
                on = " AND ".join(
                    f"{_quoted(alias)}.{_quoted(column)} = {_quoted(name)}.{_quoted(key)}"
                    for column, key in zip(join.columns, join.keys, strict=True)
                )
                lines.append(f"    LEFT JOIN {_quoted(join.parent)} AS {_quoted(name)} ON {on}")
        return "\n".join(lines) + ";\n"


def build_schema(
    tables: Collection[str], joins: Sequence[Join], *, threshold: float = 0.5, time_limit_s: float = 5.0
) -> SchemaGraph:
    """Choose among possible joins.

    Args:
        tables: Names of all tables.
        joins: Possible joins between them.
        threshold: The least probability of a join that the second step adds.
        time_limit_s: For the forest; when it is over, the best one found is used and `gap` says how far it may be off.

    Raises:
        ModelError: A probability is no number between 0 and 1.
    """
    names = sorted(tables)
    bad = [join for join in joins if not 0 <= join.probability <= 1]
    if bad:
        raise ModelError(f"the join {bad[0].child} -> {bad[0].parent} has the probability {bad[0].probability}")
    ordered = sorted(joins, key=lambda join: (-join.probability, join))
    edges = edge_list(names, ordered)
    forest = k_mca_cc(len(names), edges, time_limit_s=time_limit_s)
    chosen = set(forest.edges)
    _add_likely(chosen, ordered, edges.groups.tolist(), threshold)
    _refer_to_owners(chosen, ordered, threshold)
    believed = tuple(join for number, join in enumerate(ordered) if number in chosen)
    rejected = tuple(join for number, join in enumerate(ordered) if number not in chosen)
    return SchemaGraph(tuple(names), believed, tuple(ordered[edge] for edge in forest.edges), rejected, forest.gap)


def edge_list(tables: Sequence[str], joins: Sequence[Join]) -> EdgeList:
    """The joins as edges between the places of their tables; those that start from one set of columns are a group."""
    place = {name: number for number, name in enumerate(tables)}
    groups: dict[tuple[str, tuple[str, ...]], int] = {}
    numbers = [groups.setdefault((join.child, join.columns), len(groups)) for join in joins]
    costs = [-math.log(min(max(join.probability, _LEAST_PROBABILITY), 1 - _LEAST_PROBABILITY)) for join in joins]
    return EdgeList(
        np.array([place[join.child] for join in joins], np.int64),
        np.array([place[join.parent] for join in joins], np.int64),
        np.array(costs, np.float64),
        np.array(numbers, np.int64),
    )


def _add_likely(chosen: set[int], joins: Sequence[Join], groups: Sequence[int], threshold: float) -> None:
    """Add further edges, most probable first, as long as no column refers twice and no cycle closes.

    A table is referred to by one key: an edge to another key of a table that is reached already is left out.
    """
    keys = {joins[edge].parent: joins[edge].keys for edge in chosen}
    used = {groups[edge] for edge in chosen}
    follows: dict[str, set[str]] = defaultdict(set)
    linked = {frozenset((joins[edge].child, joins[edge].parent)) for edge in chosen if joins[edge].mutual}
    for edge in chosen:
        follows[joins[edge].child].add(joins[edge].parent)
    for edge, join in enumerate(joins):
        if edge in chosen or join.probability < threshold or groups[edge] in used:
            continue
        both = frozenset((join.child, join.parent))
        cyclic = join.child != join.parent and _reaches(join.parent, join.child, follows)
        if (join.mutual and both in linked) or cyclic:
            continue
        if keys.setdefault(join.parent, join.keys) != join.keys:
            continue
        chosen.add(edge)
        used.add(groups[edge])
        if join.child != join.parent:
            follows[join.child].add(join.parent)
        if join.mutual:
            linked.add(both)


def _refer_to_owners(chosen: set[int], joins: Sequence[Join], threshold: float) -> None:
    """Let a reference to a key that is itself one to one with another table's go to that table.

    The forest reaches every table once, so of two tables with one key it may choose the one that only extends the
    other: order -> customer details -> customer. Where order -> customer is likely as well, that is what is meant.
    """
    owners = {joins[edge].child: joins[edge] for edge in sorted(chosen, reverse=True) if joins[edge].mutual}
    places = {join[:4]: edge for edge, join in enumerate(joins)}
    for edge in sorted(chosen):
        join = joins[edge]
        owner = owners.get(join.parent)
        if join.mutual or owner is None or owner.columns != join.keys:
            continue
        meant = places.get((join.child, join.columns, owner.parent, owner.keys))
        if meant is not None and meant not in chosen and joins[meant].probability >= threshold:
            chosen.remove(edge)
            chosen.add(meant)


def _reaches(start: str, end: str, follows: dict[str, set[str]]) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        table = waiting.pop()
        if table == end:
            return True
        waiting += follows[table] - seen
        seen |= follows[table]
    return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
