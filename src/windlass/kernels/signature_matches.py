"""How many slots of two signatures agree, for many pairs: the estimate of Jaccard similarity."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def compare_rows(table: Any, a: Any, b: Any, out: Any) -> None:
    """`out[i, j]` (float32): the share of slots in which rows `a[i]` and `b[j]` of `table` (uint32) agree."""
    slots = table.shape[1]
    share = np.float32(1) / np.float32(max(1, slots))
    for i in range(a.size):
        left = table[a[i]]
        for j in range(b.size):
            right = table[b[j]]
            same = np.uint32(0)
            for slot in range(slots):
                same += np.uint32(left[slot] == right[slot])
            out[i, j] = np.float32(same) * share


@compiled
def bucket_mates(
    keys: Any, nodes: Any, seed_keys: Any, cap: int, counts: Any, mates: Any
) -> Any:  # fmt: skip
    """Who shares a bucket with a seed, and how many buckets.

    Args:
        keys, nodes: uint32 and int32 [bands, n], sorted by key in each band.
        seed_keys: uint32 [bands, seeds].
        cap: Of a larger bucket so many are looked at, evenly spaced.
        counts: int32 [n], zeros; left with how many buckets each mate shares.
        mates: int32 [n], gets them in no order.

    Returns:
        How many mates there are, and how many buckets were larger than `cap`.
    """
    found, capped = 0, 0
    for band in range(keys.shape[0]):
        row = keys[band]
        for seed in range(seed_keys.shape[1]):
            wanted = seed_keys[band, seed]
            low, high = 0, row.size
            while low < high:
                middle = (low + high) // 2
                if row[middle] < wanted:
                    low = middle + 1
                else:
                    high = middle
            end, reach = low, 1
            while end + reach < row.size and row[end + reach] == wanted:
                end += reach
                reach *= 2
            high = min(row.size, end + reach)
            while end < high and row[end] == wanted:
                end += 1
            step = max(1, (end - low + cap - 1) // cap)
            if step > 1:
                capped += 1
            for place in range(low, end, step):
                node = nodes[band, place]
                if counts[node] == 0:
                    mates[found] = node
                    found += 1
                counts[node] += 1
    return found, capped


@compiled
def exact_jaccard(indptr: Any, indices: Any, a: Any, b: Any, out: Any) -> None:
    """`out[i, j]` (float32): the Jaccard similarity of rows `a[i]` and `b[j]`, sorted and without repeats.

    A row much shorter than the other is looked up in it, entry by entry.
    """
    for i in range(a.size):
        for j in range(b.size):
            short, long = indices[indptr[a[i]] : indptr[a[i] + 1]], indices[indptr[b[j]] : indptr[b[j] + 1]]
            if short.size > long.size:
                short, long = long, short
            common = _looked_up(short, long) if short.size * 16 < long.size else _merged(short, long)
            either = short.size + long.size - common
            out[i, j] = np.float32(common / either) if either else np.float32(0)


@compiled
def _merged(a: Any, b: Any) -> Any:
    common, i, j = 0, 0, 0
    while i < a.size and j < b.size:
        common += a[i] == b[j]
        forward = a[i] <= b[j]
        j += b[j] <= a[i]
        i += forward
    return common


@compiled
def _looked_up(short: Any, long: Any) -> Any:
    common, begin = 0, 0
    for value in short:
        low, high = begin, long.size
        while low < high:
            middle = (low + high) // 2
            if long[middle] < value:
                low = middle + 1
            else:
                high = middle
        common += low < long.size and long[low] == value
        begin = low
    return common
