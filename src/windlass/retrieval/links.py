"""The second step of a question: from what was found to what it names.

"Which licence does the pilot hold who was aboard during the clash?" A mail tells who was aboard, a table tells the
licence, and the two share nothing but a name that the question does not say. So the names and codes in the best
passages are looked up, and a passage is linked when a name is what it is about: it stands as a heading above it, or
fills a cell of a table's row.

This is one step of the walk that HippoRAG (arXiv 2405.14831) takes over a graph of entities. Here nothing is
extracted or stored beforehand: a name costs one phrase query when a question needs it, so a folder is indexed no
slower, and what was deleted leads nowhere. Names that many passages hold lead nowhere either.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from windlass.core.workspace import Workspace
from windlass.retrieval.coverage import Coverage
from windlass.retrieval.facts import dates_of, opens_sentence
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.terms import is_stop_word, stem
from windlass.retrieval.types import Link, Passage

_MOST_NAMES = 24
_MOST_HOLDERS = 20
# A passage that holds this share of the question leaves nothing to look for elsewhere.
_SAYS_ALL = 0.9
# And one that adds less than this to it is about something else.
_LEAST_GAIN = 0.02

_CODE = re.compile(r"(?<![\w-])(?=\S*\d)(?=\S*[^\W\d_])[^\W_]+(?:[-/_][^\W_]+)+|(?<![\w.,-])(?:[^\W\d_]+\d+|\d{5,})\b")
_CAPITAL = r"[^\W\d_a-z][\w'’-]*"  # noqa: RUF001 - a typographic apostrophe is part of a name
_SMALL = r"(?: (?:of|the|and|de|van|der|von|den|di|du|la|le|el|for|in|&))*"
_NAME = re.compile(rf"(?<![\w']){_CAPITAL}(?:{_SMALL} (?:{_CAPITAL}|\d+(?![\w.,]*\d)))*")
_WORD = re.compile(r"[^\W_]+")
_REMARK = re.compile(r"\(.*?\)")


@dataclass(frozen=True, slots=True)
class Followed:
    """A passage that is about something a found passage names.

    Attributes:
        passage: It.
        link: By which name, and where that stands.
        strength: In [0, 2]: how good the first passage is x how few things bear the name x what the two together
            hold of the question that the first alone does not.
    """

    passage: Passage
    link: Link
    strength: float


def follow(workspace: Workspace, coverage: Coverage, origins: Sequence[tuple[Passage, float]]) -> list[Followed]:
    """The passages to which names in `origins` lead, the strongest link of each, strongest first.

    Args:
        workspace: An open workspace.
        coverage: The question.
        origins: Found passages, each with a weight in [0, 1].
    """
    best: dict[int, Followed] = {}
    with workspace.reading() as connection:
        for origin, weight in origins:
            piece = coverage.best_piece(origin)
            said = coverage.words_in(origin, piece)
            if origin.kind not in ("prose", "rows") or coverage.share(said) >= _SAYS_ALL:
                continue
            names = _names(_values(piece) if origin.kind == "rows" else piece, coverage.asked)
            for name, written in list(names.items())[:_MOST_NAMES]:
                link = Link(written, origin.id, origin.source)
                for passage, share, text in _about(workspace, connection, name, origin):
                    gain = coverage.share(said | coverage.words_in(passage, text)) - coverage.share(said)
                    found = Followed(passage, link, weight * share * (1.0 + gain))
                    if gain < _LEAST_GAIN:
                        continue
                    if passage.id not in best or found.strength > best[passage.id].strength:
                        best[passage.id] = found
    return sorted(best.values(), key=lambda found: (-found.strength, found.passage.id))


def bears_name(row: str, name: str) -> bool:
    """Whether a row ("column: value; ...") is about `name`: it makes up at least half of a cell.

    A bare number counts in the first cell only, where a row's key stands: elsewhere equal numbers mean nothing.

    Example:
        >>> bears_name("no: P08; name: Hendrik Mulder; class: 1", "Mulder")
        True
    """
    words = _plain(name)
    cells = [_plain(piece.partition(": ")[2] or piece) for piece in row.split("; ")]
    if words.isdigit():
        return words == cells[0]
    return any(f" {words} " in f" {cell} " and 2 * len(words.split()) >= len(cell.split()) for cell in cells)


def _names(text: str, asked: set[str]) -> dict[str, str]:
    """Names and codes of `text` in plain form -> as written, without dates and what the question says itself."""
    dates = [(start, end) for start, end, _ in dates_of(text)]
    found: dict[str, str] = {}
    for written, start in (*_codes(text), *_proper_names(text)):
        inside_date = any(begin < start + len(written) and start < end for begin, end in dates)
        if written and not inside_date and not {stem(word) for word in _WORD.findall(written)} <= asked:
            found.setdefault(_plain(written), written)
    return found


def _codes(text: str) -> Iterator[tuple[str, int]]:
    for match in _CODE.finditer(text):
        yield match.group(), match.start()


def _proper_names(text: str) -> Iterator[tuple[str, int]]:
    """Every run of capitalised words, also without the function words that open it ("The Great Hall")."""
    for match in _NAME.finditer(text):
        words = match.group().split()
        if len(words) > 1:
            yield match.group(), match.start()
        while words and is_stop_word(words[0]):
            words = words[1:]
        bare = " ".join(words)
        start = match.end() - len(bare)
        is_opener = start == match.start() and opens_sentence(text, start)
        if len(words) > 1 or (len(bare) > 2 and not is_opener):
            yield bare, start


def _about(
    workspace: Workspace, connection: sqlite3.Connection, name: str, origin: Passage
) -> Iterator[tuple[Passage, float, str]]:
    """Passages about `name`, the share of it that falls to each, and what they say of it."""
    holders = connection.execute(
        "SELECT rowid FROM lexical WHERE lexical MATCH ? LIMIT ?", (f'"{name}"', _MOST_HOLDERS + 1)
    ).fetchall()
    if len(holders) > _MOST_HOLDERS:
        return
    rows: list[tuple[Passage, str]] = []
    for passage in load_passages(workspace, [row[0] for row in holders if row[0] != origin.id]).values():
        if passage.kind == "rows":
            rows.extend((passage, row) for row in passage.text.splitlines() if bears_name(row, name))
        elif any(name in (_plain(part), _plain(_REMARK.sub("", part))) for part in passage.title.split(" > ")):
            yield passage, 1.0, passage.text
    for passage, row in rows:
        yield passage, 1.0 / math.sqrt(len(rows)), row


def _values(row: str) -> str:
    return "; ".join(piece.partition(": ")[2] or piece for piece in row.split("; "))


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
