"""`auto-bi`: predicted joins against known foreign keys, and the forest against an integer program.

The databases: Chinook and Northwind as they are, the keys of TPC-DS over made-up data, and generated ones that the
join model has not seen. Beside ours: the usual rule (a foreign key column goes to the key column with the most similar
name, if at least 95 % of its values are there) and the same model without the graph (every join above one half). Joins
over several columns, within one table and of empty tables are not predicted and not counted.
"""

from __future__ import annotations

import math
import statistics
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.lake.join_databases import Database, Edge, generate, real_database, tpcds_like
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import integers, uniform
from windlass.lake.join_candidates import LEAST_INCLUSION, find_candidates, find_joins
from windlass.lake.schema_graph import EdgeList, Join, build_schema, k_mca_cc

_TREE_COST = -math.log(0.5)
_GENERATED, _QUICK_GENERATED = 40, 12
_FIRST_SEED = 500


def run(context: BenchContext) -> BenchReport:
    made = _QUICK_GENERATED if context.quick else _GENERATED
    generated = [generate(_FIRST_SEED + context.seed + number, 5 + 2 * number % 26) for number in range(made)]
    databases = [real_database("chinook"), real_database("northwind"), tpcds_like(context.seed), *generated]
    ours: list[float] = []
    rule: list[float] = []
    local: list[float] = []
    metrics: list[Metric] = []
    for database in databases:
        joins = find_joins(database.tables)
        graph = build_schema([table.id for table in database.tables], joins)
        ours.append(f1({_edge(join) for join in graph.joins}, database.truth))
        rule.append(f1(greedy_rule(database), database.truth))
        local.append(f1({_edge(join) for join in joins if join.probability >= 0.5}, database.truth))
        if not database.name.startswith("generated"):
            metrics.append(
                metric(
                    f"F1 {database.name}", "", ours[-1], better="higher", peer=rule[-1] or None, peer_name="greedy rule"
                )
            )
    mean, mean_rule, mean_local = (statistics.fmean(figures) for figures in (ours, rule, local))
    metrics += [
        metric("mean F1", "", mean, better="higher", least=0.90),
        metric(
            "mean F1, beside the rule",
            "",
            mean,
            better="higher",
            peer=mean_rule,
            peer_name="greedy rule",
            least_ratio=1.3,
        ),
        metric(
            "mean F1, beside no graph",
            "",
            mean,
            better="higher",
            peer=mean_local,
            peer_name="same model",
            least_ratio=1.08,
        ),
        *solver(context),
    ]
    return context.report(
        mode="measured",
        workload=f"{len(databases)} databases, {sum(len(database.truth) for database in databases)} foreign keys",
        metrics=metrics,
    )


def f1(found: set[Edge], truth: set[Edge]) -> float:
    right = len(found & truth)
    return 2 * right / (len(found) + len(truth)) if found or truth else 1.0


def greedy_rule(database: Database) -> set[Edge]:
    """For each column the most similarly named key, by inclusion of at least 95 %, the best first, each column once."""
    scored = []
    for c in find_candidates(database.tables):
        inclusion = LEAST_INCLUSION + (1 - LEAST_INCLUSION) * float(c.features[0])
        names = max(_similar(c.column, c.key), _similar(c.column, c.parent), _similar(c.column, f"{c.parent}{c.key}"))
        if inclusion >= 0.95 and names >= 0.5:
            scored.append((-names * inclusion, (c.child, c.column, c.parent, c.key)))
    chosen: dict[tuple[str, str], Edge] = {}
    for _, edge in sorted(scored):
        chosen.setdefault(edge[:2], edge)
    return set(chosen.values())


def _similar(a: str, b: str) -> float:
    return SequenceMatcher(None, a.lower(), b.lower(), autojunk=False).ratio()


def _edge(join: Join) -> Edge:
    return join.child, join.columns[0], join.parent, join.keys[0]


def solver(context: BenchContext) -> list[Metric]:
    """Time of the forest beside the integer program's, and whether the costs are the same."""
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
        metrics.append(metric("costs that differ from the integer program's", "", different, better="lower", most=0))
    return metrics


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
