"""Canonical values: when two cells of two tables are equal, said once for every finder of the lake.

A table of any source becomes a buffer of UTF-8 cells; `windlass.kernels.cells` says what each cell is and hashes its
value. Nothing about the column enters a value's hash, so values compare across columns of different name and type.
Column names compare without regard to case. Marks of thousands, decimal commas and local dates count for the *type* of
a column (see `lake.profile`), not for equality: whether `1,234` is a number is only known from the whole column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.cells import (
    INTEGER,
    MOST_EXACT,
    NUMBER,
    UNFINISHED,
    classify_cells,
    classify_integers,
    count_digits,
    exact_text_hash,
    number_hash,
    split_cells,
)
from windlass.kernels.hashing import add_cells, finish_rows, hash_strings

if TYPE_CHECKING:
    import pyarrow as pa

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Cells:
    """The cells of a table as spans of one buffer.

    Attributes:
        names: Column names, unique without regard to case.
        data: uint8 array, UTF-8.
        starts, ends: int64[columns, rows].
        lines: int64[rows], where in the source each row begins; empty when the source has no lines.
        left_out: Rows without any content that were passed over.
        ragged: Rows with another number of cells than there are columns.
        integers: int64[rows] of columns that came as integers, by place: their spans are as long as their digits, and
            point nowhere; a span of no length is a null.
    """

    names: tuple[str, ...]
    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]
    left_out: int = 0
    ragged: int = 0
    integers: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return int(self.starts.shape[1])

    def text(self, column: int, row: int) -> str:
        """One cell."""
        return self.texts(column, [row])[0]

    def texts(self, column: int, rows: Iterable[int]) -> list[str]:
        """Cells of one column."""
        whole, starts, ends = self.buffer, self.starts[column], self.ends[column]
        if column in self.integers:
            numbers = self.integers[column]
            return [str(numbers[row]) if ends[row] else "" for row in rows]
        return [whole[starts[row] : ends[row]].decode("utf-8", "replace") for row in rows]

    def without_first(self) -> Cells:
        """The same without the first row."""
        starts, ends = (np.ascontiguousarray(spans[:, 1:]) for spans in (self.starts, self.ends))
        integers = {column: numbers[1:] for column, numbers in self.integers.items()}
        return replace(self, starts=starts, ends=ends, lines=self.lines[1:], integers=integers)

    @cached_property
    def buffer(self) -> bytes:
        return self.data.tobytes()


@dataclass(frozen=True)
class HashedTable:
    """What every cell of a table is, and the hash of its value.

    Attributes:
        cells: The cells themselves, space around them cut off.
        kinds: uint8[columns, rows], of `windlass.kernels.cells`.
        values: float64[columns, rows]: numbers, and dates and times as microseconds since 1970; nan for all else.
        hashes: uint64[columns, rows].
    """

    cells: Cells
    kinds: NDArray[np.uint8]
    values: NDArray[np.float64]
    hashes: Hashes

    @property
    def names(self) -> tuple[str, ...]:
        return self.cells.names

    @property
    def rows(self) -> int:
        return self.cells.rows

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Column names as they are compared."""
        return tuple(name.lower() for name in self.names)

    @cached_property
    def seeds(self) -> Hashes:
        return column_seeds(self.names)

    def row_hashes(self, columns: Sequence[str] | None = None) -> Hashes:
        """uint64[rows]: hashes of the rows on some columns (compared names, in any order), by default on all.

        Raises:
            KeyError: There is no such column.
        """
        keys = self.keys if columns is None else columns
        places = {key: place for place, key in enumerate(self.keys)}
        chosen = [places[key] for key in keys]
        return self.tuple_hashes(chosen, self.seeds[chosen])

    def tuple_hashes(self, places: Sequence[int], seeds: Hashes) -> Hashes:
        """uint64[rows]: hashes of some columns (by place) as if they were called by the names that gave the seeds."""
        sums = np.zeros(self.rows, np.uint64)
        for place, seed in zip(places, seeds, strict=True):
            add_cells(self.hashes[place], seed, sums)
        finish_rows(sums)
        return sums


def column_seeds(names: Sequence[str]) -> Hashes:
    """uint64[columns], from the names without regard to case.

    Example:
        >>> seeds = column_seeds(["Berth", "berth", "length"])
        >>> bool(seeds[0] == seeds[1]), bool(seeds[0] == seeds[2])
        (True, False)
    """
    encoded = [name.lower().encode("utf-8", "surrogatepass") for name in names]
    data, starts, ends = _packed(encoded)
    seeds: Hashes = hash_strings(data, starts, ends)
    return seeds


def hash_table(cells: Cells) -> HashedTable:
    """Say of every cell what it is and hash it. The space around each cell is cut off in `cells` itself."""
    shape = cells.starts.shape
    kinds, values, hashes = np.empty(shape, np.uint8), np.empty(shape), np.empty(shape, np.uint64)
    for column in range(shape[0]):
        starts, ends = cells.starts[column], cells.ends[column]
        if column in cells.integers:
            classify_integers(cells.integers[column], ends, kinds[column], values[column], hashes[column])
        elif classify_cells(cells.data, starts, ends, kinds[column], values[column], hashes[column]):
            _finish_numbers(cells, column, kinds[column], values[column], hashes[column])
    return HashedTable(cells, kinds, values, hashes)


def delimited_cells(data: bytes, start: int, delimiter: str, names: Sequence[str]) -> Cells | None:
    """The rows of CSV text from byte `start` on; None when a quote is never closed, which takes a person's rules.

    Args:
        data: The whole text, UTF-8.
        start: Where the first data row begins.
        delimiter: One ASCII character.
        names: Of the columns.
    """
    buffer = np.frombuffer(bytearray(data), np.uint8)  # cells are unquoted in place
    room = data.count(b"\n", start) + data.count(b"\r", start) + 1
    starts, ends = np.empty((2, len(names), room), np.int64)
    lines, report = np.empty(room, np.int64), np.zeros(3, np.int64)
    rows = split_cells(buffer, start, ord(delimiter), starts, ends, lines, report)
    if report[2]:
        return None
    trimmed = [np.ascontiguousarray(spans[:, :rows]) for spans in (starts, ends)]
    return Cells(tuple(names), buffer, trimmed[0], trimmed[1], lines[:rows], int(report[0]), int(report[1]))


def record_cells(records: Sequence[Sequence[str]], names: Sequence[str]) -> Cells:
    """Rows of text cells; short ones are filled up, what is past the last column is left out."""
    width = len(names)
    columns = [[row[place] if place < len(row) else "" for row in records] for place in range(width)]
    data, starts, ends = _packed([cell.encode("utf-8", "replace") for column in columns for cell in column])
    shape = (width, len(records))
    ragged = sum(len(row) != width for row in records)
    return Cells(tuple(names), data, starts.reshape(shape), ends.reshape(shape), np.empty(0, np.int64), 0, ragged)


def arrow_cells(table: pa.Table | pa.RecordBatch, names: Sequence[str]) -> Cells:
    """The cells of an Arrow table or batch of plain columns (see `readers.plain_columns`) as their text."""
    import pyarrow as pa

    starts, ends = np.empty((2, len(names), table.num_rows), np.int64)
    parts: list[NDArray[np.uint8]] = []
    integers: dict[int, NDArray[np.int64]] = {}
    size = 0
    for place, column in enumerate(table.columns):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        numbers = _exact_integers(array)
        if numbers is not None:
            starts[place] = 0
            count_digits(numbers, np.asarray(array.is_valid()), ends[place])
            integers[place] = numbers
            continue
        if array.null_count:
            array = array.cast(pa.large_string()).fill_null("")
        else:
            array = array.cast(pa.large_string())
        _, offsets, text = array.buffers()
        spans = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        starts[place], ends[place] = spans[:-1] + size, spans[1:] + size
        if text is not None and len(spans):
            parts.append(np.frombuffer(text, np.uint8))
            size += len(parts[-1])
    data = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return Cells(tuple(names), data, starts, ends, np.empty(0, np.int64), integers=integers)


def _exact_integers(array: pa.Array) -> NDArray[np.int64] | None:
    """The values of a column of integers that a double holds exactly, 0 for nulls; None for all other columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_integer(array.type):
        return None
    if array.type.bit_width == 64:
        least, greatest = pc.min_max(array).values()
        bounds = [value.as_py() for value in (least, greatest) if value.is_valid]
        if any(abs(bound) > MOST_EXACT for bound in bounds):
            return None
    filled = array.fill_null(0) if array.null_count else array
    numbers: NDArray[np.int64] = filled.cast(pa.int64()).to_numpy()
    return numbers


def _packed(encoded: Sequence[bytes]) -> tuple[NDArray[np.uint8], Any, Any]:
    ends = np.cumsum([len(cell) for cell in encoded], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    return np.frombuffer(bytearray(b"".join(encoded)), np.uint8), starts, ends


def _finish_numbers(cells: Cells, column: int, kinds: Any, values: Any, hashes: Any) -> None:
    """Numbers of more digits than the kernel takes: by Python's own conversion, which is exact."""
    for row in np.flatnonzero(kinds == UNFINISHED):
        start, end = cells.starts[column, row], cells.ends[column, row]
        word = bytes(cells.data[start:end])
        digits = word.lstrip(b"+-")
        whole = digits.isdigit()
        kinds[row] = INTEGER if whole else NUMBER
        values[row] = value = float(word)
        exact = not whole or int(word) == int(value)
        hashes[row] = number_hash(value) if exact else exact_text_hash(cells.data, start, end)
