"""The known cells of a matrix, by row and by column: what completion is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import DataError, DataTypeError
from windlass.core.randomness import uniform
from windlass.patterns.estimator import as_matrix

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Side:
    """The cells in the order of one side: those of row i are `indptr[i] .. indptr[i+1]`.

    Attributes:
        indptr: int64 `[m + 1]`.
        indices: int32 `[nnz]`: the place on the other side.
        values: `[nnz]`.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: Values

    @property
    def count(self) -> int:
        return len(self.indptr) - 1

    @property
    def owners(self) -> NDArray[np.int32]:
        """int32 `[nnz]`: the row of each cell."""
        return np.repeat(np.arange(self.count, dtype=np.int32), np.diff(self.indptr))


@dataclass(frozen=True, slots=True)
class Observed:
    """Known cells; `rows` and `columns` hold the same ones."""

    rows: Side
    columns: Side

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.count, self.columns.count

    @property
    def size(self) -> int:
        return len(self.rows.values)

    @classmethod
    def from_triples(cls, rows: Any, columns: Any, values: Values, shape: tuple[int, int]) -> Observed:
        """From row, column and value of each cell, each cell once, in any order.

        Raises:
            DataError: A cell stands twice, or outside the shape.
        """
        rows, columns = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        if len(rows) and (rows.min() < 0 or columns.min() < 0 or rows.max() >= shape[0] or columns.max() >= shape[1]):
            raise DataError(f"a cell lies outside the {shape[0]} x {shape[1]} matrix")
        flat = rows * shape[1] + columns
        order = np.argsort(flat, kind="stable")
        twice = np.flatnonzero(np.diff(flat[order]) == 0)
        if len(twice):
            row, column = divmod(int(flat[order][twice[0]]), shape[1])
            raise DataError(
                f"the cell of row {row}, column {column} is given twice", hint="keep one value, or their mean"
            )
        by_rows = _side(rows[order], columns[order], values[order], shape[0])
        turned = np.argsort(by_rows.indices, kind="stable")
        by_columns = _side(by_rows.indices[turned], by_rows.owners[turned], by_rows.values[turned], shape[1])
        return cls(by_rows, by_columns)

    def split(self, share: float, seed: int) -> tuple[Observed, tuple[Any, Any, Any]]:
        """Cells to fit, and held-out (rows, columns, values): a share drawn, never the last cell of a row or column."""
        owners = self.rows.owners
        out = uniform(seed, "held out", size=self.size) < share
        for places, count in ((owners, self.rows.count), (self.rows.indices, self.columns.count)):
            left = np.bincount(places[~out], minlength=count)
            out &= left[places] > 0
        held = (owners[out], self.rows.indices[out], self.rows.values[out])
        kept = Observed.from_triples(owners[~out], self.rows.indices[~out], self.rows.values[~out], self.shape)
        return kept, held


def _side(owners: Any, others: Any, values: Values, count: int) -> Side:
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64)
    return Side(indptr, np.ascontiguousarray(others, np.int32), np.ascontiguousarray(values))


def read_observed(X: Any, who: str) -> Observed:
    """The known cells of a dense array with NaN, of a SciPy sparse matrix (what is stored, zeros too), or of three
    arrays (rows, columns, values). float32 stays float32, all else becomes float64.

    Raises:
        DataError, DataTypeError: Infinite values, a cell given twice, no numbers, no cell at all.
    """
    if hasattr(X, "tocoo"):
        triples = X.tocoo()
        parts: Any = (triples.row, triples.col, triples.data)
        shape = tuple(X.shape)
    elif isinstance(X, tuple) and len(X) == 3:
        parts = tuple(np.asarray(part) for part in X)
        if len({len(part) for part in parts}) != 1 or any(part.ndim != 1 for part in parts):
            raise DataError("rows, columns and values must be three lists of one length")
        if not len(parts[0]):
            raise DataError("no cell is known: there is nothing to complete from")
        shape = (int(parts[0].max()) + 1, int(parts[1].max()) + 1)
    else:
        narrow = getattr(X, "dtype", None) == np.float32
        dense = as_matrix(X, who, allow_nan=True)
        known = ~np.isnan(dense)
        rows, columns = np.nonzero(known)
        parts, shape = (rows, columns, dense[known].astype(np.float32 if narrow else np.float64)), dense.shape
    values = np.asarray(parts[2])
    if values.dtype.kind not in "fiub":
        raise DataTypeError(f"{who} needs numbers, got {values.dtype}")
    values = values if values.dtype == np.float32 else values.astype(np.float64)
    if not len(values):
        raise DataError("no cell is known: there is nothing to complete from")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"the cell of row {parts[0][at]}, column {parts[1][at]} is {values[at]}")
    return Observed.from_triples(parts[0], parts[1], values, (int(shape[0]), int(shape[1])))
