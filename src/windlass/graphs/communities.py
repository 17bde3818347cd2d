"""`CommunityIndex`: the group around a few nodes of a graph that is too large to load, in milliseconds.

After Chamberlain, Levy-Kramer, Humby, Deisenroth: "Real-Time Community Detection in Large Social Networks on a Laptop"
(2018). Two accounts are alike when the same accounts point at them; a minhash signature of each account's followers
estimates that, and bands of it find who could be alike at all. What differs: how long the bands are is chosen on a
sample of the data; bands are sorted arrays instead of dictionaries; a large candidate set is cut by the mean similarity
to the seeds before all its pairs are compared; candidates are compared exactly where the graph is at hand; and a
ranking from elsewhere (`prior`, such as nearness by PageRank) can be fused, which helps where members know one another
but few others in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import integers
from windlass.core.tasks import TaskPool
from windlass.graphs.array_folder import open_arrays, save_arrays
from windlass.graphs.graph import Graph
from windlass.kernels import csr, minhash
from windlass.kernels.hashing import add_cells
from windlass.kernels.signature_matches import bucket_mates, compare_rows, exact_jaccard

Method = Literal["pagerank", "average", "agglomerative"]
Side = Literal["in", "out", "both"]
_FORMAT = 1
_BLOCK = 4_096
_SAMPLE = 20_000
_MOST_BANDS = 64
_BUCKET_CAP = 4_096
_DAMPING, _ROUNDS = 0.9, 3
_FEWEST_ACTIVE, _FEWEST_EXACT = 256, 150
# So many times the wanted size are compared by their signatures: those that share most buckets with the seeds.
_SIGNED, _FEWEST_SIGNED, _UNASKED = 16, 1_024, 200
_SEEDS_EXPECTED = 5
_SIMILARITY_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Community:
    """What a query found.

    Attributes:
        members: int64, nodes best first, the seeds themselves not among them.
        scores: float64, of each member.
        candidates: How many nodes were looked at.
        ignored: Seeds without a neighbourhood in the index.
        exhausted: There were fewer candidates than were asked for.
        capped: Buckets that were too large to be looked at whole.
    """

    members: NDArray[np.int64]
    scores: NDArray[np.float64]
    candidates: int
    ignored: tuple[int, ...]
    exhausted: bool
    capped: int
    index: CommunityIndex = field(repr=False)

    @cached_property
    def similarity(self) -> NDArray[np.float32]:
        """float32 [members, members]: estimated Jaccard similarity of their neighbourhoods."""
        return self.index.similarities(self.members, self.members)


class CommunityIndex:
    """Signatures of every node's neighbourhood, and their bands.

    Example:
        >>> graph = Graph.from_edges([0, 0, 0, 1, 1, 1], [2, 3, 4, 2, 3, 4], directed=True)
        >>> index = CommunityIndex.build(graph, K=64, min_degree=2)
        >>> index.query([2], size=2).members.tolist()
        [3, 4]
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], parameters: dict[str, Any]) -> None:
        self._table, self._degrees = arrays["table"], arrays["degrees"]
        self._keys, self._nodes = arrays["keys"], arrays["nodes"]
        self.parameters = parameters

    @classmethod
    def build(
        cls,
        graph: Graph,
        K: int = 256,
        *,
        rows: int | None = None,
        side: Side = "in",
        min_degree: int = 3,
        max_candidates: int = 20_000,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> CommunityIndex:
        """Sign every node's neighbourhood.

        Args:
            K: Hashes of a signature; the error of a similarity J is sqrt(J (1 - J) / K).
            rows: Hashes of a band; None: the fewest with which five seeds have at most `max_candidates` candidates, as
                a sample of the nodes lets expect.
            side: Whose neighbourhood: those who point at a node, those it points at, or all.
            min_degree: Nodes with fewer neighbours are never candidates.
            progress: Gets the stage `signatures`, counted in nodes.

        Raises:
            UsageError: A parameter is out of range.
            Cancelled: `progress` was cancelled.
        """
        graph = _turned(graph, side)
        index = cls._empty(graph.num_nodes, K, min_degree, seed)
        index.parameters["side"] = side
        progress = progress or Silent()
        progress.start("signatures", graph.num_nodes, "nodes")
        blocks = [(first, min(first + _BLOCK, graph.num_nodes)) for first in range(0, graph.num_nodes, _BLOCK)]

        def sign(block: tuple[int, int]) -> int:
            first, last = block
            offsets = graph.indptr[first : last + 1] - graph.indptr[first]
            members = graph.indices[graph.indptr[first] : graph.indptr[last]]
            index._sign(members, np.ascontiguousarray(offsets), index._table[first:last])
            index._degrees[first:last] = np.diff(offsets)
            return last - first

        for done in TaskPool("threads").map(sign, blocks):
            check_cancelled(progress)
            progress.advance("signatures", done)
        progress.finish("signatures")
        index._band(rows, max_candidates)
        return index

    @classmethod
    def from_arcs(
        cls,
        batches: Iterable[tuple[Any, Any]],
        num_nodes: int,
        K: int = 256,
        *,
        rows: int | None = None,
        min_degree: int = 3,
        max_candidates: int = 20_000,
        seed: int = 0,
    ) -> CommunityIndex:
        """The same from a stream of (followers, accounts) arrays that is never held: signatures are the only state.

        An arc that comes twice counts twice towards `min_degree` and once for the signature.
        """
        index = cls._empty(num_nodes, K, min_degree, seed)
        for sources, targets in batches:
            index._lower(sources, targets)
        index._band(rows, max_candidates)
        return index

    @classmethod
    def merged(cls, parts: Sequence[CommunityIndex]) -> CommunityIndex:
        """Of indexes over parts of the arcs of one graph, with the same parameters: the index of all of them."""
        if not parts:
            raise UsageError("no indexes to merge")
        first = parts[0]
        for part in parts[1:]:
            names = ("K", "seed", "min_degree")
            if part.num_nodes != first.num_nodes or any(part.parameters[n] != first.parameters[n] for n in names):
                raise UsageError("indexes with different nodes or parameters cannot be merged")
        made = cls._empty(first.num_nodes, *(first.parameters[name] for name in ("K", "min_degree", "seed")))
        for part in parts:
            np.minimum(made._table, part._table, out=made._table)
            made._degrees += part._degrees
        made._band(None, first.parameters["max_candidates"])
        return made

    @property
    def num_nodes(self) -> int:
        return len(self._table)

    def query(
        self,
        seeds: Sequence[int],
        size: int | None = 50,
        *,
        method: Method = "average",
        prior: tuple[Any, Any] | None = None,
        graph: Graph | None = None,
    ) -> Community:
        """The nodes that belong to `seeds`.

        Args:
            seeds: Nodes; those without a neighbourhood are named in the result and left out.
            size: How many members; None: up to the largest drop of the scores, at most 200.
            method: `average` similarity to the seeds, `agglomerative` growth by the mean similarity to all members so
                far, or `pagerank` on the similarities of the candidates.
            prior: Nodes and scores of another ranking, not negative, such as `pagerank.nearness` gives. Its share of
                the scores counts, and a tenth of the share of similarity: where members know one another, it says more.
            graph: The graph that was indexed, or a mapped one on disk: the candidates are then compared with the seeds
                by their neighbours themselves, of which only theirs are read, instead of by estimates.

        Raises:
            UsageError: No usable seed, an unknown one, or another method.
        """
        if method not in ("pagerank", "average", "agglomerative"):
            raise UsageError(f"unknown method {method!r}", hint="pagerank, average or agglomerative")
        if size is not None and size < 1:
            raise UsageError(f"size is {size}, it must be 1 or more")
        usable, ignored = self._usable(seeds)
        wanted = size or _UNASKED
        found, capped, looked_at = self._candidates(usable, max(_SIGNED * wanted, _FEWEST_SIGNED))
        if prior is not None:
            found = np.union1d(found, np.asarray(prior[0], np.int64))
        found = _without(found, np.asarray(seeds, np.int64))
        most = max(4 * wanted, _FEWEST_ACTIVE) if graph is None else max(3 * wanted, _FEWEST_EXACT)
        active, to_seeds = _nearest(found, self._mean(found, usable), most)
        if graph is not None:
            around = self._neighbourhoods(graph)
            exact = np.empty((len(active), len(usable)), np.float32)
            exact_jaccard(around.indptr, around.indices, active, usable, exact)
            to_seeds = exact @ np.full(len(usable), 1 / len(usable))
        scores = to_seeds
        if method != "average" and len(active):
            scores = self._grown(active, usable, wanted) if method == "agglomerative" else self._ranked(active, usable)
        if prior is not None:
            active, scores = _fused(found, active, scores, prior)
        order = np.lexsort((active, -scores))
        falling = scores[order][:_UNASKED]
        if method == "average" and prior is None and len(falling) < _UNASKED:
            # Who is no candidate agrees in no slot; the least that could be seen is one.
            falling = np.append(falling, 1 / self.parameters["K"])
        kept = order[: size or min(_gap(falling), len(order))]
        members = active[kept]
        return Community(
            members, scores[kept], looked_at, ignored, size is not None and len(members) < size, capped, self
        )  # fmt: skip

    def similar(self, node: int, k: int = 10) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The `k` nodes whose neighbourhoods are most like that of `node`, and their estimated similarity."""
        found = self.query([node], k, method="average")
        return found.members, found.scores

    def explain(self, member: int, seeds: Sequence[int], graph: Graph | None = None) -> list[dict[str, Any]]:
        """Why `member` belongs to each of `seeds`: similarity, its standard error, and (given the graph that the index
        was built on) up to ten shared neighbours on the side that was indexed, by default those who point at both.
        """
        around = self._neighbourhoods(graph) if graph is not None else None
        rows = []
        for seed in seeds:
            value = float(self.similarities(np.array([member]), np.array([seed]))[0, 0])
            row: dict[str, Any] = {
                "seed": seed, "similarity": value, "error": math.sqrt(value * (1 - value) / self.parameters["K"]),
            }  # fmt: skip
            if around is not None:
                shared = np.intersect1d(around.neighbors(member), around.neighbors(seed))
                row["shared"] = shared[:10].tolist()
                row["shared_count"] = len(shared)
            rows.append(row)
        return rows

    def similarities(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float32]:
        """Estimated Jaccard similarities, float32 [a, b]; 0 where a neighbourhood is empty."""
        out = np.empty((len(a), len(b)), np.float32)
        compare_rows(self._table, np.asarray(a, np.int64), np.asarray(b, np.int64), out)
        out[self._degrees[a] == 0] = 0
        return out

    def add_arcs(self, sources: Any, targets: Any) -> None:
        """Take in more arcs (follower, account); the bands are made again. Arcs cannot be taken out: a minimum does not
        remember what was second.
        """
        self._table, self._degrees = self._table.copy(), self._degrees.copy()
        self._lower(sources, targets)
        self._band(self.parameters["rows"], self.parameters["max_candidates"])

    def save(self, path: str | Path) -> None:
        """Write the index as a folder, durably."""
        arrays = {"table": self._table, "degrees": self._degrees, "keys": self._keys, "nodes": self._nodes}
        save_arrays(Path(path), "community index", _FORMAT, arrays, self.parameters)

    @classmethod
    def open(cls, path: str | Path, *, mmap: bool = True) -> CommunityIndex:
        """An index that `save` wrote.

        Raises:
            GraphFormatError: It is damaged, or something else.
        """
        return cls(*open_arrays(Path(path), "community index", _FORMAT, mmap=mmap))

    @classmethod
    def _empty(cls, nodes: int, K: int, min_degree: int, seed: int) -> CommunityIndex:
        for name, value, most in (("K", K, 4096), ("min_degree", min_degree, 2**31)):
            if not 1 <= value <= most:
                raise UsageError(f"{name} is {value}, it must be 1 to {most}")
        arrays: dict[str, NDArray[Any]] = {
            "table": np.full((nodes, K), minhash.EMPTY, np.uint32), "degrees": np.zeros(nodes, np.int64),
            "keys": np.empty((0, 0), np.uint32), "nodes": np.empty((0, 0), np.int32),
        }  # fmt: skip
        index = cls(arrays, {"K": K, "min_degree": min_degree, "seed": seed})
        return index

    def _sign(self, members: NDArray[Any], offsets: NDArray[np.int64], out: NDArray[np.uint32]) -> None:
        shingles = np.zeros(len(members), np.uint64)
        add_cells(members.astype(np.uint64), np.uint64(self.parameters["seed"] % 2**64), shingles)
        factors, shifts = minhash.slot_constants(self.parameters["K"], self.parameters["seed"])
        minhash.signatures(shingles, offsets, factors, shifts, out)

    def _lower(self, sources: Any, targets: Any) -> None:
        begin, end = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        if begin.shape != end.shape or begin.ndim != 1:
            raise UsageError(f"{begin.shape} sources and {end.shape} targets", hint="one target for each source")
        wrong = (end < 0) | (end >= self.num_nodes) | (begin < 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UsageError(f"arc {at} goes from {begin[at]} to {end[at]}, nodes are 0 to {self.num_nodes - 1}")
        accounts, places = np.unique(end, return_inverse=True)
        offsets = np.zeros(len(accounts) + 1, np.int64)
        csr.count_rows(places, offsets)
        members, nothing = np.empty(len(begin), np.int64), np.empty(0, np.float32)
        csr.place(places, begin, nothing, offsets, members, nothing)
        rows = np.empty((len(accounts), self.parameters["K"]), np.uint32)
        self._sign(members, offsets, rows)
        self._table[accounts] = np.minimum(self._table[accounts], rows)
        self._degrees[accounts] += np.diff(offsets)

    def _band(self, rows: int | None, max_candidates: int) -> None:
        """Choose the bands and sort the nodes by each."""
        slots = self.parameters["K"]
        if rows is not None and not 1 <= rows <= slots:
            raise UsageError(f"rows is {rows}, it must be 1 to {slots}")
        chosen = rows or self._chosen_rows(max_candidates)
        bands = min(_MOST_BANDS, slots // chosen)
        usable = np.flatnonzero(self._degrees >= self.parameters["min_degree"])
        keys = self._band_keys(usable, bands, chosen)
        self._keys, self._nodes = np.empty_like(keys), np.empty(keys.shape, np.int32)
        for band in range(bands):
            order = np.argsort(keys[band], kind="stable")
            self._keys[band], self._nodes[band] = keys[band][order], usable[order]
        self.parameters |= {"rows": chosen, "bands": bands, "max_candidates": max_candidates}

    def _band_keys(self, nodes: NDArray[np.int64], bands: int, rows: int) -> NDArray[np.uint32]:
        keys = np.empty((bands, len(nodes)), np.uint64)
        minhash.band_keys(np.ascontiguousarray(self._table[nodes]), bands, rows, keys)
        return (keys >> np.uint64(32)).astype(np.uint32)

    def _chosen_rows(self, max_candidates: int) -> int:
        """The shortest bands whose buckets are small enough, by the buckets of a sample, scaled up."""
        slots: int = self.parameters["K"]
        usable = np.flatnonzero(self._degrees >= self.parameters["min_degree"])
        if len(usable) == 0:
            return 1
        sample = usable
        if len(usable) > _SAMPLE:
            sample = np.unique(usable[integers(self.parameters["seed"], "bands", size=_SAMPLE, high=len(usable))])
        scale = len(usable) / len(sample)
        for rows in range(1, 9):
            bands = min(_MOST_BANDS, slots // rows)
            if bands < 1:
                return rows - 1
            expected = 0.0
            for keys in self._band_keys(sample, bands, rows):
                _, counts = np.unique(keys, return_counts=True)
                others = np.minimum((counts - 1) * scale, _BUCKET_CAP)
                expected += float((counts * others).sum() / len(sample))
            if expected * _SEEDS_EXPECTED <= max_candidates:
                return rows
        return min(8, slots)

    def _usable(self, seeds: Sequence[int]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        if len(seeds) == 0:
            raise UsageError("no seeds", hint="give at least one node")
        for node in seeds:
            if isinstance(node, bool) or not isinstance(node, int | np.integer) or not 0 <= node < self.num_nodes:
                raise UsageError(f"no node {node!r}: nodes are 0 to {self.num_nodes - 1}")
        nodes = np.unique(np.array(seeds, np.int64))
        known = self._degrees[nodes] > 0
        if not known.any():
            raise UsageError("none of the seeds has a neighbourhood", hint="choose nodes that others point at")
        return nodes[known], tuple(nodes[~known].tolist())

    def _candidates(self, seeds: NDArray[np.int64], most: int = 2**31) -> tuple[NDArray[np.int64], int, int]:
        """Nodes in a bucket with a seed, ascending, the `most` that share most buckets; buckets that were too large;
        and how many nodes there are in all.
        """
        keys = self._band_keys(seeds, self.parameters["bands"], self.parameters["rows"])
        counts, mates = np.zeros(self.num_nodes, np.int32), np.empty(self.num_nodes, np.int32)
        found, capped = bucket_mates(self._keys, self._nodes, keys, _BUCKET_CAP, counts, mates)
        chosen = mates[:found].astype(np.int64)
        return np.sort(_nearest(chosen, counts[chosen], most)[0]), int(capped), int(found)

    def _mean(self, nodes: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = self.similarities(nodes, seeds) @ np.full(len(seeds), 1 / len(seeds))
        return means

    def _neighbourhoods(self, graph: Graph) -> Graph:
        """The graph whose rows were signed."""
        if graph.num_nodes != self.num_nodes:
            raise UsageError(f"the graph has {graph.num_nodes} nodes, the index {self.num_nodes}")
        return _turned(graph, self.parameters.get("side", "in"))

    def _ranked(self, active: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        nodes = np.concatenate([seeds, active])
        matrix = self.similarities(nodes, nodes).astype(np.float64)
        matrix /= np.maximum(matrix.sum(axis=0), 1e-30)
        rank = np.full(len(nodes), 1.0 / len(nodes))
        for _ in range(_ROUNDS):
            rank = _DAMPING * (matrix @ rank)
            rank[: len(seeds)] += (1 - rank.sum()) / len(seeds)
        scores: NDArray[np.float64] = rank[len(seeds) :]
        return scores

    def _grown(self, active: NDArray[np.int64], seeds: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
        """Scores that fall in the order in which candidates join; those who never do keep their last mean."""
        means = self.similarities(active, seeds).mean(axis=1, dtype=np.float64)
        scores, waiting = np.zeros(len(active)), np.ones(len(active), bool)
        joined = len(seeds)
        for turn in range(min(wanted, len(active))):
            best = int(np.argmax(np.where(waiting, means, -1.0)))
            scores[best] = 2.0 + (wanted - turn)
            waiting[best] = False
            more = self.similarities(active, active[best : best + 1])[:, 0]
            means = (joined * means + more) / (joined + 1)
            joined += 1
        return np.where(waiting, means, scores)


def _turned(graph: Graph, side: str) -> Graph:
    """The graph whose rows are the neighbourhoods on that side."""
    if side == "both" and graph.directed:
        begin, end, _ = graph.edges()
        return Graph.from_edges(begin, end, num_nodes=graph.num_nodes)
    if side not in ("in", "out", "both"):
        raise UsageError(f"unknown side {side!r}", hint="in, out or both")
    return graph.transposed if side == "in" else graph


def _without(nodes: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending nodes less the seeds."""
    places = np.searchsorted(nodes, seeds)
    there = (places < len(nodes)) & (nodes[np.minimum(places, len(nodes) - 1)] == seeds) if len(nodes) else places < 0
    return np.delete(nodes, places[there])


def _nearest(nodes: NDArray[np.int64], scores: NDArray[Any], most: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The `most` nodes with the largest scores and what they have, in the order given; ties by the smaller node."""
    if len(nodes) <= most:
        return nodes, scores
    least = np.partition(scores, len(scores) - most)[len(scores) - most]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)
    equal = equal[np.argsort(nodes[equal], kind="stable")][: most - len(above)]
    kept = np.sort(np.concatenate([above, equal]))
    return nodes[kept], scores[kept]


def _fused(
    found: NDArray[np.int64], active: NDArray[np.int64], scores: NDArray[np.float64], prior: tuple[Any, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nodes of both rankings, and their shares of both added up."""
    ids, values = np.asarray(prior[0], np.int64), np.asarray(prior[1], np.float64)
    known = np.isin(ids, found)
    ids, values = ids[known], values[known]
    nodes = np.union1d(active, ids)
    total = np.zeros(len(nodes))
    for members, given, weight in ((active, scores, _SIMILARITY_SHARE), (ids, values, 1.0)):
        total[np.searchsorted(nodes, members)] += weight * given / max(1e-30, float(given.sum()))
    return nodes, total


def _gap(scores: NDArray[np.float64]) -> int:
    """Members before the largest relative drop, at least five where there are as many."""
    if len(scores) <= 5:
        return len(scores)
    drops = 1 - scores[5:] / np.maximum(scores[4:-1], 1e-30)
    largest: int = int(np.argmax(drops)) + 5
    return largest
