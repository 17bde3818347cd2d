"""What can go wrong with a collection, each named by what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from windlass.core.errors import UsageError, WindlassError


class VectorStoreError(WindlassError):
    """Base of the errors of collections."""


class BadInput(VectorStoreError, UsageError):
    """The caller gave something that makes no sense here. Nothing of the call was stored."""


class CollectionExists(BadInput, FileExistsError):
    """There is a collection already where a new one was to be made."""


class DimensionMismatch(BadInput):
    """Vectors of another length than the collection's."""


class NonFiniteVector(BadInput):
    """A vector holds NaN, an infinity, or numbers whose squares overflow.

    Attributes:
        row: Its place in the call, from 0.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(
            f"vector {row} holds NaN, an infinity or a number beyond 1e18; nothing of this call was stored",
            hint="check what made it",
        )


class ZeroVector(BadInput):
    """A vector of zeros, which has no direction.

    Attributes:
        row: Its place in the call, from 0.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(
            f"vector {row} is all zeros and has no direction; nothing of this call was stored",
            hint="leave it out, or use metric 'ip' or 'l2'",
        )


class DuplicateId(BadInput):
    """An id is there already, or twice in one call.

    Attributes:
        id: The first such id.
    """

    def __init__(self, what: str, row_id: int | str, *, hint: str) -> None:
        self.id = row_id
        super().__init__(what, hint=hint)


class CollectionLocked(VectorStoreError):
    """Another process writes to the collection.

    Attributes:
        pid, host: Who, as far as it is known.
    """

    exit_code = 3
    http_status = 409

    def __init__(self, path: Path, pid: str, host: str) -> None:
        self.pid, self.host = pid, host
        super().__init__(
            f"{path} is being written by process {pid or '?'} on {host or '?'}",
            hint="open it with mode='r', or wait until that process is done",
        )


class CorruptSegment(VectorStoreError):
    """A file is not what was written.

    Attributes:
        file: Its path.
        offset: Of the damage, in bytes, as near as it is known.
    """

    def __init__(self, file: Path, offset: int, what: str) -> None:
        self.file, self.offset, self._what = file, offset, what
        super().__init__(
            f"{file} is damaged at byte {offset}: {what}",
            hint="restore it from a backup, or build the collection again",
        )

    def __reduce__(self) -> Any:
        """So that it comes out of a worker process as what it is."""
        return CorruptSegment, (self.file, self.offset, self._what)


class FormatTooNew(VectorStoreError):
    """The collection was written by a newer Windlass."""


class BudgetExceeded(VectorStoreError):
    """It does not fit into the memory that was allowed."""


class Timeout(VectorStoreError):
    """The search took longer than the caller allowed."""

    http_status = 504
