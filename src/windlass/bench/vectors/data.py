"""Vectors to measure on: real sentence embeddings, and more of the same kind made from them.

Independent Gaussian vectors would be no measure of anything: every index is bad at them, and nobody has such data.
`expand_embeddings` keeps clusters, differences in density, near-duplicates and the low intrinsic dimension of what it
is given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from windlass.bench.shared_data import shared_path
from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.kmeans import unit_rows

Vectors = NDArray[np.float32]

_NEIGHBOURS = 8
_BLOCK = 1024


def real_embeddings() -> Vectors:
    """float32 `[30000, 384]`, unit rows: all-MiniLM-L6-v2 embeddings of trivia questions.

    Raises:
        DataMissing: The shared data is not here.
    """
    with np.load(shared_path("vectors/trivia_minilm_i8.npz")) as file:
        return unit_rows(file["codes"].astype(np.float32) / float(file["scale"]))


def expand_embeddings(real: Vectors, count: int, seed: int) -> Vectors:
    """float32 `[count, d]`, unit rows: new vectors between near ones of `real`, with a little noise.

    A row b, one of its 8 nearest j, and neighbours of both are drawn; the new vector lies between b and j, is bent
    along the differences of their neighbours, and gets isotropic noise of 0.15 times the distance from b to j.
    """
    near = _neighbours(real)
    rng = np.random.default_rng(seed)
    out = np.empty((count, real.shape[1]), np.float32)
    for start in range(0, count, 8192):
        size = min(8192, count - start)
        base = rng.integers(0, len(real), size)
        other = near[base, rng.integers(0, _NEIGHBOURS, size)]
        second = near[base, rng.integers(0, _NEIGHBOURS, size)]
        third = near[other, rng.integers(0, _NEIGHBOURS, size)]
        step = real[other] - real[base]
        share = rng.uniform(0.1, 0.7, size)[:, None]
        bends = rng.normal(0, 0.35, (2, size, 1))
        new = real[base] + share * step
        new += bends[0] * (real[second] - real[base]) + bends[1] * (real[third] - real[other])
        noise = rng.standard_normal((size, real.shape[1]))
        noise *= 0.15 * np.linalg.norm(step, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
        out[start : start + size] = unit_rows((new + noise).astype(np.float32))
    return out


def data_and_queries(count: int, queries: int, seed: int, *, of: int | None = None) -> tuple[Vectors, Vectors]:
    """`count` vectors, and real embeddings to ask that had no part in them.

    Args:
        of: Make them from so many real ones only; finding the neighbours of all 30,000 takes a quarter of a minute.
    """
    real = real_embeddings()
    return expand_embeddings(real[:-queries][:of], count, seed), real[-queries:]


def true_neighbours(vectors: Vectors, queries: Vectors, k: int) -> NDArray[np.int64]:
    """int64 `[q, k]` by brute force in float32, under the dot product."""
    best = np.empty((len(queries), k), np.int64)
    with one_thread_a_product():
        for start in range(0, len(queries), 64):
            products = queries[start : start + 64] @ vectors.T
            part = np.argpartition(-products, k, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(products, part, axis=1), axis=1)
            best[start : start + 64] = np.take_along_axis(part, order, axis=1)
    return best


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The share of the true rows that were found."""
    hits = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, truth, strict=True))
    return hits / truth.size


def _neighbours(real: Vectors) -> NDArray[np.int64]:
    near = np.empty((len(real), _NEIGHBOURS), np.int64)
    with one_thread_a_product():
        for start in range(0, len(real), _BLOCK):
            products = real[start : start + _BLOCK] @ real.T
            products[np.arange(len(products)), np.arange(start, start + len(products))] = -np.inf
            near[start : start + _BLOCK] = np.argpartition(-products, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    return near
