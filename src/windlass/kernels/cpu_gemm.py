"""Products of packed 4-bit and 8-bit weights with 8-bit activations: the CPU's linear layers.

Weights lie in tiles of 16 rows by 32 inputs (`tile_layout`). Activations are rounded to int8 for each token and 32
inputs and lie as `[block][token][32]`. Every token's sum is made in the same order whatever its neighbours, so results
do not depend on the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, called, caller, compiled, inlined, pasted
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
    abs_float,
    add_float,
    broadcast4,
    dot_nibbles,
    dot_signed,
    fma,
    fold_nibbles,
    fold_signed,
    high_halves,
    high_nibbles,
    load_bytes,
    load_float,
    load_half,
    low_halves,
    low_nibbles,
    max_float,
    max_lanes,
    mul_float,
    prefetch,
    repeat,
    round_float,
    sixteenfold,
    splat,
    store_codes,
    store_float,
    sum_lanes,
    to_float,
    zero_float,
    zero_ints,
    zero_sums,
)

AHEAD = 2048
"""Bytes that are asked for before they are needed; the processor's own prefetcher falls behind one tile in three."""
GUESS_CENTRE = -7.53125
"""Added to an upper nibble u, it makes the sixteenth of what 16 u + l - 128 is on average."""


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
def _add_guess(total: Any, arena: Any, base: int, rows: int, xq: Any, x_at: int, step: Any, x_sum: Any) -> Any:
    product = to_float(_nibble_block(arena, base + 4 * rows, xq, x_at))
    centred = fma(x_sum, splat(np.float32(GUESS_CENTRE)), product)
    return fma(centred, mul_float(load_half(arena, base + 256 + 2 * rows), step), total)


@inlined
def _add_w8(total: Any, arena: Any, base: int, lower: int, rows: int, xq: Any, x_at: int, step: Any, x_sum: Any) -> Any:
    upper_sums, lower_sums = zero_sums(), zero_sums()
    for v in range(4):
        first, second = broadcast4(xq, x_at + 4 * v), broadcast4(xq, x_at + 16 + 4 * v)
        upper_half = load_bytes(arena, base + 4 * rows + 64 * v)
        lower_half = load_bytes(arena, lower + 4 * rows + 64 * v)
        upper_sums = dot_nibbles(upper_sums, low_nibbles(upper_half), first)
        lower_sums = dot_nibbles(lower_sums, low_nibbles(lower_half), first)
        upper_sums = dot_nibbles(upper_sums, high_nibbles(upper_half), second)
        lower_sums = dot_nibbles(lower_sums, high_nibbles(lower_half), second)
    product = to_float(sixteenfold(fold_nibbles(upper_sums), fold_nibbles(lower_sums)))
    centred = fma(x_sum, splat(np.float32(-128)), product)
    return fma(centred, mul_float(load_half(arena, base + 256 + 2 * rows), step), total)


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
def _vector_guess(
    arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any, into: int
) -> None:
    low, high = zero_float(), zero_float()
    for block in range(blocks):
        base, x_byte = at + 288 * block, 32 * (x_at + block)
        step, x_sum = repeat(dx, x_at + block), repeat(xsum, x_at + block)
        _fetch(arena, base, 5)
        low = _add_guess(low, arena, base, 0, xq, x_byte, step, x_sum)
        if LANES == 8:
            high = _add_guess(high, arena, base, 8, xq, x_byte, step, x_sum)
    store_float(out, into, low)
    if LANES == 8:
        store_float(out, into + 8, high)


@inlined
def _vector_w8(
    arena: Any, at: int, lower_at: int, blocks: int, xq: Any, dx: Any, xsum: Any, x_at: int, out: Any, into: int
) -> None:
    low, high = zero_float(), zero_float()
    for block in range(blocks):
        base, lower, x_byte = at + 288 * block, lower_at + 256 * block, 32 * (x_at + block)
        step, x_sum = repeat(dx, x_at + block), repeat(xsum, x_at + block)
        _fetch(arena, base, 5)
        _fetch(arena, lower, 4)
        low = _add_w8(low, arena, base, lower, 0, xq, x_byte, step, x_sum)
        if LANES == 8:
            high = _add_w8(high, arena, base, lower, 8, xq, x_byte, step, x_sum)
    store_float(out, into, low)
    if LANES == 8:
        store_float(out, into + 8, high)


@compiled
def vector_product(
    arena: Any, at: int, lower_at: int, kind: int, blocks: int, tiles: int, xq: Any, dx: Any, xsum: Any, x_at: int,
    out: Any,
) -> None:  # fmt: skip
    """`16 * tiles` output rows for a single token: `out[row]`, float32. Other arguments as for `tile_product`."""
    if kind == 0:
        for tile in range(tiles):
            _vector_w4m(arena, at + tile * blocks * 320, blocks, xq, dx, xsum, x_at, out, 16 * tile)
    elif kind == 1:
        for tile in range(tiles):
            _vector_w4(arena, at + tile * blocks * 288, blocks, xq, dx, xsum, x_at, out, 16 * tile)
    elif kind == 2:
        for tile in range(tiles):
            place, lower = at + tile * blocks * 288, lower_at + tile * blocks * 256
            _vector_w8(arena, place, lower, blocks, xq, dx, xsum, x_at, out, 16 * tile)
    else:
        for tile in range(tiles):
            _vector_guess(arena, at + tile * blocks * 288, blocks, xq, dx, xsum, x_at, out, 16 * tile)


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


@called
def _matrix_w4m(
    arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, tokens: int, first: int, count: int, x_at: int,
    out: Any,
) -> None:  # fmt: skip
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


@called
def _matrix_w4(
    arena: Any, at: int, blocks: int, xq: Any, dx: Any, xsum: Any, tokens: int, first: int, count: int, x_at: int,
    out: Any, centre: float,
) -> None:  # fmt: skip
    """Of w4 and, with another centre, of the guess of w8."""
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
                centred = fma(repeat(xsum, place), splat(np.float32(centre)), to_float(product))
                total = load_float(out, 16 * token + rows)
                total = fma(centred, mul_float(d, repeat(dx, place)), total)
                store_float(out, 16 * token + rows, total)


@inlined
def _byte_dot(w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, w5: Any, w6: Any, w7: Any, xq: Any, x_at: int) -> Any:
    sums = dot_signed(zero_ints(), w0, broadcast4(xq, x_at))
    sums = dot_signed(sums, w4, broadcast4(xq, x_at + 16))
    sums = dot_signed(sums, w1, broadcast4(xq, x_at + 4))
    sums = dot_signed(sums, w5, broadcast4(xq, x_at + 20))
    sums = dot_signed(sums, w2, broadcast4(xq, x_at + 8))
    sums = dot_signed(sums, w6, broadcast4(xq, x_at + 24))
    sums = dot_signed(sums, w3, broadcast4(xq, x_at + 12))
    return dot_signed(sums, w7, broadcast4(xq, x_at + 28))


@called
def _matrix_w8(
    arena: Any, at: int, lower_at: int, blocks: int, xq: Any, dx: Any, xsum: Any, tokens: int, first: int, count: int,
    x_at: int, out: Any,
) -> None:  # fmt: skip
    _clear(out, count)
    for block in range(blocks):
        base, lower, x_base = at + 288 * block, lower_at + 256 * block, x_at + block * tokens + first
        for rows in range(0, 16, LANES):
            upper_at, lower_at_rows = base + 4 * rows, lower + 4 * rows
            u0, u1 = load_bytes(arena, upper_at), load_bytes(arena, upper_at + 64)
            u2, u3 = load_bytes(arena, upper_at + 128), load_bytes(arena, upper_at + 192)
            l0, l1 = load_bytes(arena, lower_at_rows), load_bytes(arena, lower_at_rows + 64)
            l2, l3 = load_bytes(arena, lower_at_rows + 128), load_bytes(arena, lower_at_rows + 192)
            w0, w1, w2, w3 = low_halves(u0, l0), low_halves(u1, l1), low_halves(u2, l2), low_halves(u3, l3)
            w4, w5, w6, w7 = high_halves(u0, l0), high_halves(u1, l1), high_halves(u2, l2), high_halves(u3, l3)
            d = load_half(arena, base + 256 + 2 * rows)
            for token in range(count):
                place = x_base + token
                product = _byte_dot(w0, w1, w2, w3, w4, w5, w6, w7, xq, 32 * place)
                total = load_float(out, 16 * token + rows)
                centred = fold_signed(product, repeat(xsum, place))
                store_float(out, 16 * token + rows, fma(centred, mul_float(d, repeat(dx, place)), total))


@compiled
def tile_product(
    arena: Any, at: int, lower_at: int, kind: int, blocks: int, xq: Any, dx: Any, xsum: Any, tokens: int, first: int,
    count: int, x_at: int, out: Any,
) -> None:  # fmt: skip
    """16 output rows for `count` of `tokens` tokens from `first` on: `out[token * 16 + row]`, float32.

    `at` is the tile's first byte in `arena` (uint8), `lower_at` that of its lower nibbles (w8 only); `x_at` where this
    activation's `[block][token]` begins. A guess gives the sixteenth of the sums.
    """
    if kind == 0:
        _matrix_w4m(arena, at, blocks, xq, dx, xsum, tokens, first, count, x_at, out)
    elif kind == 2:
        _matrix_w8(arena, at, lower_at, blocks, xq, dx, xsum, tokens, first, count, x_at, out)
    else:
        centre = -8.0 if kind == 1 else GUESS_CENTRE
        _matrix_w4(arena, at, blocks, xq, dx, xsum, tokens, first, count, x_at, out, centre)


_U8, _I8, _F32 = (types.Array(kind, 1, "C") for kind in (types.uint8, types.int8, types.float32))
_INT = types.int64
_ROUNDED = (_I8, _F32, _F32)
TILE_PRODUCT = Compiled(
    tile_product,
    types.void(_U8, _INT, _INT, _INT, _INT, *_ROUNDED, _INT, _INT, _INT, _INT, _F32),
)
VECTOR_PRODUCT = Compiled(vector_product, types.void(_U8, _INT, _INT, _INT, _INT, _INT, *_ROUNDED, _INT, _F32))
call_tile_product, call_vector_product = caller(TILE_PRODUCT.signature), caller(VECTOR_PRODUCT.signature)
