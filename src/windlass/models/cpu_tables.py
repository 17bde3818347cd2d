"""The arrays that a compiled step works on, and what their columns mean."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from windlass.kernels.compiled import pasted

QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(7)
"""Rows of `plan[layer]`: the matrices of a layer; of the row after the last layer: below."""
EMBEDDING, HEAD, COARSE = range(3)
"""Embedding, output head, and the head once more in 4 bits."""
KIND, BYTE, ROWS, BLOCKS, BIAS = range(5)
"""Columns of a matrix in `plan`: kind, first byte, rows, blocks of 32 inputs, first bias in `floats` or -1."""
ATTN_NORM, FFN_NORM, Q_NORM, K_NORM, WINDOW = range(5)
"""Columns of `extras[layer]`: where norms begin in `floats` (-1: none), and the attention window (0: everything)."""
HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, INNER, INTERLEAVED, FINAL_NORM, LARGEST_BLOCKS, PAGE_TOKENS = range(9)
"""Entries of `sizes`."""
TILE_CALL, VECTOR_CALL, ATTEND_CALL, PROJECT_CALL, GATED_CALL, QUANTIZE_CALL, TURN_CALL = range(7)
KEYS_CALL, FEW_CALL, MERGE_CALL, MANY_CALL, HEAD_CALL, LAYER_CALL = range(7, 13)
SHRINK_CALL, EXPAND_CALL, SHRINK_TOKENS_CALL, EXPAND_ROWS_CALL, MASS_CALL, MEASURE_CALL, SPARSE_CALL = range(13, 20)
"""Entries of `Weights.calls`: addresses of compiled functions."""
RANK, FIRST_ROW, FIRST_COLUMN = range(3)
"""Columns of a matrix in `Adapters.tables`: its rank, and where in `cells` the rows of A and the columns of B begin."""
TOKEN_GROUP = 64
"""Tokens that share one pass over a weight tile; their sums stay in the first-level cache."""
CANDIDATES = 64
"""Tiles of the head that are computed exactly after a guess."""
FEW = 8
"""Up to so many tokens, threads share the context of each instead of taking tokens for themselves."""


class Weights(NamedTuple):
    """A packed model: `arena` uint8, `floats` float32, `plan` int64 [layers + 1, 7, 5], `extras` int64 [layers, 5]."""

    arena: Any
    floats: Any
    plan: Any
    extras: Any
    sizes: Any
    eps: float
    cosine: Any
    sine: Any
    calls: Any


class Batch(NamedTuple):
    """The arrays of a `TokenBatch`, int64, where in its context each run begins, and those of an `AttentionMass`."""

    ids: Any
    positions: Any
    rows: Any
    slots: Any
    visible: Any
    pages: Any
    starts: Any
    begins: Any
    lengths: Any
    offsets: Any
    wanted: Any
    bounds: Any
    bound_offsets: Any


class Scratch(NamedTuple):
    """Memory for one step. Shared: those up to `tops`. A row a thread: the others.

    `parts` holds what `attend` makes of each cell of a few tokens' contexts; of many tokens, `queries` and `states`
    hold a row each: turned queries, and what `attend` made of the chunks so far. `pair` is for the chunk that a thread
    is merging. `mass` is the caller's, for one step. `tops` is the highest guess of each tile of the head, `candidates`
    the tiles with the highest `ranked`.
    """

    x: Any
    qkv: Any
    mixed: Any
    inner: Any
    xq: Any
    dx: Any
    xsum: Any
    parts: Any
    queries: Any
    states: Any
    tops: Any
    normed: Any
    sums: Any
    more: Any
    scores: Any
    own_queries: Any
    twice: Any
    pair: Any
    ranked: Any
    candidates: Any
    mass: Any


class Adapters(NamedTuple):
    """Low-rank updates of the tokens of a step.

    `slots` int64 [tokens], or empty when no token has any: which adapter, -1 for none. `tables` int64
    [adapters, layers, 7, 3], `scales` float32 [adapters, layers, 7], `cells` int64: where in the pool a row or a column
    begins. Scratch: `shrunk` float32, for each token (or thread, when there is one token) three rows of the largest
    rank and a little more; `inputs` float32, a row a thread.
    """

    slots: Any
    tables: Any
    scales: Any
    cells: Any
    shrunk: Any
    inputs: Any


class Sparse(NamedTuple):
    """Tokens that read a part of their context.

    `budgets` int64 [tokens] (or empty): pages that a token reads, 0 for all, as it does in layers with a window
    (`windowed`: zeros, as many); `newest` int64 [tokens]: how many of its pages are the last. `sketch` uint16 [pages,
    layers, key heads, 2 * head_dim] holds what `seen` int64 [pages, layers, key heads] says it does: of each page the
    version in `versions` int64 [pages]. Scratch, a row a thread: `scores`, `ranked` float32, and the runs that are
    read.
    """

    budgets: Any
    windowed: Any
    newest: Any
    sketch: Any
    seen: Any
    versions: Any
    scores: Any
    ranked: Any
    pages: Any
    starts: Any
    begins: Any
    lengths: Any


def _arrays(kind: Any, dimensions: int = 1) -> Any:
    return types.Array(kind, dimensions, "C")


_I64, _F32 = _arrays(types.int64), _arrays(types.float32)
_I64_ROWS, _F32_ROWS = _arrays(types.int64, 2), _arrays(types.float32, 2)
WEIGHTS = types.NamedTuple(  # type: ignore[no-untyped-call]
    [_arrays(types.uint8), _F32, _arrays(types.int64, 3), _I64_ROWS, _I64, types.float64, _F32, _F32, _I64], Weights
)
BATCH = types.NamedUniTuple(_I64, len(Batch._fields), Batch)  # type: ignore[no-untyped-call]
_OF_SCRATCH = {"xq": _arrays(types.int8), "candidates": _I64_ROWS}
_FLAT = ("x", "qkv", "mixed", "inner", "dx", "xsum", "parts", "tops", "mass")
SCRATCH = types.NamedTuple(  # type: ignore[no-untyped-call]
    [_OF_SCRATCH.get(name, _F32 if name in _FLAT else _F32_ROWS) for name in Scratch._fields], Scratch
)
ADAPTERS = types.NamedTuple(  # type: ignore[no-untyped-call]
    [_I64, _arrays(types.int64, 4), _arrays(types.float32, 3), _I64, _F32_ROWS, _F32_ROWS], Adapters
)
SPARSE = types.NamedTuple(  # type: ignore[no-untyped-call]
    [_I64, _I64, _I64, _arrays(types.uint16, 4), _arrays(types.int64, 3), _I64, _F32_ROWS, _F32_ROWS]
    + [_arrays(types.int64, 2)] * 4, Sparse,
)  # fmt: skip
"""The types of the five in signatures."""


@pasted
def share(total: int, thread: int, threads: int) -> tuple[int, int]:
    """Which part of `total` pieces is this thread's."""
    return total * thread // threads, total * (thread + 1) // threads
