"""Short codes that stand for vectors, and what they say about distances.

A code never decides what is returned: it chooses which rows are looked at exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import permutation, uniform
from windlass.kernels.bitcodes import Words, pack_signs, query_planes, sign_scores_of, words_of
from windlass.kernels.distances import gather_topk
from windlass.vectors.schema import Schema

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

LEAST_BITS = 256
_CHUNK = 8192
_SAMPLE = 20_000
_CALIBRATED = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
_QUERIES, _DEPTH = 64, 10
_ARRAYS = ("mean", "frame", "codes", "squares", "factors")


class SignCodes:
    """One bit a number: on which side of the mean of all rows it lies; with two numbers a row. See `kernels.bitcodes`.

    Short vectors are turned at random in 256 dimensions first, so that a code has never fewer bits than that.

    Attributes:
        codes: uint64 `[n, words]`.
        squares, factors: float32 `[n]`, see `sign_scores_of`.
    """

    def __init__(self, mean: Floats, frame: Floats, codes: Words, squares: Floats, factors: Floats) -> None:
        self.mean, self.frame, self.codes, self.squares, self.factors = mean, frame, codes, squares, factors

    @staticmethod
    def of(schema: Schema, read: Callable[[Rows], Floats], rows: Rows) -> SignCodes:
        """The codes of `rows`, in that order; under `ip` they estimate products, else distances."""
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        mean = np.zeros(schema.dim)
        if schema.metric != "ip":
            mean = sum((read(chunk).sum(axis=0, dtype=np.float64) for chunk in chunks), mean) / max(1, len(rows))
        words = np.zeros((len(rows), words_of(max(LEAST_BITS, schema.dim))), np.uint64)
        squares, factors = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
        found = SignCodes(mean.astype(np.float32), _frame(schema.dim), words, squares, factors)
        for number, chunk in enumerate(chunks):
            found._encode(number * _CHUNK, read(chunk), product=schema.metric == "ip")
        return found

    def _encode(self, start: int, vectors: Floats, *, product: bool) -> None:
        centred = self._turned(vectors - self.mean)
        end = start + len(vectors)
        self.codes[start:end] = pack_signs(centred)
        squares, agreement = np.einsum("ij,ij->i", centred, centred), np.abs(centred).sum(axis=1)
        # The signs scaled by this have the same product with the row as the row has with itself.
        self.factors[start:end] = np.divide(squares, agreement, out=np.zeros_like(squares), where=agreement > 0)
        if not product:
            self.squares[start:end] = squares

    def asked(self, query: Floats) -> Any:
        """A query as `sign_scores_of` takes it."""
        return query_planes(self._turned(query - self.mean), self.codes.shape[1])

    def _turned(self, vectors: Floats) -> Floats:
        return vectors @ self.frame if len(self.frame) else vectors

    def scores(self, query: Floats, chosen: Rows) -> Floats:
        """float32 `[m]`: higher is nearer, up to a constant; of the rows in `chosen`."""
        out = np.empty(len(chosen), np.float32)
        sign_scores_of(self.codes, self.squares, self.factors, self.asked(query), chosen, out)
        return out

    def estimates(self, query: Floats, chosen: Rows, metric: str) -> Floats:
        """float32 `[m]`: an estimate of the score of each row in `chosen`, as `Schema` says what a score is."""
        scores = self.scores(query, chosen)
        if metric == "ip":
            return np.asarray(scores / 2, np.float32)
        centred = (query - self.mean).astype(np.float64)
        scores -= np.float32(centred @ centred)
        # Of unit vectors the product is one less half of the squared distance.
        return scores if metric == "l2" else np.asarray(1 + scores / 2, np.float32)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.squares.nbytes + self.factors.nbytes + self.mean.nbytes + self.frame.nbytes

    def arrays(self) -> dict[str, Any]:
        """For `packing.pack`."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @staticmethod
    def restored(arrays: Mapping[str, Any]) -> SignCodes:
        return SignCodes(*(arrays[name] for name in _ARRAYS))


def fitted_refine(
    score: Callable[[Floats, Rows], Floats], read: Callable[[Rows], Floats], rows: Rows, metric: int, seed: int
) -> list[tuple[float, int]]:
    """Recall, and how many rows for each row asked for codes must pass on to reach it, among a sample of all rows.

    Args:
        score: What codes say of a query and of positions; higher is nearer.
        rows: The row at each position.
    """
    positions = np.sort(permutation(seed, "calibrate", size=len(rows))[:_SAMPLE])
    vectors, ranks = read(rows[positions]), []
    for place in permutation(seed, "asked", size=len(positions))[:_QUERIES].tolist():
        others = np.delete(np.arange(len(positions)), place)
        _, true = gather_topk(vectors, vectors[place], _DEPTH, others, metric=metric)
        scores = score(vectors[place], positions)
        scores[place] = -np.inf
        ranks += [int((scores > scores[row]).sum()) for row in true.tolist()]
    if not ranks:
        return []
    needed = np.quantile(ranks, _CALIBRATED, method="higher")
    return [(recall, int(rank) // _DEPTH + 1) for recall, rank in zip(_CALIBRATED, needed, strict=True)]


def fitted_slack(
    codes: SignCodes, read: Callable[[Rows], Floats], rows: Rows, schema: Schema, seed: int
) -> list[tuple[float, float]]:
    """Recall, and by how much the estimate of that share of true neighbours falls short of their score, at most."""
    positions = np.sort(permutation(seed, "calibrate", size=len(rows))[:_SAMPLE])
    vectors, short = read(rows[positions]), []
    for place in permutation(seed, "asked", size=len(positions))[:_QUERIES].tolist():
        others = np.delete(np.arange(len(positions)), place)
        scores, true = gather_topk(vectors, vectors[place], _DEPTH, others, metric=schema.kernel_metric)
        short += (scores - codes.estimates(vectors[place], positions[true], schema.metric)).tolist()
    if not short:
        return []
    needed = np.quantile(short, _CALIBRATED, method="higher")
    return [(recall, max(0.0, float(slack))) for recall, slack in zip(_CALIBRATED, needed, strict=True)]


def _frame(dim: int) -> Floats:
    """float32 `[d, 256]` with rows of length one at right angles; nothing for long vectors."""
    if dim >= LEAST_BITS:
        return np.zeros((0, LEAST_BITS), np.float32)
    drawn = uniform(0, "frame", size=(LEAST_BITS, dim)) - 0.5
    return np.ascontiguousarray(np.linalg.qr(drawn)[0].T, np.float32)
