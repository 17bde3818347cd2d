"""64-bit hashes of values, rows and texts: the one definition that every finder of the lake compares by.

A row's hash is a mix of the *sum* of its cells' hashes, each seeded by its column's name: the rows of any subset of
columns are hashed by adding what is there already, in whatever order the columns stand. A sum and not an exclusive or,
under which two equal cells would cancel out. `hash_bytes` folds 64x64-bit products as wyhash does (the numbers differ
from wyhash's). False collisions among n values are expected n^2 / 2^65 times.

Arrays are little-endian and contiguous; `*_reference` are the same functions in plain Python, for tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.simd import intrinsic

_SEED = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xA0761D6478BD642F)
_SECOND = np.uint64(0xE7037ED1A0B428DB)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD = 1 << 64
_LONG = ir.IntType(64)


@intrinsic
def fold(typing: Any, a: Any, b: Any) -> Any:
    """The 128-bit product of two uint64, its halves combined by exclusive or."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _LONG)
        return builder.xor(builder.trunc(product, _LONG), high)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def load_long(typing: Any, data: Any, index: Any) -> Any:
    """Eight bytes of a uint8 array from `index`, as a uint64; any alignment."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), _LONG.as_pointer())
        return builder.load(address, align=1)

    return types.uint64(data, types.int64), codegen


@inlined
def mix64(x: Any) -> Any:
    """A bijection of uint64 in which every bit of the input moves every bit of the output (the end of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@compiled
def hash_bytes(data: Any, start: Any, end: Any) -> Any:
    """uint64 hash of `data[start:end]` (uint8 array)."""
    length = end - start
    seed = _SEED
    if length <= 16:
        if length >= 8:
            a, b = load_long(data, start), load_long(data, end - 8)
        else:
            a, b = np.uint64(0), np.uint64(0)
            for index in range(start, end):
                a = (a << np.uint64(8)) | np.uint64(data[index])
    else:
        at = start
        while at < end - 16:
            seed = fold(load_long(data, at) ^ _FIRST, load_long(data, at + 8) ^ seed)
            at += 16
        a, b = load_long(data, end - 16), load_long(data, end - 8)
    return fold(_FIRST ^ np.uint64(length), fold(a ^ _FIRST, b ^ seed) ^ _SECOND)


@compiled
def hash_strings(data: Any, starts: Any, ends: Any) -> Any:
    """uint64[n] hashes of the byte strings `data[starts[i]:ends[i]]`."""
    hashes = np.empty(starts.size, np.uint64)
    for index in range(starts.size):
        hashes[index] = hash_bytes(data, starts[index], ends[index])
    return hashes


@compiled
def add_cells(values: Any, seed: Any, sums: Any) -> None:
    """Add one column to the row sums: `sums += mix64(values ^ seed)`, all uint64[rows]."""
    for row in range(values.size):
        sums[row] += mix64(values[row] ^ seed)


@compiled
def finish_rows(sums: Any) -> None:
    """Turn sums of cells into row hashes, in place."""
    for row in range(sums.size):
        sums[row] = mix64(sums[row])


def row_hashes(values: NDArray[np.uint64], seeds: NDArray[np.uint64], columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes of the rows of a projection.

    Args:
        values: uint64[columns, rows], the hash of each cell's value, the same in whatever column it stands.
        seeds: uint64[columns], one a column name.
        columns: Which columns, in any order.

    Returns:
        uint64[rows].

    Example:
        >>> cells = np.array([[1, 2], [3, 4]], np.uint64)
        >>> seeds = np.array([10, 20], np.uint64)
        >>> one = row_hashes(cells, seeds, np.array([0, 1]))
        >>> bool((one == row_hashes(cells, seeds, np.array([1, 0]))).all())
        True
    """
    sums = np.zeros(values.shape[1], np.uint64)
    for column in columns:
        add_cells(values[column], seeds[column], sums)
    finish_rows(sums)
    return sums


def hash_bytes_reference(data: bytes) -> int:
    """`hash_bytes` in plain Python."""

    def folded(a: int, b: int) -> int:
        product = a * b
        return (product % _WORD) ^ (product >> 64)

    first, second, seed = int(_FIRST), int(_SECOND), int(_SEED)
    a = b = 0
    if len(data) > 16:
        at = 0
        while at < len(data) - 16:
            low, high = (int.from_bytes(data[at + skip : at + skip + 8], "little") for skip in (0, 8))
            seed = folded(low ^ first, high ^ seed)
            at += 16
    if len(data) >= 8:
        head = data[-16:-8] if len(data) > 16 else data[:8]
        a, b = int.from_bytes(head, "little"), int.from_bytes(data[-8:], "little")
    else:
        a = int.from_bytes(data, "big")
    return folded(first ^ len(data), folded(a ^ first, b ^ seed) ^ second)


def mix64_reference(x: int) -> int:
    """`mix64` in plain Python."""
    x = (x ^ (x >> 30)) * int(_MIX_1) % _WORD
    x = (x ^ (x >> 27)) * int(_MIX_2) % _WORD
    return x ^ (x >> 31)
