"""The end of a compiled step: logits, or only the likeliest token by a guess in 4 bits and exact sums of the best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, called, caller, compiled
from windlass.kernels.cpu_attention import normalize
from windlass.kernels.cpu_gemm import quantize_token
from windlass.kernels.meeting import meet
from windlass.kernels.views import float32s, int8s, int64s
from windlass.models.cpu_linear import call_project, matrix_at, multiply, share
from windlass.models.cpu_tables import (
    BARRIER,
    BEST,
    CALLS,
    CANDIDATE_TILES,
    CANDIDATES,
    CHOSEN,
    COARSE,
    CODE_SUMS,
    CODES,
    EPSILON,
    FINAL_NORM,
    FLOATS,
    HEAD,
    HIDDEN,
    LARGEST_BLOCKS,
    LAYERS,
    LOGITS,
    NORMED,
    PLAN,
    PROJECT_CALL,
    RANKED,
    ROWS,
    SIZES,
    STEPS,
    SUMS,
    TOKEN_GROUP,
    TOPS,
    WANTED,
    X,
)


@called
def _head(t: Any, thread: int, threads: int) -> None:
    """Logits of the wanted tokens, or, when `LOGITS` is empty, the best row of each in `BEST` and `CHOSEN`.

    `BEST` and `CHOSEN` have a row of the wanted tokens a thread; the highest of all threads counts.
    """
    sizes, barrier, logits, wanted = (
        int64s(t, SIZES),
        int64s(t, BARRIER),
        float32s(t, LOGITS),
        int64s(t, WANTED).shape[0],
    )
    layers, matrix = sizes[LAYERS], matrix_at(sizes[LAYERS], HEAD)
    # A single token every thread rounds for itself.
    together = 1 if wanted == 1 else threads
    x_at = thread * sizes[LARGEST_BLOCKS] if wanted == 1 else 0
    _round_wanted(t, 0 if wanted == 1 else thread, together, x_at)
    meet(barrier, together)
    rows = int64s(t, PLAN)[matrix + ROWS]
    low, high = share((rows + 15) // 16, thread, threads)
    if logits.shape[0] > 0:
        arguments = (t, matrix, low, high, wanted, x_at, logits, 0, rows, False)
        call_project(int64s(t, CALLS)[PROJECT_CALL], arguments)
    else:
        _guess(t, matrix_at(layers, COARSE), rows, low, high, wanted, x_at)
        meet(barrier, threads)
        _choose(t, matrix, rows, thread, threads, wanted, x_at)


@called
def _round_wanted(t: Any, first: int, step: int, x_at: int) -> None:
    sizes, wanted = int64s(t, SIZES), int64s(t, WANTED)
    x, floats, normed, eps = float32s(t, X), float32s(t, FLOATS), float32s(t, NORMED), float32s(t, EPSILON)[0]
    codes, steps, sums = int8s(t, CODES), float32s(t, STEPS), float32s(t, CODE_SUMS)
    hidden, count = sizes[HIDDEN], wanted.shape[0]
    for row in range(first, count, step):
        normalize(x, wanted[row] * hidden, hidden, floats, sizes[FINAL_NORM], eps, normed, 0)
        quantize_token(normed, 0, hidden // 32, row, count, codes, steps, sums, x_at)


@called
def _guess(t: Any, matrix: int, rows: int, low: int, high: int, wanted: int, x_at: int) -> None:
    """The highest guess of each tile `low` to `high`, for each token, to `tops[token * tiles + tile]`."""
    sums, tops, tiles = float32s(t, SUMS), float32s(t, TOPS), (rows + 15) // 16
    together, group = (TOKEN_GROUP, 1) if wanted == 1 else (1, TOKEN_GROUP)
    for tile in range(low, high, together):
        count = min(together, high - tile)
        for first in range(0, wanted, group):
            tokens = min(group, wanted - first)
            multiply(t, matrix, tile, count, wanted, first, tokens, x_at, sums)
            for part in range(count * tokens):
                place = tile + part if wanted == 1 else (first + part) * tiles + tile
                top = sums[16 * part]
                for row in range(1, min(16, rows - 16 * (tile + part if wanted == 1 else tile))):
                    top = max(top, sums[16 * part + row])
                tops[place] = top


@called
def _choose(t: Any, matrix: int, rows: int, thread: int, threads: int, wanted: int, x_at: int) -> None:
    """The best row of each token among the tiles with the highest guesses; the lower id among equals."""
    best, chosen, candidates, tiles = (
        float32s(t, BEST),
        int64s(t, CHOSEN),
        int64s(t, CANDIDATE_TILES),
        (rows + 15) // 16,
    )
    sums = float32s(t, SUMS)
    for row in range(wanted):
        place = thread * wanted + row
        best[place] = -np.inf
        # One token's candidates are split among the threads; of several tokens each thread takes some.
        if wanted == 1 or row % threads == thread:
            rank(float32s(t, TOPS), row * tiles, tiles, float32s(t, RANKED), candidates)
            first, end = share(min(CANDIDATES, tiles), thread, threads) if wanted == 1 else (0, min(CANDIDATES, tiles))
            for candidate in range(first, end):
                tile = candidates[candidate]
                multiply(t, matrix, tile, 1, wanted, row, 1, x_at, sums)
                for lane in range(min(16, rows - 16 * tile)):
                    token, logit = 16 * tile + lane, sums[lane]
                    if logit > best[place] or (logit == best[place] and token < chosen[place]):
                        best[place], chosen[place] = logit, token


@compiled
def rank(tops: Any, at: int, tiles: int, ranked: Any, candidates: Any) -> None:
    """The tiles with the highest of `tiles` tops from `at` on, highest first."""
    kept = 0
    for tile in range(tiles):
        top = tops[at + tile]
        if kept < CANDIDATES:
            kept += 1
        elif not top > ranked[CANDIDATES - 1]:
            continue
        place = kept - 1
        while place > 0 and ranked[place - 1] < top:
            ranked[place], candidates[place] = ranked[place - 1], candidates[place - 1]
            place -= 1
        ranked[place], candidates[place] = top, tile


FIND_HEAD = Compiled(_head, types.void(types.Array(types.int64, 1, "C"), types.int64, types.int64))
call_head = caller(FIND_HEAD.signature)
