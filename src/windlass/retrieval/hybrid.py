"""Lexical and dense search fused by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009; k = 60).

Ranks, not scores, are added, since BM25 and cosine have no common scale. Passages that have no vector by design
(rows of tables) would lose to anything that both lists hold, however far down; such a passage is given its lexical
rank in the dense list too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windlass.core.workspace import Workspace
from windlass.retrieval.dense import DenseIndex
from windlass.retrieval.lexical import LexicalIndex
from windlass.retrieval.types import Hits

_RANK_CONSTANT = 60
_DEPTH = 100


class HybridRetriever:
    """Fuses the two indexes of a workspace; with `dense=None` it is lexical search.

    Args:
        workspace: An open workspace.
        lexical: The full-text index.
        dense: The vector index, or None when there is no encoder.
    """

    def __init__(self, workspace: Workspace, lexical: LexicalIndex, dense: DenseIndex | None) -> None:
        self._workspace = workspace
        self._lexical = lexical
        self._dense = dense

    def search(self, queries: Sequence[str], k: int, *, trace: bool = False) -> Hits:
        """The `k` best passages of each query; `trace` tells the rank (from 1) in each list."""
        depth = max(_DEPTH, k)
        lexical = self._lexical.search(queries, depth)
        dense = self._dense.search(queries, depth) if self._dense else None
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        traces: list[dict[int, dict[str, int]]] = []
        for row in range(len(queries)):
            ranks = {"lexical": _ranks(lexical.ids[row])}
            if dense is not None:
                ranks["dense"] = _ranks(dense.ids[row])
            fused = self._fuse(ranks)
            best = sorted(fused, key=lambda passage: (-fused[passage], passage))[:k]
            ids[row, : len(best)] = best
            scores[row, : len(best)] = [fused[passage] for passage in best]
            traces.append({p: {name: found[p] for name, found in ranks.items() if p in found} for p in best})
        return Hits(ids, scores, traces if trace else None)

    def _fuse(self, ranks: dict[str, dict[int, int]]) -> dict[int, float]:
        fused: dict[int, float] = {}
        for found in ranks.values():
            for passage, rank in found.items():
                fused[passage] = fused.get(passage, 0.0) + 1.0 / (_RANK_CONSTANT + rank)
        if "dense" in ranks:
            for passage in self._without_vector(set(ranks["lexical"]) - set(ranks["dense"])):
                fused[passage] *= 2
        return fused

    def _without_vector(self, passages: set[int]) -> list[int]:
        if not passages:
            return []
        marks = ", ".join("?" * len(passages))
        with self._workspace.reading() as connection:
            rows = connection.execute(
                f"SELECT id FROM chunks WHERE text_hash IS NULL AND id IN ({marks})", sorted(passages)
            )
            return [row[0] for row in rows]


def _ranks(ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[int, int]:
    return {int(passage): rank for rank, passage in enumerate(ids, 1) if passage >= 0}
