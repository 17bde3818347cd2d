"""JSON and JSON lines: lists of records are tables whose rows point into the file, the rest is text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from windlass.lake.document import Block, Document, Table
from windlass.lake.readers.composing import blocks_of, without_surrogates
from windlass.lake.readers.encoding import Decoded
from windlass.lake.readers.source import Source
from windlass.lake.readers.tables import MOST_COLUMNS, TableBuilder, column_names
from windlass.lake.readers.text import read_text

_SPACE = re.compile(r"[ \t\n\r]*+")
_LINE = re.compile(r"[^\r\n]++")
_HALF_CHARACTER = re.compile(r"\\u[dD][89abAB]")  # half of a pair, which alone is no character
_DECODER = json.JSONDecoder()
_BAD_LINE_SHARE = 0.2
_BLOCK_CHARACTERS = 1500


@dataclass(slots=True)
class _Records:
    """The elements of one list, or one value: where they are, not what they are.

    Parsed values take ten times the space of their text, so they are parsed twice and never all kept.
    """

    name: str
    start: int
    end: int
    spans: list[tuple[int, int]]
    keys: dict[str, None]
    only_objects: bool

    def __init__(self, name: str, start: int) -> None:
        self.name = name
        self.start = self.end = start
        self.spans = []
        self.keys = {}
        self.only_objects = True

    def add(self, value: Any, start: int, end: int) -> None:
        self.spans.append((start, end))
        if isinstance(value, dict):
            self.keys.update(dict.fromkeys(value))
        else:
            self.only_objects = False

    @property
    def tabular(self) -> bool:
        """Two or more objects and nothing else: what a person would call rows."""
        return len(self.spans) > 1 and self.only_objects and 0 < len(self.keys) <= MOST_COLUMNS


def read_json(source: Source, decoded: Decoded) -> Document:
    """Lists of objects, at the top or one level below it, become tables; everything else is text."""
    try:
        members = _members(decoded.text, source.stem)
    except (ValueError, RecursionError) as error:
        return _as_plain_text(source, decoded, "json", f"not valid JSON ({_reason(error)}); read as text")
    blocks: list[Block] = []
    tables: list[Table] = []
    for records in members:
        if records.tabular:
            table = _table(decoded.text, records)
            tables.append(table)
            blocks.extend(Block("rows", run.start, run.end) for run in table.runs)
        else:
            blocks.extend(_text_blocks(decoded.text, records))
    return Document(
        kind="json",
        text=decoded.text,
        title=source.stem,
        blocks=tuple(blocks),
        tables=tuple(tables),
        encoding=decoded.encoding,
        warnings=decoded.warnings,
    )


def read_json_lines(source: Source, decoded: Decoded) -> Document:
    """One table with one row a line; lines that are no JSON are counted and left out."""
    text = decoded.text
    records = _Records(source.stem, 0)
    bad = 0
    for match in _LINE.finditer(text):
        if (line := match.group()).isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            bad += 1
            continue
        records.add(value if isinstance(value, dict) else {"value": value}, *match.span())
    records.end = len(text)
    total = bad + len(records.spans)
    if bad > _BAD_LINE_SHARE * total or not 0 < len(records.keys) <= MOST_COLUMNS:
        return _as_plain_text(source, decoded, "jsonl", f"{bad:,} of {total:,} lines are not JSON; read as text")
    table = _table(text, records, [f"{bad:,} of {total:,} lines are not valid JSON"] if bad else [])
    return Document(
        kind="jsonl",
        text=text,
        title=source.stem,
        blocks=tuple(Block("rows", run.start, run.end) for run in table.runs),
        tables=(table,),
        encoding=decoded.encoding,
        warnings=decoded.warnings,
    )


def _members(text: str, name: str) -> list[_Records]:
    """What a JSON text holds: its list, or the members of its object, or its one value."""
    start = _after_space(text, 0)
    opening = text[start : start + 1]
    if opening == "{":
        members, end = _object(text, start)
    else:
        members = [_list(text, start, name) if opening == "[" else _single(text, start, name)]
        end = members[0].end
    if (rest := _after_space(text, end)) != len(text):
        raise json.JSONDecodeError("extra data", text, rest)
    return members


def _list(text: str, start: int, name: str) -> _Records:
    records = _Records(name, start)
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "]":
        value, end = _value(text, at)
        records.add(value, at, end)
        at = _after_separator(text, end, "]")
    records.end = at + 1
    return records


def _object(text: str, start: int) -> tuple[list[_Records], int]:
    members: list[_Records] = []
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "}":
        key, end = _value(text, at)
        colon = _after_space(text, end)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            raise json.JSONDecodeError("expected a name and a colon", text, at)
        value = _after_space(text, colon + 1)
        member = _list(text, value, key) if text[value : value + 1] == "[" else _single(text, value, key)
        if not member.tabular:
            member.start = at  # the name belongs to the text of the block
        members.append(member)
        at = _after_separator(text, member.end, "}")
    return members, at + 1


def _single(text: str, start: int, name: str) -> _Records:
    records = _Records(name, start)
    _, records.end = _value(text, start)
    records.spans.append((start, records.end))
    return records


def _after_separator(text: str, at: int, closing: str) -> int:
    """Where the next element, or the closing bracket, begins."""
    at = _after_space(text, at)
    if text[at : at + 1] == ",":
        at = _after_space(text, at + 1)
        if text[at : at + 1] == closing:
            raise json.JSONDecodeError("a comma before the end", text, at)
    elif text[at : at + 1] != closing:
        raise json.JSONDecodeError(f"expected , or {closing}", text, at)
    return at


def _value(text: str, at: int) -> tuple[Any, int]:
    if at >= len(text):
        raise json.JSONDecodeError("ends too early", text, at)
    return _DECODER.raw_decode(text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _table(text: str, records: _Records, warnings: Sequence[str] = ()) -> Table:
    """The records as a table with a column for every name that any of them has."""
    order = list(records.keys)
    names = column_names([without_surrogates(key) for key in order], len(order))
    builder = TableBuilder(without_surrogates(records.name), names)
    halves = _HALF_CHARACTER.search(text) is not None
    for start, end in records.spans:
        record, _ = _value(text, _after_space(text, start))
        if not isinstance(record, dict):
            record = {"value": record}
        cells = [_cell(record.get(key)) for key in order]
        builder.add(list(map(without_surrogates, cells)) if halves else cells, start, end)
    return builder.finish(records.start, records.end, warnings)


def _cell(value: Any) -> str:
    """A value as a person writes it; nested ones stay JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _text_blocks(text: str, records: _Records) -> list[Block]:
    """Elements of a list, several to a block while they are small; a single value as it stands."""
    if len(records.spans) < 2:
        return list(blocks_of(text, "code", records.start, records.end))
    blocks: list[Block] = []
    start = records.start
    for _first, last in records.spans:
        if last - start > _BLOCK_CHARACTERS:
            blocks.extend(blocks_of(text, "code", start, last))
            start = last
    blocks.extend(blocks_of(text, "code", start, records.end))
    return blocks


def _as_plain_text(source: Source, decoded: Decoded, kind: str, warning: str) -> Document:
    document = read_text(source, decoded)
    return replace(document, kind=kind, warnings=(*document.warnings, warning))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno:,} column {error.colno:,}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
