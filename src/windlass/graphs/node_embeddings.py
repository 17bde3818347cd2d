"""`FastRP`: a vector for every node in seconds, without training.

After Chen, Sultan, Tian, Chen, Skiena: "Fast and Accurate Network Embeddings via Very Sparse Random Projection" (2019).
A node's vector is a weighted sum of what its neighbourhoods of 1, 2, 3, ... steps look like through one very sparse
random matrix. What differs: the random row of a node is a function of seed and node alone, so that results are the same
on every machine, new nodes get vectors without a new fit, and after a change of the graph the rows that it cannot have
reached stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import integers, permutation, rand
from windlass.core.tasks import usable_cores
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import row_blocks
from windlass.kernels.csr_dense import add_normalized, multiply_rows, project_rows, random_rows

Projection = Literal["very_sparse", "gaussian"]
Direction = Literal["out", "in", "both"]
_COLUMNS = 128
_STEADY = 1e-12


class FastRP:
    """Node vectors by random projection of neighbourhoods.

    Args:
        dim: Length of a vector.
        weights: What the neighbourhood of 1, 2, 3, ... steps counts.
        beta: How much nodes with many neighbours count as neighbours: below zero less, above more.
        normalize: Bring every neighbourhood's vector to length one before the sum.
        standardize: Bring every column to mean 0 and variance 1 at the end.
        projection: `very_sparse` has about one entry in sqrt(n) that is not zero.
        direction: Which neighbours of a directed graph are looked at.
        incremental: Keep what the neighbourhoods of each step look like, so that `update` computes only what a change
            has reached; takes `len(weights)` times the memory of the embedding.
        seed: Of the projection.

    Attributes:
        embedding_: float32 [n, dim], after `fit`.

    Example:
        >>> FastRP(dim=8).fit_transform(Graph.from_edges([0, 1, 2], [1, 2, 0])).shape
        (3, 8)
    """

    def __init__(
        self,
        dim: int = 256,
        weights: Sequence[float] = (0, 0, 1, 6),
        beta: float = -0.6,
        *,
        normalize: bool = True,
        standardize: bool = True,
        projection: Projection = "very_sparse",
        direction: Direction = "out",
        incremental: bool = False,
        seed: int = 0,
    ) -> None:
        self.dim, self.weights, self.beta = dim, tuple(weights), beta
        self.normalize, self.standardize, self.projection = normalize, standardize, projection
        self.direction, self.incremental, self.seed = direction, incremental, seed

    def fit(self, graph: Any, progress: Progress | None = None) -> FastRP:
        """Compute `embedding_`; `graph` is a `Graph`, a SciPy sparse matrix or a NetworkX graph.

        Isolated nodes get zeros (before `standardize`).

        Raises:
            UsageError: A parameter is out of range; the message names it.
            Cancelled: `progress` was cancelled.
        """
        self._check()
        progress = progress or Silent()
        self._graph = as_graph(graph, self.direction)
        self._density_root = max(1.0, math.sqrt(self._graph.num_nodes))
        self._weight_in_all = max(1.0, float(self._degrees(self._graph).sum()))
        steps = 1 + max(at for at, weight in enumerate(self.weights) if weight)
        n = self._graph.num_nodes
        total = np.zeros((n, self.dim), np.float32)
        self._levels = [
            np.empty((n, self.dim), np.float32) for _ in range(steps if self.incremental else min(2, steps))
        ]
        progress.start("embed", steps, "powers")
        for power in range(steps):
            check_cancelled(progress)
            target = self._levels[power % len(self._levels)]
            self._advance(self._levels[(power - 1) % len(self._levels)] if power else None, target)
            if self.weights[power]:
                self._add(target, self.weights[power], total)
            progress.advance("embed")
        progress.finish("embed")
        if not self.incremental:
            self._levels = []
        self._raw = total
        self.embedding_ = self._standardized(total)
        return self

    def fit_transform(self, graph: Any, progress: Progress | None = None) -> NDArray[np.float32]:
        """`fit`, then `embedding_`: float32 [n, dim]."""
        return self.fit(graph, progress).embedding_

    def transform_new(self, neighbor_lists: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors of nodes that were not there, by the nodes they are joined to: float32 [b, dim].

        A node's neighbourhood of k steps is the mean of its neighbours' of k - 1 steps, so a node that was there, given
        by its own neighbours, gets its own vector again (with weights of 1). They are not standardised among one
        another but by the columns of the fit.

        Raises:
            UsageError: Before `fit`, or a neighbour is no node.
        """
        graph = self._fitted()
        sizes = [len(neighbors) for neighbors in neighbor_lists]
        flat = np.array([node for neighbors in neighbor_lists for node in neighbors], np.int64)
        if len(flat) and (flat.min() < 0 or flat.max() >= graph.num_nodes):
            raise UsageError(f"a neighbour is no node: nodes are 0 to {graph.num_nodes - 1}")
        indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = Graph(indptr, flat.astype(np.int32), None, True)
        total = np.zeros((len(sizes), self.dim), np.float32)
        for power, source in enumerate(self._each_power()):
            if self.weights[power]:
                level = self._project(rows) if source is None else _spread(rows, source)
                self._add(level, self.weights[power], total)
        return self._scaled(total)

    def update(self, graph: Any, changed_nodes: Sequence[int]) -> NDArray[np.float32]:
        """`embedding_` for `graph`, which differs from the fitted one in the rows of `changed_nodes` alone.

        With `incremental` only the rows that the change can have reached are computed, which is what a new fit would
        give but for rounding; else all are. Either way all other rows keep their bytes (before standardising).

        Args:
            graph: With as many nodes. A change of degree changes what its neighbours see, which is taken into account.

        Raises:
            UsageError: Before `fit`, or the number of nodes differs.
        """
        old = self._fitted()
        new = as_graph(graph, self.direction)
        if new.num_nodes != old.num_nodes:
            raise UsageError(f"{new.num_nodes} nodes, the fit had {old.num_nodes}", hint="fit again")
        reached = _reached(old, new, changed_nodes, len(self.weights), self.beta != 0)
        weight = max(1.0, float(self._degrees(new).sum()))
        # Total weight scales every vector alike, and normalising takes that out but for rounding.
        apart = self.beta == 0 or self.normalize or weight == self._weight_in_all
        if not self._levels or not apart:
            before = self._raw
            self.fit(new)
            if apart:
                self._raw[~reached[-1]] = before[~reached[-1]]
        else:
            self._graph = new
            self._advance_rows(reached)
        self.embedding_ = self._standardized(self._raw)
        return self.embedding_

    def _advance_rows(self, reached: list[NDArray[np.bool_]]) -> None:
        """Bring the rows of each level that are reached up to date, and their sums."""
        for power, level in enumerate(self._levels):
            nodes = np.flatnonzero(reached[power])
            rows = _rows(self._graph, nodes)
            level[nodes] = self._project(rows) if power == 0 else _spread(rows, self._levels[power - 1])
        nodes = np.flatnonzero(reached[-1])
        total = np.zeros((len(nodes), self.dim), np.float32)
        for level, weight in zip(self._levels, self.weights, strict=False):
            if weight:
                self._add(level[nodes], weight, total)
        self._raw[nodes] = total

    def _degrees(self, graph: Graph) -> NDArray[np.float64]:
        """The weight of the arcs that lead to each node."""
        return graph.transposed.strengths

    def tune(
        self, graph: Any, *, score: Callable[[NDArray[np.float32]], float] | None = None, trials: int = 20
    ) -> FastRP:
        """Choose `beta` and the last weight by trial, then fit.

        Args:
            score: What to make large, of an embedding; by default the share of held-out edges (2 %) that score above a
                pair of random nodes by cosine, which needs no labels.
            trials: How many settings are tried.
        """
        full = as_graph(graph, self.direction)
        judged = full
        if score is None:
            judged, held_out = _hold_out(full, self.seed)
            score = _edge_judge(held_out, full.num_nodes, self.seed)
        best: tuple[float, float, tuple[float, ...]] | None = None
        for trial in range(max(1, trials)):
            beta = -rand(self.seed, "beta", trial)
            last = float(2 ** (6 * rand(self.seed, "weight", trial)))
            weights = (*self.weights[:-1], last)
            made = FastRP(
                self.dim, weights, beta, normalize=self.normalize, standardize=self.standardize,
                projection=self.projection, seed=self.seed,
            ).fit_transform(judged)  # fmt: skip
            value = score(made)
            if best is None or value > best[0]:
                best = (value, beta, weights)
        assert best is not None
        self.score_, self.beta, self.weights = best
        return self.fit(full)

    def _check(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 1:
            raise UsageError(f"dim is {self.dim!r}, it must be 1 or more")
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights):
            raise UsageError(f"weights are {self.weights}, give one finite number for each step, at least one")
        if not any(self.weights):
            raise UsageError("all weights are zero")
        if not -2 <= self.beta <= 1:
            raise UsageError(f"beta is {self.beta}, it must lie between -2 and 1")
        if self.projection not in ("very_sparse", "gaussian"):
            raise UsageError(f"unknown projection {self.projection!r}", hint="very_sparse or gaussian")
        if self.direction not in ("out", "in", "both"):
            raise UsageError(f"unknown direction {self.direction!r}", hint="out, in or both")

    def _fitted(self) -> Graph:
        if not hasattr(self, "_raw"):
            raise UsageError("this FastRP has not seen a graph yet", hint="call fit first")
        return self._graph

    def _each_power(self) -> Iterator[NDArray[np.float32] | None]:
        """What the rows of power 0, 1, ... are means of: None stands for the projection itself."""
        yield None
        n = self._graph.num_nodes
        current = np.empty((n, self.dim), np.float32)
        self._advance(None, current)
        for _ in range(len(self.weights) - 1):
            yield current
            following = np.empty_like(current)
            self._advance(current, following)
            current = following

    def _advance(self, source: NDArray[np.float32] | None, target: NDArray[np.float32]) -> None:
        if source is None:
            target[:] = self._project(self._graph)
        else:
            _spread(self._graph, source, target)

    def _project(self, rows: Graph) -> NDArray[np.float32]:
        """P L R of these rows: means of their neighbours' random rows, scaled by degree."""
        graph, n = self._graph, self._graph.num_nodes
        degrees = self._degrees(graph)
        share = np.where(degrees > 0, degrees, 1.0) / self._weight_in_all
        scale = (share**self.beta).astype(np.float32)
        out = np.empty((rows.num_nodes, self.dim), np.float32)
        if self.projection == "gaussian":
            random = _gaussian(n, self.dim, self.seed) * scale[:, None]
            return _spread(rows, random, out)
        chance = min(1.0, 1.0 / self._density_root)
        indptr, columns, signs = _sparse_rows(n, self.dim, chance, self.seed)
        size = np.float32(math.sqrt(1 / chance))
        _in_threads(
            rows,
            lambda first, last: project_rows(
                rows.indptr, rows.indices, rows.flat_weights, indptr, columns, signs, scale * size, out, first, last
            ),
        )
        return out

    def _add(self, level: NDArray[np.float32], weight: float, total: NDArray[np.float32]) -> None:
        add_normalized(level, np.float32(weight), self.normalize, total)

    def _standardized(self, total: NDArray[np.float32]) -> NDArray[np.float32]:
        self._center = np.zeros(self.dim, np.float32)
        self._spread_ = np.ones(self.dim, np.float32)
        if self.standardize and len(total):
            self._center = total.mean(axis=0, dtype=np.float64).astype(np.float32)
            squares = np.zeros(self.dim)
            for first in range(0, len(total), 4096):
                part = total[first : first + 4096] - self._center
                squares += np.einsum("ij,ij->j", part, part, dtype=np.float64)
            deviation = np.sqrt(squares / len(total))
            self._spread_ = np.where(deviation > _STEADY, deviation, np.inf).astype(np.float32)
        return self._scaled(total)

    def _scaled(self, total: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.standardize:
            return total.copy()
        return (total - self._center) / self._spread_


def as_graph(given: Any, direction: Direction = "out") -> Graph:
    """A `Graph` from what people have: one, a SciPy sparse matrix, a NetworkX graph."""
    if isinstance(given, Graph):
        graph = given
    elif hasattr(given, "tocoo"):
        graph = Graph.from_scipy(given)
    elif hasattr(given, "edges") and hasattr(given, "is_directed"):
        graph = Graph.from_networkx(given)
    else:
        raise UsageError(f"a {type(given).__name__} is no graph", hint="pass a Graph, SciPy or NetworkX one")
    if not graph.directed or direction == "out":
        return graph
    if direction == "in":
        return graph.transposed
    begin, end, weights = graph.edges()
    return Graph.from_edges(begin, end, weights, num_nodes=graph.num_nodes, self_loops="keep")


def _reached(old: Graph, new: Graph, changed: Sequence[int], steps: int, degrees: bool) -> list[NDArray[np.bool_]]:
    """For each step, the nodes whose neighbourhood of that many steps a change can have reached.

    Args:
        degrees: Whether a node whose arcs changed looks different to its neighbours.
    """
    touched = np.zeros(new.num_nodes, bool)
    touched[np.asarray(changed, np.int64)] = True
    seen = touched.copy()
    if degrees:
        for each in (old, new):
            for node in np.flatnonzero(touched).tolist():
                seen[each.neighbors(node)] = True
    reached: list[NDArray[np.bool_]] = []
    for step in range(steps):
        wider = touched.copy()
        for each in (old, new):
            source = seen if step == 0 else reached[-1]
            hits = np.concatenate([[0], np.cumsum(source[each.indices])])
            wider |= (hits[each.indptr[1:]] - hits[each.indptr[:-1]]) > 0
        reached.append(wider if step == 0 else wider | reached[-1])
    return reached


def _rows(graph: Graph, nodes: NDArray[np.int64]) -> Graph:
    """The rows of some nodes, as they are."""
    sizes = np.diff(graph.indptr)[nodes]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.repeat(graph.indptr[nodes] - starts[:-1], sizes) + np.arange(starts[-1])
    return Graph(starts, graph.indices[at], None if graph.weights is None else graph.weights[at], True)


def _in_threads(rows: Graph, work: Callable[[int, int], None]) -> None:
    blocks = list(row_blocks(rows))
    if len(blocks) < 2:
        for block in blocks:
            work(*block)
        return
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda block: work(*block), blocks):
            pass


def _spread(rows: Graph, source: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Means of the neighbours' rows, in blocks of columns that stay in the cache from one row to the next."""
    out = np.empty((rows.num_nodes, source.shape[1]), np.float32) if out is None else out
    inverse = np.where(rows.strengths > 0, 1 / np.where(rows.strengths > 0, rows.strengths, 1), 0).astype(np.float32)
    for first in range(0, source.shape[1], _COLUMNS):
        part = np.ascontiguousarray(source[:, first : first + _COLUMNS])
        made = np.empty((rows.num_nodes, part.shape[1]), np.float32)
        _in_threads(
            rows,
            lambda a, b, part=part, made=made: multiply_rows(  # type: ignore[misc]
                rows.indptr, rows.indices, rows.flat_weights, part, made, a, b
            ),
        )
        np.multiply(made, inverse[:, None], out=out[:, first : first + _COLUMNS])
    return out


def _sparse_rows(n: int, dim: int, chance: float, seed: int) -> tuple[Any, Any, Any]:
    """The random matrix as rows: indptr, columns, signs."""
    indptr = np.zeros(n + 1, np.int64)
    room = int(n * dim * chance + 12 * math.sqrt(n * dim * chance) + 64)
    columns, signs = np.empty(room, np.int32), np.empty(room, np.float32)
    used = random_rows(np.uint64(seed % 2**64), n, dim, chance, indptr, columns, signs)
    return indptr, columns[:used], signs[:used]


def _gaussian(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Standard normal numbers, a function of seed, row and column alone (Box and Muller's)."""
    from windlass.core.randomness import uniform

    first = uniform(seed, "gaussian radius", size=(n, dim))
    second = uniform(seed, "gaussian angle", size=(n, dim))
    drawn: NDArray[np.float32] = (np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)).astype(np.float32)
    return drawn


def _hold_out(graph: Graph, seed: int) -> tuple[Graph, tuple[NDArray[Any], NDArray[Any]]]:
    begin, end, weights = graph.edges()
    order = permutation(seed, "held out", size=len(begin))
    out, kept = order[: max(1, len(order) // 50)], order[max(1, len(order) // 50) :]
    rest = Graph.from_edges(
        begin[kept], end[kept], None if weights is None else weights[kept], num_nodes=graph.num_nodes,
        directed=graph.directed, self_loops="keep",
    )  # fmt: skip
    return rest, (begin[out], end[out])


def _edge_judge(
    pairs: tuple[NDArray[Any], NDArray[Any]], nodes: int, seed: int
) -> Callable[[NDArray[np.float32]], float]:
    """The chance that a held-out edge has a larger cosine than a random pair."""
    others = [integers(seed, "pairs", side, size=len(pairs[0]), high=nodes) for side in (0, 1)]

    def judge(vectors: NDArray[np.float32]) -> float:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        real = np.einsum("ij,ij->i", unit[pairs[0]], unit[pairs[1]])
        random = np.sort(np.einsum("ij,ij->i", unit[others[0]], unit[others[1]]))
        below = np.searchsorted(random, real, side="left") + np.searchsorted(random, real, side="right")
        return float(below.mean() / (2 * len(random)))

    return judge
