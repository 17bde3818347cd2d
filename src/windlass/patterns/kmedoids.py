"""`KMedoids`: k objects that stand for all, under any dissimilarity.

Schubert and Rousseeuw, "Fast and Eager k-Medoids Clustering" (2021); `swaps` says what differs. Of its variants,
FastPAM2 is left out: `fasterpam` finds as good a clustering in less time.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import Cancelled, DataError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import permutation
from windlass.patterns.dissimilarity import Features, Function, Matrix, Source, source_of
from windlass.patterns.estimator import ConvergenceLog, Estimator, read_weights, seed_of
from windlass.patterns.medoid_start import starting_medoids
from windlass.patterns.swaps import Swaps

Method = Literal["fasterpam", "fastpam1", "pam"]


@dataclass(frozen=True, slots=True)
class Found:
    """A clustering: medoids int64 `[k]`, labels `[n]`, the total, swaps made, passes."""

    medoids: NDArray[np.int64]
    labels: NDArray[Any]
    total: float
    swaps: int
    passes: int

    @classmethod
    def of(cls, search: Swaps, passes: int) -> Found:
        return cls(search.medoids, search.near, search.total, search.swaps, passes)

    def without_copies(self, source: Source) -> Found:
        """Medoids that lie on one another made one: needed only where every object lies on a medoid."""
        if self.total > 0:
            return self
        kept: list[int] = []
        slot_of = np.zeros(len(self.medoids), np.int64)
        for slot, j in enumerate(self.medoids):
            row = source.row(int(j))
            same = [at for at, other in enumerate(kept) if row[other] == 0]
            slot_of[slot] = same[0] if same else len(kept)
            kept += [] if same else [int(j)]
        return replace(self, medoids=np.array(kept, np.int64), labels=slot_of[self.labels])


def one_median(source: Source, weight: NDArray[np.float64], progress: Progress) -> Found:
    """The object with the smallest weighted sum of dissimilarities to it, exactly: O(n^2)."""
    best, total = 0, np.inf
    for j in range(source.n):
        if j % 256 == 0:
            check_cancelled(progress)
        now = float(weight @ source.row(j))
        if now < total:
            best, total = j, now
    return Found(np.array([best]), np.zeros(source.n, np.int64), total, 0, 1)


class MedoidClusters(Estimator):
    """What every clustering by medoids can do once it is fitted.

    Attributes:
        medoid_indices_: int64 `[k]`: rows of the training data.
        cluster_centers_: Those rows, `[k, d]`; None for a precomputed matrix.
        labels_: int64 `[n]`.
        inertia_: Weighted sum of the dissimilarities to the nearest medoid.
    """

    _transforms = True
    metric: Any
    medoid_indices_: NDArray[np.int64]
    labels_: NDArray[np.int64]
    cluster_centers_: Any
    inertia_: float

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.int64]:
        """`fit`, then `labels_`."""
        return self.fit(X, y, sample_weight).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> NDArray[np.float64]:
        """`fit`, then `transform`."""
        return self.fit(X, y, sample_weight).transform(X)

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, progress: Progress | None = None) -> Self:
        raise NotImplementedError

    def transform(self, X: Any) -> NDArray[np.float64]:
        """float64 `[m, k]`: dissimilarity of each row to each medoid.

        Args:
            X: As in `fit`; for a precomputed matrix `[m, n]`, of the rows to all n objects of the fit.

        Raises:
            NotFitted, DataError: Before `fit`; other columns than in the fit.
        """
        medoids = self._fitted("medoid_indices_")
        if isinstance(self._medoids, Function):
            kept, others = self._medoids, list(X)
            made = [[kept.between(o, each, f"row {at}") for each in kept.items] for at, o in enumerate(others)]
            return np.array(made).reshape(len(others), len(medoids))
        array = self._read(X, reset=False)
        if self._medoids is None:
            return np.ascontiguousarray(array[:, medoids])
        return self._medoids.from_points(array).astype(np.float64)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """int64 `[m]`: the nearest medoid of each row."""
        labels: NDArray[np.int64] = self.transform(X).argmin(axis=1)
        return labels

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of the dissimilarities to the nearest medoid: higher is better."""
        return -float(self.transform(X).min(axis=1).sum())

    def _open(self, X: Any, memory: str) -> Source:
        """The source for `X`, with the input checked as scikit-learn's users expect it."""
        given: Any = X
        if isinstance(self.metric, str):
            given = self._read(X, reset=True)
            if self.metric == "precomputed":
                raw = np.asarray(X)
                given = raw if raw.dtype.type in (np.float32, np.float64, np.int32) else given
        elif callable(self.metric):
            given = list(X)
            if not given:
                raise DataError("Found array with 0 sample(s) while a minimum of 1 is required")
            self.n_features_in_ = len(given[0]) if isinstance(given[0], np.ndarray) else 1
        else:
            raise UsageError(f"metric is {self.metric!r}", hint="a name or a function of two objects")
        self._points = given
        return source_of(given, self.metric, memory)

    def _close(self, source: Source, found: Found) -> None:
        """Keep the medoids themselves, not the data that they were chosen from."""
        self.medoid_indices_, self.labels_ = found.medoids.copy(), found.labels.astype(np.int64)
        self.inertia_ = found.total
        self.cluster_centers_ = None
        self._medoids: Features | Function | None = None
        points = self.__dict__.pop("_points")
        if callable(self.metric):
            self.cluster_centers_ = [points[j] for j in found.medoids]
            self._medoids = Function(self.cluster_centers_, self.metric)
        elif self.metric != "precomputed":
            self.cluster_centers_ = points[found.medoids]
            whole = source if isinstance(source, Features) else Features(points, self.metric)
            self._medoids = whole.only(found.medoids)


class KMedoids(MedoidClusters):
    """Groups around k real objects, the medoids, such that the sum of dissimilarities to them is small.

    Args:
        n_clusters: k. When fewer objects differ, fewer are found, with a warning.
        metric: `precomputed` (X is a square matrix, `X[o, j]` from o to j), euclidean, sqeuclidean, manhattan, cosine,
            hamming, jaccard (of 0 and 1), or a function of two objects (then X is any sequence).
        method: `fasterpam` swaps as soon as it gains; `fastpam1` makes the best swap of all each time, which is what
            the original PAM does, in one k-th of its time; `pam` is that original, for comparison.
        init: `random`, `first`, `build`, `lab`, `k-medoids++`, or k indices.
        order: In which order objects are tried: `index`, or `random` (drawn once a start); `auto` is `index` for one
            start and `random` for more.
        n_init: Starts, of which the best is kept.
        max_iter: Passes over all objects (for the other methods: swaps) at most.
        memory: `matrix` computes all distances first, `rows` computes them when they are needed; `auto` chooses.
        random_state: Same number, same result. None is one certain number too.

    Attributes:
        n_iter_: Passes over all objects, or swaps of the other methods.
        n_swap_: Swaps made.
        n_clusters_found_: Below `n_clusters` only when fewer objects differ.
        history_: One `ConvergenceLog` a start, the inertia as objective.

    Example:
        >>> points = [[0.0], [1], [2], [10], [11], [12]]
        >>> model = KMedoids(n_clusters=2).fit(points)
        >>> sorted(model.medoid_indices_.tolist()), model.inertia_
        ([1, 4], 4.0)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: Any = "euclidean",
        method: Method = "fasterpam",
        init: Any = "random",
        order: str = "auto",
        n_init: int = 1,
        max_iter: int = 100,
        memory: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.method = method
        self.init = init
        self.order = order
        self.n_init = n_init
        self.max_iter = max_iter
        self.memory = memory
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, progress: Progress | None = None) -> Self:
        """Find the medoids.

        Args:
            X: See `metric`.
            sample_weight: `[n]`: how often each object counts.
            progress: Told the total after each stretch. When it cancels, what was found so far is kept.

        Raises:
            UsageError, DataError: A parameter or a value makes no sense; the message names it.
            Cancelled: `progress` was cancelled; the attributes hold the best so far once a start was begun.
        """
        progress = progress or Silent()
        self._check_parameters()
        source = self._open(X, self.memory)
        weight = read_weights(sample_weight, source.n)
        check_clusters(self.n_clusters, source.n)
        if self.metric == "precomputed" and isinstance(source, Matrix) and not source.hollow:
            warnings.warn("the diagonal of the matrix is not zero; it is used as it is", UserWarning, stacklevel=2)
        seed, began = seed_of(self.random_state), time.perf_counter()
        self.history_: list[ConvergenceLog] = []
        best: Found | None = None
        progress.start("swaps", self.n_init, "starts")
        try:
            for start in range(self.n_init):
                found = self._start(source, seed + start, weight, progress)
                if best is None or found.total < best.total:
                    best = found
                detail = {"swaps": float(found.swaps), "passes": float(found.passes)}
                self.history_.append(ConvergenceLog(start, found.total, time.perf_counter() - began, detail))
                progress.advance("swaps")
        except Cancelled:
            search = self.__dict__.pop("_search", None)
            if best is not None or search is not None:
                self._keep(source, best or Found.of(search, 0))
            raise
        progress.finish("swaps")
        self.__dict__.pop("_search", None)
        assert best is not None
        self._keep(source, best)
        return self

    def _check_parameters(self) -> None:
        if self.method not in ("fasterpam", "fastpam1", "pam"):
            raise UsageError(f"method is {self.method!r}", hint="fasterpam, fastpam1 or pam")
        if self.order not in ("auto", "index", "random"):
            raise UsageError(f"order is {self.order!r}", hint="auto, index or random")
        for name in ("n_init", "max_iter"):
            if int(getattr(self, name)) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, it must be 1 or more")
        if self.method == "pam" and self.memory == "rows" and self.metric != "precomputed":
            raise UsageError("the original PAM needs the matrix", hint="memory='matrix', or method='fastpam1'")

    def _start(self, source: Source, seed: int, weight: NDArray[np.float64], progress: Progress) -> Found:
        if self.n_clusters == 1:
            return one_median(source, weight, progress)
        medoids = starting_medoids(source, int(self.n_clusters), self.init, seed, weight, progress)
        if len(medoids) == 1:
            return Found(medoids, np.zeros(source.n, np.int64), 0.0, 0, 1)
        search = self._search = Swaps(source, medoids, weight)
        if self.method == "fasterpam":
            shuffled = self.order == "random" or (self.order == "auto" and self.n_init > 1)
            order = permutation(seed, "walk", size=source.n) if shuffled else np.arange(source.n)
            return Found.of(search, search.eager(order, self.max_iter, progress))
        return Found.of(search, search.steepest(self.max_iter, progress, by_pairs=self.method == "pam"))

    def _keep(self, source: Source, found: Found) -> None:
        found = found.without_copies(source)
        if len(found.medoids) < self.n_clusters:
            warnings.warn(
                f"only {len(found.medoids)} of {source.n} objects differ: {len(found.medoids)} clusters instead of "
                f"{self.n_clusters}", UserWarning, stacklevel=3,
            )  # fmt: skip
        self.n_swap_, self.n_iter_, self.n_clusters_found_ = found.swaps, found.passes, len(found.medoids)
        self._close(source, found)


def check_clusters(n_clusters: Any, n: int) -> None:
    """Raises `UsageError`, `DataError`: k is no number of clusters of n objects."""
    if not isinstance(n_clusters, (int, np.integer)) or n_clusters < 1:
        raise UsageError(f"n_clusters is {n_clusters!r}, it must be 1 or more")
    if n_clusters > n:
        raise DataError(f"n_samples={n} should be >= n_clusters={n_clusters}", hint="ask for fewer clusters")
