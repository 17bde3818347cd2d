"""Collections of vectors on disk: crash-safe, filtered, shared by tenants, searched exactly or by an index.

The rooms in the order a change passes them: `schema` (what a collection holds), `columns` and `rows` (rows as they are
stored), `log` (what makes a change durable), `memory` (the newest rows), `segment` over `files` and `packing` (rows
that never change), `storage` (the folder and its manifest), `state` and `tenants` (what is valid at one moment),
`masks` and `searching` (from a question to rows), `snapshot` (questions about one moment), `indexes` and the kinds
behind it, `incoming` (what is given, checked), `reorganising` (flush, join, optimise), and `collection`, the one class
that people use.
"""

from windlass.vectors.collection import Collection, create, open
from windlass.vectors.errors import VectorStoreError
from windlass.vectors.results import Budget, SearchRequest, SearchResult
from windlass.vectors.schema import Field, Schema
from windlass.vectors.snapshot import Snapshot

__all__ = [
    "Budget",
    "Collection",
    "Field",
    "Schema",
    "SearchRequest",
    "SearchResult",
    "Snapshot",
    "VectorStoreError",
    "create",
    "open",
]
