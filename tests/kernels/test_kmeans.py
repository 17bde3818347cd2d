"""Clusters: laws that must hold, scikit-learn as the yardstick of quality."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import kmeans


def blobs(count: int, dim: int, centres: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, dim)) * 4
    return (middle[rng.integers(0, centres, count)] + rng.standard_normal((count, dim))).astype(np.float32)


def cost(points: np.ndarray, centres: np.ndarray) -> float:
    return float(((points[:, None, :] - centres[None]) ** 2).sum(2).min(1).mean())


def test_as_good_as_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    points = blobs(2000, 8, 20, 0)
    ours = min(cost(points, kmeans.kmeans(points, 20, seed=seed)[0]) for seed in range(3))
    theirs = min(
        cost(points, cluster.KMeans(20, n_init=1, random_state=seed).fit(points).cluster_centers_) for seed in range(3)
    )
    assert ours <= 1.05 * theirs


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), distinct=st.integers(1, 60), k=st.integers(1, 70), seed=st.integers(0, 999))
def test_every_cluster_has_members_also_of_identical_points(count, distinct, k, seed):
    points = blobs(min(count, distinct), 3, 2, seed)
    points = points[np.arange(count) % len(points)]
    for make in (kmeans.kmeans, kmeans.balanced_kmeans):
        centres, labels = make(points, k, seed=seed)
        used = min(k, count)
        assert len(centres) == used and set(labels.tolist()) == set(range(used))
        assert np.isfinite(centres).all()


def test_the_same_seed_gives_the_same_clusters():
    points = blobs(300, 5, 6, 1)
    first, again = kmeans.kmeans(points, 6, seed=4), kmeans.kmeans(points, 6, seed=4)
    assert first[0].tobytes() == again[0].tobytes() and first[1].tolist() == again[1].tolist()


def test_balance_evens_the_sizes():
    points = np.random.default_rng(0).standard_normal((2000, 2)).astype(np.float32)
    points *= np.exp(2 * np.random.default_rng(1).random((2000, 1))).astype(np.float32) - 0.9
    plain = np.bincount(kmeans.kmeans(points, 10, seed=0)[1], minlength=10).std()
    even = np.bincount(kmeans.balanced_kmeans(points, 10, seed=0)[1], minlength=10).std()
    assert even < plain


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 80), k=st.integers(1, 9), slack=st.sampled_from([0.0, 0.1, 0.4]), seed=st.integers(0, 999))
def test_sizes_stay_within_their_bounds(count, k, slack, seed):
    k = min(k, count)
    points = blobs(count, 2, 2, seed)
    low, high = kmeans.size_bounds(count, k, slack)
    assert low * k <= count <= high * k
    sizes = np.bincount(kmeans.constrained_kmeans(points, k, seed=seed, slack=slack)[1], minlength=k)
    assert sizes.min() >= low and sizes.max() <= high


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 7), seed=st.integers(0, 9999))
def test_placing_is_near_the_best_of_all_placements(count, seed):
    costs = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    low, high = kmeans.size_bounds(count, 2, 0.0)
    labels = kmeans.place_within(costs, low, high)
    best = min(
        sum(costs[row, side] for row, side in enumerate(sides))
        for sides in itertools.product((0, 1), repeat=count)
        if low <= sum(sides) <= high and low <= count - sum(sides) <= high
    )
    assert costs[np.arange(count), labels].sum() <= best + 1e-5


def test_two_means_cuts_identical_points():
    _, labels = kmeans.two_means(np.ones((10, 4), np.float32), seed=0)
    assert sorted(np.bincount(labels).tolist())[0] >= 3


def test_weights_pull_the_centre():
    points, weights = np.array([[0.0], [1.0]], np.float32), np.array([3.0, 1.0], np.float32)
    assert kmeans.kmeans(points, 1, seed=0, weights=weights)[0][0, 0] == pytest.approx(0.25)
