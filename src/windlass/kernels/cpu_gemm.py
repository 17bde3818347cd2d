"""Products of packed 4-bit and 8-bit weights with 8-bit activations: the CPU's linear layers.

Weights lie in tiles of 16 output rows by 32 inputs, so that one register holds four inputs of every row:

    w4m   256 B nibbles, 16 half scales, 16 half minimums     w = d * q + m        (Q4_1, Q4_K)
    w4    256 B nibbles, 16 half scales                       w = d * (q - 8)      (Q4_0)
    w8    512 B int8,    16 half scales                       w = d * q            (Q8_0 and all others)

A 64-byte vector of nibbles holds for each row inputs 4v..4v+3 (low) and 16+4v..16+4v+3 (high); of w8, inputs
4v..4v+3. It is a permutation of the file's bytes. Activations are rounded to int8 for each token and 32 inputs
and lie as `[block][token][32]`. Every token's sum is made in the same order whatever its neighbours, so results do
not depend on the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from windlass.kernels.compiled import Compiled, caller, compiled, inlined, pasted
from windlass.kernels.simd import (
    LANES,
    abs_float,
    add_float,
    broadcast4,
    copy_half,
    copy_word,
    dot_nibbles,
    dot_signed,
    fma,
    fold_nibbles,
    fold_signed,
    high_nibbles,
    load_bytes,
    load_float,
    load_half,
    low_nibbles,
    max_float,
    max_lanes,
    mul_float,
    prefetch,
    repeat,
    round_float,
    splat,
    store_codes,
    store_float,
    store_one_half,
    sum_lanes,
    to_float,
    zero_float,
    zero_ints,
    zero_sums,
)

W4M, W4, W8 = 0, 1, 2
TILE_ROWS = 16
GROUP = 32
AHEAD = 2048
"""Bytes that are asked for before they are needed; the processor's own prefetcher falls behind one tile in three."""
BLOCK_BYTES = (320, 288, 544)
"""Bytes of one tile of 16 x 32 weights, by kind."""


def packed_bytes(kind: int, rows: int, columns: int) -> int:
    """Bytes a matrix `[rows, columns]` takes when packed."""
    return -(-rows // TILE_ROWS) * -(-columns // GROUP) * BLOCK_BYTES[kind]


@compiled
def pack_blocks(raw: Any, rows: int, blocks: int, block_bytes: int, head: int, out: Any, at: int) -> int:
    """Move rows of Q4_0, Q4_1 or Q8_0 blocks (`head` bytes of halves, then codes) into tiles from byte `at` of `out`.

    Returns:
        How many of the halves are NaN or infinite.
    """
    words, bad = (block_bytes - head) // 4, 0
    size = 64 * words + 16 * head
    for tile in range((rows + 15) // 16):
        for block in range(blocks):
            target = at + (tile * blocks + block) * size
            for lane in range(min(16, rows - 16 * tile)):
                source = ((16 * tile + lane) * blocks + block) * block_bytes
                for word in range(words):
                    copy_word(raw, source + head + 4 * word, out, target + 64 * word + 4 * lane)
                for half in range(head // 2):
                    bad += copy_half(raw, source + 2 * half, out, target + 64 * words + 32 * half + 2 * lane)
    return bad


@compiled
def coarsen(arena: Any, at: int, tiles: int, blocks: int, out: Any, out_at: int) -> None:
    """Round w8 tiles to w4, one scale for each row and 32 inputs: a first guess at half the bytes."""
    for tile in range(tiles):
        for block in range(blocks):
            source, target = at + (tile * blocks + block) * 544, out_at + (tile * blocks + block) * 288
            for lane in range(16):
                # The extreme gets code 0, which stands for -8: sixteen steps with none wasted.
                extreme = 0
                for i in range(32):
                    code = int(np.int8(arena[source + 64 * (i // 4) + 4 * lane + i % 4]))
                    if abs(code) > abs(extreme):
                        extreme = code
                step = extreme / -8.0
                inverse = 1.0 / step if extreme != 0 else 0.0
                for i in range(16):
                    place = 64 * (i // 4) + 4 * lane + i % 4
                    low = int(np.int8(arena[source + place])) * inverse
                    high = int(np.int8(arena[source + 256 + place])) * inverse
                    out[target + place] = min(int(low + 8.5), 15) | (min(int(high + 8.5), 15) << 4)
                scale = half_to_float(arena[source + 512 + 2 * lane], arena[source + 513 + 2 * lane])
                store_one_half(out, target + 256 + 2 * lane, np.float32(scale * step))


@compiled
def pack_codes(codes: Any, scales: Any, minimums: Any, kind: int, out: Any, at: int) -> None:
    """Pack uint8 `codes [rows, columns]` (nibbles for w4m, int8 bits for w8) with half-precision bits as uint16.

    `scales` and `minimums` are `[rows, columns / 32]`; `minimums` is read for w4m alone.
    """
    rows, columns = codes.shape
    blocks = columns // 32
    size = 544 if kind == 2 else 320
    for row in range(rows):
        tile, lane = row // 16, row % 16
        for block in range(blocks):
            target = at + (tile * blocks + block) * size
            if kind == 2:
                for i in range(32):
                    out[target + 64 * (i // 4) + 4 * lane + i % 4] = codes[row, 32 * block + i]
            else:
                for i in range(16):
                    both = codes[row, 32 * block + i] | (codes[row, 32 * block + 16 + i] << 4)
                    out[target + 64 * (i // 4) + 4 * lane + i % 4] = both
            scale_at = target + (512 if kind == 2 else 256) + 2 * lane
            out[scale_at] = scales[row, block] & 255
            out[scale_at + 1] = scales[row, block] >> 8
            if kind == 0:
                out[scale_at + 32] = minimums[row, block] & 255
                out[scale_at + 33] = minimums[row, block] >> 8


def round_to_int8(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Nearest `scale * code` with |code| <= 127 for each row and 32 columns; columns are padded with zeros.

    Returns:
        codes: uint8 bits of int8 `[rows, padded]`; scales: float16 bits as uint16 `[rows, padded / 32]`.
    """
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = weights
    grouped = padded.reshape(rows, -1, GROUP)
    scales = (np.abs(grouped).max(axis=2) / np.float32(127)).astype(np.float16)
    divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[:, :, None]
    codes = np.clip(np.rint(grouped / divisor), -127, 127).astype(np.int8)
    return codes.reshape(rows, -1).view(np.uint8), scales.view(np.uint16)


@compiled
def unpack_row(arena: Any, at: int, kind: int, columns: int, row: int, out: Any, out_at: int) -> None:
    """One row of a packed matrix as float32 into `out[out_at : out_at + columns]`; the embedding lookup."""
    blocks = (columns + 31) // 32
    lane = row % 16
    size = 544 if kind == 2 else (320 if kind == 0 else 288)
    for block in range(blocks):
        base = at + (row // 16 * blocks + block) * size
        scale_at = base + (512 if kind == 2 else 256) + 2 * lane
        scale = half_to_float(arena[scale_at], arena[scale_at + 1])
        minimum = half_to_float(arena[scale_at + 32], arena[scale_at + 33]) if kind == 0 else np.float32(0)
        for i in range(min(32, columns - 32 * block)):
            byte = arena[base + 64 * ((i if kind == 2 else i % 16) // 4) + 4 * lane + i % 4]
            if kind == 2:
                code = np.float32(np.int8(byte))
            else:
                code = np.float32((byte >> 4) if i >= 16 else (byte & 15))
                if kind == 1:
                    code -= np.float32(8)
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


@inlined
def quantize_token(
    x: Any, x_at: int, blocks: int, token: int, tokens: int, xq: Any, dx: Any, xsum: Any, at: int
) -> None:
    """Round `32 * blocks` activations of one token to int8, one scale for 32.

    Args:
        x: float32, read from `x_at`.
        xq: int8 `[block][token][32]` of `tokens` tokens, written from byte `32 * at`.
        dx, xsum: float32 scales and sums of codes `[block][token]`, written from `at`.
    """
    for block in range(blocks):
        source, place = x_at + 32 * block, at + block * tokens + token
        largest = zero_float()
        for i in range(0, 32, LANES):
            largest = max_float(largest, abs_float(load_float(x, source + i)))
        scale = max_lanes(largest) / np.float32(127)
        inverse = splat(np.float32(1) / scale if scale > 0 else np.float32(0))
        total = zero_float()
        for i in range(0, 32, LANES):
            codes = round_float(mul_float(load_float(x, source + i), inverse))
            store_codes(xq, 32 * place + i, codes)
            total = add_float(total, codes)
        dx[place] = scale
        xsum[place] = sum_lanes(total)


@compiled
def quantize_tokens(x: Any, columns: int, xq: Any, dx: Any, xsum: Any) -> None:
    """`quantize_token` for every row of a flat float32 `[tokens, columns]`."""
    tokens = x.shape[0] // columns
    for token in range(tokens):
        quantize_token(x, token * columns, columns // 32, token, tokens, xq, dx, xsum, 0)


@inlined
def _nibble_block(arena: Any, at: int, xq: Any, x_at: int) -> Any:
    sums = zero_sums()
    for v in range(4):
        both = load_bytes(arena, at + 64 * v)
        sums = dot_nibbles(sums, low_nibbles(both), broadcast4(xq, x_at + 4 * v))
        sums = dot_nibbles(sums, high_nibbles(both), broadcast4(xq, x_at + 16 + 4 * v))
    return fold_nibbles(sums)


@inlined
def _byte_block(arena: Any, at: int, xq: Any, x_at: int) -> Any:
    sums = zero_ints()
    for v in range(8):
        sums = dot_signed(sums, load_bytes(arena, at + 64 * v), broadcast4(xq, x_at + 4 * v))
    return sums


@inlined
def _add_w4m(total: Any, arena: Any, base: int, rows: int, xq: Any, x_at: int, step: Any, x_sum: Any) -> Any:
    product = _nibble_block(arena, base + 4 * rows, xq, x_at)
    total = fma(to_float(product), mul_float(load_half(arena, base + 256 + 2 * rows), step), total)
    return fma(load_half(arena, base + 288 + 2 * rows), mul_float(step, x_sum), total)


@inlined
def _add_w4(total: Any, arena: Any, base: int, rows: int, xq: Any, x_at: int, step: Any, x_sum: Any) -> Any:
    product = to_float(_nibble_block(arena, base + 4 * rows, xq, x_at))
    centred = fma(x_sum, splat(np.float32(-8)), product)
    return fma(centred, mul_float(load_half(arena, base + 256 + 2 * rows), step), total)


@inlined
def _add_w8(total: Any, arena: Any, base: int, rows: int, xq: Any, x_at: int, step: Any, x_sum: Any) -> Any:
    product = fold_signed(_byte_block(arena, base + 4 * rows, xq, x_at), x_sum)
    return fma(product, mul_float(load_half(arena, base + 512 + 2 * rows), step), total)


@pasted
def _fetch(arena: Any, base: int, lines: int) -> None:
    for line in range(lines):
        prefetch(arena, base + AHEAD + 64 * line)


# With 8 lanes a tile has a second register of rows: both halves of a block are read while its cache lines are near.
# A prompt's last token takes the same sums in the same order through the functions for many tokens.


@inlined
def _vector_w4m(arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any, into: int) -> None:
    low, high = zero_float(), zero_float()
    for block in range(blocks):
        base, x_byte = at + 320 * block, 32 * (x_at + block)
        step, x_sum = repeat(dx, x_at + block), repeat(xsum, x_at + block)
        _fetch(arena, base, 5)
        low = _add_w4m(low, arena, base, 0, xq, x_byte, step, x_sum)
        if LANES == 8:
            high = _add_w4m(high, arena, base, 8, xq, x_byte, step, x_sum)
    store_float(out, into, low)
    if LANES == 8:
        store_float(out, into + 8, high)


@inlined
def _vector_w4(arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any, into: int) -> None:
    low, high = zero_float(), zero_float()
    for block in range(blocks):
        base, x_byte = at + 288 * block, 32 * (x_at + block)
        step, x_sum = repeat(dx, x_at + block), repeat(xsum, x_at + block)
        _fetch(arena, base, 5)
        low = _add_w4(low, arena, base, 0, xq, x_byte, step, x_sum)
        if LANES == 8:
            high = _add_w4(high, arena, base, 8, xq, x_byte, step, x_sum)
    store_float(out, into, low)
    if LANES == 8:
        store_float(out, into + 8, high)


@inlined
def _vector_w8(arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any, into: int) -> None:
    low, high = zero_float(), zero_float()
    for block in range(blocks):
        base, x_byte = at + 544 * block, 32 * (x_at + block)
        step, x_sum = repeat(dx, x_at + block), repeat(xsum, x_at + block)
        _fetch(arena, base, 9)
        low = _add_w8(low, arena, base, 0, xq, x_byte, step, x_sum)
        if LANES == 8:
            high = _add_w8(high, arena, base, 8, xq, x_byte, step, x_sum)
    store_float(out, into, low)
    if LANES == 8:
        store_float(out, into + 8, high)


@compiled
def vector_product(
    arena: Any, at: int, kind: int, blocks: int, tiles: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any
) -> None:
    """`16 * tiles` output rows for a single token: `out[row]`, float32. Other arguments as for `tile_product`."""
    if kind == 0:
        for tile in range(tiles):
            _vector_w4m(arena, at + tile * blocks * 320, blocks, xq, dx, xsum, x_at, out, 16 * tile)
    elif kind == 1:
        for tile in range(tiles):
            _vector_w4(arena, at + tile * blocks * 288, blocks, xq, dx, xsum, x_at, out, 16 * tile)
    else:
        for tile in range(tiles):
            _vector_w8(arena, at + tile * blocks * 544, blocks, xq, dx, xsum, x_at, out, 16 * tile)


@pasted
def _clear(out: Any, count: int) -> None:
    for i in range(16 * count):
        out[i] = np.float32(0)


@inlined
def _nibble_dot(w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, w5: Any, w6: Any, w7: Any, xq: Any, x_at: int) -> Any:
    sums = dot_nibbles(zero_sums(), w0, broadcast4(xq, x_at))
    sums = dot_nibbles(sums, w4, broadcast4(xq, x_at + 16))
    sums = dot_nibbles(sums, w1, broadcast4(xq, x_at + 4))
    sums = dot_nibbles(sums, w5, broadcast4(xq, x_at + 20))
    sums = dot_nibbles(sums, w2, broadcast4(xq, x_at + 8))
    sums = dot_nibbles(sums, w6, broadcast4(xq, x_at + 24))
    sums = dot_nibbles(sums, w3, broadcast4(xq, x_at + 12))
    return fold_nibbles(dot_nibbles(sums, w7, broadcast4(xq, x_at + 28)))


@compiled
def _matrix_w4m(
    arena: Any,
    at: int,
    blocks: int,
    xq: Any,
    dx: Any,
    xsum: Any,
    tokens: int,
    first: int,
    count: int,
    x_at: int,
    out: Any,
) -> None:
    _clear(out, count)
    for block in range(blocks):
        base = at + 320 * block
        x_base = x_at + block * tokens + first
        for rows in range(0, 16, LANES):
            v0, v1 = load_bytes(arena, base + 4 * rows), load_bytes(arena, base + 4 * rows + 64)
            v2, v3 = load_bytes(arena, base + 4 * rows + 128), load_bytes(arena, base + 4 * rows + 192)
            w0, w1, w2, w3 = low_nibbles(v0), low_nibbles(v1), low_nibbles(v2), low_nibbles(v3)
            w4, w5, w6, w7 = high_nibbles(v0), high_nibbles(v1), high_nibbles(v2), high_nibbles(v3)
            d, m = load_half(arena, base + 256 + 2 * rows), load_half(arena, base + 288 + 2 * rows)
            for token in range(count):
                place = x_base + token
                product = _nibble_dot(w0, w1, w2, w3, w4, w5, w6, w7, xq, 32 * place)
                step = repeat(dx, place)
                total = load_float(out, 16 * token + rows)
                total = fma(to_float(product), mul_float(d, step), total)
                total = fma(m, mul_float(step, repeat(xsum, place)), total)
                store_float(out, 16 * token + rows, total)


@compiled
def _matrix_w4(
    arena: Any,
    at: int,
    blocks: int,
    xq: Any,
    dx: Any,
    xsum: Any,
    tokens: int,
    first: int,
    count: int,
    x_at: int,
    out: Any,
) -> None:
    _clear(out, count)
    for block in range(blocks):
        base = at + 288 * block
        x_base = x_at + block * tokens + first
        for rows in range(0, 16, LANES):
            v0, v1 = load_bytes(arena, base + 4 * rows), load_bytes(arena, base + 4 * rows + 64)
            v2, v3 = load_bytes(arena, base + 4 * rows + 128), load_bytes(arena, base + 4 * rows + 192)
            w0, w1, w2, w3 = low_nibbles(v0), low_nibbles(v1), low_nibbles(v2), low_nibbles(v3)
            w4, w5, w6, w7 = high_nibbles(v0), high_nibbles(v1), high_nibbles(v2), high_nibbles(v3)
            d = load_half(arena, base + 256 + 2 * rows)
            for token in range(count):
                place = x_base + token
                product = _nibble_dot(w0, w1, w2, w3, w4, w5, w6, w7, xq, 32 * place)
                centred = fma(repeat(xsum, place), splat(np.float32(-8)), to_float(product))
                total = load_float(out, 16 * token + rows)
                total = fma(centred, mul_float(d, repeat(dx, place)), total)
                store_float(out, 16 * token + rows, total)


@compiled
def _matrix_w8(
    arena: Any,
    at: int,
    blocks: int,
    xq: Any,
    dx: Any,
    xsum: Any,
    tokens: int,
    first: int,
    count: int,
    x_at: int,
    out: Any,
) -> None:
    _clear(out, count)
    for block in range(blocks):
        base = at + 544 * block
        x_base = x_at + block * tokens + first
        for rows in range(0, 16, LANES):
            d = load_half(arena, base + 512 + 2 * rows)
            for token in range(count):
                place = x_base + token
                product = fold_signed(_byte_block(arena, base + 4 * rows, xq, 32 * place), repeat(xsum, place))
                total = load_float(out, 16 * token + rows)
                total = fma(product, mul_float(d, repeat(dx, place)), total)
                store_float(out, 16 * token + rows, total)


@compiled
def tile_product(
    arena: Any,
    at: int,
    kind: int,
    blocks: int,
    xq: Any,
    dx: Any,
    xsum: Any,
    tokens: int,
    first: int,
    count: int,
    x_at: int,
    out: Any,
) -> None:
    """16 output rows for `count` of `tokens` tokens from `first` on: `out[token * 16 + row]`, float32.

    `at` is the tile's first byte in `arena` (uint8); `x_at` where this activation's `[block][token]` begins.
    """
    if kind == 0:
        _matrix_w4m(arena, at, blocks, xq, dx, xsum, tokens, first, count, x_at, out)
    elif kind == 1:
        _matrix_w4(arena, at, blocks, xq, dx, xsum, tokens, first, count, x_at, out)
    else:
        _matrix_w8(arena, at, blocks, xq, dx, xsum, tokens, first, count, x_at, out)


_U8, _I8, _F32 = (types.Array(kind, 1, "C") for kind in (types.uint8, types.int8, types.float32))
_INT = types.int64
TILE_PRODUCT = Compiled(tile_product, types.void(_U8, _INT, _INT, _INT, _I8, _F32, _F32, _INT, _INT, _INT, _INT, _F32))
VECTOR_PRODUCT = Compiled(vector_product, types.void(_U8, _INT, _INT, _INT, _INT, _I8, _F32, _F32, _INT, _F32))
call_tile_product, call_vector_product = caller(TILE_PRODUCT.signature), caller(VECTOR_PRODUCT.signature)
