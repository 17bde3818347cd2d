"""Many small ridge regressions at once: one for each row of a sparse matrix, all on rows of one fixed matrix.

Row i has the observations `indptr[i] .. indptr[i+1]` and looks for x that minimises

    sum over its observations of (value - fixed[index] . x)^2  +  ridge * count * |T x|^2

`T^T T` is given as `penalty`. All arrays but `indptr` and `indices` are of one type, float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from windlass.kernels.compiled import compiled
from windlass.kernels.distances import dot_row
from windlass.kernels.simd import LANES, fma, load_float, splat, store_float


def _dot(flat: Any, at: Any, x: Any) -> Any:
    """Dot product of `x` and what begins at `flat[at]`."""


def _add_scaled(flat: Any, at: Any, factor: Any, out: Any) -> Any:
    """Add `factor` times what begins at `flat[at]` to `out`."""


@overload(_dot, inline="never")
def _choose_dot(flat: Any, at: Any, x: Any) -> Any:
    def wide(flat: Any, at: Any, x: Any) -> Any:
        return dot_row(flat, at, x, len(x))

    def plain(flat: Any, at: Any, x: Any) -> Any:
        k, i = len(x), 0
        s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        while i + 8 <= k:  # independent sums, which the compiler may put into one register
            s0 += flat[at + i] * x[i]
            s1 += flat[at + i + 1] * x[i + 1]
            s2 += flat[at + i + 2] * x[i + 2]
            s3 += flat[at + i + 3] * x[i + 3]
            s4 += flat[at + i + 4] * x[i + 4]
            s5 += flat[at + i + 5] * x[i + 5]
            s6 += flat[at + i + 6] * x[i + 6]
            s7 += flat[at + i + 7] * x[i + 7]
            i += 8
        while i < k:
            s0 += flat[at + i] * x[i]
            i += 1
        return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))

    return wide if flat.dtype == types.float32 else plain


@overload(_add_scaled, inline="never")
def _choose_add_scaled(flat: Any, at: Any, factor: Any, out: Any) -> Any:
    def plain(flat: Any, at: Any, factor: Any, out: Any) -> Any:
        for i in range(len(out)):
            out[i] += factor * flat[at + i]

    def wide(flat: Any, at: Any, factor: Any, out: Any) -> Any:
        k, i, everywhere = len(out), 0, splat(factor)
        while i + LANES <= k:
            store_float(out, i, fma(load_float(flat, at + i), everywhere, load_float(out, i)))
            i += LANES
        while i < k:
            out[i] += factor * flat[at + i]
            i += 1

    return wide if flat.dtype == types.float32 else plain


def _add_outer(flat: Any, a: Any, b: Any, c: Any, d: Any, i: Any, line: Any) -> Any:
    """Add to `line[: i + 1]` (and perhaps some of the rest) what four rows of `flat` give, each times its number i."""


@overload(_add_outer, inline="never")
def _choose_add_outer(flat: Any, a: Any, b: Any, c: Any, d: Any, i: Any, line: Any) -> Any:
    def plain(flat: Any, a: Any, b: Any, c: Any, d: Any, i: Any, line: Any) -> Any:
        p, q, r, s = flat[a + i], flat[b + i], flat[c + i], flat[d + i]
        for j in range(i + 1):
            line[j] += (p * flat[a + j] + q * flat[b + j]) + (r * flat[c + j] + s * flat[d + j])

    def wide(flat: Any, a: Any, b: Any, c: Any, d: Any, i: Any, line: Any) -> Any:
        p, q, r, s = splat(flat[a + i]), splat(flat[b + i]), splat(flat[c + i]), splat(flat[d + i])
        j = 0
        while j <= i and j + LANES <= len(line):
            total = fma(load_float(flat, a + j), p, load_float(line, j))
            total = fma(load_float(flat, b + j), q, total)
            total = fma(load_float(flat, c + j), r, total)
            store_float(line, j, fma(load_float(flat, d + j), s, total))
            j += LANES
        while j <= i:
            line[j] += flat[a + i] * flat[a + j] + flat[b + i] * flat[b + j]
            line[j] += flat[c + i] * flat[c + j] + flat[d + i] * flat[d + j]
            j += 1

    return wide if flat.dtype == types.float32 else plain


@compiled
def solve_rows_inexactly(
    indptr: Any, indices: Any, values: Any, fixed: Any, offsets: Any, ridge: float, penalty: Any, steps: int,
    tolerance: float, out: Any, first: int, last: int, errors: Any,
) -> None:  # fmt: skip
    """Improve rows `first .. last` of `out` by conjugate gradients.

    Args:
        fixed: `[n * k]`, flat, rows of length k.
        offsets: `[n]`, subtracted from the values.
        penalty: `[k * k]`, flat and symmetric.
        steps: At most so many for each row.
        tolerance: A row is done when its gradient has shrunk to this share of what it was.
        out: `[m, k]`: from where each row starts, and where it ends. A row without observations becomes zero.
        errors: float64 `[m]`: the squared error of each row before.
    """
    k = out.shape[1]
    gradient, direction, image = np.empty(k, out.dtype), np.empty(k, out.dtype), np.empty(k, out.dtype)
    for row in range(first, last):
        begin, end = indptr[row], indptr[row + 1]
        errors[row] = 0.0
        if begin == end:
            out[row] = 0
            continue
        x, weight = out[row], out.dtype.type(ridge * (end - begin))
        gradient[:] = 0
        for place in range(begin, end):
            at = indices[place] * k
            left = values[place] - offsets[indices[place]] - _dot(fixed, at, x)
            errors[row] += np.float64(left) * left
            _add_scaled(fixed, at, left, gradient)
        for i in range(k):
            gradient[i] -= weight * _dot(penalty, i * k, x)
        _descend(indices[begin:end], fixed, weight, penalty, steps, tolerance, x, gradient, direction, image)


@compiled
def _descend(
    indices: Any, fixed: Any, weight: Any, penalty: Any, steps: int, tolerance: float, x: Any, gradient: Any,
    direction: Any, image: Any,
) -> None:  # fmt: skip
    k = len(x)
    direction[:] = gradient
    length = np.float64(_dot(gradient, 0, gradient))
    enough = tolerance * tolerance * length
    for _ in range(steps):
        if length <= enough or length == 0:
            break
        for i in range(k):
            image[i] = weight * _dot(penalty, i * k, direction)
        for place in range(len(indices)):
            at = indices[place] * k
            _add_scaled(fixed, at, _dot(fixed, at, direction), image)
        curvature = np.float64(_dot(direction, 0, image))
        if curvature <= 0:
            break
        step = x.dtype.type(length / curvature)
        _add_scaled(direction, 0, step, x)
        _add_scaled(image, 0, -step, gradient)
        now = np.float64(_dot(gradient, 0, gradient))
        turn = x.dtype.type(now / length)
        for i in range(k):
            direction[i] = gradient[i] + turn * direction[i]
        length = now


@compiled
def row_gram(indptr: Any, indices: Any, fixed: Any, row: int, k: int, out: Any) -> None:
    """Fill the lower triangle of `out` `[k, k]` with the sum of the outer products of a row's observations.

    Four observations at a time, so that what is added to is read and written a quarter as often.
    """
    out[:] = 0
    place, end = indptr[row], indptr[row + 1]
    while place + 4 <= end:
        a, b = indices[place] * k, indices[place + 1] * k
        c, d = indices[place + 2] * k, indices[place + 3] * k
        for i in range(k):
            _add_outer(fixed, a, b, c, d, i, out[i])
        place += 4
    while place < end:
        a = indices[place] * k
        for i in range(k):
            _add_scaled(fixed, a, fixed[a + i], out[i, : i + 1])
        place += 1


@compiled
def factorise(gram: Any) -> bool:
    """Cholesky in place on the lower triangle; False when the matrix is not positive definite."""
    k = len(gram)
    flat = gram.ravel()
    for i in range(k):
        for j in range(i + 1):
            left = gram[i, j] - _dot(flat, i * k, gram[j, :j])
            if i == j:
                if left <= 0:
                    return False
                gram[i, i] = np.sqrt(left)
            else:
                gram[i, j] = left / gram[j, j]
    return True


@compiled
def back_substitute(factor: Any, x: Any) -> None:
    """Solve `factor factor^T x = x` in place."""
    k, flat = len(x), factor.ravel()
    for i in range(k):
        x[i] = (x[i] - _dot(flat, i * k, x[:i])) / factor[i, i]
    for i in range(k - 1, -1, -1):
        x[i] /= factor[i, i]
        _add_scaled(flat, i * k, -x[i], x[:i])


@compiled
def solve_rows_exactly(
    indptr: Any, indices: Any, values: Any, fixed: Any, offsets: Any, ridge: float, penalty: Any, out: Any, first: int,
    last: int, errors: Any,
) -> int:  # fmt: skip
    """Rows `first .. last` of `out` by the normal equations; arguments as of `solve_rows_inexactly`.

    Returns:
        How many rows had equations that could not be solved: they are left as they were.
    """
    k, failed = out.shape[1], 0
    gram, right = np.empty((k, k), out.dtype), np.empty(k, out.dtype)
    for row in range(first, last):
        begin, end = indptr[row], indptr[row + 1]
        errors[row] = 0.0
        if begin == end:
            out[row] = 0
            continue
        right[:] = 0
        for place in range(begin, end):
            at, value = indices[place] * k, values[place] - offsets[indices[place]]
            left = value - _dot(fixed, at, out[row])
            errors[row] += np.float64(left) * left
            _add_scaled(fixed, at, value, right)
        row_gram(indptr, indices, fixed, row, k, gram)
        weight = out.dtype.type(ridge * (end - begin))
        for i in range(k):
            for j in range(i + 1):
                gram[i, j] += weight * penalty[i * k + j]
        if not factorise(gram):
            failed += 1
            continue
        back_substitute(gram, right)
        out[row] = right
    return failed


@compiled
def leverages(indptr: Any, indices: Any, fixed: Any, ridge: float, rows: Any, asked: Any, out: Any) -> None:
    """`f . (G + ridge count I)^-1 f` for pairs of a row, whose Gram matrix G is, and a row f of `fixed`.

    Args:
        fixed: `[n, k]`.
        rows, asked: int64 `[p]`: sorted by `rows`, so that each matrix is made once.
        out: float64 `[p]`; infinite where the row has no observation.
    """
    k, flat = fixed.shape[1], fixed.ravel()
    gram, half = np.empty((k, k), fixed.dtype), np.empty(k, fixed.dtype)
    have, good = -1, False
    for at in range(len(rows)):
        row = rows[at]
        count = indptr[row + 1] - indptr[row]
        if count == 0:
            out[at] = np.inf
            continue
        if row != have:
            row_gram(indptr, indices, flat, row, k, gram)
            for i in range(k):
                gram[i, i] += fixed.dtype.type(ridge * count)
            have, good = row, factorise(gram)
        if not good:
            out[at] = np.inf
            continue
        whole = gram.ravel()
        total = 0.0
        for i in range(k):
            half[i] = (fixed[asked[at], i] - _dot(whole, i * k, half[:i])) / gram[i, i]
            total += half[i] * half[i]
        out[at] = total


@compiled
def predict_cells(rows: Any, columns: Any, left: Any, right: Any, out: Any) -> None:
    """`out[t] = left[rows[t]] . right[columns[t]]`; `left` `[m, k]`, `right` `[n, k]`."""
    k, flat = right.shape[1], right.ravel()
    for t in range(len(rows)):
        out[t] = _dot(flat, columns[t] * k, left[rows[t]])
