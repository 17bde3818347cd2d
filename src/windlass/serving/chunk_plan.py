"""What of a prompt is taken from chunks that were computed elsewhere, and which of their tokens are computed again.

The figures are those of Cache-Craft (Agarwal et al., SIGMOD 2025): how much a chunk depended on what stood before it
when it was computed, how much of that stands before it now, and in which order. Different here: see `fix_overhead` and
`tokens_to_repair`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from windlass.serving.chunk_record import ChunkRecord

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taken:
    """Chunk `record` stands at tokens `start` to `stop` of a prompt; `repaired` of them are computed again.

    `overhead` is the share of its tokens that should be.
    """

    record: ChunkRecord
    start: int
    stop: int
    repaired: Integers
    overhead: float

    @property
    def budget(self) -> int:
        """How many of its tokens should be computed again."""
        return math.ceil(self.overhead * (self.stop - self.start) - 1e-9)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A chunk that is computed and then kept: `content` at tokens `start` to `stop`, behind the chunks `before`."""

    content: bytes
    start: int
    stop: int
    before: tuple[bytes, ...]
    first_stretch: int


@dataclass(slots=True)
class ReusePlan:
    """What is done about the chunks of one prompt.

    Attributes:
        known: Tokens at the beginning that the prefix tree had.
        taken: Chunks whose keys and values are copied.
        wanted: Chunks that are computed, and kept afterwards.
        bounds: Ends of the stretches (chunks, and what lies between) whose attention is noted; empty when none is.
        alpha: The factor the repaired shares were found with.
        placed: Whether the copies are made.
        shares: float32 `[prompt, stretches]`, what computed tokens attended to.
        probes: Tokens that look at the copies before anything is repaired, those before the copies first; None: done,
            or not wanted.
        looked_at: float64 [prompt], how much those from token `question` on attended to each token.
    """

    known: int
    taken: tuple[Taken, ...]
    wanted: tuple[Wanted, ...]
    bounds: tuple[int, ...]
    alpha: float
    placed: bool = False
    shares: NDArray[np.float32] | None = None
    probes: Integers | None = None
    looked_at: NDArray[np.float64] | None = None
    question: int = 0

    @property
    def probing(self) -> bool:
        """Whether the copies are still being looked at."""
        return self.probes is not None

    @property
    def exact(self) -> int:
        """Tokens before the first one that was not computed in this context."""
        return min((part.start for part in self.taken), default=1 << 62)

    def todo(self, length: int) -> Integers:
        """The tokens of a prompt of `length` that are computed next, ascending."""
        if self.probes is not None:
            return self.probes
        computed = np.ones(length, np.bool_)
        computed[: self.known] = False
        for part in self.taken:
            computed[part.start : part.stop] = False
            computed[part.repaired] = True
        return np.flatnonzero(computed)

    def report(self) -> dict[str, float]:
        """For the answer's sender: tokens taken, tokens of these computed again, and the factor behind it."""
        taken = sum(part.stop - part.start for part in self.taken)
        repaired = sum(len(part.repaired) for part in self.taken)
        return {"reused_tokens": taken - repaired, "repaired_tokens": repaired, "alpha": self.alpha}


def context_impact(outside: float, inside: float) -> float:
    """How much a chunk leans on what stands before it, 0.5 (not at all) to 1.

    Args:
        outside: Mean attention of its tokens to tokens of earlier chunks.
        inside: The same, to tokens of its own.
    """
    if inside == 0:
        return 1.0 if outside > 0 else 0.5
    return 1.0 / (1.0 + math.exp(-outside / inside))


def order_penalty(before: Sequence[bytes], now: Sequence[bytes]) -> float:
    """Share of the pairs of chunks common to both contexts that stand the other way round; 0 to 1."""
    places = {content: place for place, content in enumerate(now)}
    common = [places[content] for content in dict.fromkeys(before) if content in places]
    count = len(common)
    if count < 2:
        return 0.0
    swapped = sum(common[a] > common[b] for a in range(count) for b in range(a + 1, count))
    return swapped / (count * (count - 1) / 2)


def overlap(attended: Mapping[bytes, float], now: Sequence[bytes]) -> float:
    """Share of what a chunk attended to in earlier chunks that stands before it now, less the order penalty.

    Args:
        attended: Attention to each earlier chunk, in their order, when the chunk was computed.
        now: Chunks before it now.
    """
    whole = sum(attended.values())
    if whole == 0:
        return 1.0
    present = set(now)
    kept = sum(weight for content, weight in attended.items() if content in present) / whole
    return kept * (1.0 - order_penalty(list(attended), now))


def fix_overhead(record: ChunkRecord, now: Sequence[bytes], alpha: float) -> float:
    """Share of a chunk's tokens to compute again behind the chunks `now`; 0 to 1.

    The paper takes what was lost of the old context. A chunk that was computed first has lost nothing, and yet knows
    nothing of chunks that stand before it now; so the share of the new context that it never saw counts as well, and
    the larger of the two is taken.
    """
    lost = 1.0 - overlap(record.attended, now)
    seen = set(record.attended)
    new = sum(content not in seen for content in now) / len(now) if now else 0.0
    return min(1.0, alpha * record.impact * max(lost, new))


def tokens_to_repair(taken: Sequence[Taken], looked_at: NDArray[np.float64] | None, head: int) -> list[Taken]:
    """`taken`, with the tokens that are computed again.

    First the beginnings of chunks, whatever was attended to: they take the attention that later tokens have to spare,
    which is wrong anywhere but at the beginning of a prompt (EPIC, Hu et al., 2024). Then, of all chunks together,
    the tokens that the question looks at most. The paper takes those that looked outside their chunk most, which is
    the rule here as well where nothing was looked at.

    Args:
        taken: Chunks and their shares of tokens to repair; those without any are left alone.
        looked_at: float64 [prompt], attention of the question to each token; None: unknown.
        head: Tokens at the beginning of a chunk that come first.
    """
    budgets = [part.budget for part in taken]
    scores = []
    for part, budget in zip(taken, budgets, strict=True):
        score = (
            part.record.outside.astype(np.float64) if looked_at is None else looked_at[part.start : part.stop].copy()
        )
        score[: min(head, budget)] = np.inf
        scores.append(score if budget else np.full(len(score), -np.inf))
    if looked_at is None:
        picked = [np.argsort(-score, kind="stable")[:budget] for score, budget in zip(scores, budgets, strict=True)]
    else:
        best = np.argsort(-np.concatenate([*scores, np.zeros(0)]), kind="stable")[: sum(budgets)]
        ends = np.cumsum([len(score) for score in scores])
        picked = [
            best[(best >= end - len(score)) & (best < end)] - (end - len(score))
            for score, end in zip(scores, ends, strict=True)
        ]
    return [replace(part, repaired=part.start + np.sort(places)) for part, places in zip(taken, picked, strict=True)]
