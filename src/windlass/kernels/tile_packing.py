"""Into tiles and out of them: permutations of a file's bytes (`tile_layout` says how they lie)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, compiled, inlined
from windlass.kernels.simd import copy_half, load_word, store_word

_TOP_BITS, _NIBBLES = 0x80808080, 0x0F0F0F0F


@compiled
def pack_blocks(raw: Any, rows: int, blocks: int, block_bytes: int, head: int, out: Any, at: int) -> int:
    """Move rows of Q4_0 or Q4_1 blocks (`head` bytes of halves, then codes) into tiles from byte `at` of `out`.

    Returns:
        How many of the halves are NaN or infinite.
    """
    bad, size = 0, 256 + 16 * head
    for tile in range((rows + 15) // 16):
        for block in range(blocks):
            target = at + (tile * blocks + block) * size
            for lane in range(min(16, rows - 16 * tile)):
                source = ((16 * tile + lane) * blocks + block) * block_bytes
                for word in range(4):
                    store_word(out, target + 64 * word + 4 * lane, load_word(raw, source + head + 4 * word))
                for half in range(head // 2):
                    bad += copy_half(raw, source + 2 * half, out, target + 256 + 32 * half + 2 * lane)
    return bad


@compiled
def pack_byte_blocks(raw: Any, rows: int, blocks: int, out: Any, at: int, lower_at: int) -> int:
    """Move rows of Q8_0 blocks into tiles from byte `at` of `out`, their lower nibbles from `lower_at`.

    Returns:
        How many scales are NaN or infinite.
    """
    bad = 0
    for tile in range((rows + 15) // 16):
        for block in range(blocks):
            place = tile * blocks + block
            target, lower = at + 288 * place, lower_at + 256 * place
            for lane in range(min(16, rows - 16 * tile)):
                source = ((16 * tile + lane) * blocks + block) * 34
                bad += copy_half(raw, source, out, target + 256 + 2 * lane)
                for word in range(4):
                    first = load_word(raw, source + 2 + 4 * word) ^ _TOP_BITS
                    second = load_word(raw, source + 18 + 4 * word) ^ _TOP_BITS
                    upper = ((first >> 4) & _NIBBLES) | (((second >> 4) & _NIBBLES) << 4)
                    store_word(out, target + 64 * word + 4 * lane, upper)
                    store_word(out, lower + 64 * word + 4 * lane, (first & _NIBBLES) | ((second & _NIBBLES) << 4))
    return bad


@compiled
def pack_codes(
    codes: Any, scales: Any, minimums: Any, rows: int, columns: int, kind: int, out: Any, at: int, lower_at: int
) -> None:
    """Pack uint8 `codes [rows, columns]` (nibbles for w4m, int8 bits for w8) with half-precision bits as uint16.

    All arrays are flat; `scales` and `minimums` are `[rows, columns / 32]`; `minimums` is read for w4m alone.
    """
    blocks = columns // 32
    size = 288 if kind == 2 else 320
    for row in range(rows):
        tile, lane = row // 16, row % 16
        for block in range(blocks):
            target, lower = at + (tile * blocks + block) * size, lower_at + (tile * blocks + block) * 256
            source, scale = row * columns + 32 * block, row * blocks + block
            for i in range(16):
                first, second, place = codes[source + i], codes[source + 16 + i], 64 * (i // 4) + 4 * lane + i % 4
                if kind == 2:
                    first, second = first ^ 128, second ^ 128
                    out[lower + place] = (first & 15) | ((second & 15) << 4)
                    first, second = first >> 4, second >> 4
                out[target + place] = first | (second << 4)
            out[target + 256 + 2 * lane] = scales[scale] & 255
            out[target + 257 + 2 * lane] = scales[scale] >> 8
            if kind == 0:
                out[target + 288 + 2 * lane] = minimums[scale] & 255
                out[target + 289 + 2 * lane] = minimums[scale] >> 8


@compiled
def unpack_row(arena: Any, at: int, lower_at: int, kind: int, columns: int, row: int, out: Any, out_at: int) -> None:
    """One row of a packed matrix as float32 into `out[out_at : out_at + columns]`; the embedding lookup."""
    blocks, lane = (columns + 31) // 32, row % 16
    size = 320 if kind == 0 else 288
    for block in range(blocks):
        place = row // 16 * blocks + block
        base, lower = at + place * size, lower_at + place * 256
        scale = half_to_float(arena[base + 256 + 2 * lane], arena[base + 257 + 2 * lane])
        minimum: Any = np.float32(0)
        if kind == 0:
            minimum = half_to_float(arena[base + 288 + 2 * lane], arena[base + 289 + 2 * lane])
        for i in range(min(32, columns - 32 * block)):
            at_byte, bits = 64 * (i % 16 // 4) + 4 * lane + i % 4, i // 16 * 4
            code = np.float32((arena[base + at_byte] >> bits) & 15)
            if kind == 1:
                code -= np.float32(8)
            elif kind == 2:
                code = np.float32(16) * code + np.float32(((arena[lower + at_byte] >> bits) & 15) - 128)
            out[out_at + 32 * block + i] = code * scale + minimum


@inlined
def half_to_float(low: int, high: int) -> float:
    """A half-precision number from its two bytes."""
    exponent, fraction = (high >> 2) & 31, ((high & 3) << 8) | low
    if exponent == 0:
        size = fraction * 2.0**-24
    elif exponent == 31:
        size = np.inf if fraction == 0 else np.nan
    else:
        size = (1.0 + fraction / 1024.0) * 2.0 ** (exponent - 15)
    return np.float32(-size if high >= 128 else size)  # type: ignore[return-value]


_U8, _U16 = types.Array(types.uint8, 1, "C"), types.Array(types.uint16, 1, "C")
_INT = types.int64
PACK_BLOCKS = Compiled(pack_blocks, types.int64(_U8, _INT, _INT, _INT, _INT, _U8, _INT))
PACK_BYTE_BLOCKS = Compiled(pack_byte_blocks, types.int64(_U8, _INT, _INT, _U8, _INT, _INT))
PACK_CODES = Compiled(pack_codes, types.void(_U8, _U16, _U16, _INT, _INT, _INT, _U8, _INT, _INT))
