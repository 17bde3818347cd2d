"""One index for all tenants: a tree of clusters in which each tenant's rows make a tree of their own.

After Curator (Jin et al., "Curator: Efficient Indexing for Multi-Tenant Vector Databases", 2024), with the
differences:

- Rows are numbered in the order of the tree's leaves, so a node is a range of positions and a tenant a sorted list of
  them; whether and how many of a tenant's rows lie below a node is two binary searches. There are no Bloom filters,
  nothing that can say yes by mistake, and nothing to maintain when something is granted or revoked.
- A filter, or several tenants together, is such a list as well and is searched by the same routine.
- Members are compared by codes of one bit a number, and only the best of them by their vectors: a tenant of a few
  thousand rows is its own shortlist, and the tree is for those with more.
- The search is best-first from the root; it ends as the paper's does, at the first shortlist that changes nothing, but
  never before a few were looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, check_cancelled
from windlass.core.randomness import permutation
from windlass.kernels.kmeans import kmeans, nearest, squared_to
from windlass.kernels.tree_search import CENTRES, SCORED, search_tree
from windlass.vectors.errors import BudgetExceeded, CorruptSegment
from windlass.vectors.indexes import Allowed
from windlass.vectors.packing import pack
from windlass.vectors.parameters import checked, known_ones, require_ranges
from windlass.vectors.quantizers import SignCodes, fitted_refine
from windlass.vectors.results import Budget, Counters
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment, SegmentWriter

Rows = NDArray[np.int64]

_SAMPLE = 20_000
_CHUNK = 8192
_DEEPEST = 12


@dataclass(frozen=True)
class TenantTreeParams:
    """How the tree is built and searched.

    Attributes:
        branching: Children of a node.
        leaf: Rows of a leaf at most.
        shortlist: A node below which a tenant has at most so many rows is looked at row by row, by their codes.
        refine: Rows whose vectors are looked at, for each row asked for; the search ends when they stand still. None:
            as many as found the asked recall among all rows when the index was built.
        least: Shortlists to look at whatever they change.
        boost: By how much of its variance a node counts as nearer.
    """

    branching: int = 32
    leaf: int = 512
    shortlist: int = 4096
    refine: int | None = None
    least: int = 12
    boost: float = 0.4

    def __post_init__(self) -> None:
        ranges = {
            "branching": (2, 1024),
            "leaf": (1, 100_000),
            "shortlist": (1, 1_000_000),
            "least": (1, 10_000),
            "boost": (0, 10),
        }
        if self.refine is not None:
            ranges["refine"] = (1, 10_000)
        require_ranges(self, ranges)


def build(
    writer: SegmentWriter,
    vectors: NDArray[Any],
    scales: NDArray[np.float32],
    parameters: Mapping[str, Any],
    *,
    seed: int,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cluster rows into a tree and write it; see `indexes.build`."""
    params = checked(TenantTreeParams, "a tenant tree", parameters)
    tree = _Tree(writer.schema, vectors, scales, params, seed, progress)
    tree.grow()
    writer.add_file("tree", pack(tree.arrays()))
    row_at = tree.row_at.astype(np.int64)
    codes = SignCodes.of(writer.schema, tree.read, row_at)
    writer.add_file("codes", pack(codes.arrays()))
    used = {
        **asdict(params),
        "refines": fitted_refine(codes.scores, tree.read, row_at, writer.schema.kernel_metric, seed),
    }
    return used, {
        "refines": used["refines"],
        "nodes": len(tree.ends),
        "leaves": int((np.array(tree.children) == 0).sum()),
    }


def open_index(segment: Segment, memory_budget: int | None) -> TenantTreeIndex:
    """See `indexes.open_index`."""
    index = TenantTreeIndex(segment)
    if memory_budget is not None and index.resident_bytes > memory_budget:
        raise BudgetExceeded(
            f"the tree of {segment.path('tree')} needs {index.resident_bytes:,} bytes of memory, "
            f"{memory_budget:,} are allowed",
            hint="allow more",
        )
    return index


class _Tree:
    """A tree while it is made; nodes are numbered level by level, so the children of one follow one another."""

    def __init__(
        self,
        schema: Schema,
        vectors: NDArray[Any],
        scales: NDArray[np.float32],
        params: TenantTreeParams,
        seed: int,
        progress: Progress,
    ) -> None:
        self.schema, self._vectors, self._scales = schema, vectors, scales
        self._params, self._seed, self._progress = params, seed, progress
        self.centres: list[NDArray[np.float32]] = []
        self.variances: list[float] = []
        self.ends: list[int] = []
        self.first_child: list[int] = []
        self.children: list[int] = []
        self._rows: list[Rows] = []

    def grow(self) -> None:
        """Divide nodes until leaves are small enough, then number positions depth first."""
        self._progress.start("cluster", len(self._vectors), "rows")
        self._add(np.arange(len(self._vectors), dtype=np.int64))
        depths, node = [0], 0
        while node < len(self._rows):
            check_cancelled(self._progress)
            rows = self._rows[node]
            if len(rows) > self._params.leaf and depths[node] < _DEEPEST:
                parts = self._divided(rows, node)
                if len(parts) > 1:
                    self.first_child[node], self.children[node] = len(self._rows), len(parts)
                    for part in parts:
                        self._add(part)
                    depths += [depths[node] + 1] * len(parts)
            if self.children[node] == 0:
                self._progress.advance("cluster", len(rows))
            node += 1
        self._progress.finish("cluster")
        self._number()

    def arrays(self) -> dict[str, Any]:
        return {
            "centres": np.stack(self.centres),
            "variances": np.array(self.variances, np.float32),
            "ends": np.array(self.ends, np.int64),
            "first_child": np.array(self.first_child, np.int64),
            "children": np.array(self.children, np.int64),
            "row_at": self.row_at,
        }

    def read(self, rows: Rows) -> NDArray[np.float32]:
        return self.schema.decode(self._vectors[rows], self._scales[rows] if len(self._scales) else self._scales)

    def _add(self, rows: Rows) -> None:
        total, squares = np.zeros(self.schema.dim), 0.0
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        for chunk in chunks:
            total += self.read(chunk).sum(axis=0, dtype=np.float64)
        centre = (total / max(1, len(rows))).astype(np.float32)
        for chunk in chunks:
            squares += float(squared_to(self.read(chunk), centre[None], np.zeros(len(chunk), np.int64)).sum())
        self.centres.append(centre)
        self.variances.append(squares / max(1, len(rows)))
        self.ends.append(0)
        self.first_child.append(0)
        self.children.append(0)
        self._rows.append(rows)

    def _divided(self, rows: Rows, node: int) -> list[Rows]:
        parts = min(self._params.branching, max(2, -(-2 * len(rows) // self._params.leaf)))
        sample = rows
        if len(rows) > _SAMPLE:
            sample = rows[np.sort(permutation(self._seed, "tree", node, size=len(rows))[:_SAMPLE])]
        centres, labels = kmeans(self.read(sample), parts, seed=self._seed + node, rounds=15)
        if len(rows) > _SAMPLE:
            chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
            labels = np.concatenate([nearest(self.read(chunk), centres)[0] for chunk in chunks])
        found = [rows[labels == part] for part in range(len(centres))]
        return [part for part in found if len(part)]

    def _number(self) -> None:
        """Positions in the order of a walk through the tree."""
        order, waiting = [], [0]
        position = 0
        while waiting:
            node = waiting.pop()
            if self.children[node]:
                waiting += range(self.first_child[node] + self.children[node] - 1, self.first_child[node] - 1, -1)
            else:
                order.append(self._rows[node])
                position += len(self._rows[node])
                self.ends[node] = position
        for node in reversed(range(len(self.ends))):
            if self.children[node]:
                self.ends[node] = self.ends[self.first_child[node] + self.children[node] - 1]
        self.row_at = np.concatenate(order).astype(np.int32)


class TenantTreeIndex:
    """An opened tree."""

    exact_rows = 400

    def __init__(self, segment: Segment) -> None:
        self.params = known_ones(TenantTreeParams, segment.parameters)
        self._refines: list[tuple[float, int]] = segment.parameters.get("refines") or [(1.0, 1)]
        self._segment = segment
        small = segment.small_file("tree")
        self._centres, self._variances, self._ends = small["centres"].reshape(-1), small["variances"], small["ends"]
        self._first_child, self._children, self._row_at = small["first_child"], small["children"], small["row_at"]
        self._codes = SignCodes.restored(segment.small_file("codes"))
        self._position = np.empty(segment.count, np.int32)
        self._position[self._row_at] = np.arange(segment.count)

    @property
    def resident_bytes(self) -> int:
        arrays = (self._centres, self._variances, self._ends, self._first_child, self._children)
        return sum(array.nbytes for array in (*arrays, self._row_at, self._position)) + self._codes.nbytes

    @property
    def amplification(self) -> float:
        return 1.0

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: Allowed,
        *,
        recall: float | None,
        params: Mapping[str, Any],
        counters: Counters,
    ) -> tuple[NDArray[np.float32], Rows]:
        """See `indexes.Index.search`. `params` may hold `refine`, `least` and `shortlist`."""
        asked = {name: int(params.get(name, getattr(self.params, name))) for name in ("least", "shortlist")}
        refine = int(params.get("refine", self._refine(0.95 if recall is None else recall)))
        wanted = min(k, len(allowed.rows))
        if not wanted:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        kept = min(len(allowed.rows), wanted * refine)
        scores, near, report = np.empty(kept, np.float32), np.empty(kept, np.int64), np.zeros(3, np.int64)
        codes = self._codes
        found = search_tree(
            self._centres,
            self._variances,
            self._ends,
            self._first_child,
            self._children,
            self._members(allowed),
            codes.codes,
            codes.squares,
            codes.factors,
            codes.asked(query),
            -query,
            np.float32(self.params.boost),
            asked["shortlist"],
            asked["least"],
            self._position,
            scores,
            near,
            report,
        )
        rows = self._row_at[near[:found]].astype(np.int64) if found >= wanted else allowed.rows
        counters.codes_scored += int(report[SCORED])
        counters.heads_scored += int(report[CENTRES])
        counters.vectors_scored += len(rows)
        counters.stop_reason = "a shortlist changed nothing"
        return self._segment.exact(query, k, rows)

    def _refine(self, recall: float) -> int:
        if self.params.refine is not None:
            return self.params.refine
        return next((refine for reached, refine in self._refines if reached >= recall), self._refines[-1][1])

    def verify(self) -> None:
        """Children cover their parent exactly, and every row has one position.

        Raises:
            CorruptSegment: They do not.
        """
        rows = np.sort(self._row_at)
        inner = np.flatnonzero(self._children)
        last = self._ends[self._first_child[inner] + self._children[inner] - 1]
        if (rows != np.arange(self._segment.count)).any() or (last != self._ends[inner]).any():
            raise CorruptSegment(self._segment.path("tree"), 0, "the tree does not hold every row once")

    def _members(self, allowed: Allowed) -> Rows:
        """Sorted positions of the rows; kept with them, for a tenant asks often."""
        found = allowed.notes.get(id(self))
        if found is None:
            found = np.sort(self._position[allowed.rows]).astype(np.int64)
            allowed.notes[id(self)] = found
        return found
