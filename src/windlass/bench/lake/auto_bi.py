"""`auto-bi`: predicted joins against known foreign keys, and the forest against an integer program.

The databases: Chinook and Northwind as they are; the schemas of TPC-H, TPC-DS and those of the Spider collection that
the join model was not trained on, filled with made-up rows; and generated ones it has not seen. Beside ours: the usual
rule (a foreign key goes to the key with the most similar name, if at least 95 % of its values are there) and the same
model without the graph (every join above one half). References of empty tables are not counted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.lake.join_databases import Database, Edge, generate, in_order
from windlass.bench.lake.join_schemas import real_database, spider_databases, tpcds_like, tpch_like
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import integers, uniform
from windlass.lake.join_candidates import LEAST_INCLUSION, find_candidates, find_joins
from windlass.lake.schema_graph import EdgeList, Join, build_schema, edge_list, k_mca_cc

_TREE_COST = -math.log(0.5)
_GENERATED, _QUICK_GENERATED = 40, 12
_FIRST_SEED = 500


def run(context: BenchContext) -> BenchReport:
    made = _QUICK_GENERATED if context.quick else _GENERATED
    groups = {
        "Chinook and Northwind": [real_database("chinook"), real_database("northwind")],
        "TPC-H and TPC-DS": [tpch_like(context.seed), tpcds_like(context.seed)],
        "unseen Spider schemas": spider_databases(context.seed)[1::2],
        "generated": [generate(_FIRST_SEED + context.seed + n, 5 + 2 * n % 26) for n in range(made)],
    }
    metrics: list[Metric] = []
    totals = _Figures([], [], [], 0, 0)
    for name, databases in groups.items():
        figures = measured(databases)
        totals = totals.plus(figures)
        ours, rule = statistics.fmean(figures.ours), statistics.fmean(figures.rule)
        metrics.append(metric(f"F1 {name}", "", ours, better="higher", peer=rule, peer_name="greedy rule"))
    ours, rule, local = (statistics.fmean(figures) for figures in totals[:3])
    metrics += [
        metric("mean F1", "", ours, better="higher", least=0.90),
        metric(
            "mean F1, beside the rule",
            "",
            ours,
            better="higher",
            peer=rule,
            peer_name="greedy rule",
            least_ratio=1.3,
            note=f"no errors at all would be {1 / rule:.2f} times",
        ),
        metric(
            "mean F1, beside no graph",
            "",
            ours,
            better="higher",
            peer=local,
            peer_name="same model",
            least_ratio=1.08,
            note=f"no errors at all would be {1 / local:.2f} times",
        ),
        metric(
            "wrong and missing joins",
            "",
            totals.errors,
            better="lower",
            peer=totals.local_errors,
            peer_name="same model, no graph",
        ),
        *solver(context, [database for databases in groups.values() for database in databases]),
    ]
    count = sum(len(databases) for databases in groups.values())
    keys = sum(len(database.truth) for databases in groups.values() for database in databases)
    return context.report(mode="measured", workload=f"{count} databases, {keys:,} foreign keys", metrics=metrics)


class _Figures(NamedTuple):
    """F1 of every database by ours, the rule and the model alone; errors by ours and by the model alone."""

    ours: list[float]
    rule: list[float]
    local: list[float]
    errors: int
    local_errors: int

    def plus(self, other: _Figures) -> _Figures:
        return _Figures(
            self.ours + other.ours,
            self.rule + other.rule,
            self.local + other.local,
            self.errors + other.errors,
            self.local_errors + other.local_errors,
        )


def measured(databases: Sequence[Database]) -> _Figures:
    figures = _Figures([], [], [], 0, 0)
    errors = local_errors = 0
    for database in databases:
        joins = find_joins(database.tables)
        graph = build_schema([table.id for table in database.tables], joins)
        ours = score({_edge(join) for join in graph.joins}, database)
        local = score({_edge(join) for join in joins if join.probability >= 0.5}, database)
        figures.ours.append(ours.f1)
        figures.local.append(local.f1)
        figures.rule.append(score(greedy_rule(database), database).f1)
        errors += ours.errors
        local_errors += local.errors
    return figures._replace(errors=errors, local_errors=local_errors)


@dataclass(frozen=True)
class Score:
    """How many edges are right, of how many that were predicted and how many there are."""

    right: int
    found: int
    true: int

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.true) if self.found or self.true else 1.0

    @property
    def errors(self) -> int:
        """Wrong ones and missing ones."""
        return self.found + self.true - 2 * self.right


def score(found: set[Edge], database: Database) -> Score:
    """Predicted edges against the true ones.

    Keys that are in one-to-one references with each other are one key: a reference to any of them is right, and among
    themselves any edges that connect them are, in either direction.
    """
    classes = _OneToOne(database)
    truth = set(map(in_order, database.truth))
    outside = {(edge[:2], classes.of(edge[2:])) for edge in truth if not classes.same(edge)}
    right = 0
    for edge in sorted(map(in_order, found)):
        if classes.same(edge):
            right += classes.connect(edge)
        elif (edge[:2], classes.of(edge[2:])) in outside:
            outside.remove((edge[:2], classes.of(edge[2:])))
            right += 1
    return Score(right, len(found), len(truth))


_End = tuple[str, tuple[str, ...]]


class _OneToOne:
    """Which keys are one by the true references, and which of those the predicted edges have connected."""

    def __init__(self, database: Database) -> None:
        unique = {
            (table.id, (column.name,))
            for table in database.tables
            for column in table.profile.columns
            if column.is_unique
        }
        self._true: dict[_End, _End] = {}
        self._connected: dict[_End, _End] = {}
        for edge in map(in_order, database.truth):
            if edge[:2] in unique and edge[2:] in unique:
                self._true[self.of(edge[:2])] = self.of(edge[2:])

    def of(self, end: Sequence[Any]) -> _End:
        return _root(self._true, (end[0], end[1]))

    def same(self, edge: Edge) -> bool:
        return self.of(edge[:2]) == self.of(edge[2:])

    def connect(self, edge: Edge) -> bool:
        """Whether an edge connects what was apart."""
        one, other = _root(self._connected, edge[:2]), _root(self._connected, edge[2:])
        if one != other:
            self._connected[one] = other
        return one != other


def _root(links: dict[_End, _End], end: _End) -> _End:
    while links.get(end, end) != end:
        end = links[end]
    return end


def greedy_rule(database: Database) -> set[Edge]:
    """For each column the most similarly named key, by inclusion of at least 95 %, the best first, each column once."""
    scored = []
    for c in find_candidates(database.tables):
        inclusion = LEAST_INCLUSION + (1 - LEAST_INCLUSION) * float(c.features[0])
        names = statistics.fmean(
            max(_similar(column, key), _similar(column, c.parent), _similar(column, f"{c.parent}{key}"))
            for column, key in zip(c.columns, c.keys, strict=True)
        )
        if inclusion >= 0.95 and names >= 0.5:
            scored.append((-names * inclusion, (c.child, c.columns, c.parent, c.keys)))
    chosen: dict[tuple[str, tuple[str, ...]], Edge] = {}
    for _, edge in sorted(scored):
        chosen.setdefault(edge[:2], edge)
    return set(chosen.values())


def _similar(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()


def _edge(join: Join) -> Edge:
    return join.child, join.columns, join.parent, join.keys


def solver(context: BenchContext, databases: Sequence[Database]) -> list[Metric]:
    """Time of the forest beside the integer program's, and whether the costs are the same, here and on databases."""
    there = peer_module("scipy") is not None
    sizes = (20, 40) if context.quick else (20, 60, 100)
    metrics, different = [], 0
    for vertices in sizes:
        edges = random_candidates(vertices, 20 * vertices, context.seed)
        k_mca_cc(vertices, edges, time_limit_s=60)
        timed = compare(
            lambda vertices=vertices, edges=edges: k_mca_cc(vertices, edges, time_limit_s=60),  # type: ignore[misc]
            (lambda vertices=vertices, edges=edges: forest_by_milp(vertices, edges, _TREE_COST)) if there else None,  # type: ignore[misc]
            warm_up=False,
            progress=context.progress,
        )
        metrics += timed.metrics(
            f"forest of {vertices} tables, {20 * vertices:,} edges",
            peer_name="HiGHS",
            least_ratio=5 if vertices == sizes[-1] else None,
        )
        if timed.peer is not None:
            different += abs(timed.ours.result.cost - timed.peer.result) > 1e-6
    if there:
        different += sum(_differs(database) for database in databases)
        metrics.append(
            metric(
                "costs that differ from the integer program's",
                "",
                different,
                better="lower",
                most=0,
                note=f"of {len(sizes) + len(databases)} cases",
            )
        )
    return metrics


def _differs(database: Database) -> bool:
    """Whether the integer program finds another cost for the joins of a database."""
    names = sorted(table.id for table in database.tables)
    joins = [join for join in find_joins(database.tables) if join.child != join.parent]
    if not joins:
        return False
    edges = edge_list(names, joins)
    forest = k_mca_cc(len(names), edges, time_limit_s=60)
    return abs(forest.cost - forest_by_milp(len(names), edges, _TREE_COST)) > 1e-6


def random_candidates(vertices: int, count: int, seed: int) -> EdgeList:
    """Candidate joins as they come: most of them unlikely, up to six columns a table."""
    draws = integers(seed, "edges", vertices, size=3 * count, high=1 << 30).reshape(3, count)
    chances = uniform(seed, "chances", vertices, size=count) ** 2 * 0.98 + 0.01
    tails = draws[0] % vertices
    return EdgeList(tails, draws[1] % vertices, -np.log(chances), tails * 6 + draws[2] % 6)


def forest_by_milp(vertices: int, edges: EdgeList, tree_cost: float) -> float:
    """The least cost by HiGHS: one entering edge a vertex, one edge a group, flow from the root instead of cycles."""
    from scipy import optimize, sparse

    count = len(edges.tails)
    tails = np.concatenate([edges.tails, np.full(vertices, vertices)])
    heads = np.concatenate([edges.heads, np.arange(vertices)])
    costs = np.concatenate([edges.costs, np.full(vertices, tree_cost)])
    total = count + vertices
    arcs = np.arange(total)
    enters = sparse.csr_matrix((np.ones(total), (heads, arcs)), shape=(vertices, total))
    groups = np.unique(edges.groups, return_inverse=True)[1]
    once = sparse.csr_matrix((np.ones(count), (groups, np.arange(count))), shape=(groups.max() + 1, total))
    inside = np.flatnonzero(tails < vertices)
    balance = enters - sparse.csr_matrix((np.ones(len(inside)), (tails[inside], inside)), shape=(vertices, total))
    nothing = sparse.csr_matrix((vertices, total))
    constraints: list[Any] = [
        optimize.LinearConstraint(sparse.hstack([enters, nothing]), 1, 1),
        optimize.LinearConstraint(sparse.hstack([once, sparse.csr_matrix(once.shape)]), -np.inf, 1),
        optimize.LinearConstraint(sparse.hstack([nothing, balance]), 1, 1),
        optimize.LinearConstraint(
            sparse.hstack([-vertices * sparse.identity(total), sparse.identity(total)]), -np.inf, 0
        ),
    ]
    found = optimize.milp(
        np.concatenate([costs, np.zeros(total)]),
        constraints=constraints,
        integrality=np.concatenate([np.ones(total), np.zeros(total)]),
        bounds=optimize.Bounds(0, np.concatenate([np.ones(total), np.full(total, vertices)])),
    )
    return float(found.fun) - tree_cost
