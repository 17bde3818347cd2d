"""`PPRIndex`: personalised PageRank in about a millisecond, from fingerprints that short random walks left.

After PowerWalk (Liu, Li, Lui, Cheng: "Scalable Personalized PageRank via Random Walks with Vertex-Centric
Decomposition", 2016). A node's fingerprint counts the visits of a few walks from it; a query is the sum of what is
settled around its seeds and of fingerprints further out. What differs: residue is pushed where it is largest instead of
in rounds (as FORA does), small flows are closed with fingerprints instead of dropped, so no mass is lost; walks end
where they would restart, which keeps everything linear on graphs with dead ends; and `update` gives the very bytes of a
new build, because a walk's steps depend on nothing but where it has been.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import GraphFormatError, IndexMismatchError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import integers
from windlass.core.tasks import TaskPool, usable_cores
from windlass.graphs.array_folder import open_arrays, save_arrays
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import (
    Fingerprints,
    Seeds,
    SparseVectors,
    Workplace,
    check_restart,
    checked_seeds,
    pack,
    reaches,
)
from windlass.kernels.random_walks import fingerprint_nodes
from windlass.kernels.simd import LANES

_FORMAT = 2
_UNFINISHED = "part of a PageRank index"
_BLOCK, _BLOCKS_KEPT = 2_048, 32
_MOST_WALKS = 1_000
_SAMPLES = 48
_SAMPLE_TOP = 100
_TRUTH, _BEST_SHARE = 3e-5, 0.9985
# An entry of a fingerprint is worth reading when it adds this share of the threshold.
_ENTRY_SHARE = 0.02
# Answering together pays when it touches that many times less; its arrays are larger, and each touch costs more.
_WORTH_SHARING, _MOST_SHARED, _TOGETHER = 1.6, 8_000_000, 8_192
# Thresholds that are tried: a query's work grows as they shrink.
_LARGEST = 1e-2
_THRESHOLDS = tuple(_LARGEST * 10.0 ** (-step / 4) for step in range(11))


@dataclass(frozen=True)
class UpdateReport:
    """How many nodes were walked again after a change, of how many."""

    walked: int
    nodes: int


@dataclass(frozen=True)
class _Part:
    """Nodes to be walked from, with all that a worker needs."""

    graph: Graph
    nodes: NDArray[np.int64]
    walks: int
    restart: float
    max_steps: int
    max_entries: int
    seed: int


class PPRIndex:
    """Fingerprints of every node of one graph, and what queries cost for which accuracy.

    Example:
        >>> index = PPRIndex.build(Graph.from_edges([0, 1, 2], [1, 2, 3]), R=20)
        >>> ids, scores = index.query(0, top=2)[0]
        >>> ids.tolist()
        [1, 0]
    """

    def __init__(self, graph: Graph, arrays: dict[str, NDArray[Any]], parameters: dict[str, Any]) -> None:
        self.graph, self._arrays, self.parameters = graph, arrays, parameters
        self.restart = float(parameters["restart"])
        self._work = Workplace(graph)

    @classmethod
    def build(
        cls,
        graph: Graph,
        R: int = 100,
        restart: float = 0.15,
        *,
        max_steps: int = 64,
        max_entries: int | None = None,
        seed: int = 0,
        task_pool: TaskPool | None = None,
        keep: Path | None = None,
        progress: Progress | None = None,
    ) -> PPRIndex:
        """Walk from every node and measure what accuracy costs.

        Args:
            R: Walks from each node, 1 to 1000. Memory is about 6 bytes for each different node that they visit.
            max_steps: Longest walk.
            max_entries: Nodes kept of a fingerprint, the most visited; what is cut is counted for the start itself, and
                reported in `parameters["cut"]` as a share of all visits.
            task_pool: Who walks; default: threads of this process. The result is the same bytes whoever does. To other
                processes and to Ray a graph that was opened from a folder goes as its path.
            keep: A folder for what is finished. A build that is cut off, by whatever, goes on from there when it is
                started again with the same graph and parameters; the folder is removed at the end.
            progress: Gets the stage `walks`, counted in nodes.

        Raises:
            UsageError: A parameter is out of range.
            Cancelled: `progress` was cancelled.
        """
        check_restart(restart)
        for name, value, least, most in (("R", R, 1, _MOST_WALKS), ("max_steps", max_steps, 1, 65_535 // max(1, R))):
            if not least <= value <= most:
                raise UsageError(f"{name} is {value}, it must be {least} to {most}")
        if max_entries is not None and max_entries < 1:
            raise UsageError(f"max_entries is {max_entries}, it must be 1 or more")
        parameters: dict[str, Any] = {
            "R": R, "restart": restart, "max_steps": max_steps, "max_entries": max_entries or 0, "seed": seed,
            "graph": graph.fingerprint,
        }  # fmt: skip
        blocks = [np.arange(first, min(first + _BLOCK, graph.num_nodes)) for first in range(0, graph.num_nodes, _BLOCK)]
        parts = _walk_all(graph, blocks, parameters, task_pool, progress or Silent(), keep)
        arrays = _joined(parts)
        parameters["cut"] = float(arrays["cut"].sum() / max(1, arrays["totals"].sum()))
        index = cls(graph, arrays | {"scales": _scales(graph, arrays["totals"], restart)}, parameters)
        parameters["costs"] = index._calibrated()
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
        return index

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def query(
        self, seeds: Seeds, *, accuracy: float = 0.99, threshold: float | None = None, top: int | None = 100
    ) -> SparseVectors:
        """Scores of what matters to `seeds`, best first.

        Args:
            seeds: A node, several, or nodes with weights.
            accuracy: The share of the true scores of the best 100 that the returned ones should have, on average
                (measured on sample nodes when the index was built).
            threshold: In place of `accuracy`: residue for each arc below which nothing is pushed on.
            top: Only so many; None: all above zero.

        Raises:
            UsageError: As for `personalized_pagerank`; or `accuracy` is out of range.
        """
        return self.query_batch([seeds], accuracy=accuracy, threshold=threshold, top=top)

    def query_batch(
        self,
        queries: Sequence[Seeds],
        *,
        accuracy: float = 0.99,
        threshold: float | None = None,
        top: int | None = 100,
        progress: Progress | None = None,
    ) -> SparseVectors:
        """As `query`, for many at a time: one row each, in order, the same but for rounding.

        Every core works on some. Where queries that begin near one another need the same fingerprints, which is tried
        on a few, eight or more of them are answered together, and a fingerprint is read once for all. With `top=None`
        they go one by one.
        """
        progress = progress or Silent()
        expected = None
        if threshold is None:
            threshold, expected = self._choice(accuracy)
        elif not threshold > 0:
            raise UsageError(f"threshold is {threshold}, it must be above zero")
        checked = [self._seeded(seeds) for seeds in queries]
        if len(checked) <= LANES or top is None:
            done = [self._one(query, threshold, top) for query in checked]
            return pack([row for row, _ in done], sum(touched for _, touched in done), expected)
        if top < 1:
            raise UsageError(f"top is {top}, it must be 1 or more")
        parts = [
            self._many(checked[first : first + _TOGETHER], threshold, top, progress)
            for first in range(0, len(checked), _TOGETHER)
        ]
        sizes = np.concatenate([part[2] for part in parts])
        indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        ids, scores = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        return SparseVectors(indptr, ids, scores, sum(part[3] for part in parts), expected)

    def _many(
        self, queries: list[tuple[NDArray[np.int64], NDArray[np.float64]]], threshold: float, top: int,
        progress: Progress,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], int]:  # fmt: skip
        """Ids, scores, how many of each query, and what was touched."""
        count, top = len(queries), min(top, self.graph.num_nodes)
        # Queries that begin in the same corner of the graph stand side by side and share what they read.
        order = np.argsort([self._corner(nodes[0]) for nodes, _ in queries], kind="stable")
        chosen = [queries[at] for at in order.tolist()]
        indptr = np.concatenate([[0], np.cumsum([len(nodes) for nodes, _ in chosen])]).astype(np.int64)
        nodes, values = (np.concatenate([query[at] for query in chosen]) for at in (0, 1))
        out = np.empty((count, top), np.int64), np.empty((count, top)), np.empty(count, np.int64)

        def answer(first: int, together: bool) -> int:
            part = slice(first, min(first + LANES, count))
            seeds = slice(indptr[part.start], indptr[part.stop])
            flat = indptr[part.start : part.stop + 1] - indptr[part.start], nodes[seeds], values[seeds]
            return self._work.run_many(
                flat, self.restart, threshold, self._fingerprints, _least(threshold),
                (out[0][part], out[1][part], out[2][part]), together=together,
            )  # fmt: skip

        firsts = list(range(0, count, LANES))
        middle = firsts[len(firsts) // 2]
        touched = answer(middle, False)
        together = self.graph.num_nodes <= _MOST_SHARED and touched > _WORTH_SHARING * answer(middle, True)
        firsts.remove(middle)
        with ThreadPoolExecutor(usable_cores()) as pool:
            for work in pool.map(lambda first: answer(first, together), firsts):
                check_cancelled(progress)
                touched += work
        back = np.argsort(order)
        kept = out[2][back]
        there = np.arange(top) < kept[:, None]
        return out[0][back][there], out[1][back][there], kept, touched

    def _seeded(self, seeds: Seeds) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        nodes, values = checked_seeds(self.graph, seeds)
        return nodes, values if self._reach is None else values / self._reach[nodes]

    def _one(
        self, query: tuple[NDArray[np.int64], NDArray[np.float64]], threshold: float, top: int | None
    ) -> tuple[tuple[Any, Any], int]:
        ids, scores, touched, _ = self._work.run(
            *query, self.restart, threshold, self._fingerprints, _least(threshold), top
        )  # fmt: skip
        return (ids, scores), touched

    def _corner(self, node: int) -> int:
        """A number that nodes near one another tend to share: the one that walks from here visit most often."""
        offsets, ids = self._arrays["offsets"], self._arrays["ids"]
        entries = ids[offsets[node] : min(offsets[node + 1], offsets[node] + 2)]
        return int(entries[-1]) if entries[0] == node else int(entries[0])

    def update(
        self, added: tuple[Iterable[int], Iterable[int]], removed: tuple[Iterable[int], Iterable[int]] = ((), ())
    ) -> tuple[PPRIndex, UpdateReport]:
        """An index of the graph with some edges more and some less; the very one that `build` would make.

        Only nodes whose walks came by an end of a changed edge are walked again. What accuracy costs is taken over from
        this index.

        Args:
            added, removed: Sources and targets, of nodes that exist; added edges weigh 1.

        Raises:
            UsageError: An edge that is removed is not there, or one that is added is.
        """
        graph, changed = _edited(self.graph, added, removed)
        dirty = np.zeros(graph.num_nodes, bool)
        dirty[changed] = True
        offsets, ids = self._arrays["offsets"], self._arrays["ids"]
        again = dirty.copy()
        hit = dirty[ids]
        if hit.any():
            again[np.searchsorted(offsets, np.flatnonzero(hit), side="right") - 1] = True
        again |= self._arrays["cut"] > 0  # what was cut may have come by
        nodes = np.flatnonzero(again)
        blocks = [nodes[first : first + _BLOCK] for first in range(0, len(nodes), _BLOCK)]
        fresh = _joined(_walk_all(graph, blocks, self.parameters, None, Silent()))
        arrays = _replaced(self._arrays, fresh, nodes)
        arrays["scales"] = _scales(graph, arrays["totals"], self.restart)
        cut = float(arrays["cut"].sum() / max(1, arrays["totals"].sum()))
        parameters = self.parameters | {"graph": graph.fingerprint, "cut": cut}
        return PPRIndex(graph, arrays, parameters), UpdateReport(len(nodes), graph.num_nodes)

    def save(self, path: str | Path) -> None:
        """Write the index (not its graph) as a folder, durably.

        Raises:
            StorageError: It did not reach the disk.
        """
        save_arrays(Path(path), "PageRank index", _FORMAT, self._arrays, self.parameters)

    @classmethod
    def open(cls, path: str | Path, graph: Graph, *, mmap: bool = True) -> PPRIndex:
        """An index that `save` wrote, over the graph it was built on.

        Raises:
            GraphFormatError: It is damaged.
            IndexMismatchError: `graph` is another one.
        """
        arrays, parameters = open_arrays(Path(path), "PageRank index", _FORMAT, mmap=mmap)
        if parameters.get("graph") != graph.fingerprint:
            raise IndexMismatchError(
                f"the index in {path} was built on another graph than the one given", hint="build it again"
            )
        return cls(graph, arrays, parameters)

    @cached_property
    def _reach(self) -> NDArray[np.float64] | None:
        reach = reaches(self.graph, self.restart)
        return None if (reach == 1).all() else reach

    @property
    def _fingerprints(self) -> Fingerprints:
        a = self._arrays
        return a["offsets"], a["ids"], a["visits"], a["scales"]

    def _calibrated(self) -> list[list[float]]:
        """[threshold, the share of the best 100's score to expect, mean entries touched], cheapest first.

        The truth is the same query at the finest threshold, with every entry of every fingerprint.
        """
        graph = self.graph
        starts = np.flatnonzero(np.diff(graph.indptr) > 0)
        if not len(starts):
            return [[1.0, 1.0, 0.0]]
        samples = starts[integers(self.parameters["seed"], "samples", size=_SAMPLES, high=len(starts))]
        queries = [self._seeded(int(node)) for node in samples]
        truth = []
        for query in queries:
            ids, scores, *_ = self._work.run(*query, self.restart, _TRUTH, self._fingerprints)
            truth.append((dict(zip(ids.tolist(), scores.tolist(), strict=True)), scores[:_SAMPLE_TOP].sum()))
        table: list[list[float]] = []
        for threshold in _THRESHOLDS:
            shares, work = [], []
            for query, (true, best) in zip(queries, truth, strict=True):
                (ids, _), touched = self._one(query, threshold, _SAMPLE_TOP)
                shares.append(sum(true.get(node, 0.0) for node in ids.tolist()) / best)
                work.append(touched)
            # Less its own error, so that other nodes do not fall short of what these promise.
            share = float(np.mean(shares) - 2 * np.std(shares) / math.sqrt(_SAMPLES))
            table.append([threshold, share, float(np.mean(work))])
            if table[-1][1] > _BEST_SHARE:
                break
        return table

    def _choice(self, accuracy: float) -> tuple[float, float]:
        if not 0 < accuracy < 1:
            raise UsageError(f"accuracy is {accuracy}, it must lie between 0 and 1")
        for threshold, share, _ in self.parameters["costs"]:
            if share >= accuracy:
                return threshold, share
        threshold, share, _ = self.parameters["costs"][-1]
        return threshold, share


def _least(threshold: float) -> float:
    """What an entry of a fingerprint must add to be read; the whole residue of a seed is always worth it."""
    return min(threshold, _LARGEST) * _ENTRY_SHARE


def _walk_all(
    graph: Graph, blocks: list[NDArray[np.int64]], parameters: dict[str, Any], pool: TaskPool | None,
    progress: Progress, keep: Path | None = None,
) -> list[dict[str, NDArray[Any]]]:  # fmt: skip
    """The fingerprints of each block, those that `keep` has already taken from there."""
    group = _BLOCKS_KEPT if keep is not None else max(1, len(blocks))
    parts: list[dict[str, NDArray[Any]]] = []
    progress.start("walks", sum(map(len, blocks)), "nodes")
    for first in range(0, len(blocks), group):
        some = blocks[first : first + group]
        folder = None if keep is None else keep / f"{first:06d}"
        done = _kept(folder, parameters)
        if done is None:
            done = _joined_sizes(list(_walked(graph, some, parameters, pool, progress)))
            if folder is not None:
                save_arrays(folder, _UNFINISHED, _FORMAT, done, parameters)
        else:
            progress.advance("walks", sum(map(len, some)))
        parts.append(done)
    progress.finish("walks")
    return parts


def _kept(folder: Path | None, parameters: dict[str, Any]) -> dict[str, NDArray[Any]] | None:
    if folder is None or not folder.exists():
        return None
    try:
        arrays, wanted = open_arrays(folder, _UNFINISHED, _FORMAT)
    except GraphFormatError:
        return None  # cut off while it was written: walked again
    return arrays if wanted == parameters else None


def _walked(
    graph: Graph, blocks: list[NDArray[np.int64]], parameters: dict[str, Any], pool: TaskPool | None, progress: Progress
) -> Iterator[dict[str, NDArray[Any]]]:
    items = [
        _Part(graph, nodes, *(parameters[name] for name in ("R", "restart", "max_steps", "max_entries", "seed")))
        for nodes in blocks
    ]
    for nodes, part in zip(blocks, (pool or TaskPool("threads")).map(_walk, items), strict=True):
        check_cancelled(progress)
        progress.advance("walks", len(nodes))
        yield part


def _walk(part: _Part) -> dict[str, NDArray[Any]]:
    """Fingerprints of the nodes of one part."""
    graph, n = part.graph, part.graph.num_nodes
    counts, touched = np.zeros(n, np.int64), np.empty(n, np.int32)
    expected = min(n, part.walks * math.ceil(1 / part.restart) + part.walks)
    room = max(min(n, part.walks * (part.max_steps + 1)), min(len(part.nodes), 256) * expected)
    ids, visits = np.empty(room, np.int32), np.empty(room, np.uint16)
    sizes, totals, cut = (np.zeros(len(part.nodes), np.int64) for _ in range(3))
    found_ids, found_visits = [], []
    first = 0
    while first < len(part.nodes):
        done = fingerprint_nodes(
            graph.indptr, graph.indices, graph.running_weights, part.nodes[first:], part.walks, part.restart,
            part.max_steps, np.uint64(part.seed % 2**64), part.max_entries, counts, touched, ids, visits,
            sizes[first:], totals[first:], cut[first:],
        )  # fmt: skip
        used = int(sizes[first : first + done].sum())
        found_ids.append(ids[:used].copy())
        found_visits.append(visits[:used].copy())
        first += done
    return {
        "ids": np.concatenate(found_ids), "visits": np.concatenate(found_visits),
        "sizes": sizes, "totals": totals, "cut": cut,
    }  # fmt: skip


def _joined(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    whole = parts[0] if len(parts) == 1 else _joined_sizes(parts)
    sizes = whole.pop("sizes")
    return whole | {"offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)}


def _joined_sizes(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One part out of several; each array is freed in them as soon as it is joined."""
    kinds = {"ids": np.int32, "visits": np.uint16, "sizes": np.int64, "totals": np.int64, "cut": np.int64}
    return {
        name: np.concatenate([part.pop(name) for part in parts]) if parts else np.empty(0, kind)
        for name, kind in kinds.items()
    }


def _scales(graph: Graph, totals: NDArray[np.int64], restart: float) -> NDArray[np.float32]:
    """What one visit counts: a fingerprint sums to the reach of its node."""
    return (reaches(graph, restart) / np.maximum(totals, 1)).astype(np.float32)


def _replaced(
    old: dict[str, NDArray[Any]], fresh: dict[str, NDArray[Any]], nodes: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The old entries with those of `nodes` taken from `fresh`."""
    sizes = np.diff(old["offsets"])
    changed = sizes.copy()
    changed[nodes] = np.diff(fresh["offsets"])
    offsets = np.concatenate([[0], np.cumsum(changed)]).astype(np.int64)
    is_fresh = np.zeros(len(sizes), bool)
    is_fresh[nodes] = True
    made = {"offsets": offsets}
    for name in ("ids", "visits"):
        out = np.empty(offsets[-1], old[name].dtype)
        out[np.repeat(is_fresh, changed)] = fresh[name]
        out[~np.repeat(is_fresh, changed)] = old[name][~np.repeat(is_fresh, sizes)]
        made[name] = out
    for name in ("totals", "cut"):
        made[name] = old[name].copy()
        made[name][nodes] = fresh[name]
    return made


def _edited(
    graph: Graph, added: tuple[Iterable[int], Iterable[int]], removed: tuple[Iterable[int], Iterable[int]]
) -> tuple[Graph, NDArray[np.int64]]:
    """The changed graph, and the nodes whose rows changed."""
    n = graph.num_nodes
    new = [np.asarray(list(part), np.int64) for part in added]
    gone = [np.asarray(list(part), np.int64) for part in removed]
    for name, (begin, end) in (("added", new), ("removed", gone)):
        if len(begin) != len(end):
            raise UsageError(f"{len(begin)} sources and {len(end)} targets are {name}")
        if len(begin) and (min(begin.min(), end.min()) < 0 or max(begin.max(), end.max()) >= n):
            raise UsageError(f"an edge that is {name} has a node outside 0 to {n - 1}")
    rows, columns, weights = graph.edges()

    def keys(begin: NDArray[Any], end: NDArray[Any]) -> NDArray[np.int64]:
        a, b = begin.astype(np.int64), end.astype(np.int64)
        return a * n + b if graph.directed else np.minimum(a, b) * n + np.maximum(a, b)

    have, plus, minus = keys(rows, columns), keys(*new), keys(*gone)
    for wrong, (begin, end), says in (
        (np.isin(minus, have, invert=True), gone, "removed is not in the graph"),
        (np.isin(plus, have), new, "added is in the graph already"),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UsageError(f"the edge {begin[at]} - {end[at]} that is to be {says}")
    kept = np.isin(have, minus, invert=True)
    values = None if weights is None else np.concatenate([weights[kept], np.ones(len(plus), np.float32)])
    made = Graph.from_edges(
        np.concatenate([rows[kept].astype(np.int64), new[0]]), np.concatenate([columns[kept].astype(np.int64), new[1]]),
        values, num_nodes=n, directed=graph.directed, self_loops="keep",
    )  # fmt: skip
    changed = np.concatenate([new[0], gone[0]] + ([] if graph.directed else [new[1], gone[1]]))
    return Graph(made.indptr, made.indices, made.weights, made.directed, graph.node_ids), np.unique(changed)
