"""Loops over short lists of vectors: which lists are near a query, and the best rows in them.

Lists are chosen by their heads, kept as int8 with a scale and grouped by nearness, so that a query looks at the heads
of the nearest groups only. Then they are read in the order of their heads' distance until the next head is farther
than a margin times the k-th best row so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.distances import DOT, best_first, dot_row, push, row_score
from windlass.kernels.isa import LANES
from windlass.kernels.simd import dot_signed, fold_signed, load_bytes, prefetch, splat, sum_lanes, zero_ints

STEP = 4 * LANES
"""Codes of a head are padded with zeros to a multiple of this."""
SCORED, VISITED, STOPPED_BY, UNCHECKED, SEEN_TWICE = range(5)
"""Places in the int64 report of `visit`."""
BY_MARGIN, BY_COUNT, BY_END = range(3)


def quantized(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes `[n, d padded]` and the scale of each row; codes are -127 to 127."""
    count, dim = vectors.shape
    largest = np.abs(vectors).max(axis=1, initial=0)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.zeros((count, -(-dim // STEP) * STEP), np.int8)
    codes[:, :dim] = np.rint(vectors / scales[:, None])
    return codes, scales


@inlined
def _code_dot(codes: Any, at: int, query: Any, query_sum: Any, width: int) -> Any:
    total0, total1, i = zero_ints(), zero_ints(), 0
    while i + 2 * STEP <= width:
        total0 = dot_signed(total0, load_bytes(codes, at + i), load_bytes(query, i))
        total1 = dot_signed(total1, load_bytes(codes, at + i + STEP), load_bytes(query, i + STEP))
        i += 2 * STEP
    if i < width:
        total0 = dot_signed(total0, load_bytes(codes, at + i), load_bytes(query, i))
    # Each fold takes its share of the sum out again, where the instruction set puts it in.
    share = splat(query_sum * np.float32(0.5 / LANES))
    return sum_lanes(fold_signed(total0, share)) + sum_lanes(fold_signed(total1, share))


@compiled
def near_heads(
    codes: Any,
    scales: Any,
    squares: Any,
    group_starts: Any,
    centres: Any,
    centre_squares: Any,
    probed: int,
    query: Any,
    metric: int,
    out_distances: Any,
    out_heads: Any,
    spare: Any,
) -> Any:
    """The heads of the `probed` nearest groups, nearest first.

    Args:
        codes, scales, squares: Heads as uint8 bits of int8 codes `[h * width]`, float32 `[h]`, and their squared
            lengths float32 `[h]`; those of a group lie side by side.
        group_starts: int64 `[groups + 1]`.
        centres, centre_squares: float32 `[groups * d]` and `[groups]`.
        query: float32 `[d]`.
        metric: Under `DOT` a head's distance is the dot product with its sign turned, else the squared distance.
        out_distances, out_heads: float32 and int64 `[wanted]`.
        spare: int64 `[max(h, groups)]`: 0, 1, 2, ...

    Returns:
        How many heads were found, and how many were looked at.
    """
    dim, groups, wanted = len(query), len(group_starts) - 1, len(out_heads)
    chosen, closeness = np.empty(probed, np.int64), np.empty(probed, np.float32)
    count = 0
    for group in range(groups):
        near = dot_row(centres, group * dim, query, dim)
        if metric != DOT:
            near = np.float32(2.0) * near - centre_squares[group]
        if count < probed or near >= closeness[0]:
            count = push(closeness, chosen, count, spare, near, group)
    width = len(codes) // max(1, len(scales))
    asked, query_scale, query_sum, query_square = _query_codes(query, width)
    found, looked = 0, 0
    for place in range(count):
        for head in range(group_starts[chosen[place]], group_starts[chosen[place] + 1]):
            score = _code_dot(codes, head * width, asked, query_sum, width) * scales[head] * query_scale
            if metric != DOT:
                score = np.float32(2.0) * score - squares[head] - query_square
            looked += 1
            if found < wanted or score >= out_distances[0]:
                found = push(out_distances, out_heads, found, spare, score, head)
    best_first(out_distances, out_heads, found, spare)
    for i in range(found):
        out_distances[i] = -out_distances[i]
    return found, looked


@compiled
def _query_codes(query: Any, width: int) -> Any:
    """The query as `quantized` makes it, its scale, the sum of its codes, and its squared length."""
    largest, square = np.float32(0.0), np.float32(0.0)
    for i in range(len(query)):
        largest = max(largest, abs(query[i]))
        square += query[i] * query[i]
    scale = largest / np.float32(127.0) if largest > 0 else np.float32(1.0)
    codes, total = np.zeros(width, np.uint8), np.float32(0.0)
    for i in range(len(query)):
        code = np.int64(np.rint(query[i] / scale))
        codes[i] = np.uint8(code & 255)
        total += np.float32(code)
    return codes, scale, total, square


@compiled
def visit(
    numbers: Any,
    pages: Any,
    scales: Any,
    starts: Any,
    sizes: Any,
    checked: Any,
    heads: Any,
    distances: Any,
    query: Any,
    dim: int,
    metric: int,
    unit: bool,
    allowed: Any,
    order: Any,
    margin: Any,
    at_least: int,
    at_most: int,
    scores: Any,
    rows: Any,
    report: Any,
) -> int:
    """Read postings in the order given and keep the best rows.

    Args:
        numbers: The file of postings as stored numbers; `pages` as int32; `scales` as float32.
        starts: int64 `[p]`: the byte at which each posting begins: its rows (int32), its scales (float32, only where
            numbers are int8), its vectors, each part at a multiple of 64 bytes.
        sizes: int64 `[p]`: rows in each.
        checked: uint8 `[p]`: nonzero where the posting's checksum was compared before.
        heads, distances: Postings to read and the distance of each one's head, nearest first.
        unit: Whether vectors and query have length one, so that a dot product says how far they are apart.
        allowed: uint8 `[n]`, or empty.
        margin: The squared factor on the k-th best distance beyond which heads end the search.
        at_least, at_most: Postings to read whatever the margin says.
        scores, rows: float32 and int64 `[k]`.
        report: int64 `[5]`.

    Returns:
        How many rows were found, best first; -1 when `report[UNCHECKED]` is a posting to be checked first.
    """
    masked, size, k = len(allowed) > 0, 0, len(rows)
    seen = np.zeros(len(order) // 64 + 1, np.uint64)
    scaled = len(scales) > 0
    itemsize = numbers.itemsize
    report[SCORED] = report[VISITED] = report[SEEN_TWICE] = 0
    report[STOPPED_BY] = BY_END
    for place in range(len(heads)):
        if place >= at_most:
            report[STOPPED_BY] = BY_COUNT
            break
        if place >= at_least and size == k and k > 0:
            worst = np.float32(2.0) - np.float32(2.0) * scores[0] if unit else -scores[0]
            if distances[place] > margin * worst:
                report[STOPPED_BY] = BY_MARGIN
                break
        posting = heads[place]
        if checked[posting] == 0:
            report[UNCHECKED] = posting
            return -1
        count = sizes[posting]
        first_row = starts[posting] // 4
        first_scale = first_row + -(-count // 16) * 16
        first_vector = (starts[posting] + -(-count * 4 // 64) * 64 * (2 if scaled else 1)) // itemsize
        report[VISITED] += 1
        for i in range(count):
            row = np.int64(pages[first_row + i])
            if masked and allowed[row] == 0:
                continue
            word, bit = row >> 6, np.uint64(1) << np.uint64(row & 63)
            if seen[word] & bit:
                report[SEEN_TWICE] += 1
                continue
            seen[word] |= bit
            report[SCORED] += 1
            ahead = first_vector + (i + 2) * dim
            for line in range(0, min(dim * itemsize, 1024), 64):
                prefetch(numbers, ahead + line // itemsize)
            score = row_score(numbers[first_vector:], dim, scales[first_scale:], i, query, metric)
            if size < k or score >= scores[0]:
                size = push(scores, rows, size, order, score, row)
    best_first(scores, rows, size, order)
    return size


@compiled
def close_heads(
    products: Any,
    point_squares: Any,
    candidates: Any,
    heads: Any,
    head_squares: Any,
    dim: int,
    nearest: int,
    rng_factor: Any,
    out_heads: Any,
    out_distances: Any,
    out_sizes: Any,
) -> None:
    """The heads that each point is kept under: near ones that are not near one another (SPANN's closure).

    Args:
        products: float32 `[m, c]`: dot products of the points with the heads listed in `candidates` (int64 `[c]`).
        point_squares: float32 `[m]`, squared lengths; `head_squares` float32 `[h]` likewise.
        heads: float32 `[h * dim]`.
        nearest: How many of the nearest heads are looked at.
        rng_factor: A head is dropped when it is nearer to one that was kept than to the point, by this factor.
        out_heads: int32 `[m, replicas]`, nearest first; `out_distances` float32 likewise; `out_sizes` int64 `[m]`.
    """
    count, replicas = products.shape[0], out_heads.shape[1]
    spare = np.arange(len(candidates))
    scores, places = np.empty(nearest, np.float32), np.empty(nearest, np.int64)
    for point in range(count):
        found = 0
        for place in range(len(candidates)):
            score = np.float32(2.0) * products[point, place] - head_squares[candidates[place]]
            if found < nearest or score >= scores[0]:
                found = push(scores, places, found, spare, score, place)
        best_first(scores, places, found, spare)
        kept = 0
        for i in range(found):
            head = candidates[places[i]]
            distance = max(point_squares[point] - scores[i], np.float32(0.0))
            far = True
            for j in range(kept):
                other = np.int64(out_heads[point, j])
                product = dot_row(heads, head * dim, heads[other * dim : (other + 1) * dim], dim)
                apart = head_squares[head] + head_squares[other] - np.float32(2.0) * product
                # A row that is a head itself is as near to others as its own head is: rounding must not decide.
                if rng_factor * apart <= distance * np.float32(1.0001):
                    far = False
                    break
            if far:
                out_heads[point, kept] = head
                out_distances[point, kept] = distance
                kept += 1
                if kept == replicas:
                    break
        out_sizes[point] = kept
