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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from windlass.core.workspace import Workspace
from windlass.retrieval.coverage import Coverage
from windlass.retrieval.facts import dates_of
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.sentences import sentence_spans
from windlass.retrieval.terms import is_stop_word, stem, stems
from windlass.retrieval.types import Link, Passage

_MOST_NAMES = 24
_MOST_HOLDERS = 20
_MOST_CHARACTERS = 4000
# A passage that holds this share of the question leaves nothing to look for elsewhere.
_SAYS_ALL = 0.98
# One that holds less than this may be about something else: then only what adds words of the question is followed.
_SAYS_MUCH = 0.5
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
        adds: Whether it holds words of the question that the first one does not; else the name alone speaks for it.
    """

    passage: Passage
    link: Link
    strength: float
    adds: bool


def follow(workspace: Workspace, coverage: Coverage, origins: Sequence[tuple[Passage, float]]) -> list[Followed]:
    """The passages to which names in `origins` lead, strongest first.

    Several names may lead to one passage: its strength is that of the strongest, and it is shown with the name that
    stands in the sentence nearest to the question.

    Args:
        workspace: An open workspace.
        coverage: The question.
        origins: Found passages, each with a weight in [0, 1].
    """
    passages: dict[int, Passage] = {}
    leads: dict[int, list[_Lead]] = defaultdict(list)
    with workspace.reading() as connection:
        for origin, weight in origins:
            for passage, lead in _leads(workspace, connection, coverage, origin, weight):
                passages[passage.id] = passage
                leads[passage.id].append(lead)
    followed = [_best(passages[number], several) for number, several in leads.items()]
    return sorted(followed, key=lambda found: (-found.strength, found.passage.id))


def led_to(workspace: Workspace, origin: Passage) -> dict[int, Link]:
    """The passages that something named in `origin` is about, by id, whatever is asked."""
    found: dict[int, Link] = {}
    with workspace.reading() as connection:
        for name, written in list(_names(origin.text[:_MOST_CHARACTERS], set()).items())[:_MOST_NAMES]:
            for passage, _, _ in _about(workspace, connection, name, origin):
                found.setdefault(passage.id, Link(written, origin.id, origin.source))
    return found


class _Lead(NamedTuple):
    """One name that leads to a passage: how strongly, and how much of the question stands in its sentence."""

    strength: float
    nearness: float
    link: Link
    adds: bool


def _leads(
    workspace: Workspace, connection: sqlite3.Connection, coverage: Coverage, origin: Passage, weight: float
) -> Iterator[tuple[Passage, _Lead]]:
    """Every passage that a name in `origin` leads to, once for each name."""
    piece = coverage.best_piece(origin)
    said = coverage.words_in(origin, piece)
    known = coverage.share(said)
    if origin.kind not in ("prose", "rows") or known >= _SAYS_ALL:
        return
    text = (_values(piece) if origin.kind == "rows" else piece)[:_MOST_CHARACTERS]
    sentences = [text[start:end] for start, end in sentence_spans(text, 0, len(text))]
    shares = [coverage.share(stems(sentence)) for sentence in sentences]
    for name, written in list(_names(text, coverage.asked).items())[:_MOST_NAMES]:
        about = list(_about(workspace, connection, name, origin))
        if not about and (last := _last_word(written, coverage.asked)):
            about, written = list(_about(workspace, connection, _plain(last), origin)), last
        near = max((share for share, sentence in zip(shares, sentences, strict=True) if written in sentence), default=0)
        for passage, part, held in about:
            gain = coverage.share(said | coverage.words_in(passage, held)) - known
            if gain >= _LEAST_GAIN or known >= _SAYS_MUCH:
                link = Link(written, origin.id, origin.source)
                yield passage, _Lead(weight * part * (1.0 + gain), near, link, gain >= _LEAST_GAIN)


def _best(passage: Passage, leads: Sequence[_Lead]) -> Followed:
    shown = max(leads, key=lambda lead: (lead.nearness, lead.strength)).link
    strongest = max(leads, key=lambda lead: lead.strength)
    return Followed(passage, shown, strongest.strength, strongest.adds)


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


def _last_word(name: str, asked: set[str]) -> str:
    """What is left of "Captain Okonjo" when nothing bears all of it; empty when that says nothing new."""
    words = _WORD.findall(name)
    is_new = len(words) > 1 and len(words[-1]) > 2 and not words[-1].isdigit() and stem(words[-1]) not in asked
    return words[-1] if is_new and not is_stop_word(words[-1]) else ""


def _codes(text: str) -> Iterator[tuple[str, int]]:
    for match in _CODE.finditer(text):
        yield match.group(), match.start()


def _proper_names(text: str) -> Iterator[tuple[str, int]]:
    """Every run of capitalised words, also without the function words that open it ("The Great Hall").

    A word that only opens its sentence is one of them: it may be a name, and if not, hardly anything bears it.
    """
    for match in _NAME.finditer(text):
        words = match.group().split()
        if len(words) > 1:
            yield match.group(), match.start()
        while words and is_stop_word(words[0]):
            words = words[1:]
        bare = " ".join(words)
        if len(bare) > 2:
            yield bare, match.end() - len(bare)


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
