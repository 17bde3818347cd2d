"""Arrays that compiled functions find by number in a table, so that none passes dozens of them on to the next.

A table is an int64 array: the address of array `number` stands at `2 * number`, its length behind it. `StepTables` of
`models.cpu_tables` writes such tables. Numba takes an array apart into seven arguments, and each function that passes
a record of fifty arrays to another is compiled for seconds; a table is one array.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from windlass.kernels.simd import intrinsic


def _array(context: Any, builder: Any, kind: Any, address: Any, length: Any) -> Any:
    library: Any = arrayobj
    element = context.get_data_type(kind.dtype)
    size = ir.Constant(ir.IntType(64), context.get_abi_sizeof(element))
    array = library.make_array(kind)(context, builder)
    data = builder.inttoptr(address, element.as_pointer())
    library.populate_array(array, data=data, shape=[length], strides=[size], itemsize=size, meminfo=None)
    return array._getvalue()


def _view(dtype: Any) -> Any:
    kind = types.Array(dtype, 1, "C")

    def view(typing: Any, table: Any, number: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            two = ir.Constant(ir.IntType(64), 2)
            entry = builder.gep(start, [builder.mul(arguments[1], two)])
            behind = builder.gep(entry, [ir.Constant(ir.IntType(64), 1)])
            return _array(context, builder, kind, builder.load(entry), builder.load(behind))

        return kind(table, types.int64), codegen

    return intrinsic(view)


int64s, float32s, uint8s, int8s, uint16s = (
    _view(dtype) for dtype in (types.int64, types.float32, types.uint8, types.int8, types.uint16)
)
"""`int64s(table, number)`: array `number`, which holds int64; and so on."""


@intrinsic
def table_at(typing: Any, address: Any) -> Any:
    """The table at an address."""
    kind = types.Array(types.int64, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _array(context, builder, kind, arguments[0], ir.Constant(ir.IntType(64), 1 << 20))

    return kind(types.int64), codegen
