"""`ppp`: public clustering sets, beside a sweep over k with scikit-learn's Gaussian mixtures.

All methods see the same standardised columns. Reference labels are compared by the adjusted Rand index; noise is left
out. The sweep takes minutes, so it is timed once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.patterns.data import clusters
from windlass.bench.report import BenchReport, Metric, metric
from windlass.patterns.partition import ProbabilisticPartition

_SETS = (
    "a1", "a3", "s1", "s3", "r15", "d31", "aggregation", "unbalance", "g2mg_16_30", "g2mg_64_50", "twosplashes", "wine",
)  # fmt: skip
_QUICK = ("r15", "d31", "unbalance")


def run(context: BenchContext) -> BenchReport:
    names = _QUICK if context.quick else _SETS
    metrics: list[Metric] = []
    ours_scores, peer_scores, exact, ours_time, peer_time = [], [], [], 0.0, 0.0
    wrong = []
    for name in names:
        points, truth = clusters(name)
        points = (points - points.mean(axis=0)) / np.where(points.std(axis=0) > 0, points.std(axis=0), 1)
        known, true_k = truth > 0, len(set(truth[truth > 0]))
        peer = _sweep(points, true_k)
        both = compare(
            lambda points=points: ProbabilisticPartition().fit(points), None, progress=context.progress  # type: ignore[misc]
        )  # fmt: skip
        model = both.ours.result
        exact.append(model.n_clusters_ == true_k)
        ours_scores.append(adjusted_rand(truth[known], model.labels_[known]))
        ours_time += both.ours.wall_median
        note = f"{model.n_clusters_} of {true_k} groups"
        if peer is not None:
            began = time.perf_counter()
            labels = peer()
            peer_time += time.perf_counter() - began
            peer_scores.append(adjusted_rand(truth[known], labels[known]))
            note += f", peer {len(set(labels))}"
        if not exact[-1]:
            wrong.append(name)
        metrics.append(
            metric(
                f"{name}: adjusted Rand index", "", ours_scores[-1], better="higher",
                peer=peer_scores[-1] if peer is not None else None, peer_name="scikit-learn mixture by BIC", note=note,
            )
        )  # fmt: skip
    metrics += _summary(context, exact, ours_scores, peer_scores, ours_time, peer_time, wrong)
    metrics += _other_peers(names) if not context.quick else []
    metrics.append(_repeatable(names))
    if not context.quick:
        metrics += _large(context)
    return context.report(
        mode="measured", workload=f"{len(names)} public clustering sets, columns of variance 1", metrics=metrics
    )


def _summary(
    context: BenchContext, exact: list[bool], ours: list[float], peer: list[float], ours_time: float,
    peer_time: float, wrong: list[str],
) -> list[Metric]:  # fmt: skip
    name = "scikit-learn mixture by BIC"
    least = 3 if context.quick else 9
    out = [
        metric(
            "sets with the exact number of groups", "", float(sum(exact)), better="higher", least=least,
            note=f"missed: {', '.join(wrong)}" if wrong else "",
        )
    ]  # fmt: skip
    mean = float(np.mean(peer)) if peer else None
    out.append(
        metric(
            "mean adjusted Rand index", "", float(np.mean(ours)), better="higher", peer=mean, peer_name=name,
            least_ratio=1.1,
        )
    )  # fmt: skip
    out.append(
        metric("all sets", "s", ours_time, better="lower", peer=peer_time or None, peer_name=name, least_ratio=5)
    )
    return out


def _sweep(points: NDArray[Any], true_k: int) -> Callable[[], Any] | None:
    """Full covariances, k from 1 to twice the truth, the best of BIC."""
    mixture = peer_module("sklearn.mixture")
    if mixture is None:
        return None

    def fit() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = [mixture.GaussianMixture(k, random_state=0).fit(points) for k in range(1, 2 * true_k + 1)]
        return min(models, key=lambda model: model.bic(points)).predict(points)

    return fit


def _other_peers(names: tuple[str, ...]) -> list[Metric]:
    """HDBSCAN, which finds its number too; k-means by silhouette takes minutes and is left to a notebook."""
    cluster = peer_module("sklearn.cluster")
    if cluster is None:
        return []
    scores, exact = [], 0
    for name in names:
        points, truth = clusters(name)
        points = (points - points.mean(axis=0)) / np.where(points.std(axis=0) > 0, points.std(axis=0), 1)
        known = truth > 0
        labels = cluster.HDBSCAN(min_cluster_size=max(5, len(points) // 100), copy=True).fit(points).labels_
        scores.append(adjusted_rand(truth[known], labels[known]))
        exact += len(set(labels) - {-1}) == len(set(truth[known]))
    return [metric("HDBSCAN: mean adjusted Rand index", "", float(np.mean(scores)), better="higher",
                   note=f"{exact} exact")]  # fmt: skip


def _repeatable(names: tuple[str, ...]) -> Metric:
    """The least agreement between five row orders."""
    least = 1.0
    for name in names[:4]:
        points, _ = clusters(name)
        first = ProbabilisticPartition().fit(points).labels_
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(points))
            again = ProbabilisticPartition().fit(points[order]).labels_
            least = min(least, adjusted_rand(first[order], again))
    return metric("five row orders: least adjusted Rand index", "", least, better="higher", least=1)


def _large(context: BenchContext) -> list[Metric]:
    points, _ = clusters("birch1")
    seconds = {}
    for n in (25_000, 100_000):
        part = points[np.random.default_rng(0).permutation(len(points))[:n]]
        made = compare(
            lambda part=part: ProbabilisticPartition(reduce_above=20_000).fit(part),  # type: ignore[misc]
            None, warm_up=False, progress=context.progress,
        )  # fmt: skip
        seconds[n] = made.ours.wall_median
    found = ProbabilisticPartition().fit(points)
    return [
        metric("birch1, 100,000 points", "s", seconds[100_000], better="lower", most=10),
        metric("birch1: groups off 100", "", abs(found.n_clusters_ - 100), better="lower", most=3),
        metric("growth of time with n", "exponent", float(np.log(seconds[100_000] / seconds[25_000]) / np.log(4)),
               better="lower", most=1.1),
    ]  # fmt: skip


def adjusted_rand(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Agreement of two partitions: 1 when equal, 0 on average when unrelated (Hubert and Arabie, 1985)."""
    _, first = np.unique(a, return_inverse=True)
    _, second = np.unique(b, return_inverse=True)
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    pairs = [float((counts * (counts - 1) / 2).sum()) for counts in (table, table.sum(axis=1), table.sum(axis=0))]
    expected = pairs[1] * pairs[2] / max(len(a) * (len(a) - 1) / 2, 1)
    top = (pairs[1] + pairs[2]) / 2
    return 1.0 if top == expected else (pairs[0] - expected) / (top - expected)
