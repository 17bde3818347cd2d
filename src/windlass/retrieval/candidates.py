# ruff: noqa: RUF001 - typographic quotes, dashes and stops are what texts are made of
"""The spans of found passages that could be quoted as an answer, each with what it leans on.

A sentence is read as a person would read it: with its heading, with the question or the "as follows:" above it, with
the sentence before it when it begins with "It", and a table row with the names of its columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from windlass.retrieval.links import bears_name
from windlass.retrieval.sentences import Span, sentence_spans
from windlass.retrieval.support import leans_on_previous
from windlass.retrieval.types import Hit, Passage

DocumentText = Callable[[int], str]
"""The text of a document by id, into which passages and citations point."""

LONGEST_SPAN = 600
_LOOK_AHEAD = 600

_LIST_MARK = re.compile(r"^\s*(?:[-*+•‣◦▪–]\s+|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]\s+)")
_HEADING_MARK = re.compile(r"^\s{0,3}#{1,6}\s+")
_TABLE_LINE = re.compile(r"^\s*\|.*\|\s*$|^[^|\n]+\|[^|\n]+(?:\|[^|\n]*)*$|^[^\t\n]+\t[^\n]*$")
_TABLE_RULE = re.compile(r"^[\s|:+=-]+$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A quotable span.

    Attributes:
        hit: The passage it was found in; `rank` counts from 0.
        start, end: Its span in the document.
        text: What is shown: the span on one line, or "column: value" facts.
        lead: What stands right before it and belongs to it (a question, a list's opening line, a table's header).
        before: The sentence before it, for context only.
        facts: For a table row its columns and values, else empty.
        row: 1-based data row of a table, None for prose.
    """

    hit: Hit
    rank: int
    start: int
    end: int
    text: str
    lead: str = ""
    before: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    row: int | None = None

    @property
    def passage(self) -> Passage:
        return self.hit.passage

    @property
    def context(self) -> str:
        """Headings, file name and table name in words."""
        return passage_context(self.passage)


def passage_context(passage: Passage) -> str:
    """What a passage is about beyond its text: its headings and its file's name as words."""
    stem = PurePosixPath(passage.source).stem
    return f"{passage.title} {passage.table or ''} {re.sub(r'[_.-]+', ' ', stem)}"


def find_candidates(hits: Sequence[Hit], document_text: DocumentText) -> list[Candidate]:
    """Every quotable span of the passages, best passage first, without repeats.

    A passage whose span does not fit its document (the file changed under us) gives none.
    """
    found: list[Candidate] = []
    seen: set[tuple[int, int, int]] = set()
    for rank, hit in enumerate(hits):
        passage = hit.passage
        text = document_text(passage.doc_id)
        if not 0 <= passage.start <= passage.end <= len(text):
            continue
        of_passage = _row_candidates if passage.kind == "rows" else _prose_candidates
        if passage.kind == "schema":
            of_passage = _schema_candidates
        for candidate in of_passage(hit, rank, text):
            key = (passage.doc_id, candidate.start, candidate.end)
            if key not in seen:
                seen.add(key)
                found.append(candidate)
    return found


def shown(text: str) -> str:
    """A span on one line, without the marks of lists and headings."""
    return " ".join(_HEADING_MARK.sub("", _LIST_MARK.sub("", text)).split())


def _prose_candidates(hit: Hit, rank: int, text: str) -> Iterator[Candidate]:
    passage = hit.passage
    stop = min(len(text), passage.end + _LOOK_AHEAD)
    spans = sentence_spans(text, passage.start, stop)
    lead, before, header, listed_until = "", "", "", 0
    for position, span in enumerate(spans):
        if span.start >= passage.end:
            break
        if span.end <= listed_until:
            continue
        sentence = text[span.start : span.end]
        if passage.kind == "prose" and _is_table_line(sentence):
            header = header or _header_above(text, span.start, sentence)
            candidate = _table_line_candidate(hit, rank, span, sentence, header, lead)
            if candidate:
                yield candidate
            continue
        header = ""
        if _only_introduces(sentence):
            lead = shown(sentence)
            continue
        if sentence.rstrip("*_ ").endswith(":"):
            group = _list_after(text, spans, position)
            yield Candidate(hit, rank, group.start, group.end, shown_list(text[group.start : group.end]), lead, before)
            listed_until = group.end
            lead = f"{lead} {shown(sentence)}".strip() if _LIST_MARK.match(_after(text, group.end)) else ""
            continue
        start = span.start
        if position and leans_on_previous(sentence) and span.end - spans[position - 1].start <= LONGEST_SPAN:
            start = spans[position - 1].start
        yield Candidate(hit, rank, start, span.end, shown(text[start : span.end]), lead, before)
        before = shown(sentence)
        if not _LIST_MARK.match(_after(text, span.end)):
            lead = ""


def _only_introduces(sentence: str) -> bool:
    """Questions (of a list of answers to them) and headings, marked by # or written in capitals."""
    is_question = sentence.rstrip("*_ ").endswith("?")
    is_shouted = sentence.isupper() and not any(letter.isdigit() for letter in sentence)
    return is_question or _HEADING_MARK.match(sentence) is not None or (is_shouted and len(sentence.split()) <= 12)


def _after(text: str, end: int) -> str:
    """What follows, to see whether a list goes on that was too long to quote whole."""
    return text[end : end + 80].lstrip("\r\n")


def shown_list(text: str) -> str:
    """An opening line and its items on one line."""
    lines = [shown(line) for line in text.splitlines() if line.strip()]
    return lines[0] + " " + "; ".join(line.rstrip(";,.") for line in lines[1:]) if len(lines) > 1 else lines[0]


def _list_after(text: str, spans: list[Span], position: int) -> Span:
    """The opening line with the items (or the one sentence) that follow it, as far as a quotation may be long."""
    first = spans[position]
    end = first.end
    for follower in spans[position + 1 :]:
        sentence = text[follower.start : follower.end]
        is_item = _LIST_MARK.match(sentence) is not None
        if follower.end - first.start > LONGEST_SPAN or not (is_item or end == first.end):
            break
        if _HEADING_MARK.match(sentence):
            break
        end = follower.end
        if not is_item:
            break
    return Span(first.start, end)


def _is_table_line(sentence: str) -> bool:
    return "\n" not in sentence and _TABLE_LINE.match(sentence) is not None


def _cells(line: str) -> list[str]:
    if "|" in line:
        return [cell.strip() for cell in line.strip().strip("|").split("|")]
    return [cell.strip() for cell in line.split("\t")]


def _header_above(text: str, start: int, sentence: str) -> str:
    """The first line of the table that the line at `start` stands in."""
    width = len(_cells(sentence))
    header, line_start = sentence, text.rfind("\n", 0, start) + 1
    while line_start > 0:
        previous_start = text.rfind("\n", 0, line_start - 1) + 1
        line = text[previous_start : line_start - 1]
        if not _is_table_line(line.strip()) or len(_cells(line)) != width:
            break
        header, line_start = line.strip(), previous_start
    return header


def _table_line_candidate(hit: Hit, rank: int, span: Span, line: str, header: str, lead: str) -> Candidate | None:
    if _TABLE_RULE.match(line) or line.strip() == header.strip():
        return None
    names, values = _cells(header), _cells(line)
    facts = tuple((name, value) for name, value in zip(names, values, strict=False) if value)
    if len(names) != len(values) or not facts:
        return Candidate(hit, rank, span.start, span.end, shown(line), lead)
    text = "; ".join(f"{name}: {value}" if name else value for name, value in facts)
    return Candidate(hit, rank, span.start, span.end, text, lead, facts=facts)


def _schema_candidates(hit: Hit, rank: int, text: str) -> Iterator[Candidate]:
    passage = hit.passage
    if passage.end > passage.start:
        yield Candidate(hit, rank, passage.start, passage.end, " ".join(passage.text.split()))


def _row_candidates(hit: Hit, rank: int, text: str) -> Iterator[Candidate]:
    passage = hit.passage
    lines = [line for line in passage.text.splitlines() if line.strip()]
    records = records_of(text, passage.start, passage.end)
    if len(records) != len(lines):
        return
    first = passage.rows[0] if passage.rows else 1
    names = _column_names(lines)
    for number, (line, record) in enumerate(zip(lines, records, strict=True)):
        if hit.via and not bears_name(line, hit.via.name):
            continue  # the passage was found for the row of that name alone
        yield Candidate(
            hit, rank, record.start, record.end, line.strip(), facts=_facts_of(line, names), row=first + number
        )


def records_of(text: str, start: int, end: int) -> list[Span]:
    """The rows of a delimited table in `text[start:end]`: lines, except that a quoted field may hold line ends."""
    records: list[Span] = []
    record_start, quotes = -1, 0
    position = start
    while position < end:
        newline = text.find("\n", position, end)
        stop = end if newline < 0 else newline
        if record_start < 0:
            record_start, quotes = position, 0
        quotes += text.count('"', position, stop)
        if quotes % 2 == 0:
            _append_record(records, text, record_start, stop)
            record_start = -1
        position = stop + 1
    if record_start >= 0:  # an unbalanced quote: take the lines as they are
        for line in text[record_start:end].splitlines(keepends=True):
            _append_record(records, text, record_start, record_start + len(line))
            record_start += len(line)
    return records


def _append_record(records: list[Span], text: str, start: int, end: int) -> None:
    while end > start and text[end - 1] in "\r\n":
        end -= 1
    if text[start:end].strip():
        records.append(Span(start, end))


def _column_names(lines: list[str]) -> set[str]:
    """Names that open a "column: value" piece; true columns recur, a colon inside a value hardly does."""
    counts: dict[str, int] = {}
    for line in lines:
        for name in {piece.split(": ", 1)[0] for piece in line.split("; ") if ": " in piece}:
            counts[name] = counts.get(name, 0) + 1
    return {name for name, count in counts.items() if count * 4 >= len(lines)}


def _facts_of(line: str, names: set[str]) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    for piece in line.strip().split("; "):
        name, colon, value = piece.partition(": ")
        if colon and name in names:
            facts.append((name, value))
        elif facts:
            facts[-1] = (facts[-1][0], f"{facts[-1][1]}; {piece}")
    return tuple(facts)
