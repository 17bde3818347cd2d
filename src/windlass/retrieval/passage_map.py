"""The folder as a graph: passages joined to those that say the most similar things, and what its groups are about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.workspace import Workspace
from windlass.graphs.graph import Graph
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.terms import content_terms
from windlass.retrieval.types import Passage

MOST_PASSAGES = 5_000
_NEIGHBOURS = 6
_LEAST_COSINE = 0.3
_BLOCK = 512
_QUERY = 500


@dataclass(frozen=True)
class PassageMap:
    """A graph whose node i is `passages[i]`; weights are cosines.

    Attributes:
        passages_in_all: With vectors, in the folder; of more than 5,000, evenly spaced ones are taken.
    """

    graph: Graph
    passages: tuple[Passage, ...]
    passages_in_all: int


def passage_map(workspace: Workspace, fingerprint: str, *, most: int = MOST_PASSAGES) -> PassageMap:
    """Join every passage to the six nearest by meaning; equal texts count once.

    Args:
        fingerprint: Of the encoder whose vectors are compared.
    """
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT min(chunks.id), embeddings.vector FROM chunks JOIN embeddings"
            " ON embeddings.encoder = ? AND embeddings.text_hash = chunks.text_hash"
            " GROUP BY chunks.text_hash ORDER BY 1",
            (fingerprint,),
        ).fetchall()
    chosen = rows[:: max(1, math.ceil(len(rows) / most))]
    ids = [row[0] for row in chosen]
    found: dict[int, Passage] = {}
    for first in range(0, len(ids), _QUERY):
        found |= load_passages(workspace, ids[first : first + _QUERY])
    there = [at for at, key in enumerate(ids) if key in found]
    vectors = np.array([np.frombuffer(chosen[at][1], np.float16) for at in there], np.float32)
    return PassageMap(nearest_graph(vectors), tuple(found[ids[at]] for at in there), len(rows))


def nearest_graph(vectors: NDArray[np.float32], neighbours: int = _NEIGHBOURS) -> Graph:
    """An undirected graph of unit vectors, float32 [n, dim]: each joined to its nearest, by cosines of at least 0.3."""
    n = len(vectors)
    kept = min(neighbours, n - 1)
    if kept < 1:
        return Graph.from_edges([], [], num_nodes=n)
    begin, end, weight = [], [], []
    for first in range(0, n, _BLOCK):
        cosines = vectors[first : first + _BLOCK] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, first + rows] = -2
        best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        values = np.take_along_axis(cosines, best, axis=1)
        near = values >= _LEAST_COSINE
        begin.append(np.broadcast_to(first + rows[:, None], best.shape)[near])
        end.append(best[near])
        weight.append(values[near])
    return Graph.from_edges(
        np.concatenate(begin), np.concatenate(end), np.concatenate(weight), num_nodes=n, duplicates="max"
    )


def group_words(texts: Sequence[str], groups: NDArray[np.int32], most: int = 12, words: int = 3) -> list[str]:
    """What sets each of the first `most` groups apart: its most frequent words that few other groups use."""
    count = min(most, int(groups.max()) + 1 if len(groups) else 0)
    inside = [Counter[str]() for _ in range(count)]
    everywhere: Counter[str] = Counter()
    written: dict[str, Counter[str]] = {}
    for text, group in zip(texts, groups.tolist(), strict=True):
        seen: dict[str, str] = {}
        for term in content_terms(text):
            if len(term.stem) > 2 and not term.stem[0].isdigit():
                seen.setdefault(term.stem, term.written)
        everywhere.update(seen.keys())
        if group < count:
            inside[group].update(seen.keys())
            for stem, form in seen.items():
                written.setdefault(stem, Counter())[form.lower()] += 1
    titles = []
    for group in inside:
        weight = {
            stem: n * math.log((1 + len(texts)) / (1 + everywhere[stem] - n + n / 2)) for stem, n in group.items()
        }
        best = sorted(weight, key=lambda stem: (-weight[stem], stem))[:words]
        titles.append(", ".join(written[stem].most_common(1)[0][0] for stem in best))
    return titles
