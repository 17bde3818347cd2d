"""How many medoids: the silhouette over the medoids, for every k of a range, from the largest down.

Lenssen and Schubert, "Medoid Silhouette clustering with automatic cluster number selection" (2024). What differs: the
medoids of each k are those of the smallest total (FasterPAM, started from the k + 1 before without the one that is
missed least), and the silhouette only chooses among them; DynMSC searches for the best silhouette itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import DataError, UsageError
from windlass.core.progress import Progress, Silent
from windlass.core.randomness import permutation
from windlass.patterns.dissimilarity import Source
from windlass.patterns.estimator import seed_of
from windlass.patterns.swaps import Swaps


@dataclass(frozen=True, slots=True)
class ChosenK:
    """What `choose_k` found.

    Attributes:
        k: The number of medoids with the highest silhouette.
        medoids: int64 `[k]`.
        labels: int32 `[n]`.
        scores: Of each k tried, the mean of `1 - d1 / d2`: 1 when every object lies on its medoid, 0 when it lies in
            the middle between two.
    """

    k: int
    medoids: NDArray[np.int64]
    labels: NDArray[np.int32]
    scores: dict[int, float]


def medoid_silhouette(search: Swaps) -> float:
    """Weighted mean of `1 - d1 / d2`; an object that lies on two medoids counts 1."""
    d1, d2 = search.d1.astype(np.float64), search.d2.astype(np.float64)
    shares = np.where(d2 > 0, 1 - d1 / np.where(d2 > 0, d2, 1), 1.0)
    return float(np.average(shares, weights=search.weight))


def choose_k(
    source: Source,
    k_min: int = 2,
    k_max: int = 20,
    *,
    random_state: int | None = None,
    progress: Progress | None = None,
) -> ChosenK:
    """Try every number of medoids from `k_max` down to `k_min`, and keep the one that fits best.

    Args:
        source: See `dissimilarity.source_of`.
        k_min, k_max: At least 2, at most the number of objects.

    Raises:
        UsageError, DataError: The range is empty or larger than the data.
        Cancelled: `progress` was cancelled.

    Example:
        >>> from windlass.patterns.dissimilarity import source_of
        >>> points = np.concatenate([np.linspace(at, at + 1, 20) for at in (0.0, 10.0, 20.0)])[:, None]
        >>> choose_k(source_of(points, "euclidean"), 2, 5).k
        3
    """
    if not 2 <= k_min <= k_max:
        raise UsageError(f"cannot choose k between {k_min} and {k_max}", hint="2 <= k_min <= k_max")
    if source.n < k_max:
        raise DataError(f"n_samples={source.n} should be >= k_max={k_max}")
    progress, seed = progress or Silent(), seed_of(random_state)
    order = permutation(seed, "walk", size=source.n)
    medoids = permutation(seed, "medoids", size=source.n)[:k_max]
    best: Swaps | None = None
    scores: dict[int, float] = {}
    progress.start("group", k_max - k_min + 1, "numbers of groups")
    for k in range(k_max, k_min - 1, -1):
        search = Swaps(source, medoids, np.ones(source.n))
        search.eager(order, 100, progress)
        scores[k] = medoid_silhouette(search)
        if best is None or scores[k] > scores[len(best.medoids)]:
            best = search
        medoids = np.delete(search.medoids, int(search.removal.argmin()))
        progress.advance("group")
    progress.finish("group")
    assert best is not None
    return ChosenK(len(best.medoids), best.medoids, best.near, dict(sorted(scores.items())))
