"""`prosper`: bars that must be found, and the time of one step of expectation maximisation.

The original package needs MPI and an old NumPy and is not in the package index, so it has no figure here; the step is
set beside the same step written with NumPy and explicit reconstructions.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.patterns.occlusion import MaximalCauses
from windlass.patterns.sparse_coding import BinarySparseCoding, TernarySparseCoding

_CLOSE = 0.5
"""A bar of brightness 10 is found when an element is off by less than this on average."""


def run(context: BenchContext) -> BenchReport:
    seeds, points = (2, 300) if context.quick else (20, 1000)
    kinds = {"binary": BinarySparseCoding, "occluding": MaximalCauses}
    if not context.quick:
        kinds["ternary"] = TernarySparseCoding
    metrics: list[Metric] = []
    for name, kind in kinds.items():
        found, noise = [], []
        for seed in range(seeds):
            data, elements = bars(5, points, seed, name)
            model = kind(10, random_state=seed).fit(data, progress=context.progress)
            found.append(found_bars(model.components_, elements, signed=name == "ternary") == 10)
            noise.append(abs(model.noise_ - 2) / 2)
        note = f"noise off by {np.median(noise):.1%}"
        share = float(np.mean(found))
        metrics.append(
            metric(f"{name}: runs that find all 10 bars", "share", share, better="higher", least=0.95, note=note)
        )
    metrics += [] if context.quick else _others(seeds, points)
    for size, count in ((5, 1000),) if context.quick else ((5, 1000), (8, 2000)):
        metrics += _step(context, size, count)
    return context.report(
        mode="measured", workload=f"bars test, 5 x 5 images, {points:,} points, noise 2, {seeds} seeds", metrics=metrics
    )


def bars(size: int, count: int, seed: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, size * size]` of horizontal and vertical bars of brightness 10, two on average, and the bars."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((2 * size, size, size))
    for i in range(size):
        pictures[i, i, :] = pictures[size + i, :, i] = 10
    elements = pictures.reshape(2 * size, -1)
    active = (rng.random((count, 2 * size)) < 1 / size).astype(float)
    if kind == "ternary":
        active *= rng.choice([-1.0, 1.0], active.shape)
    shown = (active[:, :, None] * elements).max(axis=1) if kind == "occluding" else active @ elements
    return shown + 2 * rng.standard_normal(shown.shape), elements


def found_bars(made: np.ndarray, elements: np.ndarray, *, signed: bool) -> int:
    """How many bars some element is close to."""
    off = np.abs(made[:, None] - elements[None]).mean(axis=2)
    if signed:
        off = np.minimum(off, np.abs(made[:, None] + elements[None]).mean(axis=2))
    return int((off.min(axis=0) < _CLOSE).sum())


def _others(seeds: int, points: int) -> list[Metric]:
    """scikit-learn's decompositions on occluding bars, each element scaled to brightness 10."""
    decomposition = peer_module("sklearn.decomposition")
    if decomposition is None:
        return []
    ways: dict[str, Any] = {
        "NMF": lambda: decomposition.NMF(10, max_iter=500, random_state=0),  # of what is above zero
        "DictionaryLearning": lambda: decomposition.MiniBatchDictionaryLearning(10, random_state=0),
        "FastICA": lambda: decomposition.FastICA(10, random_state=0, whiten="unit-variance"),
    }
    ours: list[int] = []
    theirs: dict[str, list[int]] = {name: [] for name in ways}
    for seed in range(seeds):
        data, elements = bars(5, points, seed, "occluding")
        ours.append(found_bars(MaximalCauses(10, random_state=seed).fit(data).components_, elements, signed=False))
        for name, way in ways.items():
            made = way().fit(np.maximum(data, 0) if name == "NMF" else data).components_
            top = np.sort(np.abs(made), axis=1)[:, -5:].mean(axis=1, keepdims=True)
            theirs[name].append(found_bars(10 * made / np.maximum(top, 1e-12), elements, signed=True))
    means = {name: float(np.mean(found)) for name, found in theirs.items()}
    best = max(means, key=lambda name: means[name])
    return [
        metric(
            "occluding bars found of 10", "", float(np.mean(ours)), better="higher", peer=means[best], peer_name=best,
            least_ratio=1.5, note=", ".join(f"{name} {value:.2f}" for name, value in means.items()),
        )
    ]  # fmt: skip


def _step(context: BenchContext, size: int, count: int) -> list[Metric]:
    """One step of binary coding, H' = 8 (all when there are fewer) and at most 4 active."""
    data, _ = bars(size, count, context.seed, "binary")
    model = BinarySparseCoding(2 * size, max_iter=20).fit(data)
    everyone = np.ones(len(data), np.bool_)

    def ours() -> float:
        for _ in range(5):
            evidence, moments = model._expect(data, 1.0, everyone)
            model._maximise(data, moments, everyone)
        return float(evidence.sum())

    both = compare(ours, lambda: _numpy_step(model, data), progress=context.progress)
    assert both.peer is not None
    name = f"one step, D = {size**2}, H = {2 * size}, N = {count:,}"
    return [
        metric(
            name, "ms", 200 * both.ours.wall_median, better="lower", peer=1000 * both.peer.wall_median,
            peer_name="NumPy, explicit reconstructions", note=both.ours.spread,
        ),
        metric(f"{name}, original", "ms", 200 * both.ours.wall_median, better="lower", peer=None, peer_name="prosper"),
    ]  # fmt: skip


def _numpy_step(model: BinarySparseCoding, data: np.ndarray) -> Any:
    """The expectation of one step: for each point every state of its candidates, reconstructed."""
    elements, noise = model.components_, model.noise_
    causes = len(elements)
    pi = float(model.prior_[0])
    candidates = min(8, causes)
    combined = [
        state for size in (2, 3, 4) for state in itertools.combinations(range(candidates), size)
    ]  # fmt: skip
    masks = np.zeros((len(combined), candidates))
    for at, state in enumerate(combined):
        masks[at, list(state)] = 1
    score = data @ elements.T / np.linalg.norm(elements, axis=1)
    chosen = np.argsort(-score, axis=1)[:, :candidates]
    mean, second = np.zeros((len(data), causes)), np.zeros((causes, causes))
    sizes = np.r_[0.0, np.ones(causes), masks.sum(axis=1)]
    for point, held in enumerate(chosen):
        shown = np.vstack([np.zeros((1, data.shape[1])), elements, masks @ elements[held]])
        logs = sizes * np.log(pi / (1 - pi)) - 0.5 * ((data[point] - shown) ** 2).sum(axis=1) / noise**2
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        mean[point] = weights[1 : 1 + causes]
        tail = weights[1 + causes :]
        mean[point, held] += tail @ masks
        second[np.ix_(held, held)] += (masks * tail[:, None]).T @ masks
        second[np.diag_indices(causes)] += weights[1 : 1 + causes]
    return np.linalg.lstsq(second, mean.T @ data, rcond=None)[0]
