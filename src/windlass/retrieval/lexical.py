"""Full-text search with BM25 inside the workspace database.

The index is an SQLite FTS5 table fed by triggers: a passage and its words are written and removed in one transaction,
which raises the index's generation, so a crash or a deleted file cannot leave the one without the other. Words are
lower-cased, stripped of accents and stemmed (Porter). A question matches passages that hold any of its content words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from windlass.core.workspace import Workspace
from windlass.retrieval.types import Hits

# A heading names what its section is about, so a word in it counts for more.
_HEADING_WEIGHT, _TEXT_WEIGHT = 2.0, 1.0
_MOST_WORDS = 48
_WORD = re.compile(r"\w+")

STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before being between both but by can could did do
    does doing during each few for from further had has have having he her here him his how i if in into is it its me
    more most my no nor not of off on once only or other our out over own please same she should so some such tell than
    that the their them then there these they this those through to too under until up us very was we were what when
    where which while who whom whose why will with would you your""".split()
)


class LexicalIndex:
    """BM25 over all passages of a workspace.

    Args:
        workspace: An open workspace.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def search(self, queries: Sequence[str], k: int, *, trace: bool = False) -> Hits:
        """The `k` best passages of each query by BM25; a query without a word finds nothing."""
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        with self._workspace.reading() as connection:
            for row, query in enumerate(queries):
                expression = match_expression(query)
                if not expression:
                    continue
                found = connection.execute(
                    "SELECT rowid, -bm25(lexical, ?, ?) AS score FROM lexical WHERE lexical MATCH ?"
                    " ORDER BY score DESC, rowid LIMIT ?",
                    (_HEADING_WEIGHT, _TEXT_WEIGHT, expression, k),
                ).fetchall()
                for column, (passage, score) in enumerate(found):
                    ids[row, column], scores[row, column] = passage, score
        return Hits(ids, scores, None)

    def idf(self, words: Sequence[str]) -> dict[str, float]:
        """How rare each word is: ln(1 + (N - df + 0.5) / (df + 0.5)) over passages, after stemming."""
        with self._workspace.reading() as connection:
            total = int(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])
            rarity = {}
            for word in dict.fromkeys(words):
                expression = match_expression(word, keep_stop_words=True)
                counted = connection.execute("SELECT count(*) FROM lexical WHERE lexical MATCH ?", (expression,))
                frequency = int(counted.fetchone()[0]) if expression else 0
                rarity[word] = math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))
            return rarity


def match_expression(query: str, *, keep_stop_words: bool = False) -> str:
    """An FTS5 expression that matches any content word of `query`; empty when it has no word at all.

    Every word is quoted, so nothing in a question is ever an operator.

    Example:
        >>> match_expression('When is "Berth 4" dredged?')
        '"berth" OR "4" OR "dredged"'
    """
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    content = [word for word in words if word not in STOP_WORDS]
    chosen = words if keep_stop_words or not content else content
    if len(chosen) > _MOST_WORDS:  # a pasted page: its longest words say most
        longest = set(sorted(chosen, key=lambda word: (-len(word), word))[:_MOST_WORDS])
        chosen = [word for word in chosen if word in longest]
    return " OR ".join(f'"{word}"' for word in chosen)
