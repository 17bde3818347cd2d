"""The medoids that a search starts from: drawn, spread out, or built greedily."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import DataError, UsageError
from windlass.core.progress import Progress, check_cancelled
from windlass.core.randomness import permutation, rand
from windlass.kernels.medoids import build_gain
from windlass.patterns.dissimilarity import Source

STARTS = ("random", "first", "build", "lab", "k-medoids++")


def starting_medoids(
    source: Source, k: int, init: Any, seed: int, weight: NDArray[np.float64], progress: Progress
) -> NDArray[np.int64]:
    """int64 `[k]`, or fewer when fewer objects differ (for `build`, `lab` and `k-medoids++`, which see distances).

    Args:
        init: One of `STARTS`, or the indices themselves.

    Raises:
        UsageError, DataError: Unknown name; indices out of range, repeated, or of another number.
        Cancelled: Between two medoids of `build`.
    """
    if not isinstance(init, str):
        return _given(init, k, source.n)
    if init == "random":
        return permutation(seed, "medoids", size=source.n)[:k]
    if init == "first":
        return np.arange(k)
    if init == "build":
        return _build(source, k, None, seed, weight, progress)
    if init == "lab":
        return _build(source, k, 10 + int(np.ceil(np.sqrt(source.n))), seed, weight, progress)
    if init == "k-medoids++":
        return _plus_plus(source, k, seed, weight)
    raise UsageError(f"init is {init!r}", hint=f"{', '.join(STARTS)}, or an array of {k} indices")


def _given(init: Any, k: int, n: int) -> NDArray[np.int64]:
    medoids = np.asarray(init)
    if medoids.shape != (k,) or medoids.dtype.kind not in "iu":
        raise DataError(f"init has shape {medoids.shape} and type {medoids.dtype}, expected {k} indices")
    if medoids.min() < 0 or medoids.max() >= n or len(np.unique(medoids)) < k:
        raise DataError(f"init must hold different indices from 0 to {n - 1}")
    return medoids.astype(np.int64)


def _build(
    source: Source, k: int, sample: int | None, seed: int, weight: NDArray[np.float64], progress: Progress
) -> NDArray[np.int64]:
    """Each medoid lowers the total most, of all objects or (LAB) of a new sample each time."""
    n = source.n
    d1 = np.full(n, np.inf if source.dtype.kind == "f" else np.iinfo(source.dtype).max, source.dtype)
    chosen: list[int] = []
    progress.start("build", k, "medoids")
    for slot in range(k):
        check_cancelled(progress)
        tried = np.arange(n) if sample is None else permutation(seed, "lab", slot, size=n)[:sample]
        best, best_gain = -1, -np.inf
        for j in tried:
            row = source.row(int(j))
            gain = float(build_gain(row, d1, weight)) if chosen else -float(weight @ row)
            if gain > best_gain:
                best, best_gain = int(j), gain
        if chosen and best_gain <= 0:
            if sample is None:  # every object lies on a medoid
                break
            continue
        chosen.append(best)
        np.minimum(d1, source.row(best), out=d1)
        progress.advance("build")
    progress.finish("build")
    return np.array(chosen, np.int64)


def _plus_plus(source: Source, k: int, seed: int, weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each medoid drawn with a chance that grows with the distance to those drawn before."""
    chosen = [int(rand(seed, "first medoid") * source.n)]
    d1 = np.array(source.row(chosen[0]), np.float64)
    for slot in range(1, k):
        total = np.cumsum(weight * d1)
        if total[-1] <= 0:
            break
        drawn = int(np.searchsorted(total, rand(seed, "medoid", slot) * total[-1], side="right"))
        chosen.append(min(drawn, source.n - 1))
        np.minimum(d1, source.row(chosen[-1]), out=d1)
    return np.array(chosen, np.int64)
