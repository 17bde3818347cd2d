"""How much of what a question says stands in a passage, each word weighed by how rare it is.

Unlike a rank or a BM25 score this is an absolute figure in [0, 1]: the best of a hundred passages that all miss the
point still covers little. The headings above a passage and the name of its file count as part of it. A run of table
rows is judged by its best single row, since words spread over twenty rows say nothing about any of them. A full date
in the question counts as one thing, however either side writes it.
"""

from __future__ import annotations

import re

from windlass.retrieval.facts import Date, dates_of
from windlass.retrieval.match import with_plain_dates
from windlass.retrieval.terms import Idf, content_terms, recall, stems, weights
from windlass.retrieval.types import Passage

_DATE = "\0date"
# A day of the calendar is at least as telling as the rarest word beside it.
_DATE_WEIGHT = 1.5
_NAME_BREAK = re.compile(r"[\W_]+")


class Coverage:
    """The words and dates of one question, ready to be looked for.

    Args:
        question: In plain words.
        idf: Rarity of words in the index.

    Attributes:
        asked: The stems of the question's words.
    """

    def __init__(self, question: str, idf: Idf) -> None:
        plain = with_plain_dates(question[:2000])
        self._dates = _full_dates(plain)
        words = content_terms(plain)
        if self._dates:
            spans = [(start, end) for start, end, readings in dates_of(plain) if _whole(readings)]
            words = [word for word in words if not any(start <= word.start < end for start, end in spans)]
        self.asked = {word.stem for word in words}
        self._weights = weights(words, idf)
        if self._dates:
            self._weights[_DATE] = _DATE_WEIGHT * max(self._weights.values(), default=1.0)

    def of(self, passage: Passage) -> float:
        """The covered share of the question's weight, in [0, 1]; 0 for a question without content words."""
        return self.share(self.words_in(passage, self.best_piece(passage)))

    def best_piece(self, passage: Passage) -> str:
        """The text by which a passage is judged: of table rows the one that covers most, else all of it."""
        if passage.kind != "rows":
            return passage.text
        around = _around(passage)
        return max(passage.text.splitlines(), key=lambda row: self.share(self._present(row) | around), default="")

    def words_in(self, passage: Passage, piece: str) -> set[str]:
        """The stems of a piece of the passage, its headings and its file's name; a date of the question is one."""
        return self._present(piece) | _around(passage)

    def share(self, words: set[str]) -> float:
        """The share of the question's weight that `words` hold."""
        return recall(self._weights, words)

    def _present(self, text: str) -> set[str]:
        found = stems(text)
        if self._dates and not self._dates.isdisjoint(_full_dates(text)):
            found.add(_DATE)
        return found


def _around(passage: Passage) -> set[str]:
    return stems(f"{passage.title} {_NAME_BREAK.sub(' ', passage.source)}")


def _full_dates(text: str) -> set[Date]:
    return {date for _, _, readings in dates_of(text) for date in _whole(readings)}


def _whole(readings: frozenset[Date]) -> set[Date]:
    return {date for date in readings if all(part is not None for part in date)}
