"""k-medoids: brute force, enumeration, bookkeeping after every swap, the Rust package where it is installed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import Cancelled, DataError, DataTypeError, NotFitted, UsageError
from windlass.core.progress import Silent
from windlass.patterns.dissimilarity import Features, Matrix
from windlass.patterns.kmedoids import KMedoids
from windlass.patterns.swaps import Swaps


def integer_matrix(n: int, seed: int, *, symmetric: bool = True) -> np.ndarray:
    """Few different values, so that there are many ties."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 9, (n, n)).astype(np.int32)
    if symmetric:
        matrix = np.minimum(matrix, matrix.T)
    np.fill_diagonal(matrix, 0)
    return matrix


def plain_total(matrix: np.ndarray, medoids: list[int]) -> int:
    return int(matrix[:, medoids].min(axis=1).sum())


def plain_pam(matrix: np.ndarray, medoids: list[int]) -> tuple[list[int], int]:
    """The original: try every pair, take the best, until none gains."""
    medoids, swaps = list(medoids), 0
    while True:
        now, best = plain_total(matrix, medoids), None
        for j in range(len(matrix)):
            if j in medoids:
                continue
            for slot in range(len(medoids)):
                tried = plain_total(matrix, [*medoids[:slot], j, *medoids[slot + 1 :]]) - now
                if tried < 0 and (best is None or tried < best[0]):
                    best = (tried, j, slot)
        if best is None:
            return medoids, swaps
        medoids[best[2]] = best[1]
        swaps += 1


@pytest.mark.parametrize("seed", range(60))
def test_the_fast_method_makes_the_swaps_of_the_original(seed):
    rng = np.random.default_rng(1000 + seed)
    n = int(rng.integers(4, 22))
    k = int(rng.integers(2, min(n, 7)))
    matrix = integer_matrix(n, seed, symmetric=seed % 3 > 0)
    if seed % 5 == 0:  # copies
        matrix[1], matrix[:, 1] = matrix[0], matrix[:, 0]
    start = rng.permutation(n)[:k]
    expected, swaps = plain_pam(matrix, start.tolist())
    for method in ("fastpam1", "pam"):
        model = KMedoids(k, metric="precomputed", method=method, init=start).fit(matrix)
        assert model.medoid_indices_.tolist() == expected
        assert (model.n_swap_, model.inertia_) == (swaps, plain_total(matrix, expected))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(3, 25), k=st.integers(2, 6), seed=st.integers(0, 9999), symmetric=st.booleans())
def test_the_state_is_right_after_every_swap(n, k, seed, symmetric):
    k = min(k, n - 1)
    source = Matrix(integer_matrix(n, seed, symmetric=symmetric))
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 4, n).astype(np.float64)
    search = Swaps(source, rng.permutation(n)[:k], weight)
    for j in rng.permutation(n):
        if j in search.medoids:
            continue
        before = search.total
        change, slot, row = search.evaluate(int(j))
        search.swap(int(j), slot, row)
        assert search.total - before == change
        distances = source.rows[search.medoids]
        nearest = distances[search.near, np.arange(n)]
        assert (nearest == distances.min(axis=0)).all() and (search.d1 == nearest).all()
        assert (search.near[search.medoids] == np.arange(k)).all()
        assert (search.sec != search.near).all()
        assert (search.d2 == distances[search.sec, np.arange(n)]).all()
        others = distances.astype(float)
        others[search.near, np.arange(n)] = np.inf
        assert (search.d2 == others.min(axis=0)).all()
        expected = [(weight * (search.d2 - search.d1))[search.near == slot].sum() for slot in range(k)]
        assert search.removal.tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_single_swap_improves_the_result_and_many_starts_find_the_optimum(seed):
    matrix = integer_matrix(11, 50 + seed, symmetric=seed % 2 == 0)
    k = 2 + seed % 3
    model = KMedoids(k, metric="precomputed", n_init=12, random_state=seed).fit(matrix)
    assert plain_pam(matrix, model.medoid_indices_.tolist())[1] == 0
    optimum = min(plain_total(matrix, list(chosen)) for chosen in itertools.combinations(range(11), k))
    assert model.inertia_ == optimum == plain_total(matrix, model.medoid_indices_.tolist())


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "manhattan", "cosine", "hamming", "jaccard"])
def test_metrics_agree_with_their_definitions_and_both_memories(metric):
    rng = np.random.default_rng(3)
    points = (rng.random((70, 11)) < 0.4).astype(float) if metric == "jaccard" else rng.standard_normal((70, 11)) + 1e4
    if metric == "hamming":
        points = rng.integers(0, 3, (70, 11)).astype(float)
    if metric == "cosine":
        points = rng.standard_normal((70, 11))
    a, b = points[:, None], points[None]
    expected = {
        "euclidean": lambda: np.sqrt(((a - b) ** 2).sum(2)),
        "sqeuclidean": lambda: ((a - b) ** 2).sum(2),
        "manhattan": lambda: np.abs(a - b).sum(2),
        "cosine": lambda: 1 - (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2),
        "hamming": lambda: (a != b).mean(2),
        "jaccard": lambda: 1 - np.minimum(a, b).sum(2) / np.maximum(np.maximum(a, b).sum(2), 1),
    }[metric]()
    made = Features(points, metric).matrix()
    empty = (points.sum(1) == 0) & (metric == "jaccard")
    assert np.allclose(made[~empty][:, ~empty], expected[~empty][:, ~empty], atol=2e-5, rtol=1e-5)
    models = [KMedoids(6, metric=metric, memory=memory, random_state=1).fit(points) for memory in ("matrix", "rows")]
    assert models[0].medoid_indices_.tolist() == models[1].medoid_indices_.tolist()
    assert models[0].n_swap_ == models[1].n_swap_ and models[0].inertia_ == models[1].inertia_
    assert np.allclose(models[0].transform(points[:9]), made[:9][:, models[0].medoid_indices_], atol=1e-6)
    assert (models[0].predict(points) == models[0].transform(points).argmin(1)).all()


def test_a_function_of_two_objects_is_as_good_as_its_matrix():
    words = ["harbour", "harbor", "arbour", "crane", "cranes", "crate", "tide", "tides", "ride", "side"]

    def distance(a: str, b: str) -> float:
        return float(len(set(a) ^ set(b)))

    matrix = np.array([[distance(a, b) for b in words] for a in words])
    for method in ("fasterpam", "fastpam1"):
        ours = KMedoids(3, metric=distance, method=method, random_state=2).fit(words)
        other = KMedoids(3, metric="precomputed", method=method, random_state=2).fit(matrix)
        assert ours.medoid_indices_.tolist() == other.medoid_indices_.tolist()
        assert ours.cluster_centers_ == [words[j] for j in ours.medoid_indices_]
        assert ours.predict(["cran"]) == ours.predict(["crane"])


def test_weights_count_like_copies():
    rng = np.random.default_rng(5)
    matrix = integer_matrix(40, 5)
    weight = rng.integers(1, 5, 40)
    start = np.array([0, 1, 2, 3])
    copies = np.repeat(np.arange(40), weight)
    first = np.searchsorted(copies, start)
    for method in ("fastpam1", "fasterpam"):
        ours = KMedoids(4, metric="precomputed", init=start, method=method).fit(matrix, sample_weight=weight)
        repeated = np.ascontiguousarray(matrix[copies][:, copies])
        other = KMedoids(4, metric="precomputed", init=first, method=method).fit(repeated)
        assert ours.inertia_ == other.inertia_
        assert sorted(ours.medoid_indices_) == sorted(copies[other.medoid_indices_])


@pytest.mark.parametrize("init", ["random", "first", "build", "lab", "k-medoids++"])
def test_every_start_gives_a_local_optimum(init):
    rng = np.random.default_rng(8)
    points = rng.standard_normal((60, 2)) + 8 * rng.integers(0, 3, (60, 1))
    model = KMedoids(5, init=init).fit(points)
    again = KMedoids(5, init=model.medoid_indices_).fit(points)
    assert again.n_swap_ == 0 and len(set(model.medoid_indices_)) == 5


def test_build_is_greedy():
    matrix = integer_matrix(14, 4).astype(float)
    model = KMedoids(3, metric="precomputed", init="build", method="fastpam1", max_iter=1)
    model.fit(matrix)
    chosen: list[int] = []
    for _ in range(3):
        totals = [plain_total(matrix, [*chosen, j]) for j in range(14)]
        chosen.append(int(np.argmin(totals)))
    assert model.history_[0].detail["swaps"] <= 1
    start = Swaps(Matrix(matrix), np.array(chosen), np.ones(14))
    assert model.inertia_ <= start.total


def test_one_cluster_is_the_exact_median():
    matrix = integer_matrix(17, 9, symmetric=False)
    model = KMedoids(1, metric="precomputed").fit(matrix)
    assert model.medoid_indices_.tolist() == [int(matrix.sum(axis=0).argmin())]
    assert model.inertia_ == matrix.sum(axis=0).min()


def test_fewer_different_objects_than_clusters():
    points = np.array([[0.0], [0], [0], [5], [5]])
    for init in ("random", "build", "k-medoids++", "lab"):
        with pytest.warns(UserWarning, match="only 2 of 5 objects differ"):
            model = KMedoids(4, init=init).fit(points)
        assert model.n_clusters_found_ == 2 and model.inertia_ == 0
        assert len(set(model.labels_[:3])) == 1 and model.labels_[0] != model.labels_[4]


def test_bad_input_says_what_and_where():
    with pytest.raises(DataError, match=r"n_samples=2 should be >= n_clusters=8"):
        KMedoids().fit([[1.0], [2]])
    with pytest.raises(UsageError, match="n_clusters is 0"):
        KMedoids(0).fit([[1.0], [2]])
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        KMedoids(2, metric="precomputed").fit(np.zeros((2, 3)))
    bad = integer_matrix(6, 0).astype(float)
    bad[4, 2] = -1
    with pytest.raises(DataError, match="row 4, column 2"):
        KMedoids(2, metric="precomputed").fit(bad)
    with pytest.raises(DataError, match="row 4, column 2"):
        KMedoids(2, metric="precomputed").fit(np.asfortranarray(bad))
    with pytest.raises(DataError, match=r"NaN \(row 1, column 0\)"):
        KMedoids(1).fit([[1.0], [np.nan]])
    with pytest.raises(DataTypeError, match="sparse"):
        KMedoids(1).fit(type("Sparse", (), {"tocsr": 1})())
    with pytest.raises(NotFitted):
        KMedoids().predict([[1.0]])
    with pytest.raises(DataError, match="objects 1 and 0"):
        KMedoids(2, metric=lambda a, b: 1 / 0 if a != b else 0.0, init="first").fit([1, 2, 3])
    with pytest.raises(UsageError, match="unknown metric"):
        KMedoids(1, metric="cosmic").fit([[1.0]])
    with pytest.raises(DataError, match="0 and 1"):
        KMedoids(1, metric="jaccard").fit([[1.5]])
    with pytest.warns(UserWarning, match="diagonal"):
        KMedoids(2, metric="precomputed").fit(np.ones((4, 4)))
    for text in ("init", "order", "method", "memory"):
        with pytest.raises(UsageError, match=text):
            KMedoids(2, **{text: "nonsense"}).fit([[1.0], [2], [3]])


def test_a_cancelled_fit_keeps_what_it_found():
    class Impatient(Silent):
        def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
            self.cancel()

    points = np.random.default_rng(0).standard_normal((300, 2))
    model = KMedoids(5, n_init=50)
    with pytest.raises(Cancelled):
        model.fit(points, progress=Impatient())
    assert len(model.medoid_indices_) == 5 and model.predict(points[:2]).shape == (2,)


@pytest.mark.parametrize("seed", range(50))
def test_equal_to_the_rust_package(seed):
    peer = pytest.importorskip("kmedoids")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    k = int(rng.integers(2, min(n, 9)))
    matrix = integer_matrix(n, seed)
    start = rng.permutation(n)[:k]
    theirs = peer.fasterpam(matrix, start.astype(np.uint64), n_cpu=1)
    ours = KMedoids(k, metric="precomputed", init=start, order="index").fit(matrix)
    assert (ours.n_swap_, ours.inertia_) == (theirs.n_swap, theirs.loss)
    assert ours.medoid_indices_.tolist() == theirs.medoids.tolist()
