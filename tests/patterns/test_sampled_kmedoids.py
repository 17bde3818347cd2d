"""Sampled k-medoids against the full search; the choice of k on clusters that are there."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.core.errors import DataError, UsageError
from windlass.patterns.choose_k import choose_k
from windlass.patterns.dissimilarity import source_of
from windlass.patterns.kmedoids import KMedoids
from windlass.patterns.sampled_kmedoids import SampledKMedoids


def blobs(n: int, centres: int, seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = 20 * rng.random((centres, 4))
    return middle[rng.integers(0, centres, n)] + spread * rng.standard_normal((n, 4))


@pytest.mark.parametrize(("method", "least"), [("onebatch", 1.03), ("clara", 1.12), ("clarans", 1.12)])
def test_a_sampled_result_is_near_the_full_one(method, least):
    points = blobs(3000, 12, 1, spread=3.0)
    full = KMedoids(10, memory="rows", n_init=3).fit(points)
    rough = SampledKMedoids(10, method=method, polish=0).fit(points)
    polished = SampledKMedoids(10, method=method).fit(points)
    assert full.inertia_ * 0.98 <= polished.inertia_ <= rough.inertia_ <= least * full.inertia_
    assert polished.inertia_ <= 1.03 * full.inertia_
    assert len(set(polished.medoid_indices_)) == 10
    distances = polished.transform(points)
    assert polished.inertia_ == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)


@pytest.mark.parametrize("method", ["onebatch", "clara", "clarans"])
def test_all_kinds_of_sources_give_the_same(method):
    points = blobs(120, 4, 2)
    matrix = np.abs(points[:, None] - points[None]).sum(2).astype(np.float32)
    by_features = SampledKMedoids(4, metric="manhattan", method=method, random_state=3).fit(points)
    by_matrix = SampledKMedoids(4, metric="precomputed", method=method, random_state=3).fit(matrix)
    by_function = SampledKMedoids(4, metric=lambda a, b: np.abs(a - b).sum(), method=method, random_state=3).fit(points)
    assert sorted(by_features.medoid_indices_) == sorted(by_matrix.medoid_indices_)
    assert sorted(by_features.medoid_indices_) == sorted(by_function.medoid_indices_)


def test_a_batch_of_everything_is_the_full_search():
    points = blobs(150, 5, 3)
    whole = SampledKMedoids(5, sample_size=150, polish=3).fit(points)
    assert KMedoids(5, init=whole.medoid_indices_).fit(points).n_swap_ == 0


@pytest.mark.parametrize("true_k", [2, 3, 6, 9])
def test_the_number_of_separate_groups_is_found(true_k):
    rng = np.random.default_rng(true_k)
    middle = np.array([(30 * i, 30 * (i % 3)) for i in range(true_k)], float)
    points = np.repeat(middle, 20, axis=0) + rng.standard_normal((20 * true_k, 2))
    chosen = choose_k(source_of(points, "euclidean"), 2, 15)
    assert chosen.k == true_k == len(set(chosen.labels))
    assert sorted(chosen.scores) == list(range(2, 16))
    assert chosen.scores[true_k] == max(chosen.scores.values()) <= 1


def test_bad_ranges_and_methods():
    source = source_of(np.zeros((5, 1)), "euclidean")
    with pytest.raises(UsageError, match="between 3 and 2"):
        choose_k(source, 3, 2)
    with pytest.raises(DataError, match="k_max=9"):
        choose_k(source, 2, 9)
    with pytest.raises(UsageError, match="method"):
        SampledKMedoids(2, method="magic").fit([[1.0], [2], [3]])
