"""Small deterministic stand-ins for the models, and passages without an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.retrieval.terms import terms
from windlass.retrieval.types import Hit, Passage

DIM = 96


def word_vector(word: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
    return np.random.default_rng(seed).standard_normal(DIM)


class BagEncoder:
    """Mean of word vectors: equal words are near, everything else is far."""

    dim = DIM
    fingerprint = "bag"

    def encode_passages(self, texts: Sequence[str], progress: object = None) -> NDArray[np.float32]:
        return np.stack([self._unit(sum((word_vector(t.stem) for t in terms(x)), np.full(DIM, 1e-3))) for x in texts])

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encode_passages(texts)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64], None]:
        rows, offsets = [], [0]
        for text in texts:
            words = ["[begin]", *(term.stem for term in terms(text)), "[end]"]
            rows.extend(self._unit(word_vector(word)) for word in words)
            offsets.append(len(rows))
        return np.stack(rows), np.array(offsets, np.int64), None

    def _unit(self, vector: NDArray[np.float64]) -> NDArray[np.float32]:
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class ScriptedModel:
    """Says what it is told to; a token is a word. Remembers the prompts it was sent."""

    def __init__(self, reply: str, context_length: int = 2048) -> None:
        self.reply = reply
        self.context_length = context_length
        self.prompts: list[list[Mapping[str, str]]] = []

    def count(self, text: str) -> int:
        return len(text.split())

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> Iterator[str]:
        self.prompts.append(list(messages))
        for index, word in enumerate(self.reply.split(" ")[:max_tokens]):
            yield word if index == 0 else f" {word}"


class Shelf:
    """Documents by id, each one passage (or several, cut at `---`)."""

    def __init__(self, **documents: str) -> None:
        self.texts = {number: text for number, text in enumerate(documents.values(), 1)}
        self.hits: list[Hit] = []
        for (name, text), doc_id in zip(documents.items(), self.texts, strict=True):
            start = 0
            for part in text.split("---"):
                passage = Passage(len(self.hits) + 1, doc_id, f"{name}.txt", start, start + len(part), "", part)
                self.hits.append(Hit(passage, 1.0 / (len(self.hits) + 1), {}))
                start += len(part) + 3

    def text(self, doc_id: int) -> str:
        return self.texts[doc_id]
