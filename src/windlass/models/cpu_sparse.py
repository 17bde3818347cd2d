"""Attention of a compiled step over the part of a context that matters now: pages chosen by the current query.

Of a long context, a decoding token reads the first page, the newest ones, and of those between them the pages whose
keys may answer its query best, up to a budget. How well a page may answer is bounded without reading it: by the
largest and smallest key of each channel (the sketch). Each group of query heads that shares a key head chooses for
itself, in every layer and step anew, so a page that was passed over may come back.
"""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.compiled import Compiled, called, caller
from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.cpu_attention import call_attend, finish, merge
from windlass.kernels.page_sketch import bound_page, choose_pages, page_scores
from windlass.kernels.views import float32s, int64s, uint16s
from windlass.models.cpu_context import turn_queries
from windlass.models.cpu_tables import (
    ATTEND_CALL,
    BUDGETS,
    CALLS,
    DATA,
    HEAD_DIM,
    HEADS,
    IDS,
    KEY_HEADS,
    LAYERS,
    LENGTHS,
    MIXED,
    NEWEST,
    OFFSETS,
    OWN_QUERIES,
    PAGE_BOUNDS,
    PAGE_RANKS,
    PAGE_TOKENS,
    PAGES,
    PAIR,
    READ_BEGINS,
    READ_LENGTHS,
    READ_PAGES,
    READ_STARTS,
    SCORES,
    SEQUENCES,
    SIZES,
    SKETCH,
    SKETCHED,
    STARTS,
    STATES,
    VERSIONS,
)


@called
def _choose(t: Any, thread: int, token: int, head: int, layer: int) -> int:
    """The runs that this token reads for one key head, to the thread's lists; how many."""
    sizes, offsets, row = int64s(t, SIZES), int64s(t, OFFSETS), int64s(t, SEQUENCES)[token]
    data, pages, lengths = uint16s(t, DATA), int64s(t, PAGES), int64s(t, LENGTHS)
    sketch, sketched, versions = uint16s(t, SKETCH), int64s(t, SKETCHED), int64s(t, VERSIONS)
    heads, key_heads, size, page_tokens = sizes[HEADS], sizes[KEY_HEADS], sizes[HEAD_DIM], sizes[PAGE_TOKENS]
    layers, newest, budget = sizes[LAYERS], int64s(t, NEWEST)[token], int64s(t, BUDGETS)[token]
    low, high, place = offsets[row], offsets[row + 1], layer * key_heads + head
    for run in range(low + 1, high - newest):
        page = pages[run]
        number = page * layers * key_heads + place
        if lengths[run] == page_tokens and sketched[number] != versions[page]:
            at = ((page * layers + layer) * 2 * key_heads + head) * page_tokens * size
            bound_page(data, at, page_tokens, size, sketch, number * 2 * size)
            sketched[number] = versions[page]
    ranks, bounds = float32s(t, PAGE_RANKS), float32s(t, PAGE_BOUNDS)
    page_scores(
        float32s(t, OWN_QUERIES), heads // key_heads, size, pages, lengths, low + 1, high - newest, page_tokens, sketch,
        place * 2 * size, layers * key_heads * 2 * size, bounds, ranks,
    )  # fmt: skip
    return choose_pages(
        pages, int64s(t, STARTS), lengths, low, high, newest, budget, ranks, bounds, int64s(t, READ_PAGES),
        int64s(t, READ_STARTS), int64s(t, READ_BEGINS), int64s(t, READ_LENGTHS),
    )  # fmt: skip


@called
def _attend_sparse(t: Any, thread: int, threads: int, layer: int) -> None:
    """Tokens with a budget, a key head at a time, to `MIXED`; the others are somebody else's."""
    sizes, tokens, budgets = int64s(t, SIZES), int64s(t, IDS).shape[0], int64s(t, BUDGETS)
    queries, states, pair, mixed = float32s(t, OWN_QUERIES), float32s(t, STATES), float32s(t, PAIR), float32s(t, MIXED)
    begins, lengths = int64s(t, READ_BEGINS), int64s(t, READ_LENGTHS)
    heads, key_heads, size, layers = sizes[HEADS], sizes[KEY_HEADS], sizes[HEAD_DIM], sizes[LAYERS]
    group, stride = heads // key_heads, sizes[PAGE_TOKENS] * size
    unit = group * (size + 2)
    for place in range(thread, tokens * key_heads, threads):
        token, head = place // key_heads, place % key_heads
        if budgets[token] == 0:
            continue
        turn_queries(t, token, head, head + 1, layer, queries, 0)
        count = _choose(t, thread, token, head, layer)
        total, key_at, state = (
            begins[count - 1] + lengths[count - 1],
            (layer * 2 * key_heads + head) * stride,
            place * unit,
        )
        for begin in range(0, total, CHUNK):
            out, out_at = (states, state) if begin == 0 else (pair, 0)
            arguments = (
                queries, 0, 1, group, size, uint16s(t, DATA), key_at, key_at + key_heads * stride, stride,
                layers * 2 * key_heads * stride, int64s(t, READ_PAGES), int64s(t, READ_STARTS), begins, lengths, 0,
                count, begin, min(begin + CHUNK, total), float32s(t, SCORES), out, out_at,
            )  # fmt: skip
            call_attend(int64s(t, CALLS)[ATTEND_CALL], arguments)
            if begin > 0:
                merge(states, state, pair, 0, group, size)
        finish(states, state, group, size, mixed, place * group * size)


ATTEND_SPARSE = Compiled(
    _attend_sparse, types.void(types.Array(types.int64, 1, "C"), types.int64, types.int64, types.int64)
)
call_attend_sparse = caller(ATTEND_SPARSE.signature)
