"""How to rebuild a file from another one, to the byte: made, checked and applied here.

A `copy` is the parent's bytes. A `rows` recipe names rows and columns of the parent's table, says how the child wrote
its cells (delimiter, quotes, line ends), and holds what that does not give: the bytes before the first row, and every
row that comes out differently. Whatever a parent is, the recipe depends on nothing but its bytes: text as it stands,
and of Parquet only values whose rendering is fixed by Python. A recipe is a plain JSON object.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ReadError, WindlassError
from windlass.lake.hashing import Cells, delimited_cells, hash_table, record_cells
from windlass.lake.readers.delimited import find_layout
from windlass.lake.readers.encoding import decode
from windlass.lake.readers.source import TEXT_BYTES, open_source
from windlass.lake.readers.tables import column_names

RECIPE_VERSION = 1
TABLE_KINDS = ("csv", "tsv", "parquet")
"""Kinds of file that a table may be rebuilt from."""

_STYLES = ("minimal", "text", "all")
_TRIED_ROWS = 200
_BARE_KINDS = 5  # NULL to DATE are written without quotes by whoever quotes text only


class RecipeError(WindlassError):
    """A file cannot be rebuilt: its parent is gone or changed, or the recipe does not give its bytes."""


@dataclass(frozen=True)
class TextTable:
    """The table of one file as its bytes spell it.

    Attributes:
        raw: The whole file.
        cells: Its rows, spelt as they stand, quotes taken off.
        hashes: uint64[columns, rows], of the values.
        keys: Column names as they are compared.
        bare: bool[columns, rows], cells that a writer who quotes text only leaves bare.
        offset: What to add to a place in `cells.lines` to have it in `raw`.
        delimiter: Between cells; empty when `raw` is not text.
    """

    raw: bytes
    cells: Cells
    hashes: NDArray[np.uint64]
    bare: NDArray[np.bool_]
    offset: int = 0
    delimiter: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(name.lower() for name in self.cells.names)


def digest(data: bytes) -> str:
    """The content hash that a scan gives to a file of these bytes."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def read_table(path: str, kind: str) -> TextTable | None:
    """The table of a CSV, TSV or Parquet file; None where a recipe cannot refer to it (not UTF-8, no table in it).

    Raises:
        ReadError: The file cannot be read.
    """
    source = open_source(path)
    with source.file:
        raw = source.read(TEXT_BYTES)
    return parquet_table(raw) if kind == "parquet" else _delimited_table(raw, kind)


def copy_recipe() -> dict[str, Any]:
    """The child is the parent, byte for byte."""
    return {"version": RECIPE_VERSION, "kind": "copy"}


def rows_recipe(child: TextTable, parent: TextTable, names: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """The recipe that gives the child's bytes from the parent, None when there is none.

    Args:
        child, parent: The tables. Rows that the parent lacks are kept in the recipe, at most half of them.
        names: What the child's columns are called in the parent; None when they have the same names.
    """
    columns = columns_of(child, parent, names) if child.delimiter else None
    found = None if columns is None else matched_rows(child, parent, columns)
    if columns is None or found is None:
        return None
    rows, missing = found
    bounds = [*(child.cells.lines + child.offset).tolist(), len(child.raw)]
    wanted = [child.raw[start:end] for start, end in pairwise(bounds)]
    eol = "\r\n" if wanted and wanted[0].endswith(b"\r\n") else "\n"
    recipe = {"version": RECIPE_VERSION, "kind": "rows", "columns": columns, "delimiter": child.delimiter, "eol": eol}
    tried = np.flatnonzero(~missing)[:_TRIED_ROWS]
    sample = [wanted[row] for row in tried]
    recipe["quotes"] = max(
        _STYLES,
        key=lambda style: sum(map(bytes.__eq__, _rendered(parent, rows[tried], {**recipe, "quotes": style}), sample)),
    )
    made = list(_rendered(parent, rows, recipe))
    differing = [(number, want) for number, (have, want) in enumerate(zip(made, wanted, strict=True)) if have != want]
    recipe["rows"] = packed(encode_rows(rows))
    recipe["head"] = packed(child.raw[: bounds[0]])
    recipe["differs"] = packed(_encode_differences(differing))
    return recipe


def columns_of(child: TextTable, parent: TextTable, names: Mapping[str, str] | None) -> list[int] | None:
    """Where the child's columns stand in the parent, None when one is not there."""
    places = {key: place for place, key in enumerate(parent.keys)}
    called = [names.get(key, "") if names else key for key in child.keys]
    return [places[key] for key in called] if set(called) <= set(places) else None


def matched_rows(
    child: TextTable, parent: TextTable, columns: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """For each child row a parent row that equals it on some columns, and bool[rows], which have none.

    A row that has none stands for the one after the row before. None when the parent lacks more than half.
    """
    if not parent.cells.rows:
        return None
    rows, missing = _match_rows(_keyed(child, range(len(columns))), _keyed(parent, columns))
    return (rows, missing) if missing.sum() * 2 <= len(rows) else None


def rebuild(recipe: Mapping[str, Any], parent: Callable[[], TextTable | None], parent_bytes: bytes) -> bytes:
    """The child's bytes.

    Args:
        recipe: As made above.
        parent: Gives the parent's table; only called when it is needed.
        parent_bytes: The parent's file.

    Raises:
        RecipeError: The recipe is damaged, of a newer version, or does not fit the parent.
    """
    if recipe.get("version") != RECIPE_VERSION:
        raise RecipeError(f"recipe version {recipe.get('version')} is not known", hint="use a newer windlass")
    if recipe["kind"] == "copy":
        return parent_bytes
    table = parent()
    if table is None:
        raise RecipeError("the parent holds no table any more", hint="restore the parent first")
    if recipe["kind"] == "parquet":
        return _rebuilt_parquet(recipe, table)
    try:
        rows = decode_rows(unpacked(recipe["rows"]))
        parts = [unpacked(recipe["head"]), *_rendered(table, rows, recipe)]
        for number, want in _decode_differences(unpacked(recipe["differs"])):
            parts[number + 1] = want
        return b"".join(parts)
    except (KeyError, IndexError, ValueError, zlib.error) as error:
        raise RecipeError(f"the recipe does not fit its parent ({error})", hint="restore the parent first") from error


def _rebuilt_parquet(recipe: Mapping[str, Any], parent: TextTable) -> bytes:
    from windlass.lake.parquet_recipes import rebuild_parquet

    try:
        return rebuild_parquet(recipe, parent)
    except (KeyError, IndexError, ValueError, TypeError, zlib.error) as error:
        raise RecipeError(f"the recipe does not fit its parent ({error})", hint="restore the parent first") from error


def _delimited_table(raw: bytes, kind: str) -> TextTable | None:
    text = decode(raw).text
    encoded = text.encode("utf-8", "replace")
    prefix = len(raw) - len(encoded)
    if prefix < 0 or raw[prefix:] != encoded:
        return None  # another encoding: how it was guessed may change, and a recipe must not depend on it
    layout = find_layout(text, kind)
    if layout is None:
        return None
    body = len(text[: layout.body].encode("utf-8", "replace"))
    cells = delimited_cells(encoded, body, layout.delimiter, layout.names)
    again = delimited_cells(encoded, body, layout.delimiter, layout.names)
    if cells is None or again is None:
        return None
    hashed = hash_table(again)  # cuts off the space around its cells: a recipe spells them as they stand
    return TextTable(raw, cells, hashed.hashes, hashed.kinds < _BARE_KINDS, prefix, layout.delimiter)


def parquet_table(raw: bytes) -> TextTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from windlass.lake.readers.plain_columns import cell

    try:
        table = pq.read_table(pa.BufferReader(raw), use_threads=False)
        columns = [[cell(value) for value in column.to_pylist()] for column in table.columns]
    except pa.ArrowException as error:
        raise ReadError(f"not a valid Parquet file ({str(error)[:200]})") from error
    names = column_names(table.column_names, len(table.column_names))
    records = list(zip(*columns, strict=True))
    hashed = hash_table(record_cells(records, names))
    return TextTable(raw, record_cells(records, names), hashed.hashes, hashed.kinds < _BARE_KINDS)


def _keyed(table: TextTable, columns: Iterable[int]) -> NDArray[np.uint64]:
    """One key a row on some columns, in their order: only compared within one call of `rows_recipe`."""
    keys = np.zeros(table.cells.rows, np.uint64)
    for column in columns:
        keys = (keys ^ table.hashes[column]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        keys ^= keys >> np.uint64(29)
    return keys


def _match_rows(child: NDArray[np.uint64], parent: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each child row a parent row that equals it, the next one after the row before where there is one."""
    order = np.argsort(parent, kind="stable")
    ranked = parent[order]
    left, right = np.searchsorted(ranked, child, "left"), np.searchsorted(ranked, child, "right")
    missing = left == right
    chosen, previous = np.empty(len(child), np.int64), -1
    for number, (low, high) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        if low == high:
            chosen[number] = min(previous + 1, len(parent) - 1)
            continue
        place = low + int(np.searchsorted(order[low:high], previous, "right")) if high - low > 1 else low
        previous = int(order[place if place < high else low])
        chosen[number] = previous
    return chosen, missing


def _rendered(table: TextTable, rows: Sequence[int] | NDArray[np.int64], recipe: Mapping[str, Any]) -> Iterator[bytes]:
    """Rows as the child writes them, line ends included."""
    delimiter, eol, quotes = recipe["delimiter"].encode(), recipe["eol"].encode(), recipe["quotes"]
    special = [delimiter, b'"', b"\n", b"\r"]
    cells, whole = table.cells, table.cells.buffer
    columns = [
        (cells.starts[column].tolist(), cells.ends[column].tolist(), table.bare[column].tolist())
        for column in recipe["columns"]
    ]
    for row in rows:
        parts = []
        for starts, ends, is_bare in columns:
            part = whole[starts[row] : ends[row]]
            bare = quotes == "minimal" or (quotes == "text" and is_bare[row])
            if not bare or any(mark in part for mark in special):
                part = b'"' + part.replace(b'"', b'""') + b'"'
            parts.append(part)
        yield delimiter.join(parts) + eol


def encode_rows(rows: NDArray[np.int64]) -> bytes:
    """Row numbers as runs of consecutive ones: the step to each run and its length, in as few bytes as they take."""
    if not len(rows):
        return b""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [len(rows)]]))
    out = bytearray()
    after = 0
    for first, length in zip(rows[starts].tolist(), lengths.tolist(), strict=True):
        step = first - after
        _put(out, 2 * step if step >= 0 else -2 * step - 1)
        _put(out, length)
        after = first + length
    return bytes(out)


def decode_rows(data: bytes) -> NDArray[np.int64]:
    """What `encode_rows` encoded."""
    numbers = list(_numbers(data))
    parts, after = [np.empty(0, np.int64)], 0
    for step, length in zip(numbers[::2], numbers[1::2], strict=True):
        first = after + (step // 2 if step % 2 == 0 else -(step + 1) // 2)
        parts.append(np.arange(first, first + length))
        after = first + length
    return np.concatenate(parts)


def _encode_differences(differing: Sequence[tuple[int, bytes]]) -> bytes:
    out = bytearray()
    for number, want in differing:
        _put(out, number)
        _put(out, len(want))
        out += want
    return bytes(out)


def _decode_differences(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        number, at = _get(data, at)
        length, at = _get(data, at)
        if at + length > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + length]
        at += length


def _numbers(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        number, at = _get(data, at)
        yield number


def _put(out: bytearray, number: int) -> None:
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def _get(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return number, at


def packed(data: bytes) -> str:
    """Bytes as they stand in a recipe."""
    return base64.b85encode(zlib.compress(data, 9)).decode()


def unpacked(text: str) -> bytes:
    """What `packed` made text of."""
    return zlib.decompress(base64.b85decode(text))
