"""An index whose vectors lie on the disk in short lists, and whose only resident part is one head for each list.

After SPANN (Chen et al., 2021), with the differences:

- The search reads lists in the order of their heads and stops by the k-th best row found so far, not by the ratio of
  the heads' distances; how far beyond it goes is fitted to the asked recall when the index is built.
- A filter is applied to each row of a list before its distance is computed, and the same stop then widens the search
  by itself; when fewer than k rows were found, the rest are looked at exactly.
- Heads are int8 in memory, in groups, so that a query may look at the heads of the nearest groups only.
- Every row is in at least one list, also in its own when it is a head. A list is read only after its checksum was
  compared once.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress
from windlass.core.randomness import permutation
from windlass.kernels.distances import DOT, L2, NO_SCALES, gemm_topk
from windlass.kernels.postings import (
    BY_COUNT,
    BY_END,
    BY_MARGIN,
    SCORED,
    STOPPED_BY,
    UNCHECKED,
    VISITED,
    near_heads,
    quantized,
    visit,
)
from windlass.vectors.clustering import Read, closure_assign, group_heads, select_heads
from windlass.vectors.errors import BadInput, BudgetExceeded, CorruptSegment
from windlass.vectors.files import FileWriter
from windlass.vectors.indexes import Allowed
from windlass.vectors.packing import pack
from windlass.vectors.parameters import checked, known_ones, require_ranges
from windlass.vectors.results import Budget, Counters
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment, SegmentWriter

Rows = NDArray[np.int64]

PAGE = 4096
_ALIGNED = 64
_CALIBRATED = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
_MARGINS = tuple(round(0.90 + 0.01 * step, 2) for step in range(61))
_QUERIES, _DEPTH = 128, 10
_FIRST_HEADS = 48
_NO_MASK: NDArray[np.uint8] = np.zeros(0, np.uint8)
_STOPS = {BY_MARGIN: "margin", BY_COUNT: "most postings", BY_END: "all near postings"}


@dataclass(frozen=True)
class PostingParams:
    """How an index is built, and how it is searched unless a search says otherwise.

    Attributes:
        head_ratio: Heads for each row.
        replicas, candidates, rng_factor: A row is kept under at most `replicas` heads, of its `candidates` nearest,
            none of which is nearer to another of them than to the row by `rng_factor`.
        posting_vectors: Rows that a posting holds at most, unless it is the only one for more.
        max_amplification: Copies of a row, on average, that the disk may hold.
        vector_dtype: Of the copies; None: `f16`, or what the collection stores where that is smaller.
        max_postings: Read for one query at most.
        probed: Share of the groups of heads that a query looks at.
    """

    head_ratio: float = 0.05
    replicas: int = 8
    candidates: int = 64
    rng_factor: float = 1.0
    posting_vectors: int = 118
    max_amplification: float = 6.0
    vector_dtype: str | None = None
    max_postings: int = 256
    probed: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            "head_ratio": (1e-6, 1),
            "replicas": (1, 64),
            "candidates": (1, 4096),
            "rng_factor": (0, 100),
            "posting_vectors": (1, 1_000_000),
            "max_amplification": (1, 64),
            "max_postings": (1, 1_000_000),
            "probed": (0, 1),
        }
        require_ranges(self, ranges)
        if self.vector_dtype not in (None, "f32", "f16", "i8"):
            raise BadInput(f"vector_dtype is {self.vector_dtype!r}", hint="choose f32, f16 or i8")


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
    """Cluster, assign, write the postings; see `indexes.build`."""
    params, schema = checked(PostingParams, "an index of postings", parameters), writer.schema
    count = len(vectors)
    read = _reader(schema, vectors, scales)
    wanted = max(1, round(params.head_ratio * count))
    _check_budget(budget, count, wanted, schema.dim, params.replicas)
    head_rows = select_heads(read, count, wanted, seed=seed, progress=progress)
    heads = read(head_rows)
    centres, groups = group_heads(heads, seed=seed)
    order = np.lexsort((head_rows, groups))  # heads of a group side by side, in memory and on the disk
    heads, head_rows, groups = heads[order], head_rows[order], groups[order]
    kept, distances, sizes = closure_assign(
        read,
        count,
        heads,
        centres,
        groups,
        candidates=params.candidates,
        replicas=params.replicas,
        rng_factor=params.rng_factor,
        probed=max(8, len(centres) // 8),
        progress=progress,
    )
    row_of, posting_of = _cut(kept, distances, sizes, len(heads), params)
    stored = _stored_schema(schema, params)
    starts, lengths, checksums, receipt = _write_pages(writer, stored, read, row_of, posting_of, len(heads))
    writer.add_written("postings", receipt)
    codes, code_scales = quantized(heads)
    small = {
        "codes": codes,
        "code_scales": code_scales,
        "squares": np.einsum("ij,ij->i", heads, heads),
        "centres": centres,
        "group_starts": np.searchsorted(groups, np.arange(len(centres) + 1)).astype(np.int64),
        "starts": starts,
        "lengths": lengths,
        "checksums": checksums,
        "head_rows": head_rows,
    }
    writer.add_file("heads", pack(small))
    report = {"heads": len(heads), "copies": len(row_of), "amplification": round(len(row_of) / max(1, count), 3)}
    used = {**asdict(params), "vector_dtype": stored.dtype, "copies": len(row_of)}
    used["margins"] = _calibrate(writer, schema, small, used, vectors, scales, count, seed)
    return used, {**report, "margins": used["margins"]}


def open_index(segment: Segment, memory_budget: int | None) -> PostingIndex:
    """See `indexes.open_index`."""
    index = PostingIndex(segment.schema, segment.small_file("heads"), segment.parameters, segment.count, segment.order)
    if memory_budget is not None and index.resident_bytes > memory_budget:
        raise BudgetExceeded(
            f"the index of {segment.path('heads')} needs {index.resident_bytes:,} bytes of memory, "
            f"{memory_budget:,} are allowed",
            hint="allow more, or build it with a smaller head_ratio",
        )
    file = segment.large_file("postings")
    index.attach(file.bytes)
    index.segment = segment
    return index


class PostingIndex:
    """An opened index of postings."""

    exact_rows = 2000

    def __init__(
        self, schema: Schema, small: Mapping[str, Any], parameters: Mapping[str, Any], count: int, order: Rows
    ) -> None:
        self.params = known_ones(PostingParams, parameters)
        self.schema, self.count, self._order = schema, count, order
        self._codes = small["codes"].view(np.uint8).reshape(-1)
        self._code_scales, self._squares, self._centres = small["code_scales"], small["squares"], small["centres"]
        self._group_starts, self._starts, self._lengths = small["group_starts"], small["starts"], small["lengths"]
        self._checksums, self._head_rows = small["checksums"], small["head_rows"]
        self._margins = [tuple(pair) for pair in parameters.get("margins", ())]
        self._copies = int(parameters["copies"])
        self._spare = np.arange(max(len(self._starts), 1))
        self._centre_squares = np.einsum("ij,ij->i", self._centres, self._centres)
        self._centres = self._centres.reshape(-1)
        self._metric = schema.kernel_metric
        self._stored = Schema(dim=schema.dim, dtype=parameters["vector_dtype"]).stored
        self.segment: Segment | None = None

    def attach(self, data: NDArray[np.uint8]) -> None:
        """The file of postings, mapped."""
        self._bytes = data
        self._numbers: NDArray[Any] = data.view(self._stored)
        self._pages = data.view(np.int32)
        self._scales = data.view(np.float32) if self._stored == np.dtype(np.int8) else NO_SCALES
        self._checked = np.zeros(len(self._starts), np.uint8)
        self._bytes_of = np.diff(self._starts, append=len(data))

    @property
    def resident_bytes(self) -> int:
        arrays = (self._codes, self._code_scales, self._squares, self._centres, self._group_starts, self._starts)
        return sum(array.nbytes for array in (*arrays, self._lengths, self._checksums, self._head_rows, self._spare))

    @property
    def amplification(self) -> float:
        return self._copies / max(1, self.count)

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
        """See `indexes.Index.search`. `params` may hold `margin`, `max_postings` and `probed`."""
        margin = float(params.get("margin", self.margin_for(0.95 if recall is None else recall)))
        share = max(len(allowed.rows) / max(1, self.count), 1e-6)  # with fewer rows allowed, the k-th lies farther out
        at_most = int(params.get("max_postings", min(len(self._starts), self.params.max_postings / share + 1)))
        probed = float(params.get("probed", min(1.0, self.params.probed / share)))
        scores, rows = self._visited(query, min(k, len(allowed.rows)), allowed, margin, at_most, probed, counters)
        if len(rows) < min(k, len(allowed.rows)) and self.segment is not None and "max_postings" not in params:
            counters.stop_reason = "exact: too few rows in the postings"
            counters.vectors_scored += len(allowed.rows)
            return self.segment.exact(query, k, allowed.rows)
        return scores, rows

    def margin_for(self, recall: float) -> float:
        """The factor that found at least this share of the true neighbours of rows when the index was built."""
        for reached, margin in self._margins:
            if reached >= recall:
                return float(margin)
        return float(self._margins[-1][1]) if self._margins else 1.1

    def verify(self) -> None:
        """Every posting's checksum, every row in one posting at least, and none twice in one."""
        for posting in range(len(self._starts)):
            self._check(posting)
        found = np.zeros(self.count, np.int64)
        for posting in range(len(self._starts)):
            rows = self._rows(posting)
            if len(np.unique(rows)) != len(rows) or rows.min(initial=0) < 0 or rows.max(initial=0) >= self.count:
                raise CorruptSegment(
                    self._file, int(self._starts[posting]), "a posting names a row twice or none there"
                )
            found[rows] += 1
        if self.count and (found.min() < 1 or found.max() > self.params.replicas or found.sum() != self._copies):
            raise CorruptSegment(self._file, 0, "a row is in no posting, or in too many")

    @property
    def _file(self) -> Any:
        assert self.segment is not None
        return self.segment.path("postings")

    def _rows(self, posting: int) -> NDArray[np.int32]:
        start = int(self._starts[posting]) // 4
        return self._pages[start : start + int(self._lengths[posting])]

    def _visited(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: Allowed,
        margin: float,
        at_most: int,
        probed: float,
        counters: Counters,
    ) -> tuple[NDArray[np.float32], Rows]:
        wanted = min(max(at_most, 1), len(self._starts))
        # Most searches end within a few postings; ordering the heads of hundreds would cost more than reading those.
        first = wanted if self.schema.metric == "ip" else min(_FIRST_HEADS, wanted)
        for count in (first, wanted):
            distances, heads = self._near(query, count, probed, counters)
            size, scores, rows, report = self._read(query, k, allowed, margin, at_most, distances, heads)
            if count == wanted or report[STOPPED_BY] != BY_END:
                break
        counters.vectors_scored += int(report[SCORED])
        counters.postings_read += int(report[VISITED])
        counters.reads += int(report[VISITED])
        counters.bytes_read += int(self._bytes_of[heads[: report[VISITED]]].sum())
        counters.stop_reason = _STOPS[int(report[STOPPED_BY])]
        return scores[:size], rows[:size]

    def _read(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: Allowed,
        margin: float,
        at_most: int,
        distances: NDArray[np.float32],
        heads: Rows,
    ) -> tuple[int, NDArray[np.float32], Rows, Rows]:
        """Visit postings; one that was never read is checked first, and the visit begins again."""
        scores, rows, report = np.empty(k, np.float32), np.empty(k, np.int64), np.zeros(5, np.int64)
        while True:
            size = visit(
                self._numbers,
                self._pages,
                self._scales,
                self._starts,
                self._lengths,
                self._checked,
                heads,
                distances,
                query if self._metric == DOT else -query,
                self.schema.dim,
                self._metric,
                self.schema.metric == "cosine",
                _NO_MASK if allowed.all else allowed.mask,
                self._order,
                np.float32(margin * margin),
                at_most if self.schema.metric == "ip" else 1,
                at_most,
                scores,
                rows,
                report,
            )
            if size >= 0:
                return int(size), scores, rows, report
            self._check(int(report[UNCHECKED]))

    def _near(
        self, query: NDArray[np.float32], wanted: int, probed: float, counters: Counters
    ) -> tuple[NDArray[np.float32], Rows]:
        """The nearest heads; squared distances, but under `ip`, where only their order counts."""
        groups = len(self._group_starts) - 1
        distances, heads = np.empty(wanted, np.float32), np.empty(wanted, np.int64)
        found, looked = near_heads(
            self._codes,
            self._code_scales,
            self._squares,
            self._group_starts,
            self._centres,
            self._centre_squares,
            max(1, min(groups, max(4, int(np.ceil(probed * groups))))),
            query,
            self._metric if self.schema.metric != "cosine" else L2,
            distances,
            heads,
            self._spare,
        )
        counters.heads_scored += int(looked)
        return distances[:found], heads[:found]

    def _check(self, posting: int) -> None:
        start = int(self._starts[posting])
        end = start + posting_bytes(int(self._lengths[posting]), self.schema.dim, self._stored)
        if zlib.crc32(self._bytes[start:end].data) != int(self._checksums[posting]):
            raise CorruptSegment(self._file, start, "the checksum of the posting that begins there does not match")
        self._checked[posting] = 1


def posting_bytes(rows: int, dim: int, stored: np.dtype[Any]) -> int:
    """Bytes of a posting without what fills its last page."""
    parts = [_padded(4 * rows)] + ([_padded(4 * rows)] if stored == np.dtype(np.int8) else [])
    return sum(parts) + rows * dim * stored.itemsize


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _reader(schema: Schema, vectors: NDArray[Any], scales: NDArray[np.float32]) -> Read:
    def read(rows: Rows) -> NDArray[np.float32]:
        return schema.decode(vectors[rows], scales[rows] if len(scales) else scales)

    return read


def _stored_schema(schema: Schema, params: PostingParams) -> Schema:
    """How the copies in postings are stored: in half precision, where the collection has not less already."""
    dtype = params.vector_dtype or ("i8" if schema.dtype == "i8" else "f16")
    return Schema(dim=schema.dim, metric=schema.metric, dtype=dtype)  # type: ignore[arg-type]


def _check_budget(budget: Budget, count: int, heads: int, dim: int, replicas: int) -> None:
    needed = heads * dim * 4 * 2 + count * replicas * 12
    if needed > budget.ram_bytes:
        raise BudgetExceeded(
            f"building over {count:,} rows needs about {needed:,} bytes of memory, {budget.ram_bytes:,} are allowed",
            hint="allow more, or choose a smaller head_ratio or fewer replicas",
        )


def _cut(
    kept: NDArray[np.int32], distances: NDArray[np.float32], sizes: Rows, heads: int, params: PostingParams
) -> tuple[Rows, Rows]:
    """Row and posting of every copy, postings in order and in each the nearest rows first.

    A posting keeps its nearest rows; what is in no other is never dropped.
    """
    count, replicas = kept.shape
    places = np.arange(replicas)[None, :] < sizes[:, None]
    row_of, place = np.nonzero(places)
    posting_of, distance_of = kept[row_of, place].astype(np.int64), distances[row_of, place]
    order = np.lexsort((row_of, distance_of, place > 0, posting_of))
    row_of, posting_of, place, distance_of = row_of[order], posting_of[order], place[order], distance_of[order]
    rank = np.arange(len(row_of)) - np.searchsorted(posting_of, np.arange(heads))[posting_of]
    keep = (rank < params.posting_vectors) | (place == 0)
    row_of, posting_of, distance_of, place = row_of[keep], posting_of[keep], distance_of[keep], place[keep]
    surplus = len(row_of) - int(params.max_amplification * count)
    if surplus > 0:
        # The copies that lie farthest from their head, measured against the row's nearest head, help least.
        nearest = distances[row_of, 0]
        strain = np.where(place == 0, -np.inf, distance_of - nearest)
        gone = np.argpartition(-strain, surplus - 1)[:surplus]
        gone = gone[place[gone] > 0]
        remain = np.ones(len(row_of), np.bool_)
        remain[gone] = False
        row_of, posting_of, distance_of = row_of[remain], posting_of[remain], distance_of[remain]
    order = np.lexsort((row_of, distance_of, posting_of))
    return row_of[order], posting_of[order]


def _write_pages(
    writer: SegmentWriter, stored: Schema, read: Read, row_of: Rows, posting_of: Rows, heads: int
) -> tuple[Rows, Rows, NDArray[np.int64], dict[str, Any]]:
    """The file of postings: where each begins, its rows, its checksum, and the file's receipt."""
    bounds = np.searchsorted(posting_of, np.arange(heads + 1))
    starts, checksums, at = np.zeros(heads, np.int64), np.zeros(heads, np.int64), 0
    file = FileWriter(writer.path("postings"), writer.disk)
    try:
        for posting in range(heads):
            rows = row_of[bounds[posting] : bounds[posting + 1]]
            encoded, scales = stored.encode(read(rows))
            parts = [rows.astype(np.int32).tobytes(), scales.tobytes()]
            data = b"".join(part + bytes(-len(part) % _ALIGNED) for part in parts) + encoded.tobytes()
            starts[posting], checksums[posting] = at, zlib.crc32(data)
            filled = data + bytes(-len(data) % PAGE)
            file.write(filled)
            at += len(filled)
        return starts, np.diff(bounds).astype(np.int64), checksums, file.finish()
    except BaseException:
        file.abandon()
        raise


def _calibrate(
    writer: SegmentWriter,
    schema: Schema,
    small: Mapping[str, Any],
    used: Mapping[str, Any],
    vectors: NDArray[Any],
    scales: NDArray[np.float32],
    count: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Recall and the smallest margin that reached it, on rows asked as queries and not allowed to find themselves."""
    if schema.metric == "ip" or count <= _DEPTH:
        return []
    chosen = np.sort(permutation(seed, "queries", size=count)[:_QUERIES])
    queries = _reader(schema, vectors, scales)(chosen)
    truth = _truth(schema, vectors, scales, queries, chosen)
    index = PostingIndex(schema, small, used, count, np.arange(count))
    index.attach(writer.written("postings").verified())
    index._checked[:] = 1
    every = Allowed(count, np.zeros(0, np.int64), all=True)
    found: list[tuple[float, float]] = []
    for margin in _MARGINS:
        hits = 0
        for number, query in enumerate(queries):
            _, rows = index._visited(
                query, _DEPTH + 1, every, margin, index.params.max_postings, index.params.probed, Counters()
            )
            hits += len(set(rows[rows != chosen[number]][:_DEPTH].tolist()) & truth[number])
        recall = hits / (len(queries) * min(_DEPTH, count - 1))
        while len(found) < len(_CALIBRATED) and recall >= _CALIBRATED[len(found)]:
            found.append((_CALIBRATED[len(found)], margin))
        if len(found) == len(_CALIBRATED):
            break
    return found or [(1.0, _MARGINS[-1])]


def _truth(
    schema: Schema, vectors: NDArray[Any], scales: NDArray[np.float32], queries: NDArray[np.float32], chosen: Rows
) -> list[set[int]]:
    """The true nearest rows of each query, itself left out, by blocks that fit into memory."""
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    read = _reader(schema, vectors, scales)
    for start in range(0, len(vectors), 16_384):
        rows = np.arange(start, min(start + 16_384, len(vectors)))
        scores, found = gemm_topk(read(rows), queries, min(_DEPTH + 1, len(rows)), metric=schema.kernel_metric)
        for number in range(len(queries)):
            pairs = zip(scores[number].tolist(), (found[number] + start).tolist(), strict=True)
            best[number] = sorted([*best[number], *pairs], key=lambda pair: (-pair[0], pair[1]))[: _DEPTH + 1]
    return [
        {row for _, row in pairs if row != own}
        if own in {row for _, row in pairs}
        else {row for _, row in pairs[:_DEPTH]}
        for pairs, own in zip(best, chosen.tolist(), strict=True)
    ]
