"""Which places of an array are below those of another, written side by side without a branch.

A branch a place is mispredicted a third of the time; eight comparisons at once give a byte, and a table turns the byte
into the places whose bit is set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from windlass.kernels.compiled import compiled
from windlass.kernels.simd import intrinsic

WIDTH = 8
_BITS = (np.arange(256)[:, None] >> np.arange(WIDTH)) & 1
PLACES = np.argsort(1 - _BITS, axis=1, kind="stable").astype(np.int32).ravel()
"""int32 `[256 * 8]`: for each byte the places of its set bits, lowest first, then the others."""
_INT = ir.IntType(32)


@intrinsic
def _collect_eight(typing: Any, a: Any, b: Any, at: Any, places: Any, found: Any, count: Any) -> Any:
    """Write the places among `at .. at+7` where `a < b` to `found[count:]`; returns the count after them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(number: int, index: Any, kind: ir.Type) -> Any:
            data = context.make_array(signature.args[number])(context, builder, arguments[number]).data
            return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

        element = context.get_data_type(signature.args[0].dtype)
        several, eight_ints = ir.VectorType(element, WIDTH), ir.VectorType(_INT, WIDTH)
        left, right = (builder.load(pointer(number, arguments[2], several), align=1) for number in (0, 1))
        compare = builder.icmp_signed if isinstance(element, ir.IntType) else builder.fcmp_ordered
        byte = builder.bitcast(compare("<", left, right), ir.IntType(8))
        row = builder.mul(builder.zext(byte, ir.IntType(64)), ir.Constant(ir.IntType(64), WIDTH))
        chosen = builder.load(pointer(3, row, eight_ints), align=1)
        first = builder.insert_element(
            ir.Constant(eight_ints, ir.Undefined), builder.trunc(arguments[2], _INT), ir.Constant(_INT, 0)
        )
        everywhere = builder.shuffle_vector(
            first, ir.Constant(eight_ints, ir.Undefined), ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH)
        )
        builder.store(builder.add(chosen, everywhere), pointer(4, arguments[5], eight_ints), align=1)
        return builder.add(arguments[5], builder.zext(builder.ctpop(byte), ir.IntType(64)))

    return types.int64(a, b, types.int64, places, found, types.int64), codegen


@compiled
def collect_less(a: Any, b: Any, found: Any) -> int:
    """How many places hold `a < b`; they are the first of `found`, rising.

    Args:
        a, b: `[n]`, contiguous, of one type.
        found: int32 `[n + 8]`, overwritten.
    """
    n, count, at = len(a), 0, 0
    while at + WIDTH <= n:
        count = _collect_eight(a, b, at, PLACES, found, count)
        at += WIDTH
    for o in range(at, n):
        found[count] = o
        count += a[o] < b[o]
    return count
