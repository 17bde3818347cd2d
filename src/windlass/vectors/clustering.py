"""How rows are laid out before an index is put over them: a balanced tree, its heads, and who is kept under whom.

After SPANN (Chen et al., "SPANN: Highly-efficient Billion-scale Approximate Nearest Neighbor Search", 2021). Its tree
is cut where nodes have fallen below a size that is searched for; ours cuts each node into as many children as its size
asks for, so the number of heads is what was asked for, and every head stands for about as many rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, check_cancelled
from windlass.core.randomness import permutation
from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.kmeans import balanced_kmeans, kmeans, nearest, squared_to
from windlass.kernels.postings import close_heads

Points = NDArray[np.float32]
Rows = NDArray[np.int64]
Read = Callable[[Rows], Points]
"""float32 vectors of the rows asked for."""

BRANCHES = 32
_BALANCE = 0.03  # more, and in hundreds of dimensions the penalty outweighs what tells near clusters apart
_SAMPLE = 20_000
_CHUNK = 8192
_PRODUCTS = 6 << 20


def select_heads(read: Read, count: int, wanted: int, *, seed: int, progress: Progress) -> Rows:
    """About `wanted` rows, sorted, that stand for all others: the nearest one to the middle of each small cluster.

    Args:
        read: Vectors of rows below `count`.

    Raises:
        Cancelled: between two clusters.
    """
    size = count / max(1, wanted)
    waiting, heads = [(np.arange(count, dtype=np.int64), 0)], []
    number = 0
    progress.start("cluster", count, "rows")
    while waiting:
        check_cancelled(progress)
        rows, depth = waiting.pop()
        number += 1
        if len(rows) <= 1.5 * size or depth == 12:
            heads.append(_middle(read, rows))
            progress.advance("cluster", len(rows))
            continue
        parts = min(BRANCHES, max(2, round(len(rows) / size)))
        labels = _divided(read, rows, parts, seed=seed + number)
        found = [rows[labels == part] for part in range(parts)]
        found = [part for part in found if len(part)]
        if len(found) == 1:  # identical rows
            found = np.array_split(rows, parts)
        waiting += [(part, depth + 1) for part in found]
    progress.finish("cluster")
    return np.unique(np.array(heads, np.int64))


def group_heads(heads: Points, *, seed: int) -> tuple[Points, Rows]:
    """Groups of near heads, about as many as a group has heads: their centres, and the group of each head."""
    wanted = max(1, round(np.sqrt(len(heads) / 2)))
    return kmeans(heads, wanted, seed=seed, rounds=12)


def closure_assign(
    read: Read,
    count: int,
    heads: Points,
    centres: Points,
    groups: Rows,
    *,
    candidates: int,
    replicas: int,
    rng_factor: float,
    probed: int,
    progress: Progress,
) -> tuple[NDArray[np.int32], Points, Rows]:
    """Under which heads each row is kept.

    Args:
        heads, centres, groups: As `group_heads` made them.
        candidates: How many nearest heads are looked at, of the `probed` groups nearest to the row's own.

    Returns:
        int32 `[count, replicas]` heads, nearest first; their squared distances; and how many there are for each row.

    Raises:
        Cancelled: between two groups.
    """
    kept = np.full((count, replicas), -1, np.int32)
    distances, sizes = np.full((count, replicas), np.inf, np.float32), np.zeros(count, np.int64)
    own = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        own[start : start + _CHUNK] = nearest(read(np.arange(start, min(start + _CHUNK, count))), centres)[0]
    head_squares = np.einsum("ij,ij->i", heads, heads)
    members = [np.flatnonzero(groups == group) for group in range(len(centres))]
    flat, dim = heads.reshape(-1), heads.shape[1]
    progress.start("assign", count, "rows")
    for group in range(len(centres)):
        rows = np.flatnonzero(own == group)
        apart = np.argsort(((centres - centres[group]) ** 2).sum(axis=1), kind="stable")
        near = np.sort(np.concatenate([members[other] for other in apart[:probed]]))
        block = max(64, _PRODUCTS // max(1, len(near)))
        for start in range(0, len(rows), block):
            check_cancelled(progress)
            part = rows[start : start + block]
            points = read(part)
            with one_thread_a_product():
                products = points @ heads[near].T
            found, found_distances = np.full((len(part), replicas), -1, np.int32), distances[part]
            found_sizes = np.zeros(len(part), np.int64)
            squares = np.einsum("ij,ij->i", points, points)
            close_heads(
                products,
                squares,
                near,
                flat,
                head_squares,
                dim,
                min(candidates, len(near)),
                np.float32(rng_factor),
                found,
                found_distances,
                found_sizes,
            )
            kept[part], distances[part], sizes[part] = found, found_distances, found_sizes
            progress.advance("assign", len(part))
    progress.finish("assign")
    return kept, distances, sizes


def _divided(read: Read, rows: Rows, parts: int, *, seed: int) -> Rows:
    """The part of each row. Many rows are divided by the centres of a sample."""
    if len(rows) <= _SAMPLE:
        return balanced_kmeans(read(rows), parts, seed=seed, strength=_BALANCE)[1]
    sample = np.sort(rows[permutation(seed, "sample", size=len(rows))[:_SAMPLE]])
    centres, _ = balanced_kmeans(read(sample), parts, seed=seed, strength=_BALANCE)
    found = [nearest(read(rows[start : start + _CHUNK]), centres)[0] for start in range(0, len(rows), _CHUNK)]
    return np.concatenate(found)


def _middle(read: Read, rows: Rows) -> int:
    points = read(rows)
    mean = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    return int(rows[np.argmin(squared_to(points, mean[None], np.zeros(len(rows), np.int64)))])
