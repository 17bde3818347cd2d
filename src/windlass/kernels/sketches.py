"""Small summaries of large columns that can be merged: HyperLogLog, bottom-k, quantiles; and exact grouping.

HyperLogLog follows Flajolet et al. 2007 with 64-bit hashes, so without the correction for large counts. The quantile
sketch is KLL's (Karnin, Lang, Liberty 2016) with equal room on every level instead of shrinking room: items of weight
2^h on level h, and a level that is full is sorted and every other item of it goes up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled

Hashes = NDArray[np.uint64]

REGISTER_BITS = 12
REGISTERS = 1 << REGISTER_BITS
BOTTOM = 256
QUANTILE_ROOM = 200
_EMPTY = np.uint64(0)


@compiled
def group_values(hashes: Any, wanted: Any) -> Any:
    """Group equal hashes, in the order of their first appearance.

    Args:
        hashes: uint64[n].
        wanted: bool[n] or uint8[n]; where it is zero the value is left out.

    Returns:
        (first, count): int64[distinct], where each value stands first and how often it is there.
    """
    size = 16
    while size < 2 * hashes.size:
        size *= 2
    slots = np.full(size, np.int32(-1), np.int32)
    first = np.empty(hashes.size, np.int64)
    count = np.zeros(hashes.size, np.int64)
    found, mask = 0, np.uint64(size - 1)
    for index in range(hashes.size):
        if wanted[index] == 0:
            continue
        slot = np.int64(hashes[index] & mask)
        while True:
            group = slots[slot]
            if group < 0:
                slots[slot] = found
                first[found] = index
                count[found] = 1
                found += 1
                break
            if hashes[first[group]] == hashes[index]:
                count[group] += 1
                break
            slot = (slot + 1) & np.int64(mask)
    return first[:found].copy(), count[:found].copy()


@compiled
def count_members(rows: Any, others: Any) -> Any:
    """(distinct, found): how many different values `rows` (uint64[n]) has, and how many of them `others` has too."""
    size = 16
    while size < 2 * rows.size:
        size *= 2
    slots = np.full(size, np.int32(-1), np.int32)
    mask = np.int64(size - 1)
    distinct = 0
    for row in range(rows.size):
        slot = np.int64(rows[row] & np.uint64(mask))
        while slots[slot] >= 0 and rows[slots[slot]] != rows[row]:
            slot = (slot + 1) & mask
        if slots[slot] < 0:
            slots[slot] = row
            distinct += 1
    seen = np.zeros(rows.size, np.bool_)
    found = 0
    for row in range(others.size):
        slot = np.int64(others[row] & np.uint64(mask))
        while slots[slot] >= 0 and rows[slots[slot]] != others[row]:
            slot = (slot + 1) & mask
        if slots[slot] >= 0 and not seen[slots[slot]]:
            seen[slots[slot]] = True
            found += 1
            if found == distinct:
                break
    return distinct, found


@compiled
def count_held(cells: Any, others: Any) -> Any:
    """How many of `cells` (uint64[n]) have a value that is among `others`."""
    size = 16
    while size < 2 * cells.size:
        size *= 2
    slots = np.full(size, np.int32(-1), np.int32)
    mask = np.int64(size - 1)
    count = np.zeros(cells.size, np.int64)
    for cell in range(cells.size):
        slot = np.int64(cells[cell] & np.uint64(mask))
        while slots[slot] >= 0 and cells[slots[slot]] != cells[cell]:
            slot = (slot + 1) & mask
        if slots[slot] < 0:
            slots[slot] = cell
        count[slots[slot]] += 1
    held = 0
    for other in range(others.size):
        slot = np.int64(others[other] & np.uint64(mask))
        while slots[slot] >= 0 and cells[slots[slot]] != others[other]:
            slot = (slot + 1) & mask
        if slots[slot] >= 0:
            held += count[slots[slot]]
            count[slots[slot]] = 0
            if held == cells.size:
                break
    return held


@compiled
def bottom_misses(bottoms: Any, offsets: Any, children: Any, parents: Any, compared: Any, missing: Any) -> None:
    """How many of each child column's smallest hashes can be compared with the parent column's, and are not there.

    Args:
        bottoms: uint64[total], `bottom_hashes` of all columns.
        offsets: int64[columns + 1].
        children, parents: int64[pairs], column numbers.
        compared, missing: int64[pairs], written. A hash above the parent's largest says nothing where its bottom is
            full, and is missing where it is not. One that is missing is certainly no value of the parent.
    """
    for pair in range(children.size):
        i, i_end = offsets[children[pair]], offsets[children[pair] + 1]
        j, j_end = offsets[parents[pair]], offsets[parents[pair] + 1]
        whole = j_end - j < BOTTOM
        first, misses = i, 0
        while i < i_end:
            while j < j_end and bottoms[j] < bottoms[i]:
                j += 1
            if j == j_end:
                break
            if bottoms[j] != bottoms[i]:
                misses += 1
            i += 1
        if whole:
            misses += i_end - i
            i = i_end
        compared[pair] = i - first
        missing[pair] = misses


@compiled
def rows_are_unique(cells: Any, columns: Any, slots: Any) -> Any:
    """Whether no two rows agree in all of some columns; stops at the first two that do.

    Args:
        cells: uint64[columns, rows], seeded cell hashes.
        columns: int64[], which of them.
        slots: uint64[power of two >= 2 rows], scratch.
    """
    slots[:] = _EMPTY
    mask = np.int64(slots.size - 1)
    zeros = 0
    for row in range(cells.shape[1]):
        total = np.uint64(0)
        for column in columns:
            total += cells[column, row]
        if total == _EMPTY:
            zeros += 1
            if zeros > 1:
                return False
            continue
        slot = np.int64(total & np.uint64(mask))
        while slots[slot] != _EMPTY:
            if slots[slot] == total:
                return False
            slot = (slot + 1) & mask
        slots[slot] = total
    return True


@compiled
def fill_registers(hashes: Any, registers: Any) -> None:
    """Add hashes (uint64[n]) to HyperLogLog registers (uint8[REGISTERS])."""
    for index in range(hashes.size):
        value = hashes[index]
        register = np.int64(value >> np.uint64(64 - REGISTER_BITS))
        rest = (value << np.uint64(REGISTER_BITS)) | np.uint64(1 << (REGISTER_BITS - 1))
        rank = 1
        while rest < np.uint64(1 << 63):
            rest <<= np.uint64(1)
            rank += 1
        registers[register] = max(registers[register], rank)


def estimate_distinct(registers: NDArray[np.uint8]) -> float:
    """How many different hashes went in; standard error 1.04 / sqrt(4096) = 1.6 %.

    Example:
        >>> registers = np.zeros(REGISTERS, np.uint8)
        >>> estimate_distinct(registers)
        0.0
    """
    count = registers.size
    raw = 0.7213 / (1 + 1.079 / count) * count**2 / np.sum(np.ldexp(1.0, -registers.astype(np.int32)))
    empty = int(np.count_nonzero(registers == 0))
    if raw <= 2.5 * count and empty:
        return float(count * np.log(count / empty))
    return float(raw)


def bottom_hashes(distinct: Hashes, k: int = BOTTOM) -> Hashes:
    """The `k` smallest of distinct hashes, sorted; of a union it is the bottom of both bottoms together."""
    if distinct.size > k:
        distinct = np.partition(distinct, k - 1)[:k]
    return np.sort(distinct)


def quantile_sketch(values: NDArray[np.float64], room: int = QUANTILE_ROOM) -> tuple[NDArray[np.float64], Any]:
    """A sketch of any number of values: (items, weights), exact while there are no more than `room` on a level."""
    return _compressed(np.asarray(values, np.float64), np.ones(len(values), np.int64), room)


def merge_quantiles(a: tuple[Any, Any], b: tuple[Any, Any], room: int = QUANTILE_ROOM) -> tuple[Any, Any]:
    """The sketch of both inputs together."""
    return _compressed(np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), room)


def quantiles(sketch: tuple[Any, Any], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values below which the given shares of the input lie; nan when there was none."""
    items, weights = sketch
    if not len(items):
        return np.full(len(shares), np.nan)
    order = np.argsort(items, kind="stable")
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.asarray(shares) * reached[-1], side="left")
    found: NDArray[np.float64] = items[order][np.minimum(places, len(items) - 1)]
    return found


def _compressed(items: NDArray[np.float64], weights: NDArray[np.int64], room: int) -> tuple[Any, Any]:
    weight, kept_items, kept_weights = 1, [], []
    carried: NDArray[np.float64] = np.empty(0)
    top = int(weights.max()) if len(weights) else 0
    while weight <= top or len(carried):
        level = np.concatenate([items[weights == weight], carried])
        carried = np.empty(0)
        if len(level) > room:
            level.sort()
            odd = level[:1] if len(level) % 2 else level[:0]
            pairs = level[len(odd) :]
            # Which of two neighbours goes up alternates with the level, so that errors do not add up.
            carried = pairs[(weight.bit_length() % 2) :: 2]
            level = odd
        kept_items.append(level)
        kept_weights.append(np.full(len(level), weight, np.int64))
        weight *= 2
    if not kept_items:
        return np.empty(0), np.empty(0, np.int64)
    return np.concatenate(kept_items), np.concatenate(kept_weights)
