"""Personalised PageRank: which nodes matter to these nodes. Exact, and by pushing residue.

With probability `restart` a walker goes back to its start, else to a neighbour; from a node without neighbours it goes
back as well. The scores of a start are the share of time it spends at each node, so they sum to one. Several starts
with weights give the weighted mean of their scores.

Inside, walks end where they restart. That is linear, also with nodes that have no neighbours, and differs from the
scores by one factor for each start, `1 / reach(start)`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.tasks import usable_cores
from windlass.graphs.graph import Graph
from windlass.kernels.csr_dense import multiply_rows
from windlass.kernels.push import best, clear, close, push
from windlass.kernels.push_block import answer_block, answer_each
from windlass.kernels.random_walks import count_visits
from windlass.kernels.simd import LANES

Seeds = int | Sequence[int] | Mapping[int, float]
Fingerprints = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint16], NDArray[np.float32]]
"""Offsets, ids, visits, scales, as `kernels.push.close` takes them."""
FlatSeeds = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Of several queries: where the seeds of each begin, the seeds, and their weights."""
Method = Literal["exact", "push", "walks"]
_COLUMNS = 32
_MOST_WALKS = 10_000_000


@dataclass(frozen=True)
class SparseVectors:
    """Some scores of each query, best first (ties: the smaller node).

    Attributes:
        indptr: int64 [queries + 1], where each query's entries begin.
        ids: int64, node numbers. scores: float64.
        touched: Arcs and fingerprint entries that the work touched.
        accuracy: The share of the true scores of the best nodes that is expected to be found, or None.
    """

    indptr: NDArray[np.int64]
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    touched: int = 0
    accuracy: float | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if not 0 <= query < len(self):
            raise IndexError(query)
        part = slice(self.indptr[query], self.indptr[query + 1])
        return self.ids[part], self.scores[part]

    def dense(self, nodes: int) -> NDArray[np.float64]:
        """float64 [queries, nodes]."""
        out = np.zeros((len(self), nodes))
        for query in range(len(self)):
            ids, scores = self[query]
            out[query, ids] = scores
        return out


def personalized_pagerank(
    graph: Graph,
    seeds: Seeds,
    *,
    restart: float = 0.15,
    tol: float = 1e-9,
    method: Method = "exact",
    top: int | None = None,
    seed: int = 0,
) -> SparseVectors:
    """Scores of all nodes that matter to `seeds`.

    Args:
        seeds: A node, several that count alike, or nodes with weights.
        restart: Chance to go back, between 0 and 1; the larger, the nearer it stays.
        tol: Mass that may be missing or misplaced. `walks` makes `1 / tol^2` walks, at most ten million.
        method: `exact` iterates over the whole graph, `push` works outwards from the seeds, `walks` samples.
        top: Only so many; default: all above zero.

    Raises:
        UsageError: An unknown node, no seeds, a weight that is negative, not finite or all of them zero, or `restart`
            or `tol` out of range.

    Example:
        >>> ids, scores = personalized_pagerank(Graph.from_edges([0, 1], [1, 2]), 0)[0]
        >>> ids.tolist(), round(float(scores.sum()), 6)
        ([1, 0, 2], 1.0)
    """
    check_restart(restart)
    if not 0 < tol < 1:
        raise UsageError(f"tol is {tol}, it must lie between 0 and 1")
    nodes, values = checked_seeds(graph, seeds)
    if method == "exact":
        return best_of(exact_scores(graph, [(nodes, values)], restart, tol)[0], top)
    reach = reaches(graph, restart)
    if method == "push":
        threshold = tol / max(1, graph.num_arcs + graph.num_nodes)
        work = Workplace(graph)
        ids, scores, touched, _ = work.run(nodes, values / reach[nodes], restart, threshold, None, top=top)
        return pack([(ids, scores)], touched)
    if method == "walks":
        walks = max(1, min(_MOST_WALKS, math.ceil(tol**-2)))
        return best_of(_sampled(graph, nodes, values, restart, walks, seed), top)
    raise UsageError(f"unknown method {method!r}", hint="exact, push or walks")


def nearness(
    graph: Graph, seeds: Seeds, *, restart: float = 0.05, tol: float = 1e-5, top: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nodes and how near they are to `seeds`, nearest first: PageRank from the seeds over the weight that leads to a
    node, so that hubs, which are near everybody, do not come first.

    Raises:
        UsageError: As for `personalized_pagerank`.
    """
    ids, scores = personalized_pagerank(graph, seeds, restart=restart, tol=tol, method="push")[0]
    scores = scores / np.maximum(graph.transposed.strengths[ids], 1e-30)
    order = np.lexsort((ids, -scores))[:top]
    return ids[order], scores[order]


def check_restart(restart: float) -> None:
    if not 0 < restart < 1:
        raise UsageError(f"restart is {restart}, it must lie between 0 and 1")


def checked_seeds(graph: Graph, seeds: Seeds) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Node numbers and their weights, which sum to one.

    Raises:
        UsageError: See `personalized_pagerank`.
    """
    if type(seeds) is int and 0 <= seeds < graph.num_nodes:
        return np.array([seeds]), np.ones(1)
    if isinstance(seeds, Mapping):
        nodes, weights = list(seeds), np.array(list(seeds.values()), np.float64)
    else:
        nodes = list(seeds) if isinstance(seeds, Sequence | np.ndarray | set | frozenset | range) else [seeds]
        weights = np.ones(len(nodes))
    if not nodes:
        raise UsageError("no seeds", hint="give at least one node")
    for node in nodes:
        if isinstance(node, bool) or not isinstance(node, int | np.integer) or not 0 <= node < graph.num_nodes:
            raise UsageError(f"no node {node!r}: nodes are 0 to {graph.num_nodes - 1}", hint="graph.numbers(...)")
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UsageError(f"the weight of seed {nodes[at]} is {weights[at]}, it must be finite and not negative")
    if not weights.sum() > 0:
        raise UsageError("the weights of the seeds sum to zero")
    return np.array(nodes, np.int64), weights / weights.sum()


def reaches(graph: Graph, restart: float) -> NDArray[np.float64]:
    """float64 [n]: the mass that walks leave behind when they end at nodes without neighbours; 1 where none is met."""
    out = np.ones(graph.num_nodes)
    if (np.diff(graph.indptr) > 0).all():
        return out
    ends = graph.strengths == 0
    safe = np.where(ends, 1.0, graph.strengths)
    column = out.reshape(-1, 1)
    for _ in range(math.ceil(math.log(1e-13) / math.log(1 - restart)) + 1):
        spread = _multiply(graph, np.ascontiguousarray(column)) / safe[:, None]
        column = restart + (1 - restart) * np.where(ends[:, None], 0.0, spread)
    return np.ascontiguousarray(column[:, 0])


def exact_scores(
    graph: Graph, queries: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], restart: float, tol: float
) -> NDArray[np.float64]:
    """float64 [queries, n] by iterating until less than `tol` is on its way, several queries at a time."""
    reach = reaches(graph, restart)
    turned = graph.transposed
    strengths = np.where(graph.strengths > 0, graph.strengths, 1.0)[:, None]
    out = np.zeros((len(queries), graph.num_nodes))
    for first in range(0, len(queries), _COLUMNS):
        part = queries[first : first + _COLUMNS]
        going = np.zeros((graph.num_nodes, len(part)))
        for column, (nodes, values) in enumerate(part):
            np.add.at(going[:, column], nodes, values / reach[nodes])
        scores = np.zeros_like(going)
        while going.size and going.sum(axis=0).max() > tol:
            scores += restart * going
            going = _multiply(turned, going / strengths) * (1 - restart)
        out[first : first + len(part)] = (scores + restart * going).T
    return out


def _multiply(graph: Graph, x: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.empty_like(x)
    blocks = list(row_blocks(graph))
    if len(blocks) == 1:
        multiply_rows(graph.indptr, graph.indices, graph.flat_weights, x, out, 0, graph.num_nodes)
        return out
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(
            lambda block: multiply_rows(graph.indptr, graph.indices, graph.flat_weights, x, out, *block), blocks
        ):
            pass
    return out


def row_blocks(graph: Graph, arcs: int = 65_536) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about as many arcs each."""
    first = 0
    while first < graph.num_nodes:
        last = int(np.searchsorted(graph.indptr, graph.indptr[first] + arcs, side="left"))
        last = min(max(last, first + 1), graph.num_nodes)
        yield first, last
        first = last


def _sampled(
    graph: Graph, nodes: NDArray[np.int64], values: NDArray[np.float64], restart: float, walks: int, seed: int
) -> NDArray[np.float64]:
    prefix = graph.running_weights
    counts, touched = np.zeros(graph.num_nodes, np.int64), np.empty(graph.num_nodes, np.int32)
    scores = np.zeros(graph.num_nodes)
    for node, value in zip(nodes.tolist(), values.tolist(), strict=True):
        share = max(1, round(walks * value))
        seen, total = count_visits(
            graph.indptr, graph.indices, prefix, node, share, restart, 10_000, np.uint64(seed), counts, touched
        )
        scores[touched[:seen]] += value * counts[touched[:seen]] / total
        counts[touched[:seen]] = 0
    return scores


class Workplace:
    """The arrays that pushing over one graph needs, one set for each thread; they are zeros between queries."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._local = graph, threading.local()

    def run(
        self, seeds: NDArray[np.int64], values: NDArray[np.float64], restart: float, threshold: float,
        fingerprints: Fingerprints | None, least: float = 0.0, top: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], int, float]:  # fmt: skip
        """Nodes and scores, best first, what was touched, and the residue that was left before it was closed."""
        graph = self._graph
        if top is not None and top < 1:
            raise UsageError(f"top is {top}, it must be 1 or more")
        result, residue, flags, queue, reached, settled = self._scratch
        seen, arcs = push(
            graph.indptr, graph.indices, graph.flat_weights, graph.strengths, seeds, values, restart, threshold,
            result, residue, 1, 0, flags, queue, reached,
        )  # fmt: skip
        offsets, ids, visits, scales = fingerprints or _NO_FINGERPRINTS
        count, entries = close(reached, seen, offsets, ids, visits, scales, least, result, residue, flags, settled)
        wanted = count if top is None else min(top, count)
        nodes, scores = np.empty(wanted, np.int64), np.empty(wanted)
        kept, total = best(settled, count, result, 1, 0, nodes, scores)
        nodes, scores = nodes[:kept], scores[:kept]
        if fingerprints is not None:
            scores /= total  # what was left out is made up for, so that all scores sum to one
        left = clear(reached, seen, settled, count, result, residue, flags)
        return nodes, scores, arcs + entries, left

    def run_many(
        self, queries: FlatSeeds, restart: float, threshold: float, fingerprints: Fingerprints, least: float,
        out: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]], *, together: bool,
    ) -> int:  # fmt: skip
        """As `run` for several queries (at most `LANES` together); the best go to `out`, what was touched comes back.

        Args:
            out: ids and scores [queries, top] and how many there are [queries].
        """
        graph = self._graph
        answer: Any = answer_block if together else answer_each
        scratch = self._wide_scratch if together else self._scratch
        touched: int = answer(
            graph.indptr, graph.indices, graph.flat_weights, graph.strengths, *queries, restart, threshold,
            *fingerprints, least, *scratch, *out,
        )  # fmt: skip
        return touched

    @property
    def _scratch(self) -> Any:
        n, local = self._graph.num_nodes, self._local
        if not hasattr(local, "scratch"):
            local.scratch = (np.zeros(n), np.zeros(n), np.zeros(n, np.uint8), np.empty(n + 1, np.int32), *_lists(n, 2))
        return local.scratch

    @property
    def _wide_scratch(self) -> Any:
        n, local = self._graph.num_nodes, self._local
        if not hasattr(local, "wide"):
            result, residue = np.zeros(n * LANES, np.float32), np.zeros(n * LANES, np.float32)
            local.wide = (result, residue, np.zeros(n, np.uint8), np.empty(n + 1, np.int32), *_lists(n, 3))
        return local.wide


def _lists(n: int, count: int) -> tuple[NDArray[np.int32], ...]:
    return tuple(np.empty(n, np.int32) for _ in range(count))


_NO_FINGERPRINTS = (np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint16), np.empty(0, np.float32))


def best_of(dense: NDArray[np.float64], top: int | None) -> SparseVectors:
    """The `top` best of a dense row."""
    if top is not None and top < 1:
        raise UsageError(f"top is {top}, it must be 1 or more")
    ids = np.flatnonzero(dense > 0)
    order = np.lexsort((ids, -dense[ids]))[:top]
    return pack([(ids[order], dense[ids][order])], 0)


def pack(rows: Sequence[tuple[Any, Any]], touched: int, accuracy: float | None = None) -> SparseVectors:
    sizes = np.array([len(ids) for ids, _ in rows], np.int64)
    return SparseVectors(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([ids for ids, _ in rows]) if rows else np.empty(0, np.int64),
        np.concatenate([scores for _, scores in rows]) if rows else np.empty(0),
        touched,
        accuracy,
    )
