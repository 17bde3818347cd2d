"""`SampledKMedoids`: medoids of more objects than all pairs can be looked at.

Three ways: `onebatch` (de Mathelin et al., "OneBatchPAM", AAAI 2025) knows the distances of all objects to one batch
only and swaps eagerly by what the batch says; `clara` clusters a few samples fully and keeps the best for all;
`clarans` tries random swaps until many in a row gain nothing (both with the swaps of Schubert and Rousseeuw, 2021).
Each may end with one eager pass over all the data (`polish`), which is what takes a sampled result close to a full one.
"""

from __future__ import annotations

import math
import time
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import integers, permutation
from windlass.patterns.dissimilarity import Batch, Features, Function, Matrix, Source
from windlass.patterns.estimator import ConvergenceLog, read_weights, seed_of
from windlass.patterns.kmedoids import Found, MedoidClusters, check_clusters, one_median
from windlass.patterns.swaps import Swaps

METHODS = ("onebatch", "clara", "clarans")


class SampledKMedoids(MedoidClusters):
    """k-medoids for many objects: looks at a sample of the pairs.

    Args:
        n_clusters: k.
        metric: As for `KMedoids`.
        method: `onebatch`, `clara` or `clarans`.
        sample_size: Objects in the batch (by default `100 log(k n)`), or in each sample of `clara` (`80 + 4 k`).
        n_samples: Samples of `clara`, restarts of `clarans`; `onebatch` draws one batch.
        polish: Passes over all the data at the end. The loss of `onebatch` without it is about 1 % above that of a full
            search, that of `clara` up to 10 %.
        random_state: Same number, same result. None is one certain number too.

    Attributes:
        n_swap_: Swaps on all the data or on the batch.
        history_: One `ConvergenceLog` a sample.

    Example:
        >>> points = [[0.0], [1], [2], [10], [11], [12]]
        >>> sorted(SampledKMedoids(n_clusters=2).fit(points).medoid_indices_.tolist())
        [1, 4]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: Any = "euclidean",
        method: str = "onebatch",
        sample_size: Any = "auto",
        n_samples: int = 5,
        polish: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.method = method
        self.sample_size = sample_size
        self.n_samples = n_samples
        self.polish = polish
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, progress: Progress | None = None) -> Self:
        """Find the medoids.

        Raises:
            UsageError, DataError: A parameter or a value makes no sense; the message names it.
            Cancelled: `progress` was cancelled; nothing is fitted then.
        """
        progress = progress or Silent()
        if self.method not in METHODS:
            raise UsageError(f"method is {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if self.n_samples < 1 or self.polish < 0:
            raise UsageError("n_samples must be 1 or more, polish 0 or more")
        source = self._open(X, "rows")
        weight = read_weights(sample_weight, source.n)
        check_clusters(self.n_clusters, source.n)
        seed, self._began = seed_of(self.random_state), time.perf_counter()
        self.history_: list[ConvergenceLog] = []
        progress.start("swaps", None, "swaps")
        found = self._search(source, weight, seed, progress)
        progress.finish("swaps")
        found = found.without_copies(source)
        self.n_swap_, self.n_iter_ = found.swaps, found.passes
        self._close(source, found)
        return self

    def _search(self, source: Source, weight: NDArray[np.float64], seed: int, progress: Progress) -> Found:
        k = int(self.n_clusters)
        if k == 1:
            return one_median(source, weight, progress)
        way = {"onebatch": self._one_batch, "clara": self._clara, "clarans": self._clarans}[self.method]
        search = way(source, k, weight, seed, progress)
        passes = search.eager(np.arange(source.n), self.polish, progress) if self.polish else 0
        return Found.of(search, passes)

    def _size(self, usual: int, least: int, n: int) -> int:
        size = usual if isinstance(self.sample_size, str) else int(self.sample_size)
        return min(n, max(size, least))

    def _one_batch(self, source: Source, k: int, weight: NDArray[np.float64], seed: int, progress: Progress) -> Swaps:
        n = source.n
        size = self._size(int(100 * math.log(k * n)), k + 2, n)
        batch = np.sort(permutation(seed, "batch", size=n)[:size])
        start = permutation(seed, "medoids", size=n)[:k]
        part = Batch(source, batch)
        # What a member of the batch stands for: the objects that are nearer to it than to the others.
        counts = np.bincount(part.rows.argmin(axis=1), weights=weight, minlength=size).astype(np.float64)
        search = Swaps(part, start, counts)
        search.eager(permutation(seed, "walk", size=n), 20, progress)
        self._note(0, search.total)
        return Swaps(source, search.medoids, weight)

    def _clara(self, source: Source, k: int, weight: NDArray[np.float64], seed: int, progress: Progress) -> Swaps:
        size = self._size(80 + 4 * k, k + 2, source.n)
        best: Swaps | None = None
        for sample in range(self.n_samples):
            check_cancelled(progress)
            drawn = permutation(seed, "clara", sample, size=source.n)[:size]
            if best is not None:
                drawn = np.concatenate([best.medoids, np.setdiff1d(drawn, best.medoids, assume_unique=True)])
            start = np.arange(k) if best is not None else permutation(seed, "medoids", sample, size=len(drawn))[:k]
            small = Swaps(_part(source, drawn), start, weight[drawn])
            small.eager(np.arange(len(drawn)), 100, progress)
            whole = Swaps(source, drawn[small.medoids], weight)
            if best is None or whole.total < best.total:
                best = whole
            self._note(sample, best.total)
        assert best is not None
        return best

    def _clarans(self, source: Source, k: int, weight: NDArray[np.float64], seed: int, progress: Progress) -> Swaps:
        n = source.n
        patience = max(50, int(0.025 * (n - k)))
        best: Swaps | None = None
        for restart in range(self.n_samples):
            search = Swaps(source, permutation(seed, "medoids", restart, size=n)[:k], weight)
            failures, step = 0, 0
            while failures < patience and n > k:
                check_cancelled(progress)
                for j in integers(seed, "clarans", restart, step, size=patience, high=n):
                    if j in search.medoids:
                        continue
                    change, slot, row = search.evaluate(int(j))
                    if search.gains(change):
                        search.swap(int(j), slot, row)
                        failures = 0
                    else:
                        failures += 1
                    if failures >= patience:
                        break
                step += 1
            if best is None or search.total < best.total:
                best = search
            self._note(restart, best.total)
        assert best is not None
        return best

    def _note(self, step: int, total: float) -> None:
        self.history_.append(ConvergenceLog(step, total, time.perf_counter() - self._began, {}))


def _part(source: Source, chosen: NDArray[np.int64]) -> Matrix:
    """The full matrix among some objects."""
    if isinstance(source, Matrix):
        return Matrix(source.rows[np.ix_(chosen, chosen)].T)
    if isinstance(source, Features):
        return Matrix(source.only(chosen).matrix())
    assert isinstance(source, Function)
    return Matrix([[source.distance(int(o), int(j)) for j in chosen] for o in chosen])
