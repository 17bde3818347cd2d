"""Questions that need two passages: what was found turns the question's vector into the next question's.

After TreeHop (arXiv 2504.20114): a search by vector, then for each passage found a next query, made from the question's
vector and the passage's without any language model, and another search with it. Passages seen before are dropped, and
of what is left a round keeps the best few, so that a round costs at most `top_n` searches however many there are.

Three things differ. A round keeps the best by score, where the published code takes positions for ranks. Where passages
are known to lead to others (one names the other's title), those are looked at as well, and preferred: on small encoders
that is worth more than any next query by vector alone. And without trained weights for an encoder the next query is the
best linear one, `q - 0.5 c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.retrieval.types import Hits

Floats = NDArray[np.float32]
Neighbours = Callable[[int], Iterable[int]]
"""The passages that a passage leads to, by id."""


class NextQueries(Protocol):
    """Makes the next query from a query and a passage that it found."""

    @property
    def name(self) -> str:
        """How a trace calls it."""
        ...

    def next_queries(self, queries: Floats, passages: Floats) -> Floats:
        """Vectors of length one, float32 [n, dim], from float32 [n, dim] and [n, dim]."""
        ...


class VectorStore(Protocol):
    """Passages by vector: vectors have length one, scores are cosines."""

    def nearest(self, vectors: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
        """Ids [n, k], -1 where there are fewer, and cosines [n, k], best first; equal ones by smaller id."""
        ...

    def vectors_of(self, ids: NDArray[np.int64]) -> Floats:
        """float32 [n, dim]; zeros where a passage has no vector."""
        ...


@dataclass(frozen=True, slots=True)
class LinearHop:
    """`q - weight * c`: what was found is taken away from what is looked for.

    Example:
        >>> LinearHop(1.0).next_queries(np.float32([[0.6, 0.8]]), np.float32([[0.6, 0.0]])).tolist()
        [[0.0, 1.0]]
    """

    weight: float = 0.5

    @property
    def name(self) -> str:
        return f"linear {self.weight:g}"

    def next_queries(self, queries: Floats, passages: Floats) -> Floats:
        return unit_or(queries - np.float32(self.weight) * passages, queries)


@dataclass(frozen=True, slots=True)
class Step:
    """How a passage was come by: `round` 1 is the question itself; later rounds have an `origin`."""

    passage: int
    score: float
    round: int
    origin: int | None
    is_linked: bool = False


class MultiHopRetriever:
    """Searches in rounds, each with what the round before has found.

    Args:
        store: Passages by vector.
        update: Makes next queries.
        hops: Rounds in all; 1 is the plain search.
        top_n: Passages that a round returns at most.
        neighbours: Where passages lead; None when it is not known.
        preference: Cosine that being led to counts for.

    Raises:
        UsageError: `hops` or `top_n` is less than 1.
    """

    def __init__(
        self,
        store: VectorStore,
        update: NextQueries | None = None,
        *,
        hops: int = 2,
        top_n: int = 5,
        neighbours: Neighbours | None = None,
        preference: float = 0.5,
    ) -> None:
        for name, value in (("hops", hops), ("top_n", top_n)):
            if value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1")
        self._store = store
        self._update = update or LinearHop()
        self._hops = hops
        self._top_n = top_n
        self._neighbours = neighbours
        self._preference = preference

    def search(self, queries: Floats, k: int | None = None) -> Hits:
        """The passages of all rounds, those of an earlier round first; at most `k`, or all of `hops * top_n`.

        `Hits.scores` are those of the rounds, which do not compare; `Hits.trace` has the round of each passage.
        """
        size = self._hops * self._top_n if k is None else k
        ids = np.full((len(queries), size), -1, np.int64)
        scores = np.full((len(queries), size), -np.inf, np.float32)
        traces = []
        for row, steps in enumerate(self.explain(queries)):
            kept = steps[:size]
            ids[row, : len(kept)] = [step.passage for step in kept]
            scores[row, : len(kept)] = [step.score for step in kept]
            traces.append({step.passage: {_stage(step, self._update): step.round} for step in kept})
        return Hits(ids, scores, traces)

    def explain(self, queries: Floats) -> list[list[Step]]:
        """For each query every step that was kept, round by round, best first.

        Raises:
            UsageError: a query has no number where one should be.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if not np.isfinite(queries).all():
            raise UsageError("a query's vector holds NaN or infinity", hint="check the encoder that made it")
        ids, scores = self._store.nearest(queries, self._top_n)
        steps = [
            [Step(int(passage), float(score), 1, None) for passage, score in zip(*found, strict=True) if passage >= 0]
            for found in zip(ids, scores, strict=True)
        ]
        frontier = [(row, step, queries[row]) for row, kept in enumerate(steps) for step in kept]
        for number in range(2, self._hops + 1):
            if not frontier:
                break
            frontier = self._round(number, frontier, steps)
        return steps

    def _round(
        self, number: int, frontier: list[tuple[int, Step, Floats]], steps: list[list[Step]]
    ) -> list[tuple[int, Step, Floats]]:
        """Search from every step of the round before, add what is kept to `steps`, and return it with its queries."""
        origins = np.array([step.passage for _, step, _ in frontier], np.int64)
        before = np.stack([query for _, _, query in frontier])
        vectors = self._update.next_queries(before, self._store.vectors_of(origins))
        ids, scores = self._store.nearest(vectors, self._top_n)
        found: list[dict[int, tuple[Step, Floats]]] = [{} for _ in steps]
        seen = [{step.passage for step in kept} for kept in steps]
        for place, (row, origin, _) in enumerate(frontier):
            candidates = dict(zip(ids[place].tolist(), scores[place].tolist(), strict=True))
            linked = self._linked(origin.passage, vectors[place])
            for passage in (candidates.keys() | linked.keys()) - seen[row] - {-1}:
                score = linked[passage] if passage in linked else candidates[passage]
                step = Step(passage, score, number, origin.passage, passage in linked)
                if passage not in found[row] or _better(step, found[row][passage][0]):
                    found[row][passage] = step, vectors[place]
        following = []
        for row, of_query in enumerate(found):
            best = sorted(of_query.values(), key=lambda pair: (-pair[0].score, pair[0].passage))[: self._top_n]
            steps[row].extend(step for step, _ in best)
            following += [(row, step, vector) for step, vector in best]
        return following

    def _linked(self, passage: int, vector: Floats) -> dict[int, float]:
        """Where a passage leads, with the cosine to the next query and what being led to counts for."""
        if self._neighbours is None:
            return {}
        ids = sorted(set(self._neighbours(passage)))
        if not ids:
            return {}
        cosines = self._store.vectors_of(np.array(ids, np.int64)) @ vector
        return {place: float(cosine) + self._preference for place, cosine in zip(ids, cosines, strict=True)}


def unit_or(vectors: Floats, fallback: Floats) -> Floats:
    """Every row at length one; where there is nothing left of one, that of `fallback`."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), fallback).astype(np.float32)


def _better(step: Step, other: Step) -> bool:
    return (-step.score, step.origin or 0) < (-other.score, other.origin or 0)


def _stage(step: Step, update: NextQueries) -> str:
    if step.round == 1:
        return "dense"
    return "link" if step.is_linked else update.name
