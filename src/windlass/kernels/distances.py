"""Exact distances between stored vectors and a query, and the best k of them, in one pass.

Stored vectors are float32, half precision (their bits as uint16) or int8 codes with one scale a row; arithmetic is
float32, and a row's score is the same number whichever function computes it: contiguous, gathered or masked, in
whatever order. Higher is better: the dot product, or the squared distance with its sign turned.

The best rows are kept in a heap whose root is the worst of them. Rows of equal score are told apart by `order`, the
lower one first, so that a result depends neither on the path that found it nor on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
    add_float,
    fma,
    load_float,
    load_number,
    number_at,
    prefetch,
    splat,
    sum_lanes,
    zero_float,
)

DOT, L2 = 0, 1
NO_SCALES: NDArray[np.float32] = np.zeros(0, np.float32)
NO_MASK: NDArray[np.uint8] = np.zeros(0, np.uint8)
_PRODUCT_BYTES = 32 << 20
_BLOCK_ROWS = 8192

Floats32 = NDArray[np.float32]
Rows = NDArray[np.int64]


@inlined
def dot_row(vectors: Any, at: int, query: Any, dim: int) -> Any:
    """Dot product of `query` and the stored row that begins at element `at`."""
    sum0, sum1, sum2, sum3 = zero_float(), zero_float(), zero_float(), zero_float()
    i = 0
    while i + 4 * LANES <= dim:
        sum0 = fma(load_number(vectors, at + i), load_float(query, i), sum0)
        sum1 = fma(load_number(vectors, at + i + LANES), load_float(query, i + LANES), sum1)
        sum2 = fma(load_number(vectors, at + i + 2 * LANES), load_float(query, i + 2 * LANES), sum2)
        sum3 = fma(load_number(vectors, at + i + 3 * LANES), load_float(query, i + 3 * LANES), sum3)
        i += 4 * LANES
    while i + LANES <= dim:
        sum0 = fma(load_number(vectors, at + i), load_float(query, i), sum0)
        i += LANES
    total = sum_lanes(add_float(add_float(sum0, sum1), add_float(sum2, sum3)))
    while i < dim:
        total += number_at(vectors, at + i) * query[i]
        i += 1
    return total


@inlined
def l2_row(vectors: Any, at: int, scale: Any, negated: Any, dim: int) -> Any:
    """Squared distance between a stored row times `scale` and the query, given the query with its sign turned."""
    sum0, sum1, factor = zero_float(), zero_float(), splat(scale)
    i = 0
    while i + 2 * LANES <= dim:
        first = fma(load_number(vectors, at + i), factor, load_float(negated, i))
        second = fma(load_number(vectors, at + i + LANES), factor, load_float(negated, i + LANES))
        sum0, sum1 = fma(first, first, sum0), fma(second, second, sum1)
        i += 2 * LANES
    while i + LANES <= dim:
        first = fma(load_number(vectors, at + i), factor, load_float(negated, i))
        sum0 = fma(first, first, sum0)
        i += LANES
    total = sum_lanes(add_float(sum0, sum1))
    while i < dim:
        difference = number_at(vectors, at + i) * scale + negated[i]
        total += difference * difference
        i += 1
    return total


@inlined
def row_score(vectors: Any, dim: int, scales: Any, row: Any, query: Any, metric: int) -> Any:
    """The score of one row; under `L2` the query comes with its sign turned."""
    scale = scales[row] if len(scales) else np.float32(1.0)
    if metric == DOT:
        return dot_row(vectors, row * dim, query, dim) * scale
    return -l2_row(vectors, row * dim, scale, query, dim)


@inlined
def _worse(score: Any, order: Any, other_score: Any, other_order: Any) -> Any:
    return score < other_score or (score == other_score and order > other_order)


@compiled
def sink(scores: Any, rows: Any, size: int, order: Any, score: Any, row: Any) -> None:
    """Put (score, row) where the root is, and let it sink to its place."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _worse(scores[child + 1], order[rows[child + 1]], scores[child], order[rows[child]]):
            child += 1
        if _worse(score, order[row], scores[child], order[rows[child]]):
            break
        scores[at], rows[at] = scores[child], rows[child]
        at = child
    scores[at], rows[at] = score, row


@compiled
def push(scores: Any, rows: Any, size: int, order: Any, score: Any, row: Any) -> int:
    """Offer a row to the best `len(rows)`; returns how many there are now. NaN is never among them."""
    k = len(rows)
    if size == k:
        if k and (score > scores[0] or (score == scores[0] and order[row] < order[rows[0]])):
            sink(scores, rows, size, order, score, row)
        return size
    if score != score:
        return size
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if not _worse(score, order[row], scores[parent], order[rows[parent]]):
            break
        scores[at], rows[at] = scores[parent], rows[parent]
        at = parent
    scores[at], rows[at] = score, row
    return size + 1


@compiled
def best_first(scores: Any, rows: Any, size: int, order: Any) -> None:
    """Turn the heap into a list, best row first."""
    while size > 1:
        size -= 1
        score, row = scores[0], rows[0]
        last_score, last_row = scores[size], rows[size]
        sink(scores, rows, size, order, last_score, last_row)
        scores[size], rows[size] = score, row


@compiled
def scores_of(vectors: Any, dim: int, scales: Any, query: Any, metric: int, chosen: Any, out: Any) -> None:
    """The score of each row listed in `chosen` (int64 `[m]`)."""
    bytes_a_row = dim * vectors.itemsize
    for i in range(len(chosen)):
        if i + 2 < len(chosen):
            ahead = chosen[i + 2] * dim
            for line in range(0, min(bytes_a_row, 2048), 64):
                prefetch(vectors, ahead + line // vectors.itemsize)
        out[i] = row_score(vectors, dim, scales, chosen[i], query, metric)


@compiled
def offer(values: Any, chosen: Any, order: Any, scores: Any, rows: Any, size: int) -> int:
    """Offer `values[i]` as the score of row `chosen[i]`; returns how many are kept."""
    for i in range(len(values)):
        if values[i] > -np.inf and (size < len(rows) or values[i] >= scores[0]):
            size = push(scores, rows, size, order, values[i], chosen[i])
    return size


@compiled
def check_rows(given: Any, unit: bool, largest: Any, out: Any) -> Any:
    """Copy rows, at length one when `unit`.

    Args:
        given, out: float32 `[n, d]`.
        largest: A row whose squares add up to more, or to NaN, is refused.

    Returns:
        The first row that is refused, or -1; and the first that has no direction where one is needed, or -1.
    """
    for row in range(len(given)):
        square = 0.0
        for i in range(given.shape[1]):
            square += np.float64(given[row, i]) * np.float64(given[row, i])
        if not square < largest:
            return row, -1
        if unit and square < 1e-36:
            return -1, row
        length = np.sqrt(square) if unit else 1.0
        for i in range(given.shape[1]):
            out[row, i] = given[row, i] / length
    return -1, -1


def scan_topk(
    vectors: NDArray[Any],
    query: Floats32,
    k: int,
    *,
    metric: int = DOT,
    scales: Floats32 = NO_SCALES,
    allowed: NDArray[np.uint8] = NO_MASK,
    order: Rows | None = None,
) -> tuple[Floats32, Rows]:
    """The best `k` rows of a matrix.

    Args:
        vectors: `[n, d]`, C-contiguous: float32, half precision as uint16, or int8 with `scales`.
        query: float32 `[d]`.
        metric: `DOT` or `L2`.
        scales: float32 `[n]`, what each int8 row is multiplied with.
        allowed: uint8 `[n]`: zero for rows that must not be found. Empty: none.
        order: int64 `[n]`: of rows with equal scores the lower one comes first. Default: the row's number.

    Returns:
        Scores and rows, best first; shorter than `k` when fewer rows are allowed.

    Example:
        >>> scan_topk(np.eye(3, dtype=np.float32), np.array([0, 2, 1], np.float32), 2)[1].tolist()
        [1, 2]
    """
    chosen = np.flatnonzero(allowed) if len(allowed) else np.arange(len(vectors), dtype=np.int64)
    return gather_topk(vectors, query, k, chosen, metric=metric, scales=scales, order=order)


def gather_topk(
    vectors: NDArray[Any],
    query: Floats32,
    k: int,
    chosen: Rows,
    *,
    metric: int = DOT,
    scales: Floats32 = NO_SCALES,
    order: Rows | None = None,
) -> tuple[Floats32, Rows]:
    """The best `k` of the rows listed in `chosen` (int64 `[m]`, each at most once); else as `scan_topk`."""
    count, dim = vectors.shape
    order = np.arange(count, dtype=np.int64) if order is None else order
    k = max(0, min(k, len(chosen)))
    scores, rows = np.empty(k, np.float32), np.empty(k, np.int64)
    flat, asked = vectors.reshape(-1), -query if metric == L2 else query
    size, buffer = 0, np.empty(min(_BLOCK_ROWS, len(chosen)), np.float32)
    for start in range(0, len(chosen), _BLOCK_ROWS):
        block = chosen[start : start + _BLOCK_ROWS]
        values = buffer[: len(block)]
        scores_of(flat, dim, scales, asked, metric, block, values)
        size = offer(values, block, order, scores, rows, size)
    best_first(scores, rows, size, order)
    return scores[:size], rows[:size]


def gemm_topk(
    vectors: Floats32,
    queries: Floats32,
    k: int,
    *,
    metric: int = DOT,
    allowed: NDArray[np.uint8] = NO_MASK,
    order: Rows | None = None,
) -> tuple[Floats32, Rows]:
    """The best `k` rows for each of many queries, by matrix products.

    Faster than a scan a query from a few dozen queries on. Rounding differs in the last bits from the other functions,
    so the winners are scored again one by one, and rows that are closer than that may swap at the border of k.

    Returns:
        Scores float32 `[q, k]` and rows int64 `[q, k]`, best first, padded with -inf and -1.
    """
    count = len(vectors)
    order = np.arange(count, dtype=np.int64) if order is None else order
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    sizes = [0] * len(queries)
    norms = np.einsum("ij,ij->i", vectors, vectors) if metric == L2 else None
    block = max(1, _PRODUCT_BYTES // (4 * max(1, len(queries))))
    with one_thread_a_product():
        for start in range(0, count, block):
            products = queries @ vectors[start : start + block].T
            chosen = np.arange(start, start + products.shape[1], dtype=np.int64)
            if norms is not None:
                products = 2 * products - norms[start : start + block]
            if len(allowed):
                products[:, allowed[start : start + block] == 0] = -np.inf
            for number in range(len(queries)):
                sizes[number] = offer(products[number], chosen, order, scores[number], rows[number], sizes[number])
    for number, size in enumerate(sizes):
        best = gather_topk(vectors, queries[number], size, rows[number, :size].copy(), metric=metric, order=order)
        scores[number, :size], rows[number, :size] = best
    return scores, rows
