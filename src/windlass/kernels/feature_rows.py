"""One point against all points: a row of a distance matrix that is never stored.

Points lie transposed, one feature a row, so that a row of distances is sums over contiguous memory. Arithmetic is
float32 in a fixed order: a row is the same whoever asks for it.
"""

from __future__ import annotations

from typing import Any

from windlass.kernels.compiled import compiled

SQEUCLIDEAN, EUCLIDEAN, MANHATTAN, COSINE, HAMMING, JACCARD = 0, 1, 2, 3, 4, 5
METRICS = {
    "sqeuclidean": SQEUCLIDEAN,
    "euclidean": EUCLIDEAN,
    "manhattan": MANHATTAN,
    "cosine": COSINE,
    "hamming": HAMMING,
    "jaccard": JACCARD,
}
_BLOCK = 2048


@compiled
def point_to_all(features: Any, point: Any, size: Any, sizes: Any, metric: int, out: Any) -> None:
    """Distances of one point to all points.

    Args:
        features: float32 `[d, n]`, C order. For cosine, columns of length one; for jaccard, of 0 and 1.
        point: float32 `[d]`.
        size: For jaccard, the sum of `point`.
        sizes: float32 `[n]`: for jaccard, the sum of each column; not read otherwise.
        metric: One of the codes above.
        out: float32 `[n]`. Hamming is the share of features that differ.
    """
    d, n = features.shape
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        part = out[start:stop]
        part[:] = 0
        f = 0
        while f + 4 <= d:
            _add_four(
                features[f, start:stop], features[f + 1, start:stop], features[f + 2, start:stop],
                features[f + 3, start:stop], point[f], point[f + 1], point[f + 2], point[f + 3], metric, part,
            )  # fmt: skip
            f += 4
        while f < d:
            _add_one(features[f, start:stop], point[f], metric, part)
            f += 1
        _finish(part, size, sizes[start : min(stop, len(sizes))], metric, d)


@compiled
def _add_four(
    first: Any, second: Any, third: Any, fourth: Any, a: Any, b: Any, c: Any, e: Any, metric: int, out: Any
) -> None:
    if metric <= 1:
        for o in range(len(out)):
            p, q, r, s = first[o] - a, second[o] - b, third[o] - c, fourth[o] - e
            out[o] += (p * p + q * q) + (r * r + s * s)
    elif metric == 2:
        for o in range(len(out)):
            out[o] += (abs(first[o] - a) + abs(second[o] - b)) + (abs(third[o] - c) + abs(fourth[o] - e))
    elif metric == 4:
        for o in range(len(out)):
            out[o] += (first[o] != a) + (second[o] != b) + (third[o] != c) + (fourth[o] != e)
    else:
        for o in range(len(out)):
            out[o] += (first[o] * a + second[o] * b) + (third[o] * c + fourth[o] * e)


@compiled
def _add_one(row: Any, value: Any, metric: int, out: Any) -> None:
    if metric <= 1:
        for o in range(len(out)):
            p = row[o] - value
            out[o] += p * p
    elif metric == 2:
        for o in range(len(out)):
            out[o] += abs(row[o] - value)
    elif metric == 4:
        for o in range(len(out)):
            out[o] += row[o] != value
    else:
        for o in range(len(out)):
            out[o] += row[o] * value


@compiled
def _finish(out: Any, size: Any, sizes: Any, metric: int, d: int) -> None:
    if metric == 1:
        for o in range(len(out)):
            out[o] = out[o] ** 0.5
    elif metric == 3:
        for o in range(len(out)):
            out[o] = max(1 - out[o], 0)
    elif metric == 4:
        for o in range(len(out)):
            out[o] /= d
    elif metric == 5:
        for o in range(len(out)):
            union = size + sizes[o] - out[o]
            out[o] = 1 - out[o] / union if union > 0 else 0
