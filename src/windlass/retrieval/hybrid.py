"""Lexical and dense search, fused by rank and judged by evidence.

The two lists are fused by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009), since BM25 and cosine have no
common scale. Ranks say nothing about how good the best is, though: for a question in other words than the files, the
lexical list is a list of bad matches. So the best fused passages are ordered anew by the sum of three figures in
[0, 1]: the fused score over the highest one, the cosine, and the covered share of the question (see `coverage`).

Rows of tables have no vector by design. They would lose to anything that both lists hold, however far down; such a
passage is given its lexical rank in the dense list too, and a middling cosine.

What the best passages name is followed (see `links`): up to two passages are moved right behind the one that led to
them, never before it, and one at most by its name alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windlass.core.workspace import Workspace
from windlass.retrieval.coverage import Coverage
from windlass.retrieval.dense import DenseIndex
from windlass.retrieval.lexical import LexicalIndex
from windlass.retrieval.links import Followed, follow
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.types import Hits, Link, Passage

# Smaller than the customary 60: with 100 passages a list, being first in one must weigh more than being 30th in both.
_RANK_CONSTANT = 5
_DEPTH = 100
_JUDGED = 50
_COSINE_OF_ROWS = 0.4
_ORIGINS = 3
_MOST_FOLLOWED = 2
_MOST_BY_NAME_ALONE = 1
# How far a passage that was led to stands behind the one that led there: less than what sets passages apart.
_BEHIND = 1e-3


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
        links: list[dict[int, Link]] = []
        for row, query in enumerate(queries):
            ranks = {"lexical": _ranks(lexical.ids[row])}
            cosines: dict[int, float] = {}
            if dense is not None:
                ranks["dense"] = _ranks(dense.ids[row])
                cosines = {int(p): float(s) for p, s in zip(dense.ids[row], dense.scores[row], strict=True)}
            judged, via = self._judge(query, self._fuse(ranks), cosines, max(_JUDGED, k))
            best = sorted(judged, key=lambda passage: (-judged[passage], passage))[:k]
            ids[row, : len(best)] = best
            scores[row, : len(best)] = [judged[passage] for passage in best]
            traces.append({p: {name: found[p] for name, found in ranks.items() if p in found} for p in best})
            links.append({passage: link for passage, link in via.items() if passage in best})
        return Hits(ids, scores, traces if trace else None, links)

    def _judge(
        self, query: str, fused: dict[int, float], cosines: dict[int, float], count: int
    ) -> tuple[dict[int, float], dict[int, Link]]:
        """The scores of the best `count`, and how those were found that another one led to."""
        best = sorted(fused, key=lambda passage: (-fused[passage], passage))[:count]
        if not best:
            return {}, {}
        highest = fused[best[0]]
        coverage = Coverage(query, self._lexical.idf)

        def evidence(passage: Passage) -> float:
            near = _COSINE_OF_ROWS if passage.kind == "rows" else cosines.get(passage.id, 0.0)
            return near * bool(cosines) + coverage.of(passage)

        passages = load_passages(self._workspace, best)
        judged = {passage.id: fused[passage.id] / highest + evidence(passage) for passage in passages.values()}
        origins = sorted(judged, key=lambda passage: (-judged[passage], passage))[:_ORIGINS]
        weights = [(passages[origin], judged[origin] / max(judged[origins[0]], 1e-9)) for origin in origins]
        followed = follow(self._workspace, coverage, weights)
        own = {found.passage.id: judged.get(found.passage.id, evidence(found.passage)) for found in followed}
        return _with_followed(judged, own, followed)

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


def _with_followed(
    judged: dict[int, float], own: dict[int, float], followed: list[Followed]
) -> tuple[dict[int, float], dict[int, Link]]:
    """The scores once a few followed passages were moved up behind their origins, and which these are."""
    scores, by_name = dict(judged), 0
    via: dict[int, Link] = {}
    for found in sorted(followed, key=lambda found: (-own[found.passage.id] - found.strength, found.passage.id)):
        passage = found.passage.id
        score = min(own[passage] + found.strength, judged[found.link.origin] - _BEHIND * (len(via) + 1))
        if score <= own[passage] or (not found.adds and by_name == _MOST_BY_NAME_ALONE):
            continue
        scores[passage], via[passage] = score, found.link
        by_name += not found.adds
        if len(via) == _MOST_FOLLOWED:
            break
    return scores, via
