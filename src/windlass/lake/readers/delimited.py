"""CSV and TSV: the decoded file is the text, and every run of rows is a span of it, to the character.

The rows are parsed by Python's `csv` over lines whose offsets we keep; no other parser tells where a row
stands.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from windlass.lake.document import Block, Document
from windlass.lake.readers.composing import blocks_of
from windlass.lake.readers.encoding import Decoded
from windlass.lake.readers.source import TEXT_BYTES, Source
from windlass.lake.readers.tables import MOST_COLUMNS, TableBuilder, column_names, first_is_header
from windlass.lake.readers.text import read_text

_DELIMITERS = (",", ";", "\t", "|")
_LINE = re.compile(r"[^\r\n]*+(?:\r\n|\n|\r)|[^\r\n]++")
_LINE_ENDS = ("\n", "\r\n", "\r")
_SAMPLE_CHARACTERS = 64 << 10
_SAMPLE_ROWS = 100
_PREAMBLE_ROWS = 20
_RECOVERIES = 20
_LONGEST_ROW = 1_000_000

# One cell may be as large as a file; the module's own limit is 128 KB.
csv.field_size_limit(4 * TEXT_BYTES)


def read_delimited(source: Source, decoded: Decoded, kind: str) -> Document:
    """One table. Ragged rows, quoted line ends, lines before the header, unclosed quotes are tolerated."""
    text = decoded.text
    rows = _Rows(text, find_delimiter(text[:_SAMPLE_CHARACTERS], kind))
    following = iter(rows)
    sample = list(islice(following, _SAMPLE_ROWS))
    if odd := _no_table(sample):
        document = read_text(source, decoded)
        return replace(document, kind=kind, warnings=(*document.warnings, *odd))
    sample, names, body = _laid_out(sample, text)
    builder = TableBuilder(source.stem, names)
    empty = 0
    for row, start, end in chain(sample[body:], following):
        if any(map(str.strip, row)):  # rows of blanks are rows without content, too
            builder.add(row, start, end)
        else:
            empty += 1
    warnings = [*rows.warnings]
    if empty:
        warnings.append(f"{empty:,} rows without any content were left out")
    table_start = sample[0][1]
    table = builder.finish(table_start, max(rows.end, sample[0][2]), warnings)
    blocks: list[Block] = [*blocks_of(text, "paragraph", 0, table_start), *builder.blocks()]
    return Document(
        kind=kind,
        text=text,
        title=source.stem,
        blocks=tuple(blocks),
        tables=(table,),
        encoding=decoded.encoding,
        warnings=decoded.warnings,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How a delimited text is laid out: its delimiter, the columns' names, and at which character its data begin."""

    delimiter: str
    names: tuple[str, ...]
    body: int


def find_layout(text: str, kind: str) -> Layout | None:
    """The layout that `read_delimited` goes by; None when the text holds no table.

    Example:
        >>> find_layout("berth;depth\\nN1;7.5\\n", "csv")
        Layout(delimiter=';', names=('berth', 'depth'), body=12)
    """
    delimiter = find_delimiter(text[:_SAMPLE_CHARACTERS], kind)
    sample = list(islice(_Rows(text, delimiter), _SAMPLE_ROWS))
    if _no_table(sample):
        return None
    sample, names, body = _laid_out(sample, text)
    return Layout(delimiter, names, sample[body][1] if body < len(sample) else len(text))


_Sample = list[tuple[list[str], int, int]]


def _laid_out(sample: _Sample, text: str) -> tuple[_Sample, tuple[str, ...], int]:
    """The sample without what stands before the table, the columns' names, and 1 if its first row is a header."""
    sample = sample[_preamble_length(sample, text) :]
    header = sample[0][0] if first_is_header([row for row, _, _ in sample]) else []
    width = len(header) or _usual_width([row for row, _, _ in sample])
    return sample, column_names(header, width), 1 if header else 0


def _no_table(sample: list[tuple[list[str], int, int]]) -> tuple[str, ...]:
    """Why these rows are read as text: a remark for people, empty for a table."""
    if not sample:
        return ("no rows; read as text",)
    if max(len(row) for row, _, _ in sample) > MOST_COLUMNS:
        return (f"more than {MOST_COLUMNS:,} columns; read as text",)
    if max(end - start for _, start, end in sample) > _LONGEST_ROW:
        return (f"a row of more than {_LONGEST_ROW:,} characters; read as text",)
    return ()


def find_delimiter(sample: str, kind: str) -> str:
    """The character that cuts the most lines of a sample into the same number of fields, more than one.

    Example:
        >>> find_delimiter("a;b\\n1,5;2\\n3,5;4\\n", "csv")
        ';'
    """
    if kind == "tsv" and "\t" in sample:
        return "\t"
    lines = [match.group() for match in islice(_LINE.finditer(sample), _SAMPLE_ROWS)]
    if len(lines) > 1 and len(sample) >= _SAMPLE_CHARACTERS:
        lines.pop()  # cut in the middle
    quoted = '"' in sample
    best, best_score = ",", 0.0
    for delimiter in _DELIMITERS:
        if delimiter not in sample:
            continue
        if quoted:
            widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter) if row)
        else:
            widths = Counter(line.count(delimiter) + 1 for line in lines if line not in _LINE_ENDS)
        width, times = max(widths.items(), key=lambda pair: (pair[1], pair[0]), default=(1, 0))
        score = times / widths.total() if width > 1 else 0.0
        if score > best_score:
            best, best_score = delimiter, score
    return best


class _Rows:
    """The rows of a text with their spans, line ends excluded; lines that are blank are no rows."""

    def __init__(self, text: str, delimiter: str) -> None:
        self._text = text
        self._delimiter = delimiter
        self._line_end = 0
        self.end = 0
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[tuple[list[str], int, int]]:
        """Cells, start and end of every row; `self.end` is where the last one that was yielded ends."""
        if '"' not in self._text and self._text.count("\r") == self._text.count("\r\n"):
            return self._unquoted()
        return self._quoted()

    def _quoted(self) -> Iterator[tuple[list[str], int, int]]:
        text, position, number, recoveries = self._text, 0, 0, 0
        while position < len(text):
            quoted = recoveries < _RECOVERIES
            start = position
            for row in self._reader(position, quoted):
                end = self._line_end
                if end == len(text) and quoted and self._runs_away(start):
                    # Take the line that opened the quote as it stands, and go on after it.
                    end = self._first_line_end(start)
                    row = text[start:end].rstrip("\r\n").split(self._delimiter)
                    recoveries += 1
                    self.warnings.append(f"row {number + 1:,} has a quote that is never closed")
                if row:
                    number += 1
                    last = end
                    while last > start and text[last - 1] in "\r\n":
                        last -= 1
                    self.end = last
                    yield row, start, last
                start = end
                if end < self._line_end:
                    break
            position = start

    def _unquoted(self) -> Iterator[tuple[list[str], int, int]]:
        """The same for a text without any quote, where a line is a row."""
        text, delimiter, start = self._text, self._delimiter, 0
        while start < len(text):
            newline = text.find("\n", start)
            stop = newline if newline >= 0 else len(text)
            line = text[start:stop].rstrip("\r")
            if line:
                self.end = start + len(line)
                yield line.split(delimiter), start, self.end
            start = stop + 1

    def _reader(self, position: int, quoted: bool) -> Iterator[list[str]]:
        if quoted:
            return csv.reader(self._lines(position), delimiter=self._delimiter)
        return csv.reader(self._lines(position), delimiter=self._delimiter, quoting=csv.QUOTE_NONE)

    def _lines(self, position: int) -> Iterator[str]:
        for match in _LINE.finditer(self._text, position):
            self._line_end = match.end()
            yield match.group()

    def _runs_away(self, start: int) -> bool:
        several_lines = self._first_line_end(start) < len(self._text)
        return several_lines and self._text.count('"', start) % 2 == 1

    def _first_line_end(self, start: int) -> int:
        found = _LINE.match(self._text, start)
        return found.end() if found else len(self._text)


def _usual_width(rows: list[list[str]]) -> int:
    widths = Counter(len(row) for row in rows)
    return max(widths.items(), key=lambda pair: (pair[1], pair[0]))[0]


def _preamble_length(rows: list[tuple[list[str], int, int]], text: str) -> int:
    """How many rows before the header are titles or remarks: emptier than most, or set apart by a gap."""
    filled = [sum(map(bool, row)) for row, _, _ in rows]
    several = Counter(count for count in filled if count > 1)
    usual = max(several, key=lambda count: (several[count], count), default=1)
    length = 0
    for index in range(min(_PREAMBLE_ROWS, len(rows) - 1)):
        blank_lines = text.count("\n", rows[index][2], rows[index + 1][1]) > 1
        apart = filled[index] < usual and (filled[index + 1] == 0 or blank_lines)
        if 2 * filled[index] >= usual and not apart:
            break
        length = index + 1
    return length
