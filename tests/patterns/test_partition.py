"""PPP: gains from sums against the points, greedy merging, laws of the mixture, groups that are there."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.core.errors import DataError, NotFitted, UsageError
from windlass.patterns.gaussians import (
    FLOOR,
    Mixture,
    expectation_maximisation,
    features,
    group_sums,
    merge_gain,
    parameters,
    valley,
)
from windlass.patterns.partition import ProbabilisticPartition, join_without_valley, merge, over_partition

FAMILIES = ("full", "diagonal", "spherical")


def blobs(centres: list[tuple[float, ...]], each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = np.vstack([rng.standard_normal((each, len(at))) + at for at in centres])
    return points, np.repeat(np.arange(len(centres)), each)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


def plain_log_likelihood(points: np.ndarray, family: str) -> float:
    """Twice the best log likelihood of one regularised Gaussian, without the constants that cancel."""
    n, d = points.shape
    covariance = np.cov(points.T, bias=True).reshape(d, d)
    if family == "full":
        share = min(1.0, (d + 1) / n)
        covariance = (1 - share) * covariance + share * np.trace(covariance) / d * np.eye(d) + FLOOR * np.eye(d)
    elif family == "diagonal":
        share, spread = min(1.0, 2 / n), np.diag(covariance)
        covariance = np.diag((1 - share) * spread + share * spread.mean() + FLOOR)
    else:
        covariance = (np.trace(covariance) / d + FLOOR) * np.eye(d)
    return -n * float(np.linalg.slogdet(covariance)[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gain_from_sums_is_the_gain_from_points(family):
    rng = np.random.default_rng(1)
    for d in (1, 2, 5):
        a, b = rng.standard_normal((30, d)) * 2, rng.standard_normal((17, d)) + 1
        sums = [features(each, family).sum(axis=0)[None] for each in (a, b)]
        n = len(a) + len(b)
        two = plain_log_likelihood(a, family) + plain_log_likelihood(b, family)
        two += 2 * (len(a) * np.log(len(a) / n) + len(b) * np.log(len(b) / n))
        expected = plain_log_likelihood(np.vstack([a, b]), family) - two + parameters(d, family) * np.log(n)
        assert merge_gain(sums[0], sums[1], d, family)[0] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seed", range(25))
def test_merging_is_greedy_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((120, 2)) + 4 * rng.integers(0, 3, (120, 1))
    rows = features(points, "full")
    sums = group_sums(rows, np.ones(120), over_partition(points, np.ones(120), 10), 10)
    plain = [each for each in sums if each[0] > 0]
    while len(plain) > 1:
        gains = {
            (i, j): merge_gain(plain[i][None], plain[j][None], 2, "full")[0]
            for i in range(len(plain))
            for j in range(i + 1, len(plain))
        }
        pair = max(gains, key=lambda each: gains[each])
        if gains[pair] <= 0:
            break
        plain = [each for at, each in enumerate(plain) if at not in pair] + [plain[pair[0]] + plain[pair[1]]]
    made = merge(sums[sums[:, 0] > 0], 2, "full", neighbours=20)
    assert sorted(made[:, 0]) == sorted(each[0] for each in plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixture_is_scipys_and_its_likelihood_never_falls(family):
    points, labels = blobs([(0, 0, 0), (3, 0, 0), (0, 4, 1)], 150, 2)
    rows, weight = features(points, family), np.ones(len(points))
    start = Mixture.of(group_sums(rows, weight, labels, 3), 3, family)
    joint = start.log_joint(rows)
    for k in range(3):
        off = points - start.means[k]
        inverse = np.linalg.inv(start.covariances[k])
        expected = np.log(start.shares[k]) - 0.5 * (
            np.einsum("ij,jk,ik->i", off, inverse, off)
            + np.linalg.slogdet(start.covariances[k])[1]
            + 3 * np.log(2 * np.pi)
        )
        assert np.allclose(joint[:, k], expected, rtol=1e-9)
    rough = over_partition(points, weight, 6)
    history: list[float] = []
    expectation_maximisation(rows, weight, Mixture.of(group_sums(rows, weight, rough, 6), 3, family), history)
    # The shrinkage of small groups is a prior: it may cost the likelihood a little.
    assert len(history) > 5 and (np.diff(history) > -0.05).all()
    posterior, _ = start.responsibilities(rows)
    assert np.allclose(posterior.sum(axis=1), 1)


def test_a_valley_is_where_the_density_falls():
    eye = np.eye(2)
    assert valley((0.5, np.zeros(2), eye), (0.5, np.array([1.9, 0]), eye)) == 1.0  # one peak below two deviations
    apart = valley((0.5, np.zeros(2), eye), (0.5, np.array([6.0, 0]), eye))
    assert apart == pytest.approx(2 * np.exp(-4.5), rel=0.05)
    assert valley((0.5, np.zeros(2), eye), (0.5, np.zeros(2), 9 * eye)) == 1.0
    rows = features(blobs([(0, 0), (0, 0), (9, 9)], 100, 0)[0], "full")
    sums = group_sums(rows, np.ones(300), np.repeat([0, 1, 2], 100), 3)
    assert sorted(join_without_valley(Mixture.of(sums, 2, "full"), 2)[:, 0]) == [100, 200]


@pytest.mark.parametrize("true_k", [1, 2, 5, 9])
def test_groups_that_are_there_are_found(true_k):
    points, truth = blobs([(9.0 * (i % 3), 9.0 * (i // 3)) for i in range(true_k)], 120, true_k)
    model = ProbabilisticPartition().fit(points)
    assert model.n_clusters_ == true_k and same_partition(model.labels_, truth)
    assert model.agreement_ >= 0.99 and model.separable_mask_.mean() >= 0.95
    assert [row["size"] for row in model.report_] == [120] * true_k
    order = np.argsort([truth[model.labels_ == k][0] for k in range(true_k)])
    centres = np.array([(9.0 * (i % 3), 9.0 * (i // 3)) for i in range(true_k)])
    assert np.allclose(model.means_[order], centres, atol=0.4)
    assert np.allclose(model.covariances_, np.eye(2), atol=0.5)


def test_one_gaussian_is_one_group_and_two_are_two():
    found = {1: 0, 2: 0}
    for seed in range(40):
        d = 1 + seed % 6
        one = blobs([(0.0,) * d], 150 + 20 * seed, seed)[0]
        two = blobs([(0.0,) * d, (6.0, *(0.0,) * (d - 1))], 100 + 10 * seed, seed)[0]
        found[1] += ProbabilisticPartition().fit(one).n_clusters_ == 1
        found[2] += ProbabilisticPartition().fit(two).n_clusters_ == 2
    assert found[1] >= 39 and found[2] >= 39


def test_two_groups_that_overlap_much_are_two():
    points, truth = blobs([(0.0,), (2.8,)], 1500, 3)
    model = ProbabilisticPartition().fit(points)
    assert model.n_clusters_ == 2
    assert max(np.mean(model.labels_ == truth), np.mean(model.labels_ != truth)) > 0.9
    assert 0.2 < model.separable_mask_.mean() < 0.8


def test_many_columns_are_searched_where_they_vary():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((400, 60))
    truth = rng.integers(0, 3, 400)
    points[:, 0] += 6 * (truth == 1)
    points[:, 1] += 6 * (truth == 2)
    model = ProbabilisticPartition(scale=False).fit(points)
    assert model.n_clusters_ == 3 and (np.bincount(model.labels_) > 100).all()
    assert model.means_.shape == (3, 60) and model.covariances_.shape == (3, 60, 60)


def test_neither_row_order_nor_units_matter():
    points, _ = blobs([(0, 0), (5, 1), (2, 7)], 90, 4)
    model = ProbabilisticPartition().fit(points)
    order = np.random.default_rng(1).permutation(len(points))
    assert (ProbabilisticPartition().fit(points[order]).labels_ == model.labels_[order]).all()
    scaled = ProbabilisticPartition().fit(points * [1024.0, 0.5] + [64.0, -8.0])
    assert same_partition(scaled.labels_, model.labels_)
    turned = ProbabilisticPartition().fit(points[:, ::-1])
    assert same_partition(turned.labels_, model.labels_)


def test_reducing_the_input_keeps_the_groups():
    points, truth = blobs([(0, 0), (12, 0), (0, 12)], 4000, 5)
    model = ProbabilisticPartition(reduce_above=6000).fit(points)
    assert model.n_clusters_ == 3 and same_partition(model.labels_, truth)


def test_odd_data():
    assert ProbabilisticPartition().fit(np.ones((20, 3))).n_clusters_ == 1
    assert ProbabilisticPartition().fit([[1.0, 2]]).labels_.tolist() == [0]
    copies = np.repeat([[0.0, 0], [50, 50]], 40, axis=0)
    assert ProbabilisticPartition().fit(copies).n_clusters_ == 2
    mixed = np.hstack([blobs([(0.0,), (20.0,)], 60, 0)[0] * 1e9, np.zeros((120, 1))])
    assert ProbabilisticPartition().fit(mixed).n_clusters_ == 2
    with pytest.raises(UsageError, match="max_clusters is 0"):
        ProbabilisticPartition(max_clusters=0).fit([[1.0]])
    with pytest.raises(DataError, match=r"KMedoids"):
        ProbabilisticPartition().fit([["red"], ["blue"]])
    with pytest.raises(NotFitted):
        ProbabilisticPartition().predict([[1.0]])
    points, _ = blobs([(0, 0), (9, 0), (0, 9)], 60, 1)
    with pytest.warns(UserWarning, match="max_clusters"):
        assert ProbabilisticPartition(max_clusters=2).fit(points).n_clusters_ == 2
