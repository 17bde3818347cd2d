"""k-means: plain, spherical, balanced by a penalty, and with bounds on the sizes.

Distances to many centres are matrix products on one thread; everything is a pure function of its arguments and `seed`.
An empty cluster is given the farthest member of the fullest one, so that identical points terminate like any others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import permutation, rand, uniform
from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.compiled import compiled

Points = NDArray[np.float32]
Labels = NDArray[np.int64]

_BLOCK = 16_384


def squared_distances(points: Points, centres: Points) -> Points:
    """float32 `[n, k]`, never below zero."""
    norms = np.einsum("ij,ij->i", centres, centres)
    own = np.einsum("ij,ij->i", points, points)
    with one_thread_a_product():
        products = points @ centres.T
    products *= -2
    products += norms
    products += own[:, None]
    np.maximum(products, 0, out=products)
    return products


def nearest(points: Points, centres: Points, penalty: Points | None = None) -> tuple[Labels, Points]:
    """For each point its nearest centre, and the squared distance to it.

    Args:
        penalty: float32 `[k]`, added to the squared distance to each centre before choosing.
    """
    labels, distances = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    for start in range(0, len(points), _BLOCK):
        block = squared_distances(points[start : start + _BLOCK], centres)
        chosen = np.argmin(block if penalty is None else block + penalty, axis=1)
        labels[start : start + len(block)] = chosen
        distances[start : start + len(block)] = block[np.arange(len(block)), chosen]
    return labels, distances


@compiled
def _add_up(points: Any, labels: Any, weights: Any, sums: Any, totals: Any) -> None:
    for row in range(len(points)):
        weight, label = weights[row], labels[row]
        totals[label] += weight
        for column in range(points.shape[1]):
            sums[label, column] += weight * points[row, column]


def means(points: Points, labels: Labels, k: int, weights: Points | None = None) -> tuple[Points, NDArray[np.float64]]:
    """The weighted mean of each cluster, and its total weight. The mean of an empty one is zero."""
    sums, totals = np.zeros((k, points.shape[1])), np.zeros(k)
    _add_up(points, labels, np.ones(len(points), np.float32) if weights is None else weights, sums, totals)
    return (sums / np.maximum(totals, 1e-30)[:, None]).astype(np.float32), totals


def plus_plus(points: Points, k: int, *, seed: int) -> Points:
    """`k` starting centres: each the best of a few drawn with a chance that grows with the squared distance to those
    drawn before."""
    chosen = [int(rand(seed, "plus-plus", 0) * len(points))]
    distances = squared_distances(points, points[chosen])[:, 0]
    trials = 2 + int(np.log(k))
    for number in range(1, k):
        cumulative = np.cumsum(distances, dtype=np.float64)
        if cumulative[-1] <= 0:  # fewer different points than centres
            chosen += [i % len(points) for i in range(k - number)]
            break
        draws = uniform(seed, "plus-plus", number, size=trials) * cumulative[-1]
        rows = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(points) - 1)
        after = np.minimum(squared_distances(points, points[rows]), distances[:, None])
        best = int(np.argmin(after.sum(axis=0)))
        chosen.append(int(rows[best]))
        distances = after[:, best]
    return points[chosen].copy()


def kmeans(
    points: Points,
    k: int,
    *,
    seed: int,
    rounds: int = 25,
    tolerance: float = 1e-4,
    weights: Points | None = None,
    spherical: bool = False,
) -> tuple[Points, Labels]:
    """Lloyd's algorithm from a k-means++ start.

    Args:
        points: float32 `[n, d]`, n >= 1.
        k: At most n clusters are made.
        tolerance: Stop when the mean squared distance falls by less than this share.
        weights: float32 `[n]`.
        spherical: Centres are scaled to length one each round.

    Returns:
        Centres float32 `[k, d]` and the cluster of each point.

    Example:
        >>> points = np.array([[0], [1], [10], [11]], np.float32)
        >>> sorted(kmeans(points, 2, seed=0)[0][:, 0].tolist())
        [0.5, 10.5]
    """
    k = min(k, len(points))
    centres, before = plus_plus(points, k, seed=seed), np.inf
    labels, distances = nearest(points, centres)
    for _ in range(rounds):
        labels = fill_empty(labels, distances, k)
        centres, _ = means(points, labels, k, weights)
        if spherical:
            centres = unit_rows(centres)
        labels, distances = nearest(points, centres)
        now = float(np.average(distances, weights=weights))
        if before - now <= tolerance * max(now, 1e-30):
            break
        before = now
    return centres, fill_empty(labels, distances, k)


def balanced_kmeans(
    points: Points, k: int, *, seed: int, rounds: int = 20, spherical: bool = False, strength: float = 0.5
) -> tuple[Points, Labels]:
    """k-means in which full clusters repel: the squared distance to a centre grows with the size it had last round.

    The penalty of a point too many is `strength` times the mean squared distance over the mean size, which makes the
    sizes even where clusters touch and leaves those alone that lie apart.

    Returns:
        Centres float32 `[k, d]` and the cluster of each point; no cluster is empty when n >= k.
    """
    k = min(k, len(points))
    mean_size = len(points) / k
    centres = points[permutation(seed, "balanced", size=len(points))[:k]].copy()
    labels, distances = nearest(points, centres)
    sizes = np.bincount(labels, minlength=k).astype(np.float64)
    best, best_cost, worse = (centres, labels), np.inf, 0
    for _ in range(rounds):
        labels = fill_empty(labels, distances, k)
        centres, _ = means(points, labels, k)
        if spherical:
            centres = unit_rows(centres)
        unit = strength * float(distances.mean()) / mean_size
        labels, distances = nearest(points, centres, (unit * sizes).astype(np.float32))
        found = np.bincount(labels, minlength=k)
        sizes = 0.7 * sizes + 0.3 * found  # without memory two full clusters would swap for ever
        cost = float(distances.mean()) * (1 + strength * float(((found / mean_size - 1) ** 2).mean()))
        if cost < best_cost * (1 - 1e-3):
            best, best_cost, worse = (centres, labels), cost, 0
        elif (worse := worse + 1) == 5:
            break
    return best[0], fill_empty(best[1], squared_to(points, *best), k)


def squared_to(points: Points, centres: Points, labels: Labels) -> Points:
    """float32 `[n]`: the squared distance of each point to the centre of its cluster."""
    out = np.empty(len(points), np.float32)
    for start in range(0, len(points), _BLOCK):
        difference = points[start : start + _BLOCK] - centres[labels[start : start + _BLOCK]]
        out[start : start + _BLOCK] = np.einsum("ij,ij->i", difference, difference)
    return out


def constrained_kmeans(
    points: Points, k: int, *, seed: int, slack: float = 0.1, rounds: int = 30
) -> tuple[Points, Labels]:
    """k-means whose clusters all hold between `(1 - slack)` and `(1 + slack)` times n / k points.

    Points are placed by regret, the one that would lose most by its second choice first, then moved to a nearer
    cluster where both bounds allow it, or swapped with a point that gains from it. The exact answer is a minimum-cost
    flow, which takes hours where this takes seconds.

    Raises:
        ValueError: There are fewer points than clusters.
    """
    if len(points) < k:
        raise ValueError(f"{len(points)} points cannot fill {k} clusters")
    low, high = size_bounds(len(points), k, slack)
    centres, _ = kmeans(points, k, seed=seed, rounds=10)
    labels = np.zeros(len(points), np.int64)
    for _ in range(rounds):
        costs = squared_distances(points, centres)
        labels = place_within(costs, low, high)
        moved, _ = means(points, labels, k)
        if np.allclose(moved, centres, rtol=0, atol=1e-4 * float(np.abs(centres).max() + 1e-30)):
            break
        centres = moved
    return centres, labels


def size_bounds(count: int, k: int, slack: float) -> tuple[int, int]:
    """Fewest and most points of a cluster such that every count can be met."""
    return min(int(np.ceil((1 - slack) * count / k)), count // k), max(int((1 + slack) * count / k), -(-count // k))


def place_within(costs: Points, low: int, high: int) -> Labels:
    """Each row to a column at little total cost, every column taken `low` to `high` times."""
    count, k = costs.shape
    if k == 1:
        return np.zeros(count, np.int64)
    two = np.partition(costs, 1, axis=1)[:, :2]
    order = np.argsort(two[:, 0] - two[:, 1], kind="stable")
    labels, sizes = np.empty(count, np.int64), np.zeros(k, np.int64)
    _place(costs, order, low, high, labels, sizes)
    for _ in range(8):
        if not _improve(costs, low, high, labels, sizes):
            break
    return labels


@compiled
def _place(costs: Any, order: Any, low: int, high: int, labels: Any, sizes: Any) -> None:
    count, k = costs.shape
    missing = k * low
    for step in range(count):
        row, best = order[step], -1
        left = count - step
        for column in range(k):
            # When only as many points are left as clusters still lack, they go nowhere else.
            if sizes[column] >= high or (left <= missing and sizes[column] >= low):
                continue
            if best < 0 or costs[row, column] < costs[row, best]:
                best = column
        labels[row] = best
        if sizes[best] < low:
            missing -= 1
        sizes[best] += 1


@compiled
def _improve(costs: Any, low: int, high: int, labels: Any, sizes: Any) -> bool:
    """Move points to nearer clusters with room, and swap pairs that both want each other's cluster."""
    count, k = costs.shape
    waiting = np.full((k, k), -1, np.int64)
    changed = False
    for row in range(count):
        own = labels[row]
        for column in range(k):
            gain = costs[row, own] - costs[row, column]
            if gain <= 1e-7 * costs[row, own]:
                continue
            other = waiting[column, own]
            if sizes[column] < high and sizes[own] > low:
                sizes[own] -= 1
                sizes[column] += 1
                labels[row] = column
                changed = True
                break
            if other >= 0 and labels[other] == column:
                labels[row], labels[other] = column, own
                waiting[column, own] = -1
                changed = True
                break
            if waiting[own, column] < 0 or labels[waiting[own, column]] != own:
                waiting[own, column] = row
    return changed


def two_means(points: Points, *, seed: int, rounds: int = 20) -> tuple[Points, Labels]:
    """Two clusters whose sizes differ by at most one in five, for splitting what has grown too full.

    Identical points are cut in the middle.
    """
    if len(points) < 2:
        return points.copy(), np.zeros(len(points), np.int64)
    return constrained_kmeans(points, 2, seed=seed, slack=0.4, rounds=rounds)


def fill_empty(labels: Labels, distances: Points, k: int) -> Labels:
    """Give every empty cluster the farthest member of the fullest one."""
    sizes = np.bincount(labels, minlength=k)
    if sizes.all() or len(labels) < k:
        return labels
    labels, distances = labels.copy(), distances.copy()
    for empty in np.flatnonzero(sizes == 0):
        fullest = int(np.argmax(sizes))
        members = np.flatnonzero(labels == fullest)
        moved = members[int(np.argmax(distances[members]))]
        labels[moved], distances[moved] = empty, 0
        sizes[fullest] -= 1
        sizes[empty] = 1
    return labels


def unit_rows(vectors: Points) -> Points:
    """Rows scaled to length one; a row of zeros stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
