"""Two factors of a partly known matrix, improved by turns, each time only as well as it pays.

Gu, Song, Yin and Zhang, "Low Rank Matrix Completion via Robust Alternating Minimization in Nearly Linear Time" (2023):
alternating minimisation bears inexact row solutions, so a round costs the known cells times the rank, not its square.
What differs: all cells are used in every round instead of a fresh part each (which wastes data), rows start from where
they were and take a few steps of conjugate gradients, and one preconditioner serves all rows: since cells are known at
random, every row's matrix is nearly a multiple of the fixed factor's Gram matrix, so the fixed factor is made
orthogonal by it first. The paper's sketch for each row on its own does the same work row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import uniform
from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.csr_dense import multiply_rows
from windlass.kernels.least_squares import predict_cells, solve_rows_exactly, solve_rows_inexactly
from windlass.patterns.observed import Observed, Side

_BLOCK_CELLS = 200_000
_EXACT_UP_TO = 16
"""Up to this rank the normal equations of a row cost less than steps of conjugate gradients."""
_STEPS = 8


class Factors:
    """`mean + left . right`, with a bias of each row and column among the columns of the factors.

    The last two columns are `[row bias, 1]` on the left and `[1, column bias]` on the right, where biases are asked
    for; a half-round solves for a row's factors and its bias together.

    Args:
        shape: Of the matrix.
        rank: Columns without the biases.
        biases: Whether there are any.
        dtype: float32 or float64.
        threads: How many rows are solved at once; the result does not depend on it.
    """

    def __init__(self, shape: tuple[int, int], rank: int, *, biases: bool, dtype: Any, threads: int = 1) -> None:
        extra = 2 if biases else 0
        self.rank, self.biases, self.threads, self.mean = rank, biases, threads, 0.0
        self.left, self.right = (np.zeros((count, rank + extra), dtype) for count in shape)
        if biases:
            self.left[:, rank + 1] = 1
            self.right[:, rank] = 1

    @property
    def width(self) -> int:
        """How many numbers a half-round solves for in a row."""
        return self.rank + self.biases

    def start(self, observed: Observed, seed: int, ridge: float) -> None:
        """Mean and biases by themselves, then the leading directions of what they leave (randomised SVD)."""
        self.mean = float(observed.rows.values.mean()) if self.biases else 0.0
        if self.biases:
            self._start_biases(observed)
        rows, columns = (self._residual(side, turned) for side, turned in ((observed.rows, 0), (observed.columns, 1)))
        sketch = min(self.rank + 8, min(observed.shape))
        dtype = self.left.dtype
        random = (uniform(seed, "start", size=(observed.shape[1], sketch)) - 0.5).astype(dtype)
        with one_thread_a_product():
            image = _times(rows, random)
            for _ in range(2):
                image = _times(rows, np.linalg.qr(_times(columns, np.linalg.qr(image)[0]))[0])
            basis = np.linalg.qr(image)[0]
            small = _times(columns, np.ascontiguousarray(basis)).T
            u, sizes, v = np.linalg.svd(small.astype(np.float64), full_matrices=False)
        share = observed.size / max(1, observed.shape[0] * observed.shape[1])
        used = min(self.rank, len(sizes))
        root = np.sqrt(sizes[:used] / max(share, 1e-12))
        self.left[:, :used] = (basis @ u[:, :used]) * root
        self.right[:, :used] = v[:used].T * root
        if used < self.rank or not root.all():  # what is zero on both sides would stay zero
            scale = max(float(root.max(initial=0)), 1e-3) * 0.1
            noise = (uniform(seed, "rest", size=(observed.shape[1], self.rank)) - 0.5) * scale
            self.right[:, : self.rank] += noise.astype(dtype)

    def _start_biases(self, observed: Observed) -> None:
        for _ in range(3):
            for side, turned in ((observed.columns, True), (observed.rows, False)):
                own, other = (self.right, self.left) if turned else (self.left, self.right)
                at, there = (self.rank + 1, self.rank) if turned else (self.rank, self.rank + 1)
                left = side.values - self.mean - other[side.indices, there]
                counts = np.diff(side.indptr)
                own[:, at] = np.bincount(side.owners, weights=left, minlength=side.count) / (counts + 1.0)

    def _residual(self, side: Side, turned: int) -> Side:
        left = side.values - self.mean
        if self.biases:
            own, other = (self.right, self.left) if turned else (self.left, self.right)
            at, there = (self.rank + 1, self.rank) if turned else (self.rank, self.rank + 1)
            left = left - own[side.owners, at] - other[side.indices, there]
        return Side(side.indptr, side.indices, left.astype(np.float32))

    def half_round(self, side: Side, *, turned: bool, ridge: float, exact: bool, tolerance: float) -> float:
        """Solve for one side with the other fixed; returns the sum of squared errors before it.

        Args:
            side: The cells by rows, or, when `turned`, by columns.
            ridge: Of a row, times its number of cells.
            exact: By normal equations, else by a few steps to `tolerance`.
        """
        own, other = (self.right, self.left) if turned else (self.left, self.right)
        bias_there = self.rank + 1 - int(turned)  # the column of the other side's own bias
        chosen = [*range(self.rank), *([self.rank + int(turned)] if self.biases else [])]
        fixed = np.ascontiguousarray(other[:, chosen])
        offsets = other[:, bias_there].copy() if self.biases else np.zeros(len(other), other.dtype)
        offsets += own.dtype.type(self.mean)
        free = np.ascontiguousarray(own[:, chosen])
        solved, errors = _solve(side, fixed, offsets, free, ridge, exact, tolerance, self.threads)
        own[:, chosen] = solved
        return errors

    def predict(self, rows: Any, columns: Any) -> NDArray[np.float64]:
        """float64 `[p]`: values of single cells."""
        out = np.empty(len(rows), self.left.dtype)
        predict_cells(np.asarray(rows, np.int64), np.asarray(columns, np.int64), self.left, self.right, out)
        return out.astype(np.float64) + self.mean

    def copy(self) -> Factors:
        made = object.__new__(Factors)
        made.__dict__.update(self.__dict__, left=self.left.copy(), right=self.right.copy())
        return made


def _times(side: Side, x: NDArray[Any]) -> NDArray[Any]:
    out = np.empty((side.count, x.shape[1]), x.dtype)
    multiply_rows(side.indptr, side.indices, side.values, np.ascontiguousarray(x), out, 0, side.count)
    return out


def _solve(
    side: Side, fixed: NDArray[Any], offsets: NDArray[Any], free: NDArray[Any], ridge: float, exact: bool,
    tolerance: float, threads: int,
) -> tuple[NDArray[Any], float]:  # fmt: skip
    k, dtype = fixed.shape[1], fixed.dtype
    errors = np.zeros(side.count)
    if exact or k <= _EXACT_UP_TO:
        penalty = np.eye(k, dtype=dtype).ravel()
        flat = fixed.ravel()
        _in_blocks(
            side, threads,
            lambda a, b: solve_rows_exactly(
                side.indptr, side.indices, side.values, flat, offsets, ridge, penalty, free, a, b, errors
            ),
        )  # fmt: skip
        return free, float(errors.sum())
    with one_thread_a_product():
        gram = (fixed.T @ fixed).astype(np.float64) / len(fixed)
        spread = max(float(np.trace(gram)) / k, 1e-30)
        root = np.linalg.cholesky(gram + (ridge + 1e-7 * spread) * np.eye(k))
        inverse = np.linalg.inv(root)
        turned = np.ascontiguousarray(fixed @ inverse.T.astype(dtype)).ravel()
        moved = np.ascontiguousarray(free @ root.astype(dtype))
        penalty = np.ascontiguousarray(inverse @ inverse.T, dtype).ravel()
        _in_blocks(
            side, threads,
            lambda a, b: solve_rows_inexactly(
                side.indptr, side.indices, side.values, turned, offsets, ridge, penalty, _STEPS, tolerance, moved, a, b,
                errors,
            ),
        )  # fmt: skip
        return moved @ inverse.astype(dtype), float(errors.sum())


def _in_blocks(side: Side, threads: int, work: Callable[[int, int], object]) -> None:
    blocks = list(_blocks(side))
    if threads < 2 or len(blocks) < 2:
        for block in blocks:
            work(*block)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda block: work(*block), blocks):
            pass


def _blocks(side: Side) -> Iterator[tuple[int, int]]:
    """Stretches of rows with about as many cells each."""
    first = 0
    while first < side.count:
        last = int(np.searchsorted(side.indptr, side.indptr[first] + _BLOCK_CELLS, side="left"))
        last = min(max(last, first + 1), side.count)
        yield first, last
        first = last
