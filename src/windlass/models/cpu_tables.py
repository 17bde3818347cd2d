"""The arrays that a compiled step works on, as tables of addresses, and what their entries mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

(
    ARENA, FLOATS, PLAN, EXTRAS, SIZES, EPSILON, COSINE, SINE, CALLS,
    IDS, POSITIONS, SEQUENCES, SLOTS, VISIBLE, PAGES, STARTS, BEGINS, LENGTHS, OFFSETS, WANTED,
    BOUNDS, BOUND_OFFSETS, MASS, DATA, LOGITS, BEST, CHOSEN, BARRIER,
    TOKEN_ADAPTERS, ADAPTERS, ADAPTER_SCALES, ADAPTER_CELLS, SHRUNK,
    X, QKV, MIXED, INNER_STATE, CODES, STEPS, CODE_SUMS, PARTS, QUERIES, STATES, TOPS,
    NORMED, SUMS, MORE, SCORES, OWN_QUERIES, TWICE, PAIR, RANKED, CANDIDATE_TILES, INPUTS,
    STRETCH_SUMS,
    BUDGETS, NEWEST, SKETCH, SKETCHED, VERSIONS, PAGE_BOUNDS, PAGE_RANKS, READ_PAGES, READ_STARTS, READ_BEGINS,
    READ_LENGTHS,
) = range(66)  # fmt: skip
"""Arrays of a step (`kernels.views`): of the model, of the batch, of the pool and the results, and memory to work in.

Of the model: `ARENA` uint8, `PLAN` int64 [layers + 1, 7, 6] and `EXTRAS` int64 [layers, 5] as `cpu_packing` describes
them, `SIZES` and `CALLS` int64, the rest float32. Of the batch, all int64: the arrays of a `TokenBatch`, and in
`BEGINS` where in its context each run begins. `PARTS` holds what `attend` makes of each cell of a few tokens' contexts;
of many tokens, `QUERIES` and `STATES` hold a row each: turned queries, and what `attend` made of the chunks so far.
`TOPS` is the highest guess of each tile of the head. `BOUNDS`, `BOUND_OFFSETS` and `MASS` are an `AttentionMass`; they
and `TOKEN_ADAPTERS` (int64 [tokens], -1: none) are empty when nobody asks. `ADAPTERS` int64 [adapters, layers, 7, 3],
`ADAPTER_SCALES` float32 [adapters, layers, 7], `ADAPTER_CELLS` int64: where in the pool a row or a column begins;
`SHRUNK` float32, for each token (or thread, when there is one token) three rows of the largest rank. From `NORMED` on
each thread has arrays of its own: `PAIR` is for the chunk that it is merging, `CANDIDATE_TILES` are the tiles with the
highest `RANKED`. From `BUDGETS` on it is about tokens that read a part of their context (`cpu_sparse`): `BUDGETS` int64
[tokens] (or empty), pages that a token reads, 0 for all; `NEWEST` int64 [tokens], how many of them are the last;
`SKETCH` uint16 [pages, layers, key heads, 2 * head_dim] holds what `SKETCHED` int64 [pages, layers, key heads] says it
does, of each page the version in `VERSIONS` int64 [pages]; the rest is a thread's own, the runs that it reads the last.
"""
ARRAYS = 66
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(7)
"""Rows of `PLAN` in a layer: its matrices; in the row after the last layer: below."""
EMBEDDING, HEAD, COARSE = range(3)
"""Embedding, output head, and what a guess reads of the head."""
KIND, BYTE, LOWER, ROWS, BLOCKS, BIAS = range(6)
"""Columns of a matrix in `PLAN`: kind, first byte, first byte of its lower nibbles (w8), rows, blocks of 32 inputs,
first bias in `FLOATS` or -1."""
MATRICES, COLUMNS = 7, 6
ATTN_NORM, FFN_NORM, Q_NORM, K_NORM, WINDOW = range(5)
"""Columns of `EXTRAS`: where norms begin in `FLOATS` (-1: none), and the attention window (0: everything)."""
NOTES = 5
LAYERS, HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, INNER, INTERLEAVED, FINAL_NORM, LARGEST_BLOCKS, PAGE_TOKENS = range(10)
SHRUNK_WIDTH = 10
"""Entries of `SIZES`; the last is the largest rank, rounded up to four."""
TILE_CALL, VECTOR_CALL, ATTEND_CALL, PROJECT_CALL, GATED_CALL, QUANTIZE_CALL, TURN_CALL = range(7)
FEW_CALL, MERGE_CALL, MANY_CALL, HEAD_CALL, LAYER_CALL = range(7, 12)
SHRINK_CALL, EXPAND_CALL, SHRINK_TOKENS_CALL, EXPAND_ROWS_CALL, MASS_CALL, MEASURE_CALL = range(12, 18)
SPARSE_CALL = 18
"""Entries of `CALLS`: addresses of compiled functions; the last seven are 0 until they are needed."""
RANK, FIRST_ROW, FIRST_COLUMN = range(3)
"""Columns of a matrix in `ADAPTERS`: its rank, and where in `ADAPTER_CELLS` rows of A and columns of B begin."""
TOKEN_GROUP = 64
"""Tokens that share one pass over a weight tile; their sums stay in the first-level cache."""
CANDIDATES = 64
"""Tiles of the head that are computed exactly after a guess."""
FEW = 8
"""Up to so many tokens, threads share the context of each instead of taking tokens for themselves."""


class StepTables:
    """A table for each thread, and the arrays that stand in them.

    Args:
        threads: How many tables.
        arrays: How many arrays in each.
    """

    def __init__(self, threads: int, arrays: int = ARRAYS) -> None:
        self.numbers = np.zeros((threads, 2 * arrays), np.int64)
        self._arrays: dict[int, NDArray[Any]] = {}

    def put(self, number: int, array: NDArray[Any]) -> None:
        """An array that all threads share, of any shape; it must not move while a step runs."""
        if self._arrays.get(number) is not array:
            if not array.flags.c_contiguous:
                raise ValueError(f"array {number} has strides {array.strides}, expected neighbours side by side")
            self._arrays[number] = array
            self.numbers[:, 2 * number] = array.ctypes.data
            self.numbers[:, 2 * number + 1] = array.size

    def put_rows(self, number: int, array: NDArray[Any]) -> None:
        """A row for each thread."""
        self.put(number, array)
        self.numbers[:, 2 * number] += np.arange(len(array)) * array.strides[0]
        self.numbers[:, 2 * number + 1] = array.shape[1]

    def address(self, thread: int) -> int:
        """Of a thread's table."""
        return int(self.numbers.ctypes.data + thread * self.numbers.strides[0])
