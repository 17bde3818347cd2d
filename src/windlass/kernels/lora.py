"""Low-rank updates of many adapters and ranks in one batch: `y += scale * B (A x)`, each token with its own A and B.

The gathered products of Punica and S-LoRA. A matrix is a list of *cells*: rows of A, then columns of B, each a run of
half-precision numbers anywhere in the one page pool. A token reads exactly the cells of its own rank: nothing is padded
to the largest. Every row of A and every element of the output is summed in an order of its own, so the bits of a token
do not depend on what else is in the batch nor on how rows are shared among threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from windlass.kernels.compiled import Compiled, caller, compiled
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
    fma,
    load_float,
    load_half,
    repeat,
    store_float,
    store_four_sums,
    zero_float,
)

Floats = NDArray[np.float32]
ROOM = 3
"""Numbers that `shrink` may write behind the last one it was asked for: it makes four at a time."""


def reference(
    x: Floats,
    data: NDArray[np.uint16],
    slots: NDArray[np.int64],
    tables: NDArray[np.int64],
    scales: Floats,
    cells: NDArray[np.int64],
    outputs: int,
) -> Floats:
    """The obvious way, for one matrix.

    Args:
        x: float32 [tokens, inputs].
        data: bits of half-precision numbers.
        slots: int64 [tokens], which adapter a token has; -1: none.
        tables: int64 [adapters, 3]: rank, and where in `cells` the rows of A and the columns of B begin.
        scales: float32 [adapters].
        cells: int64, where in `data` a row or column begins.
        outputs: Length of a column of B.

    Returns:
        float32 [tokens, outputs]: what is to be added.
    """
    values = data.view(np.float16)
    out = np.zeros((len(x), outputs), np.float32)
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        rank, rows, columns = tables[slot]
        a = np.array([values[at : at + x.shape[1]] for at in cells[rows : rows + rank]], np.float64)
        b = np.array([values[at : at + outputs] for at in cells[columns : columns + rank]], np.float64)
        if rank:
            out[token] = (scales[slot] * (a @ x[token])) @ b
    return out


@compiled
def shrink(
    x: Any, x_at: int, size: int, data: Any, cells: Any, first: int, rank: int, scale: float, out: Any, out_at: int
) -> None:
    """`scale * A x` for one token; `rank` numbers to `out`, which has `ROOM` more behind them.

    Args:
        x: float32, the token's `size` (a multiple of 16) inputs from `x_at`.
        data: uint16, the pool, flat.
        cells, first, rank: Where the rows of A are: `cells[first]` to `cells[first + rank - 1]`.
    """
    for row in range(0, rank, 4):
        a, b = cells[first + row], cells[first + min(row + 1, rank - 1)]
        c, d = cells[first + min(row + 2, rank - 1)], cells[first + min(row + 3, rank - 1)]
        of_a, of_b, of_c, of_d = zero_float(), zero_float(), zero_float(), zero_float()
        for i in range(0, size, LANES):
            value = load_float(x, x_at + i)
            of_a = fma(value, load_half(data, a + i), of_a)
            of_b = fma(value, load_half(data, b + i), of_b)
            of_c = fma(value, load_half(data, c + i), of_c)
            of_d = fma(value, load_half(data, d + i), of_d)
        store_four_sums(out, out_at + row, of_a, of_b, of_c, of_d)
    for row in range(rank):
        out[out_at + row] *= np.float32(scale)


@compiled
def expand(
    y: Any, y_at: int, data: Any, cells: Any, first: int, rank: int, low: int, count: int, out: Any, out_at: int
) -> None:
    """Add elements `low` to `low + count` (a multiple of 16) of `B y` of one token to `out` from `out_at`.

    Args:
        y: float32, what `shrink` made, from `y_at`.
        data: uint16, the pool, flat.
        cells, first, rank: Where the columns of B are.
    """
    wide = count // (4 * LANES) * (4 * LANES)
    for i in range(0, wide, 4 * LANES):
        at = out_at + i
        a, b = load_float(out, at), load_float(out, at + LANES)
        c, d = load_float(out, at + 2 * LANES), load_float(out, at + 3 * LANES)
        for row in range(rank):
            column, share = cells[first + row] + low + i, repeat(y, y_at + row)
            a = fma(share, load_half(data, column), a)
            b = fma(share, load_half(data, column + LANES), b)
            c = fma(share, load_half(data, column + 2 * LANES), c)
            d = fma(share, load_half(data, column + 3 * LANES), d)
        store_float(out, at, a)
        store_float(out, at + LANES, b)
        store_float(out, at + 2 * LANES, c)
        store_float(out, at + 3 * LANES, d)
    for i in range(wide, count, LANES):
        total = load_float(out, out_at + i)
        for row in range(rank):
            column = load_half(data, cells[first + row] + low + i)
            total = fma(repeat(y, y_at + row), column, total)
        store_float(out, out_at + i, total)


_F32, _U16, _I64 = (types.Array(kind, 1, "C") for kind in (types.float32, types.uint16, types.int64))
_INT = types.int64
SHRINK = Compiled(
    shrink, types.void(_F32, _INT, _INT, _U16, _I64, _INT, _INT, types.float32, _F32, _INT)
)  # fmt: skip
EXPAND = Compiled(expand, types.void(_F32, _INT, _U16, _I64, _INT, _INT, _INT, _INT, _F32, _INT))
call_shrink, call_expand = caller(SHRINK.signature), caller(EXPAND.signature)
