"""Attention of a compiled step over the part of a context that matters now: pages chosen by the current query.

Of a long context, a decoding token reads the first page, the newest ones, and of those between them the pages whose
keys may answer its query best, up to a budget. How well a page may answer is bounded without reading it: by the
largest and smallest key of each channel (the sketch). Each group of query heads that shares a key head chooses for
itself, in every layer and step anew, so a page that was passed over may come back.
"""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled
from windlass.kernels.cpu_attention import CHUNK, call_attend, finish, merge
from windlass.kernels.page_sketch import bound_page, choose_pages, page_scores
from windlass.models.cpu_context import turn_queries
from windlass.models.cpu_tables import (
    ATTEND_CALL,
    BATCH,
    HEAD_DIM,
    HEADS,
    KEY_HEADS,
    PAGE_TOKENS,
    SCRATCH,
    SPARSE,
    WEIGHTS,
    Batch,
    Scratch,
    Sparse,
    Weights,
)


@compiled
def _choose(
    thread: int, head: int, token: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, sparse: Sparse
) -> int:
    """The runs that this token reads for one key head, to the thread's lists; how many."""
    heads, key_heads, size, page_tokens = w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM], w.sizes[PAGE_TOKENS]
    layers, row = w.extras.shape[0], batch.rows[token]
    low, high = batch.offsets[row], batch.offsets[row + 1]
    stride = page_tokens * size
    for run in range(low + 1, high - sparse.newest[token]):
        page = batch.pages[run]
        whole = batch.lengths[run] == page_tokens
        if whole and sparse.seen[page, layer, head] != sparse.versions[page]:
            at = ((page * layers + layer) * 2 * key_heads + head) * stride
            bound_page(data, at, page_tokens, size, sparse.sketch[page, layer, head])
            sparse.seen[page, layer, head] = sparse.versions[page]
    group = heads // key_heads
    queries, scores = s.own_queries[thread], sparse.scores[thread]
    page_scores(
        queries, group, size, batch.pages, batch.lengths, low + 1, high - sparse.newest[token], page_tokens,
        sparse.sketch, layer, head, scores, sparse.ranked[thread],
    )  # fmt: skip
    return choose_pages(
        batch.pages, batch.starts, batch.lengths, low, high, sparse.newest[token], sparse.budgets[token],
        sparse.ranked[thread], scores, sparse.pages[thread], sparse.starts[thread], sparse.begins[thread],
        sparse.lengths[thread],
    )  # fmt: skip


@compiled
def _attend_sparse(
    thread: int, threads: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, sparse: Sparse
) -> None:
    """Tokens with a budget, a key head at a time, to `s.mixed`; the others are somebody else's."""
    heads, key_heads, size = w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group, layers, stride = heads // key_heads, w.extras.shape[0], w.sizes[PAGE_TOKENS] * size
    unit, pair, room = group * (size + 2), s.pair[thread], s.scores[thread]
    for place in range(thread, batch.ids.shape[0] * key_heads, threads):
        token, head = place // key_heads, place % key_heads
        if sparse.budgets[token] == 0:
            continue
        turn_queries(token, head, head + 1, layer, w, batch, s, thread, s.own_queries[thread])
        count = _choose(thread, head, token, layer, w, batch, data, s, sparse)
        total = sparse.begins[thread, count - 1] + sparse.lengths[thread, count - 1]
        key_at, state = (layer * 2 * key_heads + head) * stride, s.states[token]
        for begin in range(0, total, CHUNK):
            out, out_at = (state, head * unit) if begin == 0 else (pair, 0)
            arguments = (
                s.own_queries[thread], 0, 1, group, size, data, key_at, key_at + key_heads * stride, stride,
                layers * 2 * key_heads * stride, sparse.pages[thread], sparse.starts[thread], sparse.begins[thread],
                sparse.lengths[thread], 0, count, begin, min(begin + CHUNK, total), room, out, out_at,
            )  # fmt: skip
            call_attend(w.calls[ATTEND_CALL], arguments)
            if begin > 0:
                merge(state, head * unit, pair, 0, group, size)
        finish(state, head * unit, group, size, s.mixed, (token * key_heads + head) * group * size)


_INT, _U16 = types.int64, types.Array(types.uint16, 1, "C")
ATTEND_SPARSE = Compiled(_attend_sparse, types.void(_INT, _INT, _INT, WEIGHTS, BATCH, _U16, SCRATCH, SPARSE))
call_attend_sparse = caller(ATTEND_SPARSE.signature)
