"""JSON and JSON lines: lists of records are tables whose rows point into the file, the rest is text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from windlass.lake.document import Block, Document, Table
from windlass.lake.readers.composing import blocks_of
from windlass.lake.readers.encoding import Decoded
from windlass.lake.readers.source import Source
from windlass.lake.readers.tables import MOST_COLUMNS, TableBuilder, column_names
from windlass.lake.readers.text import read_text

_SPACE = re.compile(r"[ \t\n\r]*+")
_LINE = re.compile(r"[^\r\n]++")
_DECODER = json.JSONDecoder()
_BAD_LINE_SHARE = 0.2
_BLOCK_CHARACTERS = 1500


@dataclass(slots=True)
class _Records:
    """Values of one list, each with its span in the text."""

    name: str
    start: int
    end: int
    values: list[Any]
    spans: list[tuple[int, int]]

    @property
    def tabular(self) -> bool:
        """Two or more objects and nothing else: what a person would call rows."""
        return len(self.values) > 1 and all(isinstance(value, dict) for value in self.values)


def read_json(source: Source, decoded: Decoded) -> Document:
    """Lists of objects, at the top or one level below it, become tables; everything else is text."""
    try:
        members = _members(decoded.text, source.stem)
    except (ValueError, RecursionError) as error:
        return _as_plain_text(source, decoded, "json", f"not valid JSON ({_reason(error)}); read as text")
    blocks: list[Block] = []
    tables: list[Table] = []
    for records in members:
        if records.tabular and (table := _table(records)) is not None:
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
    records = _Records(source.stem, 0, len(text), [], [])
    bad = 0
    for match in _LINE.finditer(text):
        if (line := match.group()).isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            bad += 1
            continue
        records.values.append(value if isinstance(value, dict) else {"value": value})
        records.spans.append(match.span())
    total = bad + len(records.values)
    table = None
    if records.values and bad <= _BAD_LINE_SHARE * total:
        warnings = [f"{bad:,} of {total:,} lines are not valid JSON"] if bad else []
        table = _table(records, warnings)
    if table is None:
        return _as_plain_text(
            source, decoded, "jsonl", f"{bad:,} of {total:,} lines are not JSON; read as text"
        )
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
    if text[start : start + 1] == "[":
        members = [_list(text, start, name)]
    elif text[start : start + 1] == "{":
        members = _object(text, start)
    else:
        members = [_single(text, start, name)]
    end = _after_space(text, members[-1].end if members else start)
    if text[end : end + 1] == "}" and members:
        end = _after_space(text, end + 1)
    if members and end != len(text):
        raise json.JSONDecodeError("extra data", text, end)
    return members


def _list(text: str, start: int, name: str) -> _Records:
    values: list[Any] = []
    spans: list[tuple[int, int]] = []
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "]":
        value, end = _value(text, at)
        values.append(value)
        spans.append((at, end))
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("expected , or ]", text, at)
    return _Records(name, start, at + 1, values, spans)


def _object(text: str, start: int) -> list[_Records]:
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
        at = _after_space(text, member.end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "}":
            raise json.JSONDecodeError("expected , or }", text, at)
    return members


def _single(text: str, start: int, name: str) -> _Records:
    value, end = _value(text, start)
    return _Records(name, start, end, [value], [(start, end)])


def _value(text: str, at: int) -> tuple[Any, int]:
    if at >= len(text):
        raise json.JSONDecodeError("ends too early", text, at)
    return _DECODER.raw_decode(text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _table(records: _Records, warnings: Sequence[str] = ()) -> Table | None:
    """None when the records have more names between them than a table can have columns."""
    keys: dict[str, None] = {}
    for record in records.values:
        keys.update(dict.fromkeys(record))
        if len(keys) > MOST_COLUMNS:
            return None
    order = list(keys)
    builder = TableBuilder(records.name, column_names(order, len(order)))
    for record, (start, end) in zip(records.values, records.spans, strict=True):
        builder.add([_cell(record.get(key)) for key in order], start, end)
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
