"""Vectors as bits: sign codes, their Hamming distance, products with them, and bitmaps over rows.

The product of a query with a row of which only the signs are kept follows RaBitQ (Gao and Long, "RaBitQ: Quantizing
High-Dimensional Vectors with a Theoretical Error Bound", 2024): each row has a factor by which its signs are too short
or too long, and the query is rounded to four bits a number, so that the product is counting bits. Rows are not rotated
at random first; sentence embeddings are spread over their dimensions as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled
from windlass.kernels.simd import popcount

Words = NDArray[np.uint64]

PLANES = 4
"""Bits of a number of a query."""


def words_of(bits: int) -> int:
    """64-bit words that hold `bits` bits."""
    return (bits + 63) // 64


def pack_signs(vectors: NDArray[np.float32]) -> Words:
    """uint64 `[n, ceil(d / 64)]`: bit j of a row is set where its number j is above zero.

    Example:
        >>> pack_signs(np.array([[1, -1, 0, 2]], np.float32)).tolist()
        [[9]]
    """
    count, dim = vectors.shape
    padded = np.zeros((count, 64 * words_of(dim)), np.uint8)
    padded[:, :dim] = vectors > 0
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def pack_mask(mask: NDArray[np.bool_]) -> Words:
    """uint64 `[ceil(n / 64)]` of a bool `[n]`."""
    padded = np.zeros(64 * words_of(len(mask)), np.uint8)
    padded[: len(mask)] = mask
    return np.packbits(padded, bitorder="little").view(np.uint64)


def unpack_mask(words: Words, count: int) -> NDArray[np.bool_]:
    """The bool `[count]` that `pack_mask` packed."""
    return np.unpackbits(words.view(np.uint8), bitorder="little", count=count).astype(np.bool_)


@compiled
def hamming(codes: Any, query: Any, out: Any) -> None:
    """int32 `[n]`: in how many bits each row of `codes` (uint64 `[n, w]`) differs from `query` (uint64 `[w]`)."""
    count, words = codes.shape
    if words == 6:  # 384 dimensions, the commonest encoder: unrolled, the loop costs more than the counting
        q0, q1, q2, q3, q4, q5 = query[0], query[1], query[2], query[3], query[4], query[5]
        for row in range(count):
            low = popcount(codes[row, 0] ^ q0) + popcount(codes[row, 1] ^ q1) + popcount(codes[row, 2] ^ q2)
            high = popcount(codes[row, 3] ^ q3) + popcount(codes[row, 4] ^ q4) + popcount(codes[row, 5] ^ q5)
            out[row] = low + high
        return
    for row in range(count):
        total = 0
        for word in range(words):
            total += popcount(codes[row, word] ^ query[word])
        out[row] = total


@compiled
def hamming_of(codes: Any, query: Any, chosen: Any, out: Any) -> None:
    """As `hamming`, for the rows listed in `chosen` (int64 `[m]`)."""
    words = codes.shape[1]
    for i in range(len(chosen)):
        total = 0
        for word in range(words):
            total += popcount(codes[chosen[i], word] ^ query[word])
        out[i] = total


@compiled
def query_planes(query: Any, words: int) -> Any:
    """A query as bits, for `sign_scores_of`.

    Args:
        query: float32 `[d]`.

    Returns:
        uint64 `[words * PLANES]`: for 64 numbers at a time the lowest bit of each, the next one, ...; then the number
        that zero stands for, the step from one to the next, and the sum of the numbers.
    """
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for i in range(len(query)):
        low, high = min(low, query[i]), max(high, query[i])
    step = (high - low) / np.float32((1 << PLANES) - 1)
    planes, total = np.zeros(words * PLANES, np.uint64), np.float32(0.0)
    for i in range(len(query)):
        level = np.int64(np.rint((query[i] - low) / step)) if step > 0 else np.int64(0)
        total += low + step * np.float32(level)
        for plane in range(PLANES):
            planes[(i >> 6) * PLANES + plane] |= np.uint64((level >> plane) & 1) << np.uint64(i & 63)
    return planes, low, step, total


@compiled
def sign_scores_of(codes: Any, squares: Any, factors: Any, asked: Any, chosen: Any, out: Any) -> None:
    """float32 `[m]`: twice the estimated product of a query with each row listed in `chosen`, less the row's square.

    Args:
        codes: uint64 `[n, w]`, from `pack_signs`.
        squares: float32 `[n]`, what is taken off: squared lengths, or zeros for twice the product alone.
        factors: float32 `[n]`: the length of a row, by how well its signs stand for it.
        asked: What `query_planes` returned.
        chosen: int64 `[m]`.
    """
    planes, low, step, total = asked
    words = codes.shape[1]
    for i in range(len(chosen)):
        row, ones, levels = chosen[i], 0, 0
        for word in range(words):
            code, at = codes[row, word], word * PLANES
            ones += popcount(code)
            levels += (
                popcount(code & planes[at])
                + 2 * popcount(code & planes[at + 1])
                + 4 * popcount(code & planes[at + 2])
                + 8 * popcount(code & planes[at + 3])
            )
        inside = low * np.float32(ones) + step * np.float32(levels)
        product = (np.float32(2.0) * inside - total) * factors[row]
        out[i] = np.float32(2.0) * product - squares[row]


@compiled
def count_bits(words: Any) -> int:
    """How many bits of a bitmap are set."""
    total = 0
    for word in range(len(words)):
        total += popcount(words[word])
    return total


@compiled
def count_common(left: Any, right: Any) -> int:
    """How many bits are set in both of two bitmaps."""
    total = 0
    for word in range(len(left)):
        total += popcount(left[word] & right[word])
    return total
