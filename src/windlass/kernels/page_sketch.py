"""Which pages of keys may matter to a query, told from a sketch: the largest and smallest number of each channel.

No key of a page can have a larger product with a query than `sum(max(q * largest, q * smallest))` (Quest, Tang et al.,
ICML 2024). Pages are ranked by what share of the attention they could at most have, summed over the query heads that
choose together; ties go to the earlier page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
    add_float,
    exp2_float,
    load_float,
    load_half,
    max_float,
    mul_float,
    splat,
    store_float,
    store_half,
    sum_lanes,
    zero_float,
)

Floats = NDArray[np.float32]


def reference(queries: Floats, keys: Floats, budget: int, newest: int) -> list[int]:
    """The obvious way, for one key head.

    Args:
        queries: float32 [group, head_dim], times log2(e) / sqrt(head_dim).
        keys: float32 [pages, page_tokens, head_dim], all pages full.
        budget: Pages to read in all; the first and the `newest` last ones are always among them.
        newest: At least 1.

    Returns:
        The pages that are read, ascending.
    """
    pages = len(keys)
    forced = [0, *range(max(1, pages - newest), pages)]
    free = list(range(1, pages - newest))
    if len(forced) + len(free) <= budget:
        return list(range(pages))
    largest, smallest = keys.max(axis=1), keys.min(axis=1)
    bounds = np.array([[np.maximum(q * largest[page], q * smallest[page]).sum() for page in free] for q in queries])
    ranks = np.exp2(bounds - bounds.max(axis=1, keepdims=True)).sum(axis=0)
    best = sorted(range(len(free)), key=lambda place: (-ranks[place], place))[: max(0, budget - len(forced))]
    return sorted([*forced, *(free[place] for place in best)])


@compiled
def bound_page(data: Any, at: int, tokens: int, size: int, sketch: Any, sketch_at: int) -> None:
    """The largest number of each channel of `tokens` keys from `at`, and the smallest times -1, to `sketch`.

    Args:
        data: uint16, bits of half-precision keys, `size` (a multiple of 16) each.
        sketch: uint16, `2 * size` numbers from `sketch_at`.
    """
    for i in range(0, size, LANES):
        largest = load_half(data, at + i)
        smallest = mul_float(largest, splat(np.float32(-1)))
        for token in range(1, tokens):
            key = load_half(data, at + token * size + i)
            largest = max_float(largest, key)
            smallest = max_float(smallest, mul_float(key, splat(np.float32(-1))))
        store_half(sketch, sketch_at + i, largest)
        store_half(sketch, sketch_at + size + i, smallest)


@compiled
def page_scores(
    queries: Any, group: int, size: int, pages: Any, lengths: Any, low: int, high: int, page_tokens: int, sketch: Any,
    sketch_at: int, page_stride: int, bounds: Any, ranks: Any,
) -> None:  # fmt: skip
    """Rank the runs `low` to `high` for one key head; those that are no whole page come first whatever they hold.

    Args:
        queries: float32 from 0, `[group, size]`, scaled.
        sketch: uint16, `2 * size` numbers of page p from `sketch_at + p * page_stride`.
        bounds: float32 scratch, a number a run and up to LANES - 1 more.
        ranks: float32, the result, as long as `bounds`.
    """
    count = high - low
    padded = (count + LANES - 1) // LANES * LANES
    for i in range(0, padded, LANES):
        store_float(ranks, i, zero_float())
    for member in range(group):
        top = np.float32(-np.inf)
        for place in range(count):
            total, one = zero_float(), sketch_at + pages[low + place] * page_stride
            for i in range(0, size, LANES):
                query = load_float(queries, member * size + i)
                over = mul_float(query, load_half(sketch, one + i))
                under = mul_float(mul_float(query, splat(np.float32(-1))), load_half(sketch, one + size + i))
                total = add_float(total, max_float(over, under))
            bound = sum_lanes(total)
            if lengths[low + place] == page_tokens:
                top = max(top, bound)
            bounds[place] = bound
        for place in range(count, padded):
            bounds[place] = top
        for i in range(0, padded, LANES):
            share = exp2_float(add_float(load_float(bounds, i), splat(-top)))
            store_float(ranks, i, add_float(load_float(ranks, i), share))
    for place in range(count):
        if lengths[low + place] != page_tokens:
            ranks[place] = np.float32(np.inf)


@compiled
def choose_pages(
    pages: Any, starts: Any, lengths: Any, low: int, high: int, newest: int, budget: int, ranks: Any, work: Any,
    out_pages: Any, out_starts: Any, out_begins: Any, out_lengths: Any,
) -> int:  # fmt: skip
    """The first run, the `newest` last ones and the best of those between, at most `budget`; how many, in order.

    Args:
        ranks: float32, of the runs between, from `low + 1` on.
        work: float32 scratch of the same length.
    """
    between = high - newest - low - 1
    wanted = max(0, budget - 1 - newest)
    if between <= wanted:
        wanted, least, ties = between, np.float32(-np.inf), between
    elif wanted == 0:
        least, ties = np.float32(np.inf), 0
    else:
        least, ties = _threshold(ranks, between, wanted, work)
    count, begin = 0, 0
    for run in range(low, high):
        place = run - low - 1
        if 0 <= place < between:
            rank = ranks[place]
            if rank < least or (rank == least and ties == 0):
                continue
            if rank == least:
                ties -= 1
        out_pages[count], out_starts[count] = pages[run], starts[run]
        out_begins[count], out_lengths[count] = begin, lengths[run]
        begin += lengths[run]
        count += 1
    return count


@compiled
def _threshold(ranks: Any, count: int, wanted: int, work: Any) -> tuple[np.float32, int]:
    """The `wanted`-th largest of `count` ranks, and how many that are equal to it are among the `wanted` largest."""
    for i in range(count):
        work[i] = ranks[i]
    low, high, place = 0, count - 1, wanted - 1
    while low < high:
        pivot = work[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while work[i] > pivot:
                i += 1
            while work[j] < pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    least, larger = work[place], 0
    for i in range(count):
        larger += ranks[i] > least
    return least, wanted - larger
