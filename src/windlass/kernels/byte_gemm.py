"""Products of signed 8-bit weights with unsigned 8-bit activations, for many tokens at a time: an encoder's layers.

Each weight row has one scale, each token one step and one low end: `weight = scale * code`, `x = low + step * code`
with codes 0 to 255, so a one-sided activation loses no bit to its sign. One AVX2 instruction multiplies such bytes
and adds neighbouring pairs in 16 bits; two of them are added before the sums are widened, which is where the time
goes otherwise. That is exact because `byte_panels.round_rows` picks every row's scale so that no such sum can leave 16
bits, which costs a row about a third of a bit. `byte_panels` says how weights lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from windlass.kernels import simd
from windlass.kernels.byte_panels import PANEL, TOGETHER
from windlass.kernels.compiled import Compiled, caller, compiled, inlined
from windlass.kernels.gelu import TAIL
from windlass.kernels.isa import ISA, LANES
from windlass.kernels.simd import (
    Bytes,
    Ints,
    abs_float,
    add_float,
    broadcast4,
    div_float,
    fma,
    intrinsic,
    load_bytes,
    load_float,
    max_float,
    mul_float,
    repeat,
    splat,
    store_float,
    to_float,
    zero_ints,
)

SHIFT = 128.0 if ISA == "neon" else 0.0
"""NEON multiplies signed bytes only: codes enter less 128, and a token's low end is 128 steps higher."""


def _dot_eight(builder: Any, acc: Any, x: list[Any], w: list[Any]) -> Any:
    if ISA == "avx2":
        pairs = [
            simd._call(builder, "llvm.x86.avx2.pmadd.ub.sw", simd._WORDS, [a, b]) for a, b in zip(x, w, strict=True)
        ]
        sums = builder.add(pairs[0], pairs[1])
        ones = simd._constant(simd._WORDS, 1)
        return builder.add(acc, simd._call(builder, "llvm.x86.avx2.pmadd.wd", simd._INTS, [sums, ones]))
    for a, b in zip(x, w, strict=True):
        if ISA in ("avx512vnni", "avxvnni"):
            acc = simd._vnni(builder, acc, a, b)
        elif ISA == "neon":
            acc = simd._sdot(builder, acc, b, builder.xor(a, simd._constant(simd._BYTES, -128)))
        else:
            wide = ir.VectorType(simd._I32, 4 * LANES)
            products = builder.mul(builder.zext(a, wide), builder.sext(b, wide))
            for part in range(4):
                picks = ir.Constant(ir.VectorType(simd._I32, LANES), list(range(part, 4 * LANES, 4)))
                acc = builder.add(acc, builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), picks))
    return acc


@intrinsic
def dot_eight(typing: Any, acc: Any, x0: Any, x1: Any, w0: Any, w1: Any) -> Any:
    """`acc` plus, in each lane, four products of bytes of `x0` (0..255) and `w0` (int8) and four of `x1` and `w1`."""

    def codegen(context: Any, builder: Any, signature: Any, a: Any) -> Any:
        return _dot_eight(builder, a[0], [a[1], a[2]], [a[3], a[4]])

    return Ints(Ints, Bytes, Bytes, Bytes, Bytes), codegen


@inlined
def gelu(x: Any) -> Any:
    """Of each lane of a register, in the steps that `kernels.gelu` explains."""
    size = abs_float(x)
    power = fma(size, splat(TAIL[0]), splat(TAIL[1]))
    power = fma(power, size, splat(TAIL[2]))
    power = fma(power, size, splat(TAIL[3]))
    power = fma(power, size, splat(TAIL[4]))
    power = fma(power, size, splat(TAIL[5]))
    power = mul_float(power, power)
    power = mul_float(power, power)
    power = mul_float(power, power)
    power = mul_float(power, power)
    power = mul_float(power, power)
    tail = div_float(size, power)
    return add_float(max_float(x, splat(np.float32(0))), mul_float(tail, splat(np.float32(-1))))


@inlined
def _finish(
    low: Any, high: Any, step: Any, base: Any, floats: Any, rows_at: int, stride: int, out: Any, at: int, bend: bool
) -> None:
    """Two registers of sums of one token to `scale * step * sum + low * codes' sum + bias`, bent by gelu or not."""
    first = fma(load_float(floats, rows_at + stride), base, load_float(floats, rows_at + 2 * stride))
    first = fma(to_float(low), mul_float(load_float(floats, rows_at), step), first)
    at_high = rows_at + LANES
    second = fma(load_float(floats, at_high + stride), base, load_float(floats, at_high + 2 * stride))
    second = fma(to_float(high), mul_float(load_float(floats, at_high), step), second)
    if bend:
        first, second = gelu(first), gelu(second)
    store_float(out, at, first)
    store_float(out, at + LANES, second)


@compiled
def byte_product(
    x: Any, x_at: int, columns: int, steps: Any, lows: Any, token: int, tokens: int,
    arena: Any, at: int, panels: int, floats: Any, floats_at: int, out: Any, out_at: int, stride: int, bend: bool,
) -> None:  # fmt: skip
    """`panels * PANEL` outputs for each of `tokens` tokens, a multiple of `TOGETHER`.

    Every output is the same sum in the same order whatever its neighbours.

    Args:
        x: uint8, codes of token t from `x_at + t * columns`.
        steps, lows: float32, of token t at `token + t`.
        arena: uint8, the panels from byte `at`.
        floats: float32 from `floats_at`: scales of all rows, then scale times sum of codes, then biases.
        out: float32, token t from `out_at + t * stride`.
        bend: Put the outputs through `gelu`.
    """
    rows = panels * PANEL
    for panel in range(panels):
        start, place = at + panel * PANEL * columns, floats_at + panel * PANEL
        for t in range(0, tokens, TOGETHER):
            x_a = x_at + t * columns
            x_b, x_c, x_d = x_a + columns, x_a + 2 * columns, x_a + 3 * columns
            a, b, c, d = zero_ints(), zero_ints(), zero_ints(), zero_ints()
            e, f, g, h = zero_ints(), zero_ints(), zero_ints(), zero_ints()
            for column in range(0, columns, 8):
                w = start + column * PANEL
                w0, w1 = load_bytes(arena, w), load_bytes(arena, w + 4 * LANES)
                w2, w3 = load_bytes(arena, w + 8 * LANES), load_bytes(arena, w + 12 * LANES)
                x0, x1 = broadcast4(x, x_a + column), broadcast4(x, x_a + column + 4)
                a, e = dot_eight(a, x0, x1, w0, w1), dot_eight(e, x0, x1, w2, w3)
                x0, x1 = broadcast4(x, x_b + column), broadcast4(x, x_b + column + 4)
                b, f = dot_eight(b, x0, x1, w0, w1), dot_eight(f, x0, x1, w2, w3)
                x0, x1 = broadcast4(x, x_c + column), broadcast4(x, x_c + column + 4)
                c, g = dot_eight(c, x0, x1, w0, w1), dot_eight(g, x0, x1, w2, w3)
                x0, x1 = broadcast4(x, x_d + column), broadcast4(x, x_d + column + 4)
                d, h = dot_eight(d, x0, x1, w0, w1), dot_eight(h, x0, x1, w2, w3)
            y, s = out_at + t * stride + panel * PANEL, token + t
            _finish(a, e, repeat(steps, s), repeat(lows, s), floats, place, rows, out, y, bend)
            _finish(b, f, repeat(steps, s + 1), repeat(lows, s + 1), floats, place, rows, out, y + stride, bend)
            _finish(c, g, repeat(steps, s + 2), repeat(lows, s + 2), floats, place, rows, out, y + 2 * stride, bend)
            _finish(d, h, repeat(steps, s + 3), repeat(lows, s + 3), floats, place, rows, out, y + 3 * stride, bend)


_U8, _F32, _INT = types.Array(types.uint8, 1, "C"), types.Array(types.float32, 1, "C"), types.int64
BYTE_PRODUCT = Compiled(
    byte_product,
    types.void(_U8, _INT, _INT, _F32, _F32, _INT, _INT, _U8, _INT, _INT, _F32, _INT, _F32, _INT, _INT, types.boolean),
)
call_byte_product = caller(BYTE_PRODUCT.signature)
