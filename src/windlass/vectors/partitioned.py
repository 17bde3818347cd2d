"""An index in parts that can be searched apart, by codes first and by few vectors at the end.

After SQUASH (Oakley and Ferhatosmanoglu, "SQUASH: Serverless and Distributed Quantization-based Attributed Vector
Similarity Search", 2025). Rows are clustered into parts of nearly equal size; a query visits the parts whose centres
are near, and goes on until it has met k rows that may be returned, or all of them. In a part, rows are sifted by one
bit a number, then by a few (`osq`), then by their vectors. Differences:

- In one process the vectors of what the sign codes pass on are read at once: for rows that are mapped that takes a
  tenth of the time of the finer codes, which are for functions, to whom a vector is a read from far away.
- The sign codes know how long a row is and how well its signs stand for it. They pass on the rows whose estimate comes
  near the k-th score found so far, by a slack that is fitted to the recall when the index is built, instead of a tenth
  of all: where a filter leaves rows that lie close together, more are looked at.
- How much farther than the nearest part a part may be is fitted too, and grows with the share of rows that the filter
  leaves out, for their neighbours lie farther out.
- `exact` goes through all parts by the lower bounds of the codes and ends when no row can be nearer any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, check_cancelled
from windlass.core.randomness import permutation
from windlass.kernels.distances import gather_topk, offer
from windlass.kernels.kmeans import constrained_kmeans, place_within, size_bounds, squared_distances
from windlass.vectors.attribute_codes import FieldCells
from windlass.vectors.errors import BudgetExceeded, CorruptSegment
from windlass.vectors.files import FileWriter
from windlass.vectors.indexes import Allowed
from windlass.vectors.osq import OSQ, Bound
from windlass.vectors.packing import pack
from windlass.vectors.parameters import checked, known_ones, require_ranges
from windlass.vectors.quantizers import SignCodes, fitted_refine, fitted_slack
from windlass.vectors.results import Budget, Counters
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment, SegmentWriter

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

SLACK = 0.1
_PART_ROWS = 8000
_SAMPLE = 20_000
_CHUNK = 8192
_BLOCK = 64
_FIRST = 4
_SHARES = (1.0, 0.5, 0.1, 0.02)
_QUERIES, _DEPTH = 64, 10
_RECALLS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
_ROUNDING = 1e-4


@dataclass(frozen=True)
class PartitionedParams:
    """How parts are made, and how they are searched unless a search says otherwise.

    Attributes:
        parts: How many; None: one for every 8,000 rows.
        bits_per_dim: Of the finer codes, on average.
        attr_bits: For all fields together; a field has at most 8.
        k_factor: Rows that the finer codes pass on, for each row asked for. None: fitted to the recall.
        slack: How far below the k-th score the sign codes may estimate a row that is still passed on. None: fitted.
        centroid_factor: Parts whose centre is farther than this times the nearest one's are not visited. None: fitted.
        exact: Whether bounds decide what is left out, so that nothing is missed.
    """

    parts: int | None = None
    bits_per_dim: float = 3.0
    attr_bits: int = 32
    k_factor: int | None = None
    slack: float | None = None
    centroid_factor: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "bits_per_dim": (0, 8),
            "attr_bits": (1, 1024),
        }
        least = {"parts": 1, "k_factor": 1, "slack": 0, "centroid_factor": 1}
        given = {name: (low, 1_000_000) for name, low in least.items() if getattr(self, name) is not None}
        require_ranges(self, {**ranges, **given})


def build(
    writer: SegmentWriter,
    vectors: NDArray[Any],
    scales: Floats,
    parameters: Mapping[str, Any],
    *,
    seed: int,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cluster, encode, write; see `indexes.build`."""
    params, schema, count = checked(PartitionedParams, "parts", parameters), writer.schema, len(vectors)
    parts = min(count, params.parts or max(1, round(count / _PART_ROWS)))
    _check_budget(budget, count, parts, schema.dim)

    def read(rows: Rows) -> Floats:
        return schema.decode(vectors[rows], scales[rows] if len(scales) else scales)

    progress.start("cluster", count, "rows")
    sample = np.sort(permutation(seed, "parts", size=count)[:_SAMPLE])
    points = read(sample)
    centres, labels = _parts(read, points, count, parts, seed)
    progress.finish("cluster")
    order = np.argsort(labels, kind="stable").astype(np.int64)
    starts = np.searchsorted(labels[order], np.arange(parts + 1)).astype(np.int64)
    signs = SignCodes.of(schema, read, order)
    osq = OSQ.fit(points, int(params.bits_per_dim * schema.dim))
    packed, largest = _write_codes(writer, osq, read, order, progress)
    for name, data in (("signs", signs.arrays()), ("osq", osq.arrays())):
        writer.add_file(name, pack(data))
    fields = _write_cells(writer, order, starts, params)
    small = {"centres": centres, "starts": starts, "row_at": order.astype(np.int32)}
    writer.add_file("layout", pack({**small, "largest": largest}))

    def finer(query: Floats, positions: Rows) -> Floats:
        return -osq.sums(query, packed, positions, "middle", product=schema.metric == "ip")

    used: dict[str, Any] = {**asdict(params), "fields": fields}
    used["slacks"] = fitted_slack(signs, read, order, schema, seed)
    used["k_factors"] = fitted_refine(finer, read, order, schema.kernel_metric, seed)
    used["factors"] = [] if schema.metric == "ip" else _fitted_factors(points, centres, labels[sample], schema, seed)
    code_bytes = signs.nbytes + osq.row_bytes * count + osq.nbytes + len(fields) * count
    report = {"parts": parts, "code_bytes": code_bytes}
    return used, report | {name: used[name] for name in ("slacks", "k_factors", "factors")}


def open_index(segment: Segment, memory_budget: int | None) -> PartitionedIndex:
    """See `indexes.open_index`."""
    index = PartitionedIndex(segment)
    if memory_budget is not None and index.resident_bytes > memory_budget:
        raise BudgetExceeded(
            f"the codes of {segment.path('parts')} need {index.resident_bytes:,} bytes of memory, "
            f"{memory_budget:,} are allowed",
            hint="allow more, or build it with fewer bits_per_dim",
        )
    return index


class PartitionedIndex:
    """An opened index of parts. Rows are numbered by *position*, part after part."""

    exact_rows = 1000

    def __init__(self, segment: Segment) -> None:
        self.params = known_ones(PartitionedParams, segment.parameters)
        self.segment, self.schema = segment, segment.schema
        layout = segment.small_file("layout")
        self.centres, self.starts, self.row_at = layout["centres"], layout["starts"], layout["row_at"]
        self._largest = float(layout["largest"])
        self._signs = SignCodes.restored(segment.small_file("signs"))
        self._osq = OSQ.restored(segment.small_file("osq"))
        self._file = segment.large_file("parts")
        self._packed = self._file.bytes.reshape(segment.count, self._osq.row_bytes)
        self._fitted = {name: segment.parameters[f"{name}s"] for name in ("slack", "k_factor")}
        self._factors = segment.parameters["factors"]
        self._position = np.empty(segment.count, np.int32)
        self._position[self.row_at] = np.arange(segment.count)

    @property
    def parts(self) -> int:
        return len(self.centres)

    @property
    def resident_bytes(self) -> int:
        arrays = (self.centres, self.starts, self.row_at, self._position, self._packed)
        return sum(array.nbytes for array in arrays) + self._signs.nbytes + self._osq.nbytes

    @property
    def amplification(self) -> float:
        return 1.0

    def search(
        self,
        query: Floats,
        k: int,
        allowed: Allowed,
        *,
        recall: float | None,
        params: Mapping[str, Any],
        counters: Counters,
    ) -> tuple[Floats, Rows]:
        """See `indexes.Index.search`. `params` may hold `slack`, `k_factor`, `centroid_factor` and `exact`."""
        members, wanted = self.members(allowed), min(k, len(allowed.rows))
        if not wanted:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        edges = np.searchsorted(members, self.starts)
        share = len(members) / self.segment.count
        taken, met = [], 0
        order, near = self.route(query, share, recall=recall, params=params)
        # Where the near parts hold fewer of the allowed rows than their size says, others hold the neighbours.
        expected = share * float(np.diff(self.starts)[order[:near]].sum())
        for place, part in enumerate(order.tolist()):
            if place >= near and met >= max(wanted, expected):
                counters.stop_reason = "the other parts are far"
                break
            taken.append(members[edges[part] : edges[part + 1]])
            met += len(taken[-1])
        counters.postings_read += len(taken)
        chosen = taken[0] if len(taken) == 1 else np.concatenate(taken)
        finer = params.get("k_factor", self.params.k_factor) is not None
        return self.best(query, wanted, chosen, recall=recall, params=params, counters=counters, finer=finer)

    def route(
        self, query: Floats, share: float, *, recall: float | None = None, params: Mapping[str, Any]
    ) -> tuple[Rows, int]:
        """Parts, nearest first, and how many of them are near enough for a filter that leaves this share of rows."""
        if bool(params.get("exact", self.params.exact)) or self.schema.metric == "ip":
            return np.arange(self.parts), self.parts
        difference = self.centres - query
        distances = np.einsum("ij,ij->i", difference, difference)
        order = np.argsort(distances, kind="stable")
        factor = params.get("centroid_factor", self.params.centroid_factor) or self._factor(share, recall)
        near = int((distances[order] <= distances[order[0]] * float(factor) ** 2).sum())
        return order, near

    def best(
        self,
        query: Floats,
        k: int,
        chosen: Rows,
        *,
        recall: float | None = None,
        params: Mapping[str, Any],
        counters: Counters,
        finer: bool = True,
    ) -> tuple[Floats, Rows]:
        """Scores and rows of the best `k` of the positions `chosen`, found through their codes.

        Args:
            finer: Whether the finer codes sift what the sign codes pass on; they pay where vectors are far away, not
                where they are mapped.
        """
        if bool(params.get("exact", self.params.exact)):
            return self._exactly(query, k, chosen, counters)
        seen = np.zeros(0, np.int64)
        if len(chosen) > _FIRST * k:
            chosen, seen = self._sifted(query, k, chosen, self._passed_on("slack", recall, params))
            counters.codes_scored += len(chosen)
        left = int(k * self._passed_on("k_factor", recall, params))
        if finer and left < len(chosen):
            far = self.sums(query, chosen, "middle")
            counters.codes_scored += len(chosen)
            chosen = chosen[np.argpartition(far, left - 1)[:left]]
        rows = np.union1d(self.row_at[chosen].astype(np.int64), seen)
        counters.vectors_scored += len(rows)
        return self.segment.exact(query, k, rows)

    def _sifted(self, query: Floats, k: int, chosen: Rows, slack: float) -> tuple[Rows, Rows]:
        """The positions whose estimate comes near the k-th score of the best by estimate, and the rows of those k."""
        estimates = self._signs.estimates(query, chosen, self.schema.metric)
        wanted = _FIRST * k
        scores, places = np.empty(wanted, np.float32), np.empty(wanted, np.int64)
        every = np.arange(len(chosen))
        offer(estimates, every, every, scores, places, 0)
        first = self.row_at[np.sort(chosen[places])].astype(np.int64)
        best, rows = self.segment.exact(query, k, first)
        return chosen[estimates >= best[-1] - np.float32(slack)], rows

    def sums(self, query: Floats, chosen: Rows, bound: Bound) -> Floats:
        """float32 `[m]`: a bound of the squared distance of positions, of the negative product under `ip`."""
        self._file.verify_rows(chosen, self._osq.row_bytes)
        return self._osq.sums(query, self._packed, chosen, bound, product=self.schema.metric == "ip")

    def members(self, allowed: Allowed) -> Rows:
        """Sorted positions of the rows; kept with them, for the same filter is asked often."""
        found = allowed.notes.get(id(self))
        if found is None:
            found = np.sort(self._position[allowed.rows]).astype(np.int64)
            allowed.notes[id(self)] = found
        return found

    def verify(self) -> None:
        """Every row has one position, every part its size, every vector lies within the bounds of its code.

        Raises:
            CorruptSegment: One does not.
        """
        if (np.sort(self.row_at) != np.arange(self.segment.count)).any():
            raise CorruptSegment(self.segment.path("layout"), 0, "the parts do not hold every row once")
        self._file.recheck()

    def _exactly(self, query: Floats, k: int, chosen: Rows, counters: Counters) -> tuple[Floats, Rows]:
        bounds = self.sums(query, chosen, "lower")
        order = np.argsort(bounds, kind="stable")
        best = self._reachable(query, bounds[order])
        scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
        for start in range(0, len(order), _BLOCK):
            if len(rows) == k and best[start] < scores[-1]:
                counters.stop_reason = "no other row can be nearer"
                break
            block = self.row_at[chosen[order[start : start + _BLOCK]]].astype(np.int64)
            counters.vectors_scored += len(block)
            scores, rows = self.segment.exact(query, k, np.concatenate([rows, block]))
        counters.codes_scored += len(chosen)
        return scores, rows

    def _reachable(self, query: Floats, bounds: Floats) -> NDArray[np.float64]:
        """The highest score that a row with such a lower bound may have, with room for rounding."""
        square = float(query.astype(np.float64) @ query)
        slack = _ROUNDING * (square + self._largest)
        if self.schema.metric == "ip":
            return float(query.astype(np.float64) @ self._osq.mean) - bounds.astype(np.float64) + slack
        if self.schema.metric == "l2":
            return -bounds.astype(np.float64) + slack
        return (square + self._largest - bounds.astype(np.float64)) / 2 + slack

    def _passed_on(self, name: str, recall: float | None, params: Mapping[str, Any]) -> float:
        given = params.get(name, getattr(self.params, name))
        if given is not None:
            return float(given)
        fitted: list[tuple[float, float]] = self._fitted[name] or [(1.0, 1)]
        return next((passed for reached, passed in fitted if reached >= _held(recall)), fitted[-1][1])

    def _factor(self, share: float, recall: float | None) -> float:
        for fitted, by_recall in self._factors:
            if share >= fitted:  # between two shares the smaller one, which asks for more
                return float(
                    next((factor for reached, factor in by_recall if reached >= _held(recall)), by_recall[-1][1])
                )
        return float("inf")


def _held(recall: float | None) -> float:
    """The recall of each step: rows are lost in three, and not the same ones."""
    return 1 - (1 - (0.98 if recall is None else recall)) / 3


def _parts(read: Any, points: Floats, count: int, parts: int, seed: int) -> tuple[Floats, Rows]:
    """Centres found on a sample, and the part of every row, sizes within a tenth of one another."""
    centres, labels = constrained_kmeans(points, parts, seed=seed, slack=SLACK)
    if len(points) < count:
        costs = np.empty((count, parts), np.float32)
        for start in range(0, count, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, count))
            costs[rows] = squared_distances(read(rows), centres)
        labels = place_within(costs, *size_bounds(count, parts, SLACK))
    return centres, labels


def _write_codes(
    writer: SegmentWriter, osq: OSQ, read: Any, order: Rows, progress: Progress
) -> tuple[NDArray[np.uint8], float]:
    """The file of finer codes in the order of parts, mapped, and the largest squared length of a row."""
    file, largest = FileWriter(writer.path("parts"), writer.disk), 0.0
    progress.start("encode", len(order), "rows")
    try:
        for start in range(0, len(order), _CHUNK):
            check_cancelled(progress)
            points = read(order[start : start + _CHUNK])
            largest = max(largest, float(np.einsum("ij,ij->i", points, points).max(initial=0)))
            file.write(osq.encode(points))
            progress.advance("encode", len(points))
        progress.finish("encode")
        writer.add_written("parts", file.finish())
    except BaseException:
        file.abandon()
        raise
    return writer.written("parts").verified().reshape(len(order), osq.row_bytes), largest


def _write_cells(writer: SegmentWriter, order: Rows, starts: Rows, params: PartitionedParams) -> list[str]:
    """A file for each field that can be coded: its cells, and the cell of each position."""
    columns = writer.columns()
    each = min(8, params.attr_bits // max(1, len(columns)))
    fields = []
    for number, (name, column) in enumerate(columns.items()):
        made = FieldCells.of(column, 1 << each) if each else None
        if made is not None:
            cells, codes = made
            codes = codes[order]
            present = np.zeros((len(starts) - 1, 256), np.bool_)
            for part in range(len(present)):
                present[part, codes[starts[part] : starts[part + 1]]] = True
            writer.add_file(f"cells{number}", pack({**cells.arrays(), "codes": codes, "present": present}))
            fields.append(name)
    return fields


def _fitted_factors(points: Floats, centres: Floats, labels: Rows, schema: Schema, seed: int) -> list[Any]:
    """For shares of allowed rows and for recalls: how far the parts of the true neighbours are from the nearest one."""
    own = squared_distances(points, centres)
    asked = permutation(seed, "asked parts", size=len(points))[:_QUERIES]
    found = []
    for share in _SHARES:
        subset = permutation(seed, "subset", round(100 * share), size=len(points))[: max(1, round(share * len(points)))]
        ratios = []
        for place in asked.tolist():
            _, true = gather_topk(points, points[place], _DEPTH + 1, subset, metric=schema.kernel_metric)
            distances = own[place]
            reached = distances[labels[true[true != place]]] / max(float(distances.min()), 1e-30)
            ratios += np.sqrt(reached).tolist()
        needed = np.quantile(ratios, _RECALLS, method="higher") if ratios else np.ones(len(_RECALLS))
        found.append((share, [(recall, float(ratio)) for recall, ratio in zip(_RECALLS, needed, strict=True)]))
    return found


def _check_budget(budget: Budget, count: int, parts: int, dim: int) -> None:
    needed = count * (parts * 4 + dim // 8 + 16) + min(count, _SAMPLE) * (dim * 12 + parts * 4)
    if needed > budget.ram_bytes:
        raise BudgetExceeded(
            f"building over {count:,} rows needs about {needed:,} bytes of memory, {budget.ram_bytes:,} are allowed",
            hint="allow more, or fewer parts",
        )
