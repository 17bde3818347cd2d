"""What the kinds of index have in common: built over the vectors of a new segment, opened with it, searched.

An index knows rows by their numbers in the segment. It decides which rows to look at; which rows may be returned is
decided before, and reaches it as `Allowed`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress
from windlass.vectors.errors import BadInput
from windlass.vectors.results import Budget, Counters

if TYPE_CHECKING:
    from windlass.vectors.segment import Segment, SegmentWriter

Rows = NDArray[np.int64]

_KINDS: dict[str, str] = {
    "postings": "windlass.vectors.postings",
    "tenant-tree": "windlass.vectors.tenant_tree",
    "partitioned": "windlass.vectors.partitioned",
}
"""Kind to module; the module has `build` and `open_index`."""


class Allowed:
    """The rows of a segment that may be returned.

    Attributes:
        rows: int64, sorted.
        all: Whether these are all rows of the segment.
        notes: What an index worked out about them, by the index; kept as long as they are.
    """

    def __init__(self, count: int, rows: Rows, *, all: bool = False) -> None:
        self.rows, self.all = rows, all
        self.notes: dict[int, Rows] = {}
        self._count = count

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """uint8 `[n]`: one for each of `rows`."""
        found = np.zeros(self._count, np.uint8)
        found[self.rows] = 1
        return found


class Index(Protocol):
    """An opened index.

    Attributes:
        exact_rows: When at most so many rows are allowed, looking at each of them is faster.
    """

    exact_rows: int

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
        """Scores and rows of the best `k` allowed rows that it finds, best first."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds beyond mapped files."""
        ...

    @property
    def amplification(self) -> float:
        """Copies of a vector, on average."""
        ...

    def verify(self) -> None:
        """Check what must always hold.

        Raises:
            CorruptSegment: It does not.
        """
        ...


def kinds() -> tuple[str, ...]:
    """Every kind there is; `flat` has no index and is exact."""
    return ("flat", *_KINDS)


def checked_kind(kind: str) -> str:
    """`kind`, if there is such a one.

    Raises:
        BadInput: There is not.
    """
    if kind not in ("auto", *kinds()):
        raise BadInput(f"no kind of index is called {kind!r}", hint=f"choose auto, {', '.join(kinds())}")
    return kind


def build(
    kind: str,
    writer: SegmentWriter,
    vectors: NDArray[Any],
    scales: NDArray[np.float32],
    parameters: Mapping[str, Any],
    *,
    seed: int,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build an index over the rows of `writer` and write its files; returns its parameters and a report.

    Raises:
        BadInput: A parameter is unknown.
        BudgetExceeded, Cancelled, StorageError.
    """
    if kind == "flat":
        return {}, {}
    module: Any = importlib.import_module(_KINDS[kind])
    built: tuple[dict[str, Any], dict[str, Any]] = module.build(
        writer, vectors, scales, parameters, seed=seed, budget=budget, progress=progress
    )
    return built


def open_index(segment: Segment, memory_budget: int | None) -> Index | None:
    """The index of a segment; None when it has none.

    Raises:
        BadInput: A newer Windlass knows this kind.
        BudgetExceeded: It needs more memory than allowed.
    """
    if segment.kind == "flat":
        return None
    checked_kind(segment.kind)
    opened: Index = importlib.import_module(_KINDS[segment.kind]).open_index(segment, memory_budget)
    return opened
