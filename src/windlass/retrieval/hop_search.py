"""Search in two rounds over a workspace: by meaning, then from each passage found to what it names or leaves open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windlass.core.workspace import Workspace
from windlass.retrieval.dense import DenseIndex
from windlass.retrieval.links import led_to
from windlass.retrieval.multihop import MultiHopRetriever, NextQueries, Step
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.types import Hits, Link

_RANK_CONSTANT = 60
_STAGES = {1: "dense", 2: "hops"}


class HopSearch:
    """Passages for questions that take two: half of them answer the question, half the one that follows from it.

    Args:
        workspace: An open workspace.
        dense: The vector index.
        update: Makes next queries; None: the linear update.
    """

    def __init__(self, workspace: Workspace, dense: DenseIndex, update: NextQueries | None = None) -> None:
        self._workspace = workspace
        self._dense = dense
        self._update = update

    def search(self, queries: Sequence[str], k: int, *, trace: bool = False) -> Hits:
        """The `k` best passages of each query, the rounds' bests in turn; `links` tells what led to the second's."""
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        traces: list[dict[int, dict[str, int]]] = []
        links: list[dict[int, Link]] = []
        named: dict[int, dict[int, Link]] = {}
        retriever = MultiHopRetriever(
            self._dense,
            self._update,
            hops=2,
            top_n=-(-k // 2),
            neighbours=lambda passage: self._links_of(passage, named),
        )
        found = retriever.explain(self._dense.vectors_of_queries(queries)) if queries else []
        for row, steps in enumerate(found):
            places = _places(steps)
            best = sorted(steps, key=lambda step: (places[step.passage], step.round))[:k]
            ids[row, : len(best)] = [step.passage for step in best]
            scores[row, : len(best)] = [1.0 / (_RANK_CONSTANT + places[step.passage]) for step in best]
            traces.append({step.passage: {_STAGES[step.round]: places[step.passage]} for step in best})
            links.append({step.passage: self._why(step, named) for step in best if step.origin is not None})
        return Hits(ids, scores, traces if trace else None, links)

    def _links_of(self, passage: int, named: dict[int, dict[int, Link]]) -> list[int]:
        if passage not in named:
            origin = load_passages(self._workspace, [passage]).get(passage)
            named[passage] = led_to(self._workspace, origin) if origin else {}
        return list(named[passage])

    def _why(self, step: Step, named: dict[int, dict[int, Link]]) -> Link:
        """The name that led to a passage of the second round, or the passage that it goes on from by meaning."""
        assert step.origin is not None
        if step.is_linked:
            return named[step.origin][step.passage]
        origin = load_passages(self._workspace, [step.origin])[step.origin]
        return Link(origin.title.rpartition(" > ")[2] or "what is said", step.origin, origin.source)


def _places(steps: Sequence[Step]) -> dict[int, int]:
    """The rank (from 1) of each passage in its round."""
    counts: dict[int, int] = {}
    places = {}
    for step in steps:
        counts[step.round] = counts.get(step.round, 0) + 1
        places[step.passage] = counts[step.round]
    return places
