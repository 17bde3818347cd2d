"""MinHash signatures, the bands that find similar ones, and exact overlap: from shingles to candidate pairs.

Three families with one meaning, that two sets agree in a slot with probability equal to their Jaccard similarity:

- `signatures`: one multiplicative hash a slot (Broder 1997), for texts: m multiplications a shingle, eight at a time;
- `minima` + `densified`: one permutation cut into m bins (Li, Owen, Zhang 2012), one step a value whatever m is, for
  columns of a table; the bins of a union are the smaller of both, so they merge. Empty bins borrow from a bin that a
  hash of the two numbers names (Shrivastava 2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import bits_array
from windlass.kernels.compiled import compiled
from windlass.kernels.hashing import mix64

EMPTY = np.uint32(0xFFFFFFFF)
_GROUP_ALL_PAIRS = 64


def slot_constants(slots: int, seed: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Multipliers (odd) and offsets of the hash of each slot."""
    factors = (bits_array(seed, "minhash factors", size=slots) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    offsets = (bits_array(seed, "minhash offsets", size=slots) >> np.uint64(32)).astype(np.uint32)
    return factors, offsets


@compiled
def signatures(shingles: Any, offsets: Any, factors: Any, shifts: Any, out: Any) -> None:
    """MinHash signatures of sets of shingles.

    Args:
        shingles: uint64[total], well mixed hashes; repeats do no harm.
        offsets: int64[sets + 1], where each set begins.
        factors, shifts: uint32[slots], from `slot_constants`.
        out: uint32[sets, slots], written; `EMPTY` for an empty set.
    """
    slots = factors.size
    for number in range(offsets.size - 1):
        row = out[number]
        row[:] = EMPTY
        for index in range(offsets[number], offsets[number + 1]):
            value = np.uint32(shingles[index] >> np.uint64(32))
            for slot in range(slots):
                row[slot] = min(row[slot], np.uint32(factors[slot] * value + shifts[slot]))


@compiled
def minima(hashes: Any, out: Any) -> None:
    """Lower the bins `out` (uint32[power of two], `EMPTY` at first) by the hashes (uint64[n])."""
    bins = np.uint64(out.size - 1)
    for index in range(hashes.size):
        value = mix64(hashes[index])
        place = value & bins
        out[place] = min(out[place], np.uint32(value >> np.uint64(32)))


@compiled
def densified(bins: Any) -> Any:
    """`bins` with every empty one filled from another; all empty stays all empty."""
    filled = bins.copy()
    some = False
    for place in range(bins.size):
        some |= bins[place] != EMPTY
    if not some:
        return filled
    for place in range(bins.size):
        attempt = np.uint64(1)
        while filled[place] == EMPTY:
            other = mix64(np.uint64(place) * np.uint64(0x9E3779B97F4A7C15) + attempt) & np.uint64(bins.size - 1)
            filled[place] = bins[other]
            attempt += np.uint64(1)
    return filled


def estimate_jaccard(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    """The share of slots that agree; two empty sets are alike."""
    return float(np.mean(a == b))


def choose_bands(threshold: float, slots: int, miss: float = 1e-3) -> tuple[int, int]:
    """(bands, rows): the longest bands that miss a pair at the threshold with probability at most `miss`.

    Longer bands bring fewer false candidates; when even single rows miss more, single rows it is.

    Example:
        >>> choose_bands(0.7, 128)
        (32, 4)
    """
    for rows in range(slots, 0, -1):
        bands = slots // rows
        if (1 - threshold**rows) ** bands <= miss:
            return bands, rows
    return slots, 1


@compiled
def band_keys(table: Any, bands: Any, rows: Any, out: Any) -> None:
    """One hash for each band of each signature: `table` uint32[sets, slots], `out` uint64[bands, sets]."""
    for number in range(table.shape[0]):
        for band in range(bands):
            key = np.uint64(band + 1) * np.uint64(0x9E3779B97F4A7C15)
            for slot in range(band * rows, (band + 1) * rows):
                key = mix64(key ^ np.uint64(table[number, slot]))
            out[band, number] = key


def candidate_pairs(keys: NDArray[np.uint64], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pairs of sets that share a band key.

    In a group of more than 64 sets, where all pairs would be quadratic, each set is paired with the group's first
    and with the one before it.

    Args:
        keys: uint64[bands, sets].
        usable: bool[sets]; the others take no part.

    Returns:
        int64[pairs, 2], first smaller, sorted, without repeats.
    """
    members = np.flatnonzero(usable)
    found: list[NDArray[np.int64]] = []
    for band in keys:
        order = members[np.argsort(band[members], kind="stable")]
        buffer = np.empty(4 * len(order) + 16, np.int64)
        used = int(_group_pairs(band[order], order, buffer))
        if used > buffer.size:
            buffer = np.empty(used, np.int64)
            used = int(_group_pairs(band[order], order, buffer))
        found.append(np.unique(buffer[:used]))
    codes = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)


@compiled
def _group_pairs(keys: Any, members: Any, out: Any) -> Any:
    """Pairs within runs of equal keys, as first << 32 | second; returns how many there are, written as far as fits."""
    used, start = 0, 0
    while start < keys.size:
        end = start + 1
        while end < keys.size and keys[end] == keys[start]:
            end += 1
        for i in range(start + 1, end):
            lowest = start if end - start <= _GROUP_ALL_PAIRS else i - 1
            for j in range(lowest, i):
                if used < out.size:
                    out[used] = (members[j] << 32) | members[i]
                used += 1
            if lowest > start:
                if used < out.size:
                    out[used] = (members[start] << 32) | members[i]
                used += 1
        start = end
    return used


@compiled
def sort_unique(shingles: Any, offsets: Any, wanted: Any, counts: Any) -> None:
    """Sort each wanted set in place, its different values in front; `counts` (int64[sets]) says how many they are."""
    for number in range(offsets.size - 1):
        if not wanted[number]:
            continue
        part = shingles[offsets[number] : offsets[number + 1]]
        part.sort()
        kept = 0
        for index in range(part.size):
            if index == 0 or part[index] != part[index - 1]:
                part[kept] = part[index]
                kept += 1
        counts[number] = kept


@compiled
def hash_sets(shingles: Any, offsets: Any, wanted: Any, counts: Any, out: Any) -> None:
    """One hash for each wanted set, as `sort_unique` leaves it: uint64[sets], written."""
    for number in range(offsets.size - 1):
        if wanted[number]:
            key = np.uint64(counts[number])
            for index in range(offsets[number], offsets[number] + counts[number]):
                key = mix64(key ^ shingles[index])
            out[number] = key


@compiled
def common_values(shingles: Any, offsets: Any, counts: Any, pairs: Any, threshold: Any, out: Any) -> None:
    """Exact sizes of intersections of sorted sets; -1 as soon as the Jaccard threshold is out of reach.

    Args:
        shingles, offsets, counts: As `sort_unique` leaves them.
        pairs: int64[pairs, 2].
        threshold: Jaccard similarity, 0 to count everything.
        out: int64[pairs], written.
    """
    for number in range(pairs.shape[0]):
        a, b = pairs[number, 0], pairs[number, 1]
        i, j = offsets[a], offsets[b]
        i_end, j_end = i + counts[a], j + counts[b]
        both = counts[a] + counts[b]
        common = 0
        # |A n B| / |A u B| >= t is |A n B| >= t / (1 + t) (|A| + |B|); the rounding error must not drop a pair.
        needed = threshold / (1.0 + threshold) * both - 1e-6
        while i < i_end and j < j_end:
            if common + min(i_end - i, j_end - j) < needed:
                break
            if shingles[i] == shingles[j]:
                common += 1
                i += 1
                j += 1
            elif shingles[i] < shingles[j]:
                i += 1
            else:
                j += 1
        out[number] = common if common >= needed else -1


@compiled
def merge_sets(pairs: Any, parents: Any) -> None:
    """Union-find: link the two sides of every pair in `parents` (int64[sets], `arange` at first) and flatten it.

    The smallest member of each cluster ends up as its root.
    """
    for number in range(pairs.shape[0]):
        a, b = pairs[number, 0], pairs[number, 1]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        if a < b:
            parents[b] = a
        else:
            parents[a] = b
    for index in range(parents.size):
        root = parents[index]
        while parents[root] != root:
            root = parents[root]
        parents[index] = root
