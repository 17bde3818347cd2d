"""Sums of table entries that codes point at, and fields of bits cut out of packed words.

Codes lie column by column (`[m, n]`): all rows' first code, then all rows' second, so that a block of rows adds one
table at a time and both stay in the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled

_BLOCK = 512


@compiled
def table_sums(codes: Any, tables: Any, out: Any) -> None:
    """float32 `[n]`: for each row the sum over j of `tables[j, codes[j, row]]`.

    Args:
        codes: uint8 `[m, n]`.
        tables: float32 `[m, 256]`.
    """
    columns, count = codes.shape
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        for row in range(start, stop):
            out[row] = 0.0
        column = 0
        while column + 4 <= columns:
            t0, t1, t2, t3 = tables[column], tables[column + 1], tables[column + 2], tables[column + 3]
            c0, c1, c2, c3 = codes[column], codes[column + 1], codes[column + 2], codes[column + 3]
            for row in range(start, stop):
                out[row] += (t0[c0[row]] + t1[c1[row]]) + (t2[c2[row]] + t3[c3[row]])
            column += 4
        while column < columns:
            for row in range(start, stop):
                out[row] += tables[column, codes[column, row]]
            column += 1


@compiled
def table_sums_of(codes: Any, tables: Any, chosen: Any, out: Any) -> None:
    """As `table_sums`, for the rows listed in `chosen` (int64 `[m]`), codes row by row (`[n, m]`)."""
    columns = codes.shape[1]
    for i in range(len(chosen)):
        row, even, odd = chosen[i], np.float32(0.0), np.float32(0.0)
        for column in range(0, columns - 1, 2):
            even += tables[column, codes[row, column]]
            odd += tables[column + 1, codes[row, column + 1]]
        if columns % 2:
            even += tables[columns - 1, codes[row, columns - 1]]
        out[i] = even + odd


@compiled
def field_sums_of(
    packed: Any, bits: Any, widths: Any, firsts: Any, tables: Any, base: Any, chosen: Any, out: Any
) -> None:
    """float32 `[m]`: for each row in `chosen` the sum of the table entries that its packed codes point at.

    Args:
        packed: uint8 `[n, bytes]`, codes row by row as `pack_codes` lays them out column by column, and a byte more.
        bits, widths, firsts: int64 `[fields]`: where each code begins in a row, its bits (1 to 8), and where its table
            begins in `tables`.
        tables: float32.
        base: What every sum begins with.
        chosen: int64 `[m]`.
    """
    for i in range(len(chosen)):
        row, total = chosen[i], base
        for field in range(len(bits)):
            at = bits[field] >> 3
            word = np.int64(packed[row, at]) | (np.int64(packed[row, at + 1]) << 8)
            code = (word >> (bits[field] & 7)) & ((1 << widths[field]) - 1)
            total += tables[firsts[field] + code]
        out[i] = total


@compiled
def _pack(codes: Any, widths: Any, out: Any) -> None:
    for row in range(codes.shape[0]):
        bit = 0
        for column in range(codes.shape[1]):
            value, left = np.uint32(codes[row, column]), widths[column]
            while left > 0:
                room = 8 - bit % 8
                take = min(room, left)
                part = value & np.uint32((1 << take) - 1)
                out[bit // 8, row] |= np.uint8(part << np.uint32(bit % 8))
                value >>= np.uint32(take)
                bit += take
                left -= take


@compiled
def _unpack(packed: Any, bit: int, width: int, out: Any) -> None:
    first, shift = bit // 8, bit % 8
    mask = np.uint32((1 << width) - 1)
    last = (bit + width - 1) // 8
    for row in range(packed.shape[1]):
        word = np.uint32(packed[first, row])
        if last > first:
            word |= np.uint32(packed[last, row]) << np.uint32(8)
        out[row] = (word >> np.uint32(shift)) & mask


def pack_codes(codes: NDArray[np.uint8], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """uint8 `[ceil(sum(widths) / 8), n]` of codes uint8 `[n, m]`: code j takes `widths[j]` (0 to 8) bits, no padding.

    Example:
        >>> packed = pack_codes(np.array([[5, 1]], np.uint8), np.array([3, 1]))
        >>> packed.tolist(), unpack_code(packed, np.array([3, 1]), 0).tolist()
        ([[13]], [5])
    """
    out = np.zeros(((int(widths.sum()) + 7) // 8, len(codes)), np.uint8)
    _pack(np.ascontiguousarray(codes), widths.astype(np.int64), out)
    return out


def unpack_code(packed: NDArray[np.uint8], widths: NDArray[np.int64], column: int) -> NDArray[np.uint8]:
    """uint8 `[n]`: code `column` of every row."""
    out = np.zeros(packed.shape[1], np.uint8)
    if widths[column]:
        _unpack(packed, int(widths[:column].sum()), int(widths[column]), out)
    return out
