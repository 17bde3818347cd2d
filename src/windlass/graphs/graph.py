"""`Graph`: nodes and weighted arcs as compressed sparse rows, immutable, in memory or mapped from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import GraphFormatError, UsageError
from windlass.graphs.array_folder import open_arrays, save_arrays
from windlass.kernels import csr
from windlass.kernels.random_walks import row_prefix

SelfLoops = Literal["drop", "keep", "refuse"]
Duplicates = Literal["sum", "max", "first", "refuse"]
_RULES = {"sum": 0, "max": 1, "first": 2, "refuse": 2}
_MOST_NODES = 2**31 - 2
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph of `num_nodes` nodes. An undirected edge stands in the rows of both its ends.

    Attributes:
        indptr: int64 [n + 1], where each node's row begins.
        indices: int32 [m], the neighbours, sorted in each row, none twice.
        weights: float32 [m], finite and positive; None: all are 1.
        directed: Whether a row holds out-neighbours only.
        node_ids: What the nodes are called outside: int64 [n] or strings [n] (object); None: 0..n-1.

    Example:
        >>> graph = Graph.from_edges([0, 1, 1], [1, 2, 2])
        >>> graph.neighbors(1).tolist(), graph.num_edges
        ([0, 2], 2)
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    directed: bool
    node_ids: NDArray[Any] | None = None
    folder: Path | None = field(default=None, repr=False)

    @classmethod
    def from_edges(
        cls,
        sources: Sequence[Any] | NDArray[Any],
        targets: Sequence[Any] | NDArray[Any],
        weights: Sequence[float] | NDArray[Any] | None = None,
        *,
        num_nodes: int | None = None,
        directed: bool = False,
        self_loops: SelfLoops = "drop",
        duplicates: Duplicates = "sum",
        relabel: bool = False,
    ) -> Graph:
        """Build a graph from pairs of nodes.

        Args:
            sources, targets: Whole numbers from 0, or anything else that has an order, such as strings, which then
                become `node_ids`.
            weights: Of each edge, finite and above zero.
            num_nodes: At least the largest node and one more; more for nodes without edges.
            self_loops: What becomes of an edge from a node to itself.
            duplicates: What becomes of the weights when an edge is given again (without weights: 1 stays 1). In an
                undirected graph (a, b) and (b, a) are the same edge.
            relabel: Treat numbers as names too: for negative ones, or few among billions.

        Raises:
            UsageError: Lengths differ, a node is negative, too large or not a whole number, a weight is not finite or
                not positive, or what `refuse` forbids is there. The message names the edge.
        """
        begin, end = _as_nodes(sources, "source"), _as_nodes(targets, "target")
        if len(begin) != len(end):
            raise UsageError(f"{len(begin)} sources and {len(end)} targets", hint="give one target for each source")
        values = _checked_weights(weights, len(begin))
        node_ids = None
        if relabel or begin.dtype == object or end.dtype == object:
            begin, end, node_ids = _named(begin, end)
            num_nodes = len(node_ids) if num_nodes is None else num_nodes
            if num_nodes != len(node_ids):
                raise UsageError(f"num_nodes is {num_nodes}, and {len(node_ids)} names are given")
        nodes = _checked_range(begin, end, num_nodes)
        if self_loops != "keep":
            loops = begin == end
            if loops.any():
                if self_loops == "refuse":
                    edge = int(np.argmax(loops))
                    raise UsageError(f"edge {edge} goes from node {begin[edge]} to itself")
                begin, end = begin[~loops], end[~loops]
                values = None if values is None else values[~loops]
        return _build(cls, begin, end, values, nodes, directed, duplicates, node_ids)

    @classmethod
    def from_csr(cls, indptr: Any, indices: Any, weights: Any = None, *, directed: bool, node_ids: Any = None) -> Graph:
        """Take compressed sparse rows as they are; rows must be sorted, without repeats, and symmetric when undirected.

        Raises:
            UsageError: They are not, or a weight is not finite and positive.
        """
        pointers = np.ascontiguousarray(indptr, np.int64)
        nodes = len(pointers) - 1
        if nodes < 0 or pointers[0] != 0 or (np.diff(pointers) < 0).any() or pointers[-1] != len(indices):
            raise UsageError("indptr does not rise from 0 to the number of indices", hint="pass a valid CSR matrix")
        columns = np.ascontiguousarray(indices)
        if len(columns) and not np.issubdtype(columns.dtype, np.integer):
            raise UsageError(f"indices are {columns.dtype}, not whole numbers")
        disorder = csr.first_disorder(pointers, columns.astype(np.int64, copy=False), nodes)
        if disorder >= 0:
            raise UsageError(
                f"indices[{disorder}] = {columns[disorder]} is out of range or not above the one before it in its row",
                hint="sort each row and merge repeats, or use Graph.from_edges",
            )
        made = cls(
            pointers, columns.astype(np.int32, copy=False), _checked_weights(weights, len(columns)), directed, node_ids
        )
        if not directed and not _is_symmetric(made):
            raise UsageError("the matrix is not symmetric", hint="say directed=True")
        return made

    @classmethod
    def from_scipy(cls, matrix: Any, *, directed: bool | None = None) -> Graph:
        """From any SciPy sparse matrix; stored zeros are no edges. Undirected when symmetric, unless told otherwise.

        Raises:
            UsageError: Not square, or an entry is negative or not finite.
        """
        if matrix.shape[0] != matrix.shape[1]:
            raise UsageError(f"an adjacency matrix is square, this one is {matrix.shape[0]} x {matrix.shape[1]}")
        pairs = matrix.tocoo()
        present = np.asarray(pairs.data) != 0
        rows, columns, data = pairs.row[present], pairs.col[present], np.asarray(pairs.data)[present]
        made = cls.from_edges(
            rows, columns, None if (data == 1).all() else data, num_nodes=matrix.shape[0], directed=True,
            self_loops="keep",
        )  # fmt: skip
        if directed is None:
            directed = not _is_symmetric(made)
        return cls.from_csr(made.indptr, made.indices, made.weights, directed=directed)

    @classmethod
    def from_networkx(cls, graph: Any, *, weight: str = "weight") -> Graph:
        """From a NetworkX graph of any class; parallel edges are summed, missing weights are 1."""
        names = list(graph.nodes)
        number = {name: at for at, name in enumerate(names)}
        edges = [(number[a], number[b], data.get(weight)) for a, b, data in graph.edges(data=True)]
        weights = None if all(value is None for _, _, value in edges) else [1 if v is None else v for _, _, v in edges]
        made = cls.from_edges(
            [a for a, _, _ in edges], [b for _, b, _ in edges], weights, num_nodes=len(names),
            directed=graph.is_directed(), self_loops="keep",
        )  # fmt: skip
        if names == list(range(len(names))):
            return made
        ids = np.array(names) if all(type(name) is int for name in names) else _objects(names)
        return cls(made.indptr, made.indices, made.weights, made.directed, ids)

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_arcs(self) -> int:
        """Entries of the rows: an undirected edge counts twice, a self loop once."""
        return len(self.indices)

    @cached_property
    def num_edges(self) -> int:
        if self.directed:
            return self.num_arcs
        rows = np.empty(self.num_arcs, np.int32)
        csr.expand(self.indptr, rows)
        loops = int((rows == self.indices).sum())
        return (self.num_arcs - loops) // 2 + loops

    @cached_property
    def flat_weights(self) -> NDArray[np.float32]:
        """The weights, or an array of size 0 when all are 1, as kernels take them."""
        return np.empty(0, np.float32) if self.weights is None else self.weights

    @cached_property
    def strengths(self) -> NDArray[np.float64]:
        """float64 [n]: the sum of each node's weights."""
        out = np.empty(self.num_nodes, np.float64)
        csr.row_sums(self.indptr, self.flat_weights, out)
        return out

    @cached_property
    def running_weights(self) -> NDArray[np.float64]:
        """float64 [m]: the sum of each row's weights so far, by which walks draw; of size 0 when all are 1."""
        if self.weights is None:
            return np.empty(0)
        out = np.empty(self.num_arcs)
        row_prefix(self.indptr, self.weights, out)
        return out

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that stand for structure and weights (not for names)."""
        digest = hashlib.blake2b(b"directed" if self.directed else b"undirected", digest_size=16)
        for array in (self.indptr, self.indices, self.flat_weights):
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def transposed(self) -> Graph:
        """Every arc turned around; an undirected graph is its own."""
        if not self.directed:
            return self
        back, rows, weights = csr.transposed(self.indptr, self.indices, self.flat_weights, self.num_nodes)
        return Graph(back, rows, weights if self.weights is not None else None, True, self.node_ids)

    def neighbors(self, node: int) -> NDArray[np.int32]:
        return self.indices[self.indptr[node] : self.indptr[node + 1]]

    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32] | None]:
        """Sources, targets and weights: of an undirected graph each edge once, the smaller node first."""
        rows = np.empty(self.num_arcs, np.int32)
        csr.expand(self.indptr, rows)
        if self.directed:
            return rows, self.indices, self.weights
        once = rows <= self.indices
        return rows[once], self.indices[once], None if self.weights is None else self.weights[once]

    def numbers(self, ids: Iterable[Any]) -> NDArray[np.int64]:
        """Node numbers of external ids.

        Raises:
            UsageError: An id is not a node; the message names it.
        """
        wanted = list(ids)
        if self.node_ids is None:
            for value in wanted:
                whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
                if not whole or not 0 <= value < self.num_nodes:
                    raise UsageError(f"no node {value!r}: nodes are 0 to {self.num_nodes - 1}")
            return np.array(wanted, np.int64)
        for value in wanted:
            if value not in self._number_of:
                raise UsageError(f"no node {value!r} in this graph", hint="check its spelling and whether it is text")
        return np.array([self._number_of[value] for value in wanted], np.int64)

    def ids(self, numbers: Any) -> list[Any]:
        """External ids of node numbers."""
        chosen = np.asarray(numbers, np.int64)
        names: list[Any] = chosen.tolist() if self.node_ids is None else self.node_ids[chosen].tolist()
        return names

    @cached_property
    def _number_of(self) -> dict[Any, int]:
        assert self.node_ids is not None
        return {name: number for number, name in enumerate(self.node_ids.tolist())}

    def save(self, path: str | Path) -> None:
        """Write the graph as a folder, durably; an old graph there is replaced at the end, all at once.

        Raises:
            StorageError: It did not reach the disk.
        """
        arrays: dict[str, np.ndarray] = {"indptr": self.indptr, "indices": self.indices}
        if self.weights is not None:
            arrays["weights"] = self.weights
        names = None
        if self.node_ids is not None:
            names = "text" if self.node_ids.dtype == object else "int64"
            if names == "text":
                texts = [str(value).encode("utf-8", "surrogatepass") for value in self.node_ids]
                arrays["name_stops"] = np.cumsum([len(text) for text in texts], dtype=np.int64)
                arrays["names"] = np.frombuffer(b"".join(texts), np.uint8)
            else:
                arrays["names"] = self.node_ids.astype(np.int64)
        values = {"directed": self.directed, "names": names, "fingerprint": self.fingerprint}
        save_arrays(Path(path), "graph", _FORMAT, arrays, values)

    @classmethod
    def open(cls, path: str | Path, *, mmap: bool = True) -> Graph:
        """A graph that `save` wrote.

        Raises:
            GraphFormatError: It is damaged, cut, or no graph.
        """
        folder = Path(path)
        arrays, values = open_arrays(folder, "graph", _FORMAT, mmap=mmap)
        try:
            names = arrays.get("names")
            if values["names"] == "text":
                stops = arrays["name_stops"].tolist()
                data = arrays["names"].tobytes()
                starts = [0, *stops[:-1]]
                texts = [data[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, stops, strict=False)]
                names = _objects(texts)
            return cls(arrays["indptr"], arrays["indices"], arrays.get("weights"), values["directed"], names, folder)
        except (KeyError, UnicodeDecodeError) as error:
            raise GraphFormatError(f"{folder} is no whole graph: {error}", hint="make it again") from error

    def __reduce__(self) -> Any:
        # A graph on disk travels to other processes as its path.
        if self.folder is not None:
            return (_opened, (self.folder, self.fingerprint))
        return (Graph, (self.indptr, self.indices, self.weights, self.directed, self.node_ids))


@lru_cache(maxsize=2)
def _opened(folder: Path, fingerprint: str) -> Graph:
    """The graph in a folder, checked and opened once a process; the fingerprint tells it from one written over it."""
    graph = Graph.open(folder)
    if graph.fingerprint != fingerprint:
        raise GraphFormatError(f"{folder} holds another graph than when the work began", hint="start again")
    return graph


def _as_nodes(values: Any, what: str) -> NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else np.array(list(values) or np.empty(0, np.int64))
    if array.ndim != 1:
        raise UsageError(f"{what}s have {array.ndim} dimensions, a plain list is wanted")
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind in "OUST":
        return _objects(values if not isinstance(values, np.ndarray) else array.tolist())
    wrong = ~np.isfinite(array) if array.dtype.kind == "f" else np.ones(len(array), bool)
    if array.dtype.kind == "f" and not wrong.any():
        wrong = array != np.floor(array)
    if wrong.any():
        edge = int(np.argmax(wrong))
        raise UsageError(f"the {what} of edge {edge} is {array[edge]}, not a whole number or a name")
    return array.astype(np.int64)


def _objects(values: Iterable[Any]) -> NDArray[Any]:
    items = list(values)
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _named(begin: NDArray[Any], end: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Numbers in place of names, and the names in order."""
    both = begin.tolist() + end.tolist()
    try:
        names = sorted(set(both))
    except TypeError as error:
        raise UsageError(f"nodes of different kinds in one graph: {error}", hint="make all of them text") from error
    number = {name: at for at, name in enumerate(names)}
    numbers = np.fromiter((number[name] for name in both), np.int64, len(both))
    ids = np.array(names, np.int64) if names and all(isinstance(name, int) for name in names) else _objects(names)
    return numbers[: len(begin)], numbers[len(begin) :], ids


def _checked_range(begin: NDArray[np.int64], end: NDArray[np.int64], num_nodes: int | None) -> int:
    largest = max(int(begin.max()), int(end.max())) if len(begin) else -1
    nodes = largest + 1 if num_nodes is None else num_nodes
    if nodes < 0 or nodes > _MOST_NODES:
        raise UsageError(f"{nodes} nodes, at most {_MOST_NODES} are possible", hint="relabel=True if few are used")
    for array, what in ((begin, "source"), (end, "target")):
        wrong = (array < 0) | (array >= nodes)
        if wrong.any():
            edge = int(np.argmax(wrong))
            raise UsageError(
                f"the {what} of edge {edge} is {array[edge]}, nodes are 0 to {nodes - 1}",
                hint="give num_nodes, or relabel=True when numbers are names",
            )
    return nodes


def _checked_weights(weights: Any, count: int) -> NDArray[np.float32] | None:
    if weights is None:
        return None
    try:
        values = np.asarray(weights, np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a weight is not a number: {error}") from error
    if values.shape != (count,):
        raise UsageError(f"{values.shape} weights for {count} edges", hint="give one for each edge")
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        edge = int(np.argmax(wrong))
        raise UsageError(f"the weight of edge {edge} is {values[edge]}, it must be finite and above zero")
    return np.ascontiguousarray(values)


def _build(
    cls: type[Graph], begin: NDArray[np.int64], end: NDArray[np.int64], weights: NDArray[np.float32] | None,
    nodes: int, directed: bool, duplicates: Duplicates, node_ids: NDArray[Any] | None,
) -> Graph:  # fmt: skip
    """Two counting sorts, by target and then by source, leave every row sorted."""
    rows, columns = begin.astype(np.int32), end.astype(np.int32)
    if not directed:
        # The smaller end first, so that (a, b) and (b, a) meet in one row and are merged in the order they came in.
        rows, columns = np.minimum(rows, columns), np.maximum(rows, columns)
    values = np.empty(0, np.float32) if weights is None else weights
    indptr, indices, values = _sorted_rows(rows, columns, values, nodes)
    before = len(indices)
    kept = csr.merge_equal(indptr, indices, values, _RULES[duplicates])
    if duplicates == "refuse" and kept != before:
        raise UsageError(f"{before - kept} edges are given more than once")
    indices, values = indices[:kept].copy(), values[:kept].copy() if weights is not None else values
    if weights is not None and not np.isfinite(values).all():
        raise UsageError("the sum of the weights of an edge given several times is not finite")
    if not directed:
        rows = np.empty(kept, np.int32)
        csr.expand(indptr, rows)
        off = rows != indices
        both = (np.concatenate([rows, indices[off]]), np.concatenate([indices, rows[off]]))
        doubled = np.concatenate([values, values[off]]) if weights is not None else values
        indptr, indices, values = _sorted_rows(*both, doubled, nodes)
    return cls(indptr, indices, values if weights is not None else None, directed, node_ids)


def _sorted_rows(rows: Any, columns: Any, weights: Any, nodes: int) -> tuple[Any, Any, Any]:
    by_column = np.zeros(nodes + 1, np.int64)
    csr.count_rows(columns, by_column)
    first, first_weights = np.empty_like(rows), np.empty_like(weights)
    csr.place(columns, rows, weights, by_column, first, first_weights)
    return csr.transposed(by_column, first, first_weights, nodes)


def _is_symmetric(graph: Graph) -> bool:
    back, rows, weights = csr.transposed(graph.indptr, graph.indices, graph.flat_weights, graph.num_nodes)
    return (
        np.array_equal(back, graph.indptr)
        and np.array_equal(rows, graph.indices)
        and np.array_equal(weights, graph.flat_weights)
    )
