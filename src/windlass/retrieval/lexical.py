"""Full-text search with BM25 inside the workspace database.

The index is an SQLite FTS5 table fed by triggers: a passage and its words are written and removed in one transaction,
which raises the index's generation, so a crash or a deleted file cannot leave the one without the other. Words are
lower-cased, stripped of accents and stemmed (Porter). A question matches passages that hold any of its content words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from windlass.core.progress import Progress, check_cancelled
from windlass.core.workspace import Workspace
from windlass.retrieval.match import match_expression
from windlass.retrieval.types import Hits

# One step of merging writes so many pages and is one transaction: readers and a Ctrl-C wait for no more than that.
_STEP_PAGES = 500

# A heading names what its section is about, so a word in it counts for more.
_HEADING_WEIGHT, _TEXT_WEIGHT = 2.0, 1.0


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

    def passages(self) -> int:
        """How many there are."""
        with self._workspace.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])

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


def merge_words(workspace: Workspace, progress: Progress) -> int:
    """Merge the parts of the word index into one, which rids it of what was deleted; nothing that is found changes.

    A deleted passage leaves its words behind, marked as gone, until the parts that hold them are merged.

    Args:
        workspace: An open workspace; the caller holds its lock.
        progress: Asked between two steps whether to stop.

    Returns:
        How many steps were taken.

    Raises:
        Cancelled: Stopped through `progress`; the steps taken stay.
    """
    pages, steps = -_STEP_PAGES, 0  # the first step, being negative, puts all parts up for merging
    while True:
        check_cancelled(progress)
        with workspace.transaction() as connection:
            before = connection.total_changes
            connection.execute("INSERT INTO lexical (lexical, rank) VALUES ('merge', ?)", (pages,))
            if connection.total_changes - before < 2:  # that is how FTS5 says that there was nothing left to do
                return steps
        pages, steps = _STEP_PAGES, steps + 1
