"""Questions over passages: Wikipedia paragraphs and what people asked about them (XQuAD, English, CC BY-SA 4.0).

The file is not part of Windlass; `WINDLASS_SHARED_DATA` names the folder that holds it.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

import numpy as np

from windlass.bench.shared_data import shared_path
from windlass.models.tokenizer import Tokenizer
from windlass.serving.prompt import segmented
from windlass.serving.request import Segment

SYSTEM = "Answer the question from the passages with a few exact words."


@dataclass(frozen=True, slots=True)
class PassageQuestion:
    """A question, some passages among which the one that answers it, and the answer."""

    passages: tuple[str, ...]
    question: str
    answer: str

    def prompt(self, tokenizer: Tokenizer) -> tuple[list[int], tuple[Segment, ...]]:
        """Tokens, and where the passages stand in them."""
        body = "\n\n".join(self.passages)
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Passages:\n\n{body}\n\nQuestion: {self.question}\nAnswer:"},
        ]
        return segmented(tokenizer, messages, self.passages)


def articles() -> list[list[tuple[str, list[tuple[str, str]]]]]:
    """For each article its passages, each with its questions and answers.

    Raises:
        DataMissing: The data is not here.
    """
    path = shared_path("serving/xquad_en_part1.jsonl.gz")
    found: dict[str, dict[int, tuple[str, list[tuple[str, str]]]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            passages = found.setdefault(row["article"], {})
            passages.setdefault(row["chunk"], (row["context"], []))[1].append((row["question"], row["answers"][0]))
    return [list(passages.values()) for passages in found.values()]


def drawn_questions(count: int, passages: int, some: int, seed: int) -> list[PassageQuestion]:
    """Questions about the first `some` articles, drawn by Zipf's law (exponent 1), each over `passages` of its article
    in random order.
    """
    draw = np.random.default_rng(seed)
    every = [
        (article, place, asked)
        for article in articles()[:some]
        for place, (_, questions) in enumerate(article)
        for asked in questions
    ]
    popular = draw.permutation(len(every))
    weights = 1.0 / np.arange(1, len(every) + 1)
    chosen = []
    for rank in draw.choice(len(every), count, p=weights / weights.sum()):
        article, gold, (question, answer) = every[popular[rank]]
        others = [place for place in range(len(article)) if place != gold]
        order = [gold, *draw.choice(others, min(passages - 1, len(others)), replace=False)]
        draw.shuffle(order)
        chosen.append(PassageQuestion(tuple(article[place][0] for place in order), question, answer))
    return chosen
