"""Vectors for Numba: registers as values, and the few instructions that low-bit products need.

Numba has no vector type. Here an opaque Numba type is given an LLVM vector as its data model, so a value of it lives
in a register and each operation below becomes one or two instructions. The same names exist for every instruction set;
`ISA` says which one this process uses:

    avx512vnni   16 lanes, vpdpbusd
    avxvnni       8 lanes, vpdpbusd on 256 bits
    avx2          8 lanes, pmaddubsw and pmaddwd
    neon          8 lanes, sdot
    generic       8 lanes, plain LLVM arithmetic, runs everywhere

`kernels.isa` chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

from windlass.kernels import isa

ISA, LANES = isa.ISA, isa.LANES
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _HALF = ir.FloatType(), ir.HalfType()
_BYTES, _WORDS = ir.VectorType(_I8, 4 * LANES), ir.VectorType(_I16, 2 * LANES)
_INTS, _FLOATS, _HALVES = (ir.VectorType(element, LANES) for element in (_I32, _F32, _HALF))
_NEW_VNNI = llvmlite.binding.llvm_version_info[0] >= 21


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator, typed: what is called later lacks the typing context that is declared."""
    wrapped: Callable[..., Any] = numba_intrinsic(function)
    return wrapped


class _Vector(types.Type):
    """Base of the vector types. Each is a class of this module, so that compiled code on disk can name it."""

    def __init__(self) -> None:
        super().__init__(name=f"{type(self).__name__}x{LANES}")


class BytesType(_Vector):
    """`4 * LANES` bytes."""


class IntsType(_Vector):
    """`LANES` int32."""


class FloatsType(_Vector):
    """`LANES` float32."""


class SumsType(_Vector):
    """`2 * LANES` int16."""


def _register(kind: type[_Vector], llvm_type: ir.Type) -> _Vector:
    class Model(models.PrimitiveModel):
        def __init__(self, manager: Any, frontend: Any) -> None:
            super().__init__(manager, frontend, llvm_type)  # type: ignore[no-untyped-call]

    register_model(kind)(Model)
    return kind()


Bytes = _register(BytesType, _BYTES)
Ints = _register(IntsType, _INTS)
Floats = _register(FloatsType, _FLOATS)
Sums = _register(SumsType, _WORDS) if ISA == "avx2" else Ints
"""Running sums of nibble products. On AVX2 they are 16-bit: 8 products of 15 x 127 x 2 stay below 32,768."""
_SUMS = _WORDS if ISA == "avx2" else _INTS


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    return builder.call(function, arguments)


def _picked(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(picks)), picks))


def _sixteenfold(builder: Any, value: Any) -> Any:
    return builder.shl(value, _constant(_BYTES, 4))


def _joined(builder: Any, upper: Any, lower: Any) -> Any:
    """Bytes of the upper half of one and the lower half of the other, less 128."""
    halves = builder.and_(upper, _constant(_BYTES, -16)), builder.and_(lower, _constant(_BYTES, 15))
    return builder.xor(builder.or_(*halves), _constant(_BYTES, -128))


def _splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: ir.Type) -> Any:
    """Pointer to element `index` of a one-dimensional array, as a pointer to `kind`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _loader(result: Any, stored: ir.Type, convert: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def load(typing: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], stored)
            return convert(builder, builder.load(pointer, align=1))

        return result(array, types.intp), codegen

    return load


def _pure(result: Any, count: int, build: Callable[..., Any], operand: Any = None) -> Callable[..., Any]:
    """An intrinsic on `count` operands of one vector type that only computes."""
    kind = operand or result

    def one(typing: Any, a: Any) -> Any:
        return result(kind), lambda context, builder, signature, arguments: build(builder, *arguments)

    def two(typing: Any, a: Any, b: Any) -> Any:
        return result(kind, kind), lambda context, builder, signature, arguments: build(builder, *arguments)

    def three(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return result(kind, kind, kind), lambda context, builder, signature, arguments: build(builder, *arguments)

    return intrinsic((one, two, three)[count - 1])


load_bytes = intrinsic(_loader(Bytes, _BYTES, lambda builder, value: value))
"""`4 * LANES` bytes of a uint8 array from an offset; any alignment."""
load_float = intrinsic(_loader(Floats, _FLOATS, lambda builder, value: value))
"""`LANES` numbers of a float32 array from an index."""
load_half = intrinsic(_loader(Floats, _HALVES, lambda builder, value: builder.fpext(value, _FLOATS)))
"""`LANES` half-precision numbers as float32. The index counts elements of the array (bytes of a uint8 array)."""
repeat = intrinsic(_loader(Floats, _F32, lambda builder, value: _splat(builder, value, _FLOATS)))
"""One number of a float32 array in every lane; unlike `splat(array[i])`, the index cannot count from the end."""
_STORED = {types.float32: _F32, types.uint16: _HALF, types.int8: _I8}


def _number(builder: Any, value: Any, kind: ir.Type) -> Any:
    if isinstance(getattr(value.type, "element", value.type), ir.IntType):
        return builder.sitofp(value, kind)
    return value if value.type == kind else builder.fpext(value, kind)


@intrinsic
def load_number(typing: Any, array: Any, index: Any) -> Any:
    """`LANES` numbers of a float32, uint16 (the bits of half precision) or int8 array, as float32."""
    stored = ir.VectorType(_STORED[array.dtype], LANES)
    return _loader(Floats, stored, lambda builder, value: _number(builder, value, _FLOATS))(typing, array, index)


@intrinsic
def number_at(typing: Any, array: Any, index: Any) -> Any:
    """One number of a float32, uint16 (the bits of half precision) or int8 array, as float32."""
    stored = _STORED[array.dtype]
    return _loader(types.float32, stored, lambda builder, value: _number(builder, value, _F32))(typing, array, index)


broadcast4 = intrinsic(
    _loader(Bytes, _I32, lambda builder, value: builder.bitcast(_splat(builder, value, _INTS), _BYTES))
)
"""Four bytes of an int8 array, repeated in every lane."""

low_nibbles = _pure(Bytes, 1, lambda builder, value: builder.and_(value, _constant(_BYTES, 15)))
high_nibbles = _pure(Bytes, 1, lambda builder, value: builder.lshr(value, _constant(_BYTES, 4)))
low_halves = _pure(Bytes, 2, lambda builder, high, low: _joined(builder, _sixteenfold(builder, high), low))
"""Signed bytes of which the low nibbles of two registers hold the upper half (plus 8) and the lower half."""
high_halves = _pure(
    Bytes, 2, lambda builder, high, low: _joined(builder, high, builder.lshr(low, _constant(_BYTES, 4)))
)
"""The same for high nibbles."""
sixteenfold = _pure(Ints, 2, lambda builder, a, b: builder.add(builder.shl(a, _constant(_INTS, 4)), b))
"""`16 * a + b`."""
to_float = _pure(Floats, 1, lambda builder, value: builder.sitofp(value, _FLOATS), Ints)
add_float = _pure(Floats, 2, lambda builder, a, b: builder.fadd(a, b))
mul_float = _pure(Floats, 2, lambda builder, a, b: builder.fmul(a, b))
div_float = _pure(Floats, 2, lambda builder, a, b: builder.fdiv(a, b))
max_float = _pure(Floats, 2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
abs_float = _pure(Floats, 1, lambda builder, value: _call(builder, f"llvm.fabs.v{LANES}f32", _FLOATS, [value]))
round_float = _pure(Floats, 1, lambda builder, value: _call(builder, f"llvm.rint.v{LANES}f32", _FLOATS, [value]))
"""To the nearest whole number, halves to even."""
fma = _pure(Floats, 3, lambda builder, a, b, c: _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, [a, b, c]))
"""`a * b + c`, rounded once."""


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _FLOATS)

    return Floats(types.float32), codegen


@intrinsic
def zero_float(typing: Any) -> Any:
    return Floats(), lambda context, builder, signature, arguments: _constant(_FLOATS, 0.0)


@intrinsic
def zero_ints(typing: Any) -> Any:
    return Ints(), lambda context, builder, signature, arguments: _constant(_INTS, 0)


@intrinsic
def zero_sums(typing: Any) -> Any:
    return Sums(), lambda context, builder, signature, arguments: _constant(_SUMS, 0)


swap_pairs = _pure(Floats, 1, lambda builder, value: _picked(builder, value, value, [i ^ 1 for i in range(LANES)]))


@intrinsic
def store_float(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `LANES` numbers to a float32 array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _FLOATS)
        builder.store(arguments[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats), codegen


@intrinsic
def store_codes(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `LANES` whole numbers of at most 127 in size to an int8 array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_I8, LANES)
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], kind)
        builder.store(builder.trunc(builder.fptosi(arguments[2], _INTS), kind), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats), codegen


@intrinsic
def store_half(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `LANES` numbers, rounded to half precision, to a uint16 array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _HALVES)
        builder.store(builder.fptrunc(arguments[2], _HALVES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats), codegen


@intrinsic
def store_one_half(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a float32, rounded to half precision, to two bytes of a uint8 array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _HALF)
        builder.store(builder.fptrunc(arguments[2], _HALF), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), codegen


def _tree(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """The lanes combined in a tree of fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(_I32, width), list(range(at, at + width))) for at in (0, width)]
        undefined = ir.Constant(vector.type, ir.Undefined)
        vector = combine(*(builder.shuffle_vector(vector, undefined, half) for half in halves))
    return builder.extract_element(vector, ir.Constant(_I32, 0))


@intrinsic
def sum_lanes(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _tree(builder, arguments[0], builder.fadd)

    return types.float32(Floats), codegen


@intrinsic
def max_lanes(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _tree(builder, arguments[0], larger)

    return types.float32(Floats), codegen


def _four_sums(builder: Any, vectors: list[Any]) -> Any:
    """The lanes of each of four vectors added up, as one vector of four; the same tree for each."""
    if LANES == 16:
        halves = [list(range(at, at + 8)) for at in (0, 8)]
        vectors = [builder.fadd(*(_picked(builder, vector, vector, half) for half in halves)) for vector in vectors]
    a, b, c, d = vectors
    low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    first = builder.fadd(_picked(builder, a, b, low), _picked(builder, a, b, high))
    second = builder.fadd(_picked(builder, c, d, low), _picked(builder, c, d, high))
    even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
    both = builder.fadd(_picked(builder, first, second, even), _picked(builder, first, second, odd))
    return builder.fadd(*(_picked(builder, both, both, list(range(at, at + 4))) for at in (0, 4)))


@intrinsic
def store_four_sums(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the sums over the lanes of `a`, `b`, `c` and `d` side by side to a float32 array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums = _four_sums(builder, list(arguments[2:]))
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], sums.type)
        builder.store(sums, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, Floats, Floats, Floats, Floats), codegen


def _exp(builder: Any, x: Any) -> Any:
    """e^x by 2^n times a polynomial on [-ln2/2, ln2/2]; relative error below 2e-7, clamped to the finite range."""

    def constant(value: float) -> Any:
        return _constant(_FLOATS, float(np.float32(value)))

    def fused(a: Any, b: Any, c: Any) -> Any:
        return _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, [a, b, c])

    x = builder.select(builder.fcmp_ordered("<", x, constant(-87.0)), constant(-87.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, constant(88.0)), constant(88.0), x)
    scaled = builder.fmul(x, constant(1.44269504088896341))
    n = _call(builder, f"llvm.rint.v{LANES}f32", _FLOATS, [scaled])
    r = fused(n, constant(-0.693359375), x)
    r = fused(n, constant(2.12194440e-4), r)
    p = constant(1.0 / 5040)
    for coefficient in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        p = fused(p, r, constant(coefficient))
    exponent = builder.shl(builder.add(builder.fptosi(n, _INTS), _constant(_INTS, 127)), _constant(_INTS, 23))
    return builder.fmul(p, builder.bitcast(exponent, _FLOATS))


exp_float = _pure(Floats, 1, _exp)
"""e^x, for x in [-87, 88]; outside it the value at the border."""


def _exp2(builder: Any, x: Any) -> Any:
    """2^x for x <= 0 (below -126, its value there): 2^n times a polynomial on [-1/2, 1/2], relative error 3e-7."""
    x = builder.select(builder.fcmp_ordered(">", x, _constant(_FLOATS, -126.0)), x, _constant(_FLOATS, -126.0))
    n = _call(builder, f"llvm.rint.v{LANES}f32", _FLOATS, [x])
    r = builder.fsub(x, n)
    p = _constant(_FLOATS, _POWER[0])
    for coefficient in _POWER[1:]:
        p = _call(builder, f"llvm.fma.v{LANES}f32", _FLOATS, [p, r, _constant(_FLOATS, coefficient)])
    exponent = builder.shl(builder.fptosi(n, _INTS), _constant(_INTS, 23))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _FLOATS)


_POWER = tuple(
    float(np.float32(coefficient))
    for coefficient in (
        0.0013276470126584172, 0.009675540961325169, 0.05550713092088699, 0.24022120237350464,
        0.6931469440460205, 1.0000001,
    )
)  # fmt: skip
exp2_float = _pure(Floats, 1, _exp2)
"""2^x for x <= 0; below -126, its value there."""


def _dot_by_sums(builder: Any, acc: Any, weights: Any, x: Any, widen: str) -> Any:
    """Four products a lane in plain LLVM: widen to 32 bits, multiply, add neighbours twice."""
    wide = ir.VectorType(_I32, 4 * LANES)
    products = builder.mul(getattr(builder, widen)(weights, wide), builder.sext(x, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    for part in range(4):
        picks = ir.Constant(ir.VectorType(_I32, LANES), list(range(part, 4 * LANES, 4)))
        acc = builder.add(acc, builder.shuffle_vector(products, undefined, picks))
    return acc


def _vnni(builder: Any, acc: Any, weights: Any, x: Any) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
    operands = [weights, x] if _NEW_VNNI else [builder.bitcast(part, _INTS) for part in (weights, x)]
    return _call(builder, name, _INTS, [acc, *operands])


def _sdot(builder: Any, acc: Any, weights: Any, x: Any) -> Any:
    quarter, bytes16 = ir.VectorType(_I32, 4), ir.VectorType(_I8, 16)
    parts = []
    for at in range(0, LANES, 4):
        lanes = ir.Constant(ir.VectorType(_I32, 4), list(range(at, at + 4)))
        bytes_ = ir.Constant(ir.VectorType(_I32, 16), list(range(4 * at, 4 * at + 16)))
        pieces = [builder.shuffle_vector(acc, acc, lanes)]
        pieces += [builder.shuffle_vector(part, part, bytes_) for part in (weights, x)]
        assert pieces[1].type == bytes16
        parts.append(_call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", quarter, pieces))
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES))))


def _dot_nibbles(builder: Any, acc: Any, weights: Any, x: Any) -> Any:
    if ISA in ("avx512vnni", "avxvnni"):
        return _vnni(builder, acc, weights, x)
    if ISA == "avx2":
        return builder.add(acc, _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, [weights, x]))
    if ISA == "neon":
        return _sdot(builder, acc, weights, x)
    return _dot_by_sums(builder, acc, weights, x, "zext")


def _dot_signed(builder: Any, acc: Any, weights: Any, x: Any) -> Any:
    if ISA in ("avx512vnni", "avxvnni"):
        return _vnni(builder, acc, builder.xor(weights, _constant(_BYTES, -128)), x)
    if ISA == "avx2":
        # |w| times x with the sign of w: the unsigned operand stays below 129, so no pair of products saturates.
        size = _call(builder, "llvm.abs.v32i8", _BYTES, [weights, ir.Constant(ir.IntType(1), 0)])
        signed = _call(builder, "llvm.x86.avx2.psign.b", _BYTES, [x, weights])
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, [size, signed])
        return builder.add(acc, _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS, [pairs, _constant(_WORDS, 1)]))
    if ISA == "neon":
        return _sdot(builder, acc, weights, x)
    return _dot_by_sums(builder, acc, weights, x, "sext")


@intrinsic
def dot_nibbles(typing: Any, sums: Any, weights: Any, x: Any) -> Any:
    """`sums` plus, in each lane, four products of weights 0..15 and int8 activations. At most eight calls a fold."""
    return Sums(Sums, Bytes, Bytes), lambda context, builder, signature, a: _dot_nibbles(builder, *a)


@intrinsic
def fold_nibbles(typing: Any, sums: Any) -> Any:
    """The 32-bit sums that up to eight `dot_nibbles` collected."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if ISA == "avx2":
            return _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS, [arguments[0], _constant(_WORDS, 1)])
        return arguments[0]

    return Ints(Sums), codegen


@intrinsic
def dot_signed(typing: Any, acc: Any, weights: Any, x: Any) -> Any:
    """`acc` plus, in each lane, four products of int8 weights and int8 activations (never -128).

    Under vpdpbusd the weights enter shifted by 128; `fold_signed` takes that out again.
    """
    return Ints(Ints, Bytes, Bytes), lambda context, builder, signature, a: _dot_signed(builder, *a)


@intrinsic
def fold_signed(typing: Any, acc: Any, x_sum: Any) -> Any:
    """The sums of `dot_signed` as float32, given the plain sum of the activations they saw; exact below 2^24."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total = builder.sitofp(arguments[0], _FLOATS)
        if ISA in ("avx512vnni", "avxvnni"):
            return builder.fsub(total, builder.fmul(arguments[1], _constant(_FLOATS, 128.0)))
        return total

    return Floats(Ints, Floats), codegen


@intrinsic
def popcount(typing: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.ctpop.i64", _I64, arguments)

    return types.int64(types.uint64), codegen


@intrinsic
def atomic_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an int64 of an array that several threads share; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _I64)
        return builder.atomic_rmw("add", pointer, arguments[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typing: Any, array: Any, index: Any) -> Any:
    """Read an int64 that another thread writes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _I64)
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), codegen


load_word = intrinsic(_loader(types.int64, _I32, lambda builder, value: builder.zext(value, _I64)))
"""Four bytes of a uint8 array as a whole number; any alignment."""


@intrinsic
def store_word(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the low four bytes of a whole number to a uint8 array; any alignment."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _I32)
        builder.store(builder.trunc(arguments[2], _I32), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def copy_half(typing: Any, source: Any, source_at: Any, target: Any, target_at: Any) -> Any:
    """Copy the two bytes of a half-precision number; whether it is NaN or infinite, as 0 or 1."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_type, _, target_type, _ = signature.args
        half = builder.load(_address(context, builder, source_type, arguments[0], arguments[1], _I16), align=1)
        builder.store(half, _address(context, builder, target_type, arguments[2], arguments[3], _I16), align=1)
        exponent = ir.Constant(_I16, 0x7C00)
        return builder.zext(builder.icmp_unsigned("==", builder.and_(half, exponent), exponent), _I64)

    return types.int64(source, types.intp, target, types.intp), codegen


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element `index`, which may lie past the end of the array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], _I8)
        flags = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this is a spin loop."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if ISA.startswith("avx"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typing: Any) -> Any:
    """Let another thread of the system run now."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        _call(builder, name, _I32, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sleep_briefly(typing: Any) -> Any:
    """Leave the processor for about 50 microseconds (a millisecond on Windows)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform == "win32":
            _call(builder, "Sleep", ir.VoidType(), [ir.Constant(_I32, 1)])
        else:
            _call(builder, "usleep", _I32, [ir.Constant(_I32, 50)])
        return context.get_dummy_value()

    return types.void(), codegen
