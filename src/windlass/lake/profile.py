"""What a table holds, column by column, in one pass: types, ranges, distinct counts, keys, and sketches that merge.

Every cell is looked at once by compiled code over the bytes of the table; Python sees a handful of values a column.
What a column is *called* (integer, date, text, ...) follows the rules of `readers.columns`, which are asked where one
glance at the kinds of its cells does not settle it, so the profile and what `up` shows never differ.

Exact while a column has at most 65,536 distinct values, HyperLogLog after that. `merge` gives for two parts of a
table what profiling the whole would have given: exactly for counts, ranges, bottom-k, MinHash and registers, within
the error of the sketch for quantiles and frequent values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels import sketches
from windlass.kernels.cells import CODE, DATE, INTEGER, NULL, NUMBER, TEXT, TIMESTAMP, extreme_cells
from windlass.kernels.hashing import add_cells
from windlass.kernels.minhash import EMPTY, minima
from windlass.lake.document import Column
from windlass.lake.hashing import Cells, HashedTable, hash_table
from windlass.lake.readers.columns import SAMPLES, rendered, shown, typed

PROFILE_VERSION = 1
EXACT_DISTINCT = 65_536
MINHASH_SLOTS = 128
TOP_VALUES = 10

_COUNTERS = 64
_SHARES = np.linspace(0.0, 1.0, 11)
_KEY_COLUMNS = 8
_KEY_WIDTH = 3
_MOST_KEYS = 4
_PLAIN_TEXT_SHARE = 0.02
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class ColumnProfile:
    """One column.

    Attributes:
        column: Name, type, nulls, distinct values, range and samples, as everywhere else.
        rows: Cells, nulls included.
        exact: Whether `column.distinct` was counted and not estimated.
        numbers: How many cells are numbers; `mean` and `spread` (sum of squared deviations) are over them.
        low, high: Least and greatest number, exactly; nan when there is none.
        quantiles: Sketch of the numbers, see `kernels.sketches`.
        lengths: Shortest, mean and longest cell in bytes, nulls left out.
        top: The most frequent values with their counts.
        bottom: uint64[<= 256], the smallest hashes of distinct values.
        slots: uint32[128], MinHash of the distinct values by one permutation, empty bins left empty.
        registers: uint8[4096] of HyperLogLog; None while `bottom` holds all values.
        hashes: uint64[distinct], sorted, while exact; not kept in JSON.
    """

    column: Column
    rows: int
    exact: bool
    numbers: int
    mean: float
    spread: float
    low: float
    high: float
    quantiles: tuple[NDArray[np.float64], NDArray[np.int64]]
    lengths: tuple[int, float, int]
    top: tuple[tuple[str, int], ...]
    bottom: NDArray[np.uint64]
    slots: NDArray[np.uint32]
    registers: NDArray[np.uint8] | None
    hashes: NDArray[np.uint64] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def filled(self) -> int:
        """Cells that are not null."""
        return self.rows - self.column.nulls

    @property
    def is_unique(self) -> bool:
        """Whether no value is there twice; only said when it was counted."""
        return self.exact and self.column.distinct == self.filled > 0

    @property
    def counts_up(self) -> bool:
        """Whether the values count from 0 or 1 without large gaps: such columns hold one another by accident."""
        if self.column.type != "integer" or self.low not in (0.0, 1.0):
            return False
        return self.column.distinct >= 0.8 * (self.high - self.low + 1)

    @property
    def deviation(self) -> float:
        """Standard deviation of the numbers (n - 1)."""
        return math.sqrt(self.spread / (self.numbers - 1)) if self.numbers > 1 else math.nan

    def deciles(self) -> NDArray[np.float64]:
        """Minimum, nine deciles and maximum of the numbers."""
        return sketches.quantiles(self.quantiles, _SHARES)


@dataclass(frozen=True)
class TableProfile:
    """One table.

    Attributes:
        name: What the table is called.
        rows: Its data rows.
        columns: Their profiles, in order.
        duplicate_rows: Rows that are equal to an earlier one; None when it was not counted (parts that were merged).
        keys: Smallest sets of columns that tell all rows apart, at most three columns wide; single ones first.
        left_out: Rows without any content.
        ragged: Rows with another number of cells than there are columns.
    """

    name: str
    rows: int
    columns: tuple[ColumnProfile, ...]
    duplicate_rows: int | None
    keys: tuple[tuple[str, ...], ...]
    left_out: int = 0
    ragged: int = 0

    def merge(self, other: TableProfile) -> TableProfile:
        """The profile of this table's rows and then the other's. Keys and duplicate rows are not known of a merger.

        Raises:
            ValueError: The columns are not the same.
        """
        if [c.name.lower() for c in self.columns] != [c.name.lower() for c in other.columns]:
            raise ValueError(f"tables {self.name} and {other.name} have different columns")
        columns = tuple(merge_columns(a, b) for a, b in zip(self.columns, other.columns, strict=True))
        rows = self.rows + other.rows
        counts = self.left_out + other.left_out, self.ragged + other.ragged
        return TableProfile(self.name, rows, columns, None, _single_keys(columns, rows), *counts)


def profile_table(name: str, table: Cells | HashedTable) -> TableProfile:
    """Profile a whole table that is in memory.

    Args:
        name: What to call it.
        table: Its cells; hashed already, if the hashes are wanted for more.

    Example:
        >>> from windlass.lake.hashing import record_cells
        >>> cells = record_cells([["N1", "7.5"], ["N2", ""], ["N3", "9"]], ["berth", "depth"])
        >>> profile = profile_table("berths", cells)
        >>> [(c.name, c.column.type, c.column.nulls, c.is_unique) for c in profile.columns]
        [('berth', 'text', 0, True), ('depth', 'number', 1, True)]
    """
    hashed = table if isinstance(table, HashedTable) else hash_table(table)
    columns = tuple(_profile_column(hashed, place) for place in range(len(hashed.names)))
    duplicates, keys = _duplicates_and_keys(hashed, columns)
    return TableProfile(name, hashed.rows, columns, duplicates, keys, hashed.cells.left_out, hashed.cells.ragged)


def merge_profiles(parts: Sequence[TableProfile]) -> TableProfile:
    """One profile of several parts of a table, in order. Raises `ValueError` when there is none."""
    if not parts:
        raise ValueError("no parts to merge")
    return reduce(TableProfile.merge, parts)


def merge_columns(a: ColumnProfile, b: ColumnProfile) -> ColumnProfile:
    """One profile of two parts of a column."""
    numbers = a.numbers + b.numbers
    mean, spread = _merged_moments(a, b)
    hashes = np.union1d(a.hashes, b.hashes) if a.hashes is not None and b.hashes is not None else None
    if hashes is not None and hashes.size > EXACT_DISTINCT:
        hashes = None
    bottom = sketches.bottom_hashes(np.union1d(a.bottom, b.bottom))
    registers = None
    if hashes is None or hashes.size > sketches.BOTTOM:
        registers = np.maximum(_registers(a), _registers(b))
    counted = Counter(dict(a.top)) + Counter(dict(b.top))
    exact = hashes is not None
    distinct = hashes.size if hashes is not None else round(sketches.estimate_distinct(registers))  # type: ignore[arg-type]
    filled = a.filled + b.filled
    lengths = [part.lengths for part in (a, b) if part.filled]
    column = _merged_description(a.column, b.column, distinct)
    return ColumnProfile(
        column,
        a.rows + b.rows,
        exact,
        numbers,
        mean,
        spread,
        float(np.fmin(a.low, b.low)),
        float(np.fmax(a.high, b.high)),
        sketches.merge_quantiles(a.quantiles, b.quantiles),
        (
            min((low for low, _, _ in lengths), default=0),
            (a.lengths[1] * a.filled + b.lengths[1] * b.filled) / filled if filled else 0.0,
            max((high for _, _, high in lengths), default=0),
        ),
        tuple(counted.most_common(_COUNTERS)),
        bottom,
        np.minimum(a.slots, b.slots),
        registers,
        hashes,
    )


def _profile_column(table: HashedTable, place: int) -> ColumnProfile:
    cells, hashes, kinds, values = table.cells, table.hashes[place], table.kinds[place], table.values[place]
    first, count = sketches.group_values(hashes, kinds)  # NULL is 0
    distinct_kinds = kinds[first]
    present = np.bincount(distinct_kinds, minlength=9)
    numeric = (distinct_kinds == INTEGER) | (distinct_kinds == NUMBER)
    moments = _moments(values[first[numeric]], count[numeric])
    nulls = table.rows - int(count.sum())
    kind, low, high = _described(cells, place, first, present, values)
    samples = tuple(map(shown, cells.texts(place, first[:SAMPLES])))
    distinct = hashes[first]
    lengths = (cells.ends[place] - cells.starts[place])[kinds != NULL]
    most = _most_frequent(count)
    top = zip(map(shown, cells.texts(place, first[most])), count[most].tolist(), strict=True)
    slots = np.full(MINHASH_SLOTS, EMPTY, np.uint32)
    minima(distinct, slots)
    registers = None
    if distinct.size > sketches.BOTTOM:
        registers = np.zeros(sketches.REGISTERS, np.uint8)
        sketches.fill_registers(distinct, registers)
    numbers = values[(kinds == INTEGER) | (kinds == NUMBER)] if numeric.any() else values[:0]
    exact = distinct.size <= EXACT_DISTINCT
    return ColumnProfile(
        Column(table.names[place], kind, nulls, len(first), low, high, samples),
        table.rows,
        True,
        moments[0],
        moments[1],
        moments[2],
        float(numbers.min()) if numbers.size else math.nan,
        float(numbers.max()) if numbers.size else math.nan,
        sketches.quantile_sketch(numbers),
        (int(lengths.min()), float(lengths.mean()), int(lengths.max())) if lengths.size else (0, 0.0, 0),
        tuple(top),
        sketches.bottom_hashes(distinct),
        slots,
        registers,
        np.sort(distinct) if exact else None,
    )


def _most_frequent(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the ten largest counts, of equal ones the first, largest first."""
    if len(count) > 4 * TOP_VALUES:
        least = np.partition(count, len(count) - TOP_VALUES)[len(count) - TOP_VALUES]
        above = np.flatnonzero(count > least)
        equal = np.flatnonzero(count == least)[: TOP_VALUES - len(above)]
        places = np.sort(np.concatenate([above, equal]))
    else:
        places = np.arange(len(count))
    most: NDArray[np.int64] = places[np.argsort(-count[places], kind="stable")][:TOP_VALUES]
    return most


def _described(cells: Cells, place: int, first: Any, present: Any, values: Any) -> tuple[str, str | None, str | None]:
    """Type and range by the kinds of the distinct cells; by the rules for text cells where kinds are mixed."""
    total = len(first)
    if not total:
        return "empty", None, None
    if present[INTEGER] + present[NUMBER] == total:
        chosen = values[first]
        low, high = float(chosen.min()), float(chosen.max())
        if present[NUMBER]:
            return "number", rendered(low), rendered(high)
        if max(-low, high) < 1e15:
            return "integer", str(int(low)), str(int(high))
    elif present[DATE] + present[TIMESTAMP] == total:
        chosen = values[first]
        low_time, high_time = (_EPOCH + timedelta(microseconds=float(value)) for value in (chosen.min(), chosen.max()))
        if not (chosen % 86_400_000_000).any():
            return "date", low_time.date().isoformat(), high_time.date().isoformat()
        return "timestamp", low_time.isoformat(" "), high_time.isoformat(" ")
    elif present[TEXT] > _PLAIN_TEXT_SHARE * total and (total > 12 or present[CODE]):
        # Too many words for numbers or dates, too many values for yes and no.
        least, greatest = extreme_cells(cells.data, cells.starts[place], cells.ends[place], first)
        return "text", shown(cells.text(place, least)), shown(cells.text(place, greatest))
    return typed(cells.texts(place, first))


def _moments(values: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[int, float, float]:
    """(cells, mean, sum of squared deviations) of distinct numbers and how often each is there."""
    cells = int(counts.sum())
    if not cells:
        return 0, math.nan, 0.0
    weights = counts.astype(np.float64)
    # Not by a matrix product: threads of a numeric library are not worth waking up for one column.
    mean = float((values * weights).sum() / cells)
    return cells, mean, float(((values - mean) ** 2 * weights).sum())


def _merged_moments(a: ColumnProfile, b: ColumnProfile) -> tuple[float, float]:
    if not a.numbers or not b.numbers:
        one = a if a.numbers else b
        return one.mean, one.spread
    total, apart = a.numbers + b.numbers, b.mean - a.mean
    return a.mean + apart * b.numbers / total, a.spread + b.spread + apart**2 * a.numbers * b.numbers / total


def _merged_description(a: Column, b: Column, distinct: int) -> Column:
    kinds = {a.type, b.type} - {"empty"}
    if len(kinds) > 1:
        kind = "number" if kinds <= {"integer", "number"} else "timestamp" if kinds <= {"date", "timestamp"} else "text"
    else:
        kind = kinds.pop() if kinds else "empty"
    order = float if kind in ("integer", "number") else str
    lows = [low for low in (a.minimum, b.minimum) if low is not None]
    highs = [high for high in (a.maximum, b.maximum) if high is not None]
    samples = tuple(dict.fromkeys((*a.samples, *b.samples)))[:SAMPLES]
    return Column(
        a.name,
        kind,
        a.nulls + b.nulls,
        distinct,
        min(lows, key=order, default=None),
        max(highs, key=order, default=None),
        samples,
    )


def _registers(part: ColumnProfile) -> NDArray[np.uint8]:
    if part.registers is not None:
        return part.registers
    registers = np.zeros(sketches.REGISTERS, np.uint8)
    sketches.fill_registers(part.bottom, registers)
    return registers


def _single_keys(columns: Sequence[ColumnProfile], rows: int) -> tuple[tuple[str, ...], ...]:
    return tuple((c.name,) for c in columns if c.is_unique and c.filled == rows)[:_MOST_KEYS]


def _duplicates_and_keys(
    table: HashedTable, columns: Sequence[ColumnProfile]
) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """Rows that repeat an earlier one, and what tells the rows apart: single columns, else pairs, else triples."""
    keys = _single_keys(columns, table.rows)
    if keys or not table.rows or not columns:
        return 0, keys
    seeded = _seeded(table)
    if not sketches.rows_are_unique(seeded, np.arange(len(columns)), _slots(table.rows)):
        first, _ = sketches.group_values(seeded.sum(axis=0), np.ones(table.rows, np.uint8))
        return table.rows - len(first), ()
    order = sorted(range(len(columns)), key=lambda place: -columns[place].column.distinct)[:_KEY_COLUMNS]
    found: list[tuple[int, ...]] = []
    for group in unique_groups(table, columns, sorted(order), seeded):
        if len(found) == _MOST_KEYS or (found and len(group) > len(found[0])):
            break
        found.append(group)
    return 0, tuple(tuple(columns[place].name for place in group) for group in found)


def unique_groups(
    table: HashedTable,
    columns: Sequence[ColumnProfile],
    places: Sequence[int],
    seeded: NDArray[np.uint64] | None = None,
) -> Iterator[tuple[int, ...]]:
    """Sets of two or three columns, of those at `places`, that tell all rows apart and hold no smaller such set."""
    seeded = _seeded(table) if seeded is None else seeded
    slots = _slots(table.rows)
    found: list[set[int]] = []
    for width in range(2, _KEY_WIDTH + 1):
        for group in combinations(places, width):
            possible = math.prod(columns[place].column.distinct + 1 for place in group) >= table.rows
            if not possible or any(smaller <= set(group) for smaller in found):
                continue
            if sketches.rows_are_unique(seeded, np.array(group), slots):
                found.append(set(group))
                yield group


def _seeded(table: HashedTable) -> NDArray[np.uint64]:
    seeded = np.zeros(table.hashes.shape, np.uint64)
    for place in range(len(table.names)):
        add_cells(table.hashes[place], table.seeds[place], seeded[place])
    return seeded


def _slots(rows: int) -> NDArray[np.uint64]:
    return np.empty(1 << max(2 * rows - 1, 1).bit_length(), np.uint64)


def without_hashes(profile: TableProfile) -> TableProfile:
    """The profile as it is kept: sketches only."""
    return replace(profile, columns=tuple(replace(column, hashes=None) for column in profile.columns))
