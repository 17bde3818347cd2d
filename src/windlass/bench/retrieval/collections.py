"""Test collections of the shared data: passages, questions, and which passages answer which question."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.shared_data import shared_path
from windlass.models.encoder import Encoder


@dataclass(frozen=True)
class Collection:
    """Passages and questions about them.

    Attributes:
        titles, texts: One for each passage.
        questions: As asked.
        gold: For each question the positions of the passages that answer it.
    """

    titles: list[str]
    texts: list[str]
    questions: list[str]
    gold: list[set[int]]

    def vectors(self, encoder: Encoder) -> NDArray[np.float32]:
        """float32 [passages, dim]."""
        passages = [f"{title}\n{text}" for title, text in zip(self.titles, self.texts, strict=True)]
        return np.asarray(encoder.encode_passages(passages), np.float32)

    def first(self, questions: int, passages: int) -> Collection:
        """A small part: the first questions, what answers them, and the first other passages up to `passages`."""
        wanted = sorted(set().union(*self.gold[:questions]))
        others = [place for place in range(len(self.titles)) if place not in set(wanted)]
        kept = sorted([*wanted, *others[: max(0, passages - len(wanted))]])
        place_of = {place: new for new, place in enumerate(kept)}
        return Collection(
            [self.titles[place] for place in kept],
            [self.texts[place] for place in kept],
            self.questions[:questions],
            [{place_of[place] for place in gold} for gold in self.gold[:questions]],
        )

    def beside(self, other: Collection) -> Collection:
        """The same questions with the other's passages behind these."""
        return Collection(self.titles + other.titles, self.texts + other.texts, self.questions, self.gold)


def read_collection(name: str) -> Collection:
    """`NAME_corpus`, and `NAME_queries` with `NAME_qrels` where there are any.

    Raises:
        NotFound: The shared data is not there.
    """
    corpus = _lines(f"{name}_corpus")
    place_of = {line["id"]: place for place, line in enumerate(corpus)}
    questions: list[dict[str, Any]] = []
    relevant: dict[str, set[int]] = defaultdict(set)
    if shared_path("retrieval_graphs").joinpath(f"{name}_queries.jsonl.gz").exists():
        questions = _lines(f"{name}_queries")
        with gzip.open(shared_path(f"retrieval_graphs/{name}_qrels.tsv.gz"), "rt", encoding="utf-8") as file:
            for line in file:
                question, passage, _ = line.rstrip("\n").split("\t")
                relevant[question].add(place_of[passage])
    return Collection(
        [line["title"] for line in corpus],
        [line["text"] for line in corpus],
        [line["text"] for line in questions],
        [relevant[line["id"]] for line in questions],
    )


def _lines(name: str) -> list[dict[str, Any]]:
    with gzip.open(shared_path(f"retrieval_graphs/{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
