"""Search by meaning: cosine between the question's vector and every embedded passage's.

Vectors are stored as float16 beside the passages and held in memory as one float32 matrix, re-read when the index
changed. Scanning it exactly is a matrix product: 100,000 passages of 384 dimensions are 150 MB and about 10 ms.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.workspace import Workspace
from windlass.models.encoder import Encoder
from windlass.retrieval.types import Hits


@dataclass(frozen=True)
class _Loaded:
    generation: int
    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]


class DenseIndex:
    """Exact cosine search over the vectors that `encoder` has made so far.

    Args:
        workspace: An open workspace.
        encoder: Makes the question's vector; only passages with vectors of the same fingerprint are found.
    """

    def __init__(self, workspace: Workspace, encoder: Encoder) -> None:
        self._workspace = workspace
        self._encoder = encoder
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()

    def search(self, queries: Sequence[str], k: int, *, trace: bool = False) -> Hits:
        """The `k` nearest passages of each query by cosine."""
        return Hits(*self.nearest(self.vectors_of_queries(queries), k), None)

    def vectors_of_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, dim]; zeros while no passage has a vector to compare with."""
        if len(queries) == 0 or len(self._current().ids) == 0:
            return np.zeros((len(queries), self._encoder.dim), np.float32)
        return np.asarray(self._encoder.encode_queries(list(queries)), np.float32)

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids [n, k], -1 where there are fewer, and cosines of the passages nearest to vectors of length one."""
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        loaded = self._current()
        for row, values in enumerate(vectors @ loaded.vectors.T):
            best = _top(values, loaded.ids, k)
            ids[row, : len(best)], scores[row, : len(best)] = loaded.ids[best], values[best]
        return ids, scores

    def vectors_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [n, dim]; zeros where a passage has no vector."""
        loaded = self._current()
        places = np.searchsorted(loaded.ids, ids)
        known = places < len(loaded.ids)
        known[known] = loaded.ids[places[known]] == ids[known]
        vectors = np.zeros((len(ids), self._encoder.dim), np.float32)
        vectors[known] = loaded.vectors[places[known]]
        return vectors

    def _current(self) -> _Loaded:
        with self._loading, self._workspace.reading() as connection:
            generation = self._workspace.generation()
            if self._loaded is None or self._loaded.generation != generation:
                rows = connection.execute(
                    "SELECT chunks.id, embeddings.vector FROM chunks JOIN embeddings"
                    " ON embeddings.encoder = ? AND embeddings.text_hash = chunks.text_hash"
                    " WHERE chunks.text_hash IS NOT NULL ORDER BY chunks.id",
                    (self._encoder.fingerprint,),
                ).fetchall()
                ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
                packed = np.frombuffer(b"".join(row[1] for row in rows), np.float16)
                vectors = packed.reshape(len(rows), self._encoder.dim).astype(np.float32)
                self._loaded = _Loaded(generation, ids, vectors)
            return self._loaded


def _top(values: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    if len(values) > k:
        # Keep everything that ties with the k-th value, so that the smaller id wins and not the partition's whim.
        threshold = np.partition(values, len(values) - k)[len(values) - k]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    order = np.lexsort((ids[candidates], -values[candidates]))
    return candidates[order[:k]]
