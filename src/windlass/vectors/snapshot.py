"""Questions about a collection as it is at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.core.access import Access
from windlass.core.filters import Filter
from windlass.vectors.results import Counters, SearchRequest, SearchResult
from windlass.vectors.rows import checked_ids
from windlass.vectors.schema import Schema
from windlass.vectors.searching import Searcher, columns_of, find_live
from windlass.vectors.state import View

if TYPE_CHECKING:
    import pyarrow


class Snapshot:
    """The rows and grants of one moment; later changes are not seen. Asked like a `Collection`."""

    def __init__(self, view: View) -> None:
        self._fixed = view
        self._searcher = Searcher()

    def _now(self) -> View:
        return self._fixed

    @property
    def schema(self) -> Schema:
        return self._fixed.schema

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        filter: Filter | str | None = None,
        access: Access | None = None,
        recall: float | None = None,
        params: Mapping[str, Any] | None = None,
        include: Sequence[str] = ("ids", "scores"),
        timeout_s: float | None = None,
    ) -> SearchResult:
        """The `k` nearest rows that pass the filter and the access.

        Args:
            query: `[dim]` or `[n, dim]`.
            filter: Which rows may be found, as a `Filter` or as text.
            access: For whom it is asked; needed, and only allowed, in a collection with tenants.
            recall: The share of the true nearest rows that an index should find on average.
            params: Of the index, for this search only. `exact_rows`: up to how many rows are looked at one by one.
            include: Also `vectors` and names of fields, for `SearchResult.rows`.

        Raises:
            DimensionMismatch, NonFiniteVector, ZeroVector, BadInput: The question.
            FilterSyntaxError, FilterTypeError, UnknownField: The filter.
            AccessRequired: The collection has tenants and `access` is missing.
            Timeout, CorruptSegment.
        """
        return self._searcher.search(
            self._now(),
            query,
            k,
            filter=filter,
            access=access,
            recall=recall,
            params=params or {},
            include=include,
            timeout_s=timeout_s,
        )

    def search_batch(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """The answers to many questions, all about the same moment."""
        view = self._now()
        return [
            self._searcher.search(
                view,
                one.query,
                one.k,
                filter=one.filter,
                access=one.access,
                recall=None,
                params=one.params or {},
                include=("ids", "scores"),
                timeout_s=None,
            )
            for one in requests
        ]

    def count(self, filter: Filter | str | None = None, access: Access | None = None) -> int:
        """How many rows pass the filter and the access."""
        view, counters = self._now(), Counters()
        allowed = self._searcher.asking(view, filter, access)
        return sum(len(allowed(part, counters).rows) for part in view.parts)

    def get(self, ids: Any, *, access: Access | None = None) -> pyarrow.Table:
        """The rows with these ids, in this order, as columns `id`, `vector` and the fields.

        Ids that are not there, or that `access` does not see, are left out. Vectors come back as they are stored: at
        length one under `cosine`.
        """
        import pyarrow

        view = self._now()
        asked = checked_ids(view.schema, ids)
        may_see, seen = self._searcher.asking(view, None, access), np.zeros(len(asked), np.bool_)
        for part in view.parts:
            rows, places = find_live(part, asked)
            seen[places] = may_see(part, Counters()).mask[rows] > 0
        kept = asked[seen]
        values = columns_of(view, kept, ["vectors", *view.schema.fields])
        flat = np.concatenate([*values.pop("vectors"), np.zeros(0, np.float32)])
        kind = pyarrow.int64() if view.schema.ids == "int" else pyarrow.string()
        arrays = {
            "id": pyarrow.array(kept.tolist(), kind),
            "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, pyarrow.float32()), view.schema.dim),
        }
        for name, item in view.schema.fields.items():
            arrays[name] = pyarrow.array(values[name], _arrow_type(item.type))
        return pyarrow.table(arrays)


def _arrow_type(kind: str) -> Any:
    import pyarrow

    types = {
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "str": pyarrow.string(),
        "bool": pyarrow.bool_(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
        "set[str]": pyarrow.list_(pyarrow.string()),
    }
    return types[kind]
