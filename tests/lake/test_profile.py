"""Profiles against pyarrow, Python's statistics and the rules that readers describe columns by."""

from __future__ import annotations

import csv
import io
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ReadError, WorkspaceError
from windlass.core.randomness import integers, uniform
from windlass.lake.hashing import Cells, arrow_cells, hash_table, record_cells
from windlass.lake.profile import TableProfile, merge_profiles, profile_table
from windlass.lake.profile_format import pack_profile, unpack_profile
from windlass.lake.readers.columns import describe_column
from windlass.lake.table_files import file_cells, profile_file

CELLS = st.sampled_from(
    "|NA|1|2.5|-3|1e3|007|1,234|1.234,5|true|No|yes|f|2024-05-01|2024-05-01 10:00|01.02.2024|31/12/2023|quay|é"
    "|9007199254740993| 5 ".split("|")
)


def profile_cells(column: list[str]) -> TableProfile:
    return profile_table("t", record_cells([[cell] for cell in column], ["a"]))


@settings(deadline=None, max_examples=150)
@given(st.lists(CELLS, max_size=30))
def test_types_and_nulls_are_those_that_readers_give(column: list[str]) -> None:
    (found,) = profile_cells(column).columns
    want = describe_column("a", column)
    assert (found.column.type, found.column.nulls) == (want.type, want.nulls)


@settings(deadline=None)
@given(st.one_of(*[st.lists(st.sampled_from(group), max_size=30) for group in (
    ["1", "2", "10", "-7"], ["1.5", "2", "NA"], ["2024-05-01", "2023-01-31"], ["2024-05-01 10:00", "2024-05-01"],
    ["b", "a", "", "zz é"], ["1,234", "5"], ["true", "FALSE"], ["01.02.2024", "28.02.2024"],
)]))  # fmt: skip
def test_ranges_are_those_that_readers_give(column: list[str]) -> None:
    (found,) = profile_cells(column).columns
    want = describe_column("a", column)
    assert (found.column.minimum, found.column.maximum) == (want.minimum, want.maximum)


@settings(deadline=None)
@given(st.lists(st.one_of(st.just(""), st.integers(-50, 50).map(str)), max_size=80))
def test_counts_and_moments(column: list[str]) -> None:
    (found,) = profile_cells(column).columns
    numbers = [int(cell) for cell in column if cell]
    assert (found.rows, found.filled, found.numbers) == (len(column), len(numbers), len(numbers))
    assert found.column.distinct == len(set(numbers)) and found.exact
    assert found.is_unique == (bool(numbers) and len(set(numbers)) == len(numbers))
    if len(numbers) > 1:
        assert found.mean == pytest.approx(statistics.fmean(numbers), abs=1e-9)
        assert found.deviation == pytest.approx(statistics.stdev(numbers), abs=1e-9)
        assert (found.low, found.high) == (min(numbers), max(numbers))
        assert dict(found.top)[str(numbers[0])] == numbers.count(numbers[0]) or len(set(numbers)) > 10
    lengths = [len(cell) for cell in column if cell]
    assert found.lengths == pytest.approx(
        (min(lengths), statistics.fmean(lengths), max(lengths)) if lengths else (0, 0, 0)
    )


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=14)


@settings(deadline=None, max_examples=100)
@given(ROWS)
def test_keys_tell_all_rows_apart_and_nothing_smaller_does(rows: list[tuple[int, ...]]) -> None:
    found = profile_table("t", record_cells([[str(v) for v in row] for row in rows], ["a", "b", "c"]))
    assert found.duplicate_rows == len(rows) - len(set(rows))

    def tells_apart(key: tuple[str, ...]) -> bool:
        places = ["abc".index(name) for name in key]
        return len({tuple(row[place] for place in places) for row in rows}) == len(rows)

    assert all(map(tells_apart, found.keys))
    if rows and tells_apart(("a", "b", "c")):
        assert found.keys
    for key in found.keys:
        assert not any(tells_apart(tuple(n for n in key if n != name)) for name in key if len(key) > 1)


def assert_equal_profiles(one: TableProfile, other: TableProfile) -> None:
    for a, b in zip(one.columns, other.columns, strict=True):
        exact = ("rows", "exact", "numbers", "low", "high")
        for name in exact:
            left, right = getattr(a, name), getattr(b, name)
            assert left == right or (math.isnan(left) and math.isnan(right)), name
        assert (a.column.nulls, a.column.distinct) == (b.column.nulls, b.column.distinct)
        assert a.mean == pytest.approx(b.mean, nan_ok=True) and a.spread == pytest.approx(b.spread, abs=1e-6)
        assert a.lengths == pytest.approx(b.lengths)
        for name in ("bottom", "slots"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert (a.registers is None) == (b.registers is None)
        assert a.registers is None or np.array_equal(a.registers, b.registers)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 400)), max_size=60), st.integers(0, 60))
def test_merged_parts_are_the_whole(rows: list[tuple[int, int]], cut: int) -> None:
    records = [[str(a) if a else "", str(b * 7)] for a, b in rows]
    whole = profile_table("t", record_cells(records, ["a", "b"]))
    parts = [profile_table("t", record_cells(part, ["a", "b"])) for part in (records[:cut], records[cut:])]
    assert_equal_profiles(merge_profiles(parts), whole)


def test_merging_is_associative_past_the_exact_limit() -> None:
    values = integers(3, size=150_000, high=1 << 40)
    parts = [profile_table("t", record_cells([[str(v)] for v in part], ["a"])) for part in np.array_split(values, 3)]
    left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
    assert_equal_profiles(left, right)
    (column,) = left.columns
    assert not column.exact and not column.is_unique
    assert abs(column.column.distinct - 150_000) < 0.05 * 150_000


def test_other_columns_cannot_be_merged() -> None:
    one, other = (profile_table("t", record_cells([["1"]], [name])) for name in "ab")
    with pytest.raises(ValueError, match="different columns"):
        one.merge(other)


def make_records(rows: int) -> list[list[Any]]:
    draws = uniform(11, size=(rows, 3))
    return [
        [n, round(float(draws[n, 0]) * 100, 3), f"berth {int(draws[n, 1] * 9)}", bool(draws[n, 2] > 0.5)]
        for n in range(rows)
    ]


def test_format_and_column_order_do_not_change_hashes(tmp_path: Path) -> None:
    records, names = make_records(500), ["Id", "Depth", "Berth", "Open"]
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([names[::-1], *[row[::-1] for row in records]])
    (tmp_path / "t.csv").write_text(text.getvalue())
    columns = dict(zip(names, map(list, zip(*records, strict=True)), strict=True))
    from_csv = hash_table(file_cells(str(tmp_path / "t.csv")))
    from_arrow = hash_table(arrow_cells(pa.table(columns), names))
    from_text = hash_table(record_cells([[str(cell) for cell in row] for row in records], names))
    assert np.array_equal(from_csv.row_hashes(), from_arrow.row_hashes())
    assert np.array_equal(from_csv.row_hashes(), from_text.row_hashes())
    some = ["depth", "berth"]
    assert np.array_equal(from_csv.row_hashes(some), from_arrow.row_hashes(some[::-1]))
    assert not np.array_equal(from_csv.row_hashes(some), from_csv.row_hashes(["depth"]))


def test_a_parquet_file_of_several_batches_is_profiled_as_its_csv(tmp_path: Path) -> None:
    count = 70_000
    table = pa.table({"n": pa.array(range(count)), "half": pa.array([i % 500 / 2 for i in range(count)])})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30_000)
    (tmp_path / "t.csv").write_text("n,half\n" + "".join(f"{i},{i % 500 / 2}\n" for i in range(count)))
    one, other = profile_file(str(tmp_path / "t.parquet")), profile_file(str(tmp_path / "t.csv"))
    assert (one.rows, [c.column.type for c in one.columns]) == (count, ["integer", "number"])
    half, again = one.columns[1], other.columns[1]
    assert (
        (half.column.distinct, half.low, half.high) == (again.column.distinct, again.low, again.high) == (500, 0, 249.5)
    )
    assert np.array_equal(one.columns[0].bottom, other.columns[0].bottom)


@pytest.mark.parametrize(
    ("data", "rows", "columns"),
    [
        (b"\xef\xbb\xbfa,b\n1,2\n", 1, 2),
        ("a;b\n1;x\n2;\u00fc\n".encode("utf-16"), 2, 2),
        (b"name,depth\nquai \xe9t\xe9,7\nnord,8\n", 2, 2),
        (b"a,a,\n1,2,3\n", 1, 3),
        (b'a,b\n"1\n1",2\n', 1, 2),
        (b"a,b\n", 0, 2),
    ],
)
def test_odd_files_are_read(tmp_path: Path, data: bytes, rows: int, columns: int) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    found = profile_file(str(tmp_path / "t.csv"))
    assert (found.rows, len(found.columns)) == (rows, columns)


def test_ragged_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n,\n4,5,6\n")
    found = profile_file(str(tmp_path / "t.csv"))
    assert (found.rows, found.ragged, found.left_out) == (3, 2, 1)


@pytest.mark.parametrize("data", [b"", b'a,b\n"never closed,1\n2,3\n'])
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ReadError):
        profile_file(str(tmp_path / "t.csv"))


def test_ten_thousand_columns() -> None:
    cells = record_cells([[str(n) for n in range(10_000)]], [f"c{n}" for n in range(10_000)])
    assert isinstance(cells, Cells)
    assert len(profile_table("wide", cells).columns) == 10_000


def test_a_profile_survives_being_packed() -> None:
    found = profile_table("t", record_cells([[str(c) for c in row] for row in make_records(700)], ["a", "b", "c", "d"]))
    again = unpack_profile(pack_profile(found))
    assert_equal_profiles(again, found)
    assert (again.name, again.keys, again.duplicate_rows) == (found.name, found.keys, found.duplicate_rows)
    assert [column.column for column in again.columns] == [column.column for column in found.columns]
    assert [column.top for column in again.columns] == [column.top for column in found.columns]
    with pytest.raises(WorkspaceError, match="damaged"):
        unpack_profile(pack_profile(found)[:-9])


@settings(deadline=None)
@given(
    st.lists(st.none() | st.integers(-(2**53), 2**53) | st.integers(-99, 99), max_size=30),
    st.sampled_from([pa.int64(), pa.int32(), pa.uint8()]),
)
def test_integers_of_arrow_are_what_their_text_is(values: list[int | None], kind: pa.DataType) -> None:
    bits = kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)
    low = 0 if pa.types.is_unsigned_integer(kind) else -(2**bits)
    kept = [value if value is None or low <= value < 2**bits else None for value in values]
    found = arrow_cells(pa.table({"n": pa.array(kept, kind)}), ["n"])
    text = record_cells([["" if value is None else str(value)] for value in kept], ["n"])
    ours, theirs = hash_table(found), hash_table(text)
    assert np.array_equal(ours.kinds, theirs.kinds) and np.array_equal(ours.hashes, theirs.hashes)
    assert np.array_equal(ours.values, theirs.values, equal_nan=True)
    assert np.array_equal(found.ends - found.starts, text.ends - text.starts)
    assert found.texts(0, range(len(kept))) == text.texts(0, range(len(kept)))
    one, other = profile_table("n", ours), profile_table("n", theirs)
    assert (one.columns[0].column, one.columns[0].top) == (other.columns[0].column, other.columns[0].top)


def test_integers_past_what_a_double_holds_go_by_their_digits() -> None:
    values = [2**53 + 1, 2**62, -(2**60) - 3, 5]
    found = hash_table(arrow_cells(pa.table({"n": values}), ["n"]))
    text = hash_table(record_cells([[str(value)] for value in values], ["n"]))
    assert np.array_equal(found.hashes, text.hashes) and found.cells.integers == {}
