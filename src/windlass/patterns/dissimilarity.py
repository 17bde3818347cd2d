"""Where k-medoids reads its distances from: a matrix, features, or any function of two objects.

A source hands out rows: `row(j)` is the dissimilarity of every object to object j. Only `Matrix` holds n x n numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from windlass.core.errors import DataError, UsageError, WindlassError
from windlass.kernels.feature_rows import COSINE, HAMMING, JACCARD, METRICS, point_to_all
from windlass.kernels.medoids import matrix_faults

Row = NDArray[Any]
_NO_SIZES = np.zeros(0, np.float32)
_SHARE_OF_MEMORY = 0.25
_FEW_FEATURES = 32
"""Up to so many features a row is made about as fast as it is read from memory."""


class Source(Protocol):
    """What k-medoids reads. `n` objects, `candidates` that may become medoids; rows are of type `dtype`."""

    n: int
    candidates: int
    dtype: np.dtype[Any]

    def row(self, j: int) -> Row:
        """`[n]`, contiguous: dissimilarity of every object to candidate j. Valid until the next call, not to be
        changed."""
        ...


class Matrix:
    """A square matrix `D[o, j]`, kept as it is where column j can be read contiguously, else transposed once.

    Attributes:
        rows: `[n, n]`, C order, `rows[j, o]` is the dissimilarity of o to j; float32, float64 or int32.
        hollow: Whether the diagonal is zero.

    Raises:
        DataError: Not square, or a value is negative, NaN or infinite; the message names the first.
    """

    def __init__(self, matrix: Any) -> None:
        given = np.asarray(matrix)
        if given.ndim != 2 or given.shape[0] != given.shape[1]:
            raise DataError(f"a precomputed metric needs a square matrix, got shape {given.shape}")
        if given.dtype.type not in (np.float32, np.float64, np.int32):
            given = given.astype(np.float64)
        turned = given.flags.f_contiguous and not given.flags.c_contiguous
        rows = given.T if turned else np.ascontiguousarray(given)
        limits = np.finfo(rows.dtype) if rows.dtype.kind == "f" else np.iinfo(rows.dtype)
        row, column, symmetric, self.hollow = matrix_faults(rows, limits.max)
        if row >= 0:
            at, value = (column, row) if turned else (row, column), rows[row, column]
            raise DataError(
                f"dissimilarity {value} of row {at[0]}, column {at[1]}", hint="they must be finite and not negative"
            )
        self.rows = rows if symmetric or turned else np.ascontiguousarray(rows.T)
        self.n, self.candidates, self.dtype = len(rows), len(rows), rows.dtype

    def row(self, j: int) -> Row:
        made: Row = self.rows[j]
        return made


class Features:
    """Points and a metric: rows are computed when they are asked for, in float32.

    Args:
        points: float `[n, d]`.
        metric: One of `METRICS`. Euclidean and Manhattan do not change when columns are shifted, so columns are
            centred before they are cut to float32.

    Raises:
        UsageError: Unknown metric.
        DataError: Jaccard of other values than 0 and 1.
    """

    def __init__(self, points: NDArray[Any], metric: str) -> None:
        if metric not in METRICS:
            raise UsageError(f"unknown metric {metric!r}", hint=f"precomputed, a function, or {', '.join(METRICS)}")
        self.code = METRICS[metric]
        self.n, self.candidates, self.dtype = len(points), len(points), np.dtype(np.float32)
        self._centre = np.zeros(points.shape[1])
        if self.code < COSINE:
            middle = np.median(points, axis=0) if metric == "manhattan" else points.mean(axis=0)
            self._centre = np.where(np.isfinite(middle), middle, 0)
        self.features = np.ascontiguousarray(self.prepared(points).T)
        self.sizes = self.features.sum(axis=0) if self.code == JACCARD else _NO_SIZES
        self._buffer = np.empty(self.n, np.float32)

    def prepared(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """float32 `[m, d]`: points as the kernel wants them."""
        if self.code == HAMMING:
            return points.astype(np.float32)
        if self.code == JACCARD:
            if not np.isin(points, (0, 1)).all():
                raise DataError("jaccard compares sets given as 0 and 1", hint="other values stand in the data")
            return points.astype(np.float32)
        if self.code == COSINE:
            lengths = np.sqrt(np.einsum("ij,ij->i", points, points))
            return (points / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
        return (points - self._centre).astype(np.float32)

    def row(self, j: int) -> Row:
        self.to_all(self.features[:, j].copy(), self._buffer)
        self._buffer[j] = 0  # exactly, also where rounding says otherwise
        return self._buffer

    def to_all(self, point: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Distances of one prepared point to all objects."""
        size = point.sum() if self.code == JACCARD else np.float32(0)
        point_to_all(self.features, point, size, self.sizes, self.code, out)

    def only(self, chosen: NDArray[np.int64]) -> Features:
        """The same metric over some of the points."""
        kept = object.__new__(Features)
        kept.code, kept.dtype, kept._centre = self.code, self.dtype, self._centre
        kept.n = kept.candidates = len(chosen)
        kept.features = np.ascontiguousarray(self.features[:, chosen])
        kept.sizes = self.sizes[chosen] if len(self.sizes) else _NO_SIZES
        kept._buffer = np.empty(kept.n, np.float32)
        return kept

    def from_points(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """float32 `[m, n]`: distances of other points to all objects."""
        out = np.empty((len(points), self.n), np.float32)
        for at, point in enumerate(self.prepared(points)):
            self.to_all(point, out[at])
        return out

    def matrix(self) -> NDArray[np.float32]:
        """float32 `[n, n]`."""
        out = np.empty((self.n, self.n), np.float32)
        for j in range(self.n):
            out[j] = self.row(j)
        return out


class Batch:
    """Some objects, to all of which any candidate is compared: a matrix of n rows and few columns.

    Args:
        source: All objects.
        ids: int64 `[b]`: the objects of the batch.
    """

    def __init__(self, source: Source, ids: NDArray[np.int64]) -> None:
        self.ids, self.n, self.candidates, self.dtype = ids, len(ids), source.candidates, source.dtype
        if isinstance(source, Features):
            part = source.only(ids)
            self.rows: Row = np.empty((source.n, part.n), np.float32)
            for j in range(source.n):
                part.to_all(source.features[:, j].copy(), self.rows[j])
        elif isinstance(source, Function):
            self.rows = np.array([[source.distance(int(o), j) for o in ids] for j in range(source.n)])
        else:
            assert isinstance(source, Matrix)
            self.rows = np.ascontiguousarray(source.rows[:, ids])

    def row(self, j: int) -> Row:
        made: Row = self.rows[j]
        return made


class Function:
    """Any objects and a function of two of them; the latest rows are kept, within a limit of memory.

    Args:
        items: The objects.
        function: `function(a, b)`, a finite number not below zero: dissimilarity of object a to object b.
        cache_bytes: How much the kept rows may take.
    """

    def __init__(
        self, items: Sequence[Any], function: Callable[[Any, Any], float], cache_bytes: int = 256 << 20
    ) -> None:
        self.items, self.function = items, function
        self.n, self.candidates, self.dtype = len(items), len(items), np.dtype(np.float64)
        self._kept: OrderedDict[int, Row] = OrderedDict()
        self._room = max(1, cache_bytes // max(1, 8 * self.n))

    def row(self, j: int) -> Row:
        if j in self._kept:
            self._kept.move_to_end(j)
            return self._kept[j]
        row = np.array([self.distance(o, j) for o in range(self.n)])
        self._kept[j] = row
        if len(self._kept) > self._room:
            self._kept.popitem(last=False)
        return row

    def distance(self, o: int, j: int) -> float:
        return self.between(self.items[o], self.items[j], f"objects {o} and {j}")

    def between(self, a: Any, b: Any, which: str) -> float:
        """Raises `DataError` with `which` when the function fails or gives no dissimilarity."""
        try:
            value = float(self.function(a, b))
        except WindlassError:
            raise
        except Exception as error:
            raise DataError(f"the metric failed for {which}: {type(error).__name__}: {error}") from error
        if not 0 <= value < np.inf:
            raise DataError(f"the metric gave {value} for {which}", hint="it must be finite and not negative")
        return value


def source_of(X: Any, metric: Any, memory: str = "auto") -> Matrix | Features | Function:
    """The source for `X` under `metric`.

    Args:
        X: A square matrix for `precomputed`, objects for a function, else float `[n, d]`.
        memory: `matrix`, `rows`, or `auto`: a matrix when it takes at most a quarter of the free memory and points have
            so many features that computing a row again costs more than reading it.

    Raises:
        UsageError, DataError: As the sources do; `matrix` would not fit into free memory.
    """
    if memory not in ("auto", "matrix", "rows"):
        raise UsageError(f"memory is {memory!r}", hint="auto, matrix or rows")
    if isinstance(metric, str) and metric == "precomputed":
        return Matrix(X)
    if callable(metric):
        return Function(X, metric)
    features = Features(X, metric)
    size, free = 4 * features.n**2, psutil.virtual_memory().available
    if memory == "matrix" and size > free:
        raise UsageError(
            f"{features.n} x {features.n} distances take {size >> 20} MB, {free >> 20} MB are free",
            hint="use memory='rows', or SampledKMedoids",
        )
    wide = features.features.shape[0] > _FEW_FEATURES
    if memory == "matrix" or (memory == "auto" and wide and size <= _SHARE_OF_MEMORY * free):
        return Matrix(features.matrix())
    return features
