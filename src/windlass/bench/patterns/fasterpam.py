"""`fasterpam`: k medoids beside the Rust package, from a matrix and from features, and beside the original PAM.

Both sides start from the same medoids and try objects in the same order, so they make the same swaps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.patterns import data
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import permutation
from windlass.patterns.kmedoids import KMedoids
from windlass.patterns.sampled_kmedoids import SampledKMedoids

_RUST = "kmedoids (Rust)"
_PEAK = """
import sys, resource, numpy as np
from windlass.bench.patterns.data import letters
points, start = letters(), np.array(eval(sys.argv[2]))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "ours":
    from windlass.patterns.kmedoids import KMedoids
    KMedoids(2).fit(points[:50])
    before = peak()
    KMedoids(len(start), metric="manhattan", init=start, memory="rows").fit(points)
else:
    import kmedoids
    from sklearn.metrics import pairwise_distances
    pairwise_distances(points[:50], metric="manhattan")
    before = peak()
    kmedoids.fasterpam(pairwise_distances(points, metric="manhattan"), start.astype(np.uint64), n_cpu=1)
print(peak() - before)
"""


def run(context: BenchContext) -> BenchReport:
    metrics: list[Metric] = []
    digits = _digits()
    ks = (100,) if context.quick else (10, 50, 100, 200)
    if digits is not None:
        for k in ks:
            metrics += _matrix(context, digits, k, "digits, n = 1,797", 2.5)
    metrics += _medians(context, ("pmed10",) if context.quick else tuple(data.OPTIMA))
    if not context.quick:
        points = data.letters()
        for k in (10, 100):
            metrics += _matrix(context, points[:8000], k, "letter, n = 8,000", 5)
        metrics += _features(context, points, 26)
        metrics += _original(context)
        metrics += _growth(context)
    return context.report(
        mode="measured",
        workload="Manhattan distances of digits (1,797 x 64) and letters (20,000 x 16); p-median problems",
        metrics=metrics,
    )


def _digits() -> np.ndarray | None:
    datasets = peer_module("sklearn.datasets")
    return None if datasets is None else datasets.load_digits().data


def _manhattan(points: np.ndarray) -> np.ndarray:
    """float64 `[n, n]`, as scikit-learn makes it."""
    return np.stack([np.abs(points - point).sum(axis=1) for point in points])


def _matrix(context: BenchContext, points: np.ndarray, k: int, name: str, least: float) -> list[Metric]:
    """From a matrix that is there: time, and whether swaps and loss are the same."""
    matrix = _manhattan(points)
    start = permutation(context.seed, "start", k, size=len(points))[:k]
    package = peer_module("kmedoids")
    peer = None if package is None else lambda: package.fasterpam(matrix, start.astype(np.uint64), n_cpu=1)
    both = compare(
        lambda: KMedoids(k, metric="precomputed", init=start, order="index").fit(matrix), peer,
        progress=context.progress,
    )  # fmt: skip
    out = both.metrics(f"{name}, k = {k}", peer_name=_RUST, least_ratio=least)
    if both.peer and package is not None:
        ours, theirs = both.ours.result, both.peer.result
        same = float(ours.n_swap_ == theirs.n_swap and abs(ours.inertia_ - theirs.loss) <= 1e-9 * theirs.loss)
        out.append(metric(f"{name}, k = {k}: same swaps and loss", "", same, better="higher", least=1))
        if k == 100:
            alternating = package.alternating(matrix, start.astype(np.uint64))
            out.append(
                metric(
                    f"{name}, k = {k}: loss", "", ours.inertia_, better="lower", peer=alternating.loss,
                    peer_name="kmedoids.alternating", least_ratio=1,
                )
            )  # fmt: skip
    return out


def _medians(context: BenchContext, names: tuple[str, ...]) -> list[Metric]:
    """The best of 20 starts against the known optimum."""
    out = []
    for name in names:
        paths, p = data.p_median(name)
        found = KMedoids(p, metric="precomputed", n_init=20, random_state=context.seed).fit(paths.astype(np.int32))
        share = found.inertia_ / data.OPTIMA[name]
        out.append(metric(f"{name}: best of 20 starts", "times the optimum", share, better="lower", most=1.005))
    return out


def _features(context: BenchContext, points: np.ndarray, k: int) -> list[Metric]:
    """From features: the peer computes all distances first."""
    start = permutation(context.seed, "start", k, size=len(points))[:k]
    package, metrics = peer_module("kmedoids"), peer_module("sklearn.metrics")
    peer = None
    if package is not None and metrics is not None:

        def peer() -> Any:
            return package.fasterpam(metrics.pairwise_distances(points, metric="manhattan"), start.astype(np.uint64))

    both = compare(
        lambda: KMedoids(k, metric="manhattan", init=start, order="index", memory="rows").fit(points), peer,
        warm_up=False, progress=context.progress,
    )  # fmt: skip
    name = "letter from features, k = 26"
    out = both.metrics(name, peer_name=f"scikit-learn and {_RUST}", least_ratio=6)
    full = both.ours.result.inertia_
    if peer is not None:
        peaks = [_peak(side, start) for side in ("ours", "peer")]
        out.append(
            metric(
                f"{name}: memory", "MB", peaks[0], better="lower", peer=peaks[1],
                peer_name=f"scikit-learn and {_RUST}", least_ratio=50, note="growth of the process",
            )
        )  # fmt: skip
    for polish, most in ((0, 1.01), (1, 1.01)):
        sampled = compare(
            lambda polish=polish: SampledKMedoids(k, metric="manhattan", polish=polish).fit(points), None,  # type: ignore[misc]
            progress=context.progress,
        )  # fmt: skip
        label = "one batch, polished" if polish else "one batch"
        loss = sampled.ours.result.inertia_ / full
        out.append(metric(f"{label}: loss", "times the full one", loss, better="lower", most=most))
        share = sampled.ours.wall_median / both.ours.wall_median
        out.append(
            metric(f"{label}: time", "times the full one", share, better="lower", most=None if polish else 1 / 3)
        )
    return out


def _peak(side: str, start: np.ndarray) -> float:
    command = [sys.executable, "-c", _PEAK, side, str(start.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=dict(os.environ))
    return max(1.0, int(done.stdout) / 1024)


def _original(context: BenchContext) -> list[Metric]:
    """One scan of the original PAM against one of FastPAM1, and how their ratio grows with k."""
    matrix, ratios, out = _manhattan(data.leaves()), [], []
    for k in (100, 200):
        start = permutation(context.seed, "start", k, size=len(matrix))[:k]

        def fit(method: Any, k: int = k, start: Any = start) -> Any:
            return KMedoids(k, metric="precomputed", method=method, init=start, max_iter=1).fit(matrix)

        both = compare(lambda: fit("fastpam1"), lambda: fit("pam"), warm_up=k == 100, progress=context.progress)
        assert both.peer is not None
        ratios.append(both.peer.wall_median / both.ours.wall_median)
        out += both.metrics(f"plant leaves, one swap, k = {k}", peer_name="the original PAM, compiled too")
    growth = ratios[1] / ratios[0]
    out.append(metric("ratio to PAM at k = 200 over k = 100", "times", growth, better="higher", least=1.8))
    return out


def _growth(context: BenchContext) -> list[Metric]:
    """CPU time against n and against k, from features, for one pass over all objects."""
    seconds: dict[tuple[int, int], float] = {}
    rng = np.random.default_rng(context.seed)
    for n, k in ((5000, 10), (10_000, 10), (20_000, 10), (20_000, 200)):
        points = rng.standard_normal((n, 16)) + 5 * rng.integers(0, 10, (n, 1))
        made = compare(
            lambda points=points, k=k: KMedoids(k, memory="rows", max_iter=1).fit(points),  # type: ignore[misc]
            None, progress=context.progress,
        )  # fmt: skip
        seconds[n, k] = made.ours.cpu_median
    exponent = float(np.log2(seconds[20_000, 10] / seconds[5000, 10]) / 2)
    flat = seconds[20_000, 200] / seconds[20_000, 10]
    return [
        metric("growth of time with n, one pass", "exponent", exponent, better="lower", most=2.1),
        metric("time at k = 200 over k = 10, one pass", "times", flat, better="lower", most=2),
    ]
