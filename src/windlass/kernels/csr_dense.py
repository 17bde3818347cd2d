"""Sparse rows times a dense matrix, a range of rows at a time: threads take ranges, results do not depend on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled
from windlass.kernels.hashing import mix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_PART = np.uint64(0xD1B54A32D192ED03)


@compiled
def multiply_rows(indptr: Any, indices: Any, weights: Any, x: Any, out: Any, first: int, last: int) -> None:
    """`out[row] = sum of weight * x[column]` over the entries of rows `first` to `last`, in their order.

    Args:
        weights: float32 [m], or of size 0 when all are 1.
        x, out: [n, d] of the same float type.
    """
    width = x.shape[1]
    for row in range(first, last):
        target = out[row]
        for i in range(width):
            target[i] = 0
        for at in range(indptr[row], indptr[row + 1]):
            source = x[indices[at]]
            if weights.size:
                weight = weights[at]
                for i in range(width):
                    target[i] += weight * source[i]
            else:
                for i in range(width):
                    target[i] += source[i]


@compiled
def random_rows(seed: Any, rows: int, width: int, chance: float, indptr: Any, columns: Any, signs: Any) -> Any:
    """Rows of a sparse random matrix: each entry is there with probability `chance`, and +1 or -1.

    Row r is a function of `seed` and r alone. The gaps between entries are drawn, so the time goes with what is there.

    Args:
        seed: uint64.
        indptr: int64 [rows + 1], zeros.
        columns, signs: int32 and float32, with room for what comes.

    Returns:
        Entries written.
    """
    used = 0
    scale = 0.0 if chance >= 1.0 else 1.0 / math.log1p(-chance)
    for row in range(rows):
        key = mix64(mix64(seed + _GAMMA) ^ mix64(np.uint64(row) + _PART))
        column, draw = -1, np.uint64(0)
        while True:
            gap = 0
            if chance < 1.0:
                word = mix64(key + np.uint64(2) * draw * _GAMMA)
                share = (np.float64(word >> np.uint64(11)) + 1.0) * 2.0**-53
                gap = int(min(math.log(share) * scale, float(width)))
            column += 1 + gap
            if column >= width or used >= columns.size:
                break
            columns[used] = column
            sign = mix64(key + (np.uint64(2) * draw + np.uint64(1)) * _GAMMA) >> np.uint64(63)
            signs[used] = 1.0 if sign else -1.0
            used += 1
            draw += np.uint64(1)
        indptr[row + 1] = used
    return used


@compiled
def project_rows(
    indptr: Any, indices: Any, weights: Any, random_ptr: Any, columns: Any, signs: Any, scales: Any, out: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """Means over each row's neighbours of `scales[neighbour]` times their sparse random rows."""
    for row in range(first, last):
        target = out[row]
        target[:] = 0
        total: Any = 0.0
        for at in range(indptr[row], indptr[row + 1]):
            node = indices[at]
            weight = weights[at] if weights.size else np.float32(1)
            total += weight
            for entry in range(random_ptr[node], random_ptr[node + 1]):
                target[columns[entry]] += weight * scales[node] * signs[entry]
        if total > 0:
            inverse: Any = np.float32(1.0 / total)
            for i in range(target.size):
                target[i] *= inverse


@compiled
def add_normalized(level: Any, weight: Any, normalize: bool, total: Any) -> None:
    """`total += weight * level`, each row of `level` brought to length one first if asked; zero rows stay zero."""
    for row in range(level.shape[0]):
        source, target = level[row], total[row]
        factor = weight
        if normalize:
            square: Any = np.float32(0)
            for i in range(source.size):
                square += source[i] * source[i]
            factor = weight / np.sqrt(square) if square > 0 else np.float32(0)
        for i in range(source.size):
            target[i] += factor * source[i]
