"""The end of a compiled step: logits, or only the likeliest token by a guess in 4 bits and exact sums of the best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled
from windlass.kernels.cpu_attention import normalize
from windlass.kernels.cpu_gemm import call_tile_product, call_vector_product, quantize_token
from windlass.kernels.meeting import meet
from windlass.models.cpu_linear import call_project, tile_bytes
from windlass.models.cpu_tables import (
    BATCH,
    BLOCKS,
    BYTE,
    CANDIDATES,
    COARSE,
    FINAL_NORM,
    HEAD,
    HIDDEN,
    KIND,
    LARGEST_BLOCKS,
    PROJECT_CALL,
    ROWS,
    SCRATCH,
    TILE_CALL,
    TOKEN_GROUP,
    VECTOR_CALL,
    WEIGHTS,
    Batch,
    Scratch,
    Weights,
    share,
)


@compiled
def _head(
    thread: int, threads: int, barrier: Any, w: Weights, batch: Batch, s: Scratch, logits: Any, best: Any, chosen: Any
) -> None:
    """Logits of `batch.wanted` tokens, or, when `logits` is empty, the best row of each in `best` and `chosen`.

    `best` and `chosen` have a row of `wanted` a thread; the highest of all threads counts.
    """
    hidden, layers, wanted = w.sizes[HIDDEN], w.extras.shape[0], batch.wanted.shape[0]
    together = 1 if wanted == 1 else threads
    x_at = thread * w.sizes[LARGEST_BLOCKS] if wanted == 1 else 0
    for row in range(0 if wanted == 1 else thread, wanted, together):
        normed = s.normed[thread]
        normalize(s.x, batch.wanted[row] * hidden, hidden, w.floats, w.sizes[FINAL_NORM], w.eps, normed, 0)
        quantize_token(normed, 0, hidden // 32, row, wanted, s.xq, s.dx, s.xsum, x_at)
    meet(barrier, together)
    matrix, coarse = w.plan[layers, HEAD], w.plan[layers, COARSE]
    tiles = (matrix[ROWS] + 15) // 16
    low, high = share(tiles, thread, threads)
    if logits.shape[0] > 0:
        arguments = (
            matrix, low, high, wanted, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread], logits, 0,
            matrix[ROWS], False,
        )  # fmt: skip
        call_project(w.calls[PROJECT_CALL], arguments)
        return
    _guess(coarse, low, high, wanted, w, s, thread, x_at)
    meet(barrier, threads)
    for row in range(wanted):
        best[thread * wanted + row] = -np.inf
        # One token's candidates are split among the threads; of several tokens each thread takes some.
        if wanted == 1 or row % threads == thread:
            _rank(s.tops[row * tiles : (row + 1) * tiles], s.ranked[thread], s.candidates[thread])
            first, end = share(min(CANDIDATES, tiles), thread, threads) if wanted == 1 else (0, min(CANDIDATES, tiles))
            for place in range(first, end):
                tile = s.candidates[thread][place]
                _settle(matrix, tile, row, wanted, w, s, thread, x_at, best, chosen)


@compiled
def _guess(matrix: Any, low: int, high: int, wanted: int, w: Weights, s: Scratch, thread: int, x_at: int) -> None:
    """The highest coarse logit of each tile `low` to `high`, for each token, to `tops[token * tiles + tile]`."""
    kind, blocks, tiles, sums = matrix[KIND], matrix[BLOCKS], (matrix[ROWS] + 15) // 16, s.sums[thread]
    size = tile_bytes(kind, blocks)
    together = TOKEN_GROUP if wanted == 1 else 1
    for tile in range(low, high, together):
        count, at = min(together, high - tile), matrix[BYTE] + tile * size
        for first in range(0, wanted, TOKEN_GROUP):
            tokens = min(TOKEN_GROUP, wanted - first)
            if wanted == 1:
                call_vector_product(
                    w.calls[VECTOR_CALL], (w.arena, at, kind, blocks, count, s.xq, s.dx, s.xsum, x_at, sums)
                )
            else:
                call_tile_product(
                    w.calls[TILE_CALL],
                    (w.arena, at, kind, blocks, s.xq, s.dx, s.xsum, wanted, first, tokens, x_at, sums),
                )
            for part in range(count * tokens):
                place = tile + part if wanted == 1 else (first + part) * tiles + tile
                rows = min(16, matrix[ROWS] - 16 * (tile + part if wanted == 1 else tile))
                top = sums[16 * part]
                for row in range(1, rows):
                    top = max(top, sums[16 * part + row])
                s.tops[place] = top


@compiled
def _rank(tops: Any, ranked: Any, candidates: Any) -> None:
    """The tiles with the highest tops, highest first."""
    kept = 0
    for tile in range(tops.shape[0]):
        top = tops[tile]
        if kept < CANDIDATES:
            kept += 1
        elif not top > ranked[CANDIDATES - 1]:
            continue
        at = kept - 1
        while at > 0 and ranked[at - 1] < top:
            ranked[at], candidates[at] = ranked[at - 1], candidates[at - 1]
            at -= 1
        ranked[at], candidates[at] = top, tile


@compiled
def _settle(
    matrix: Any,
    tile: int,
    row: int,
    wanted: int,
    w: Weights,
    s: Scratch,
    thread: int,
    x_at: int,
    best: Any,
    chosen: Any,
) -> None:
    """Exact logits of one tile for one token; the best row so far, the lower id among equals."""
    kind, blocks, sums, place = matrix[KIND], matrix[BLOCKS], s.sums[thread], thread * wanted + row
    at = matrix[BYTE] + tile * tile_bytes(kind, blocks)
    if wanted == 1:
        call_vector_product(w.calls[VECTOR_CALL], (w.arena, at, kind, blocks, 1, s.xq, s.dx, s.xsum, x_at, sums))
    else:
        call_tile_product(
            w.calls[TILE_CALL], (w.arena, at, kind, blocks, s.xq, s.dx, s.xsum, wanted, row, 1, x_at, sums)
        )
    for lane in range(min(16, matrix[ROWS] - 16 * tile)):
        token, logit = 16 * tile + lane, sums[lane]
        if logit > best[place] or (logit == best[place] and token < chosen[place]):
            best[place], chosen[place] = logit, token


_F32, _I64, _INT = types.Array(types.float32, 1, "C"), types.Array(types.int64, 1, "C"), types.int64
FIND_HEAD = Compiled(_head, types.void(_INT, _INT, _I64, WEIGHTS, BATCH, SCRATCH, _F32, _F32, _I64))
call_head = caller(FIND_HEAD.signature)
