"""What a collection answers with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.access import Access
from windlass.core.filters import Filter


@dataclass(slots=True)
class Counters:
    """What a search cost.

    Attributes:
        vectors_scored: Exact distances.
        codes_scored: Cheap distances on codes.
        heads_scored: Distances to representatives of postings.
        postings_read, reads, bytes_read: Postings visited, and what was asked of the disk for them.
        rows_masked: Rows that the filter or the access kept out.
        segments: Segments looked into.
        stop_reason: Why the search of an index ended.
        ms_by_stage: Milliseconds for each stage of the pipeline.
    """

    vectors_scored: int = 0
    codes_scored: int = 0
    heads_scored: int = 0
    postings_read: int = 0
    reads: int = 0
    bytes_read: int = 0
    rows_masked: int = 0
    segments: int = 0
    stop_reason: str = ""
    ms_by_stage: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Rows, best first.

    Attributes:
        ids: int64 `[n, k]` padded with -1, or object `[n, k]` padded with None.
        scores: float32 `[n, k]`, higher is better, padded with -inf. Under `l2` the squared distance, negated.
        n_found: int64 `[n]`: how many are not padding.
        plan: How it was searched, in one line.
        counters: What it cost, all queries together.
        rows: With `include` of `vectors` or field names: for each query a dict of columns.
    """

    ids: NDArray[Any]
    scores: NDArray[np.float32]
    n_found: NDArray[np.int64]
    plan: str
    counters: Counters
    rows: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One question of a batch; the fields are the arguments of `Collection.search`."""

    query: Any
    k: int = 10
    filter: Filter | str | None = None
    access: Access | None = None
    params: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """An acknowledged change.

    Attributes:
        version: Of the collection after it; grows with each.
        rows: Rows added, replaced, or touched.
        skipped: Rows left out because their id was there (`on_conflict="skip"`).
    """

    version: int
    rows: int
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """How a collection is doing.

    Attributes:
        rows, dead_rows, memory_rows: Live rows; deleted ones that still take space; rows that are in no segment yet.
        segments: Number, kind, rows and live rows of each.
        log_bytes, disk_bytes, resident_bytes: Of the logs, of all files, and of what is held in memory beyond what
            is mapped from files.
        tenants, grants: None for a collection without tenants.
        amplification: Copies of a vector in postings, on average; 1 without postings.
        index_bytes: What of `resident_bytes` the indexes hold.
    """

    rows: int
    dead_rows: int
    memory_rows: int
    segments: list[dict[str, Any]]
    log_bytes: int
    disk_bytes: int
    resident_bytes: int
    tenants: int | None
    grants: int | None
    amplification: float
    index_bytes: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` looked at. Damage is raised, not reported.

    Attributes:
        segments, rows: Looked at.
        bytes_checked: Compared with their checksums.
    """

    segments: int
    rows: int
    bytes_checked: int


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What `optimize` did.

    Attributes:
        kind: Of the segment that holds the rows now.
        rows: In it.
        segments_before, segments_after: How many there were and are.
        dead_rows_removed: Deleted rows that take no more space.
        seconds: How long it took.
        details: What the index says of its building.
    """

    kind: str
    rows: int
    segments_before: int
    segments_after: int
    dead_rows_removed: int
    seconds: float
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Budget:
    """What building may take.

    Attributes:
        ram_bytes: Of memory beyond what is mapped from files.
        seconds: After which no new step is begun.
    """

    ram_bytes: int = 1 << 30
    seconds: float = float("inf")
