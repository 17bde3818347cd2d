"""The records that retrieval hands around: passages, hits, citations, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Passage:
    """A span of one document, the unit of search. One row of the workspace's `chunks` table.

    Attributes:
        id: Row id; also the id in every index.
        doc_id: The document it is cut from.
        source: Path of the file, relative to the folder; the canonical one when several files have this content.
        start, end: Half-open character span in the document's text.
        title: Headings above it, outermost first, joined by " > "; may be empty.
        text: What is indexed and shown: the span itself, or "column: value" lines for table rows.
        kind: `prose`, `code`, `schema` (what a table holds) or `rows` (some of its rows).
        page: 1-based page or slide, None where there is none.
        rows: First and last data row (1-based, inclusive) of a `rows` passage.
        table: Name of the table for `schema` and `rows`.
        also: Other files with the same content.
    """

    id: int
    doc_id: int
    source: str
    start: int
    end: int
    title: str
    text: str
    kind: str = "prose"
    page: int | None = None
    rows: tuple[int, int] | None = None
    table: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """Why a passage was found that the question alone does not lead to.

    Attributes:
        name: What another found passage names and this one is about, as written there.
        origin: Id of that passage.
        file: Its file.
    """

    name: str
    origin: int
    file: str


class Hits(NamedTuple):
    """The best passages of each query, best first; equal scores are ordered by smaller id.

    Attributes:
        ids: int64 [queries, k], -1 where there are fewer than k.
        scores: float32 [queries, k], -inf where there are fewer than k.
        trace: For each query, which stage gave which rank to a passage; None when not asked for.
        links: For each query, the passages that another one led to; None when links are not followed.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    trace: list[dict[int, dict[str, int]]] | None = None
    links: list[dict[int, Link]] | None = None


class Retriever(Protocol):
    """Anything that finds passages for questions."""

    def search(self, queries: Sequence[str], k: int, *, trace: bool = False) -> Hits:
        """The `k` best passages of each query. Raises nothing for a query without any match."""
        ...


@dataclass(frozen=True, slots=True)
class Hit:
    """One found passage, its fused score (higher is better), and the rank each retriever gave it (from 1).

    `via` is set when it stands where it does because another passage led to it.
    """

    passage: Passage
    score: float
    ranks: dict[str, int]
    via: Link | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a sentence of an answer stands in the files.

    `quote` is verbatim `text[start:end]` of the document that `doc_id` names. `support` in [0, 1] says how well it
    carries the sentence. `via` is set when another found passage led there, by a name.
    """

    number: int
    file: str
    doc_id: int
    start: int
    end: int
    quote: str
    support: float
    page: int | None = None
    rows: tuple[int, int] | None = None
    table: str | None = None
    sql: str | None = None
    via: Link | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer and the citations that carry it (at least one, unless nothing was found)."""

    text: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True)
class Answer:
    """An answer in which every sentence is tied to a span of a file.

    Attributes:
        question: As asked.
        found: False when the files do not hold the answer; `text` then says so and `hits` are the nearest passages.
        text: The sentences with their [n] marks, ready to print.
        sentences: The same, in parts.
        mode: `extract` (sentences of the files), `generate` (written by the model, then checked) or `table` (SQL).
        hits: The passages that were found, best first.
        passages_used, passages_found: How many of the found passages the answer could see; the rest did not fit.
        notices: Things the reader should know ("embeddings are still being made: 40 % done").
        timings: Seconds by stage.
        usage: Token counts of the model, empty when none ran.
        approximations: What made a written answer differ from that of a full computation, by the name of the option.
        evidence: How likely the passages answer the question, in [0, 1]; below `answer.min_evidence` nothing was
            answered. None when it was not judged.
    """

    question: str
    found: bool
    text: str
    sentences: tuple[Sentence, ...]
    mode: str
    hits: tuple[Hit, ...]
    passages_used: int
    passages_found: int
    notices: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    approximations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        from dataclasses import asdict

        return asdict(self)
