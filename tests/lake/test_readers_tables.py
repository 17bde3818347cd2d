"""CSV, TSV, JSON, JSON lines, Parquet, Arrow: exact spans, and profiles that DuckDB agrees with."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from windlass.core.errors import ReadError
from windlass.lake.document import Column, Document, Table
from windlass.lake.readers import delimited, read_document
from windlass.lake.readers.columns import describe_column
from windlass.lake.readers.delimited import find_delimiter
from windlass.lake.readers.integrity import check_document
from windlass.lake.readers.tables import INDEXED_ROWS, RUN_ROWS, first_is_header, tab_separated

CELLS = st.text(alphabet=st.sampled_from("ab1 ,;\"'\n\r\t|é☃0."), max_size=6)


def read(folder: Path, name: str, content: bytes | str) -> Document:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_document(str(path))


def only_table(document: Document) -> Table:
    (table,) = document.tables
    return table


def written(rows: list[list[str]], delimiter: str = ",", end: str = "\r\n") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=end).writerows(rows)
    return buffer.getvalue()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=60),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
)
@example([["", "", " "]], "\t", "\n")
def test_run_spans_hold_exactly_their_rows(tmp_path: Path, rows: list[list[str]], delimiter: str, end: str) -> None:
    header = ["first", "second", "third"]
    text = written([header, *rows], delimiter, end)
    table = only_table(read(tmp_path, "a.csv", text))
    assume([column.name for column in table.columns] == header)  # cells may make another delimiter likelier

    def parsed(piece: str) -> list[list[str]]:
        lines = io.StringIO(piece, newline="")
        return [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]

    assert [header] + [row for run in table.runs for row in parsed(text[run.start : run.end])] == parsed(text)


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab, ;1\n\r\t"), max_size=80))
def test_a_table_without_quotes_has_the_rows_that_the_csv_module_finds(text: str) -> None:
    for delimiter in ",;\t":
        rows = delimited._Rows(text, delimiter)
        assert list(rows) == list(rows._quoted())


def test_a_run_is_verbatim_and_indexed_as_names_and_values(tmp_path: Path) -> None:
    text = 'Berth,Depth,Remark\r\nA1,12,"deep, ""safe"""\r\nB2,,"two\nlines"\r\n'
    document = read(tmp_path, "berths.csv", text)
    table = only_table(document)
    (run,) = table.runs
    assert document.text == text and (table.name, table.rows) == ("berths", 2)
    assert text[run.start : run.end] == 'A1,12,"deep, ""safe"""\r\nB2,,"two\nlines"'
    assert (run.first, run.last) == (1, 2)
    assert run.text == 'Berth: A1; Depth: 12; Remark: deep, "safe"\nBerth: B2; Remark: two lines'
    assert [(b.kind, b.start, b.end) for b in document.blocks] == [("rows", run.start, run.end)]
    assert table.columns[1] == Column("Depth", "integer", 1, 1, "12", "12", ("12",))


def test_profiles_agree_with_duckdb(tmp_path: Path) -> None:
    chance = random.Random(5)
    names = ["id", "ship", "day", "draught", "paid", "note"]
    rows = [
        [
            str(number),
            f"MV {chance.choice('ABC')}{chance.randrange(300)}",
            str(datetime.date(2024, 1, 1) + datetime.timedelta(chance.randrange(400))),
            str(chance.randrange(1000) / 100),
            chance.choice(["true", "false"]),
            chance.choice(["", "late", "early"]),
        ]
        for number in range(3000)
    ]
    document = read(tmp_path, "calls.csv", written([names, *rows]))
    table = only_table(document)
    types = ["integer", "text", "date", "number", "boolean", "text"]
    assert [column.type for column in table.columns] == types
    import duckdb

    path = str(tmp_path / "calls.csv")
    with duckdb.connect() as connection:
        for column in table.columns:
            expected = connection.execute(
                f"SELECT count(*), count(*) - count({column.name}), count(DISTINCT {column.name}), "
                f"min({column.name})::VARCHAR, max({column.name})::VARCHAR FROM read_csv(?, header=true)",
                [path],
            ).fetchone()
            assert expected is not None
            assert (table.rows, column.nulls, column.distinct) == expected[:3]
            if column.type == "number":
                assert (float(column.minimum or 0), float(column.maximum or 0)) == tuple(map(float, expected[3:]))
            else:
                assert (column.minimum, column.maximum) == expected[3:]
    assert [run.last - run.first + 1 for run in table.runs] == [RUN_ROWS] * 150


@pytest.mark.parametrize(
    ("cells", "kind", "low", "high"),
    [
        (["1", " 2 ", "-3", "NA", "-"], "integer", "-3", "2"),
        (["1", "2.5", "1e3"], "number", "1", "1000"),
        (["1,234", "999", "12,000,001"], "integer", "999", "12000001"),
        (["1,5", "1.234,75", "3"], "number", "1.5", "1234.75"),
        (["007", "010"], "text", "007", "010"),
        (["12345678901234567890", "1"], "text", "1", "12345678901234567890"),
        (["yes", "No", ""], "boolean", "no", "yes"),
        (["2024-02-29", "1999-12-31"], "date", "1999-12-31", "2024-02-29"),
        (["2024-02-30", "2024-02-31"], "text", "2024-02-30", "2024-02-31"),
        (
            ["2024-05-01 10:00", "2024-05-01T09:30:00Z"],
            "timestamp",
            "2024-05-01 09:30:00",
            "2024-05-01 10:00:00",
        ),
        (["31/12/2023", "01/02/2024"], "date", "2023-12-31", "2024-02-01"),
        (["12/31/2023", "01/02/2024"], "date", "2023-12-31", "2024-01-02"),
        (["1.2.2024", "15.10.2023"], "date", "2023-10-15", "2024-02-01"),
        (["", "NULL", "n/a"], "text", "n/a", "n/a"),
        (["", "null", "N/A"], "empty", None, None),
        (["٣", "4"], "text", "4", "٣"),
    ],
)
def test_column_types(cells: list[str], kind: str, low: str | None, high: str | None) -> None:
    column = describe_column("c", pa.array(cells))
    assert (column.type, column.minimum, column.maximum) == (kind, low, high)


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("NAnaul-0123.,/:e+Té "), max_size=8), max_size=30))
def test_any_column_is_described(cells: list[str]) -> None:
    column = describe_column("c", pa.array(cells, pa.string()))
    nulls = [c for c in cells if c.strip() in ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")]
    assert column.nulls == len(nulls)
    assert column.distinct == len({c.strip() for c in cells} - {c.strip() for c in nulls})
    assert describe_column("c", cells) == column  # small tables are counted without Arrow


def test_dialects_headers_and_preambles(tmp_path: Path) -> None:
    german = read(tmp_path, "a.csv", "Schiff;Tiefgang\nAurora;3,5\nBorealis;12,25\n".encode("cp1252"))
    assert [c.type for c in only_table(german).columns] == ["text", "number"]
    tabs = read(tmp_path, "b.tsv", "a\tb\n1,5\tx\n")
    assert [c.name for c in only_table(tabs).columns] == ["a", "b"]
    wide = read(tmp_path, "c.csv", "a,b\n1,é\n".encode("utf-16"))
    assert only_table(wide).columns[1].samples == ("é",)
    bare = read(tmp_path, "d.csv", "1,2.5,x\n2,3.5,y\n")
    assert [c.name for c in only_table(bare).columns] == ["_1", "_2", "_3"] and only_table(bare).rows == 2
    years = read(tmp_path, "e.csv", "land,2001,2002\nNL,5,6\nDE,7,8\n")
    assert [c.name for c in only_table(years).columns] == ["land", "2001", "2002"]
    titled = read(tmp_path, "f.csv", "Report of the harbour\n\nship,tons,day\nA,1,2024-01-01\nB,2,2024-01-02\n")
    assert [c.name for c in only_table(titled).columns] == ["ship", "tons", "day"]
    assert [b.kind for b in titled.blocks] == ["paragraph", "rows"]
    for gap in ("\n", ",\n"):
        narrow = read(tmp_path, "i.csv", f"Reports,\n{gap}kind,count\nfraud,1\nother,2\n,\nsource: us,\n")
        assert [c.name for c in only_table(narrow).columns] == ["kind", "count"]
    sparse = read(tmp_path, "j.csv", ",,North quay,\nday,hour,tons,ships\n1,2,3,4\n2,3,4,5\n")
    assert [c.name for c in only_table(sparse).columns] == ["day", "hour", "tons", "ships"]
    double = read(tmp_path, "g.csv", "a,A,,a\nx,y,z,w\n")
    assert [c.name for c in only_table(double).columns] == ["a", "A.2", "_3", "a.3"]
    lonely = read(tmp_path, "h.csv", "name,age\n")
    assert only_table(lonely).rows == 0 and lonely.blocks == ()
    assert find_delimiter("a|b\nc|d\n", "csv") == "|"
    assert not first_is_header([["1", "2"], ["3", "4"]])


def test_ragged_rows_are_counted_and_kept(tmp_path: Path) -> None:
    document = read(tmp_path, "a.csv", "a,b,c\n1,2,3\n4,5\n6,7,8,nine\n,,\n1,1,1,\n")
    table = only_table(document)
    assert table.rows == 4
    assert table.warnings == (
        "1 rows without any content were left out",
        "2 of 4 rows do not have 3 fields",
    )
    assert table.runs[0].text.split("\n")[1:3] == ["a: 4; b: 5", "a: 6; b: 7; c: 8; nine"]


def test_an_unclosed_quote_costs_one_row(tmp_path: Path) -> None:
    lines = [f"{n},word" for n in range(50)]
    lines[10] = '10,"open'
    text = "n,w\n" + "\n".join(lines)
    table = only_table(read(tmp_path, "a.csv", text))
    assert table.rows == 50 and "never closed" in table.warnings[0]
    assert table.columns[0].type == "integer"
    many = "n,w\n" + '1,"x"y"z\n' * 101
    assert only_table(read(tmp_path, "b.csv", many)).rows == 101


def test_wide_and_long_tables(tmp_path: Path) -> None:
    wide = ",".join(f"c{n}" for n in range(5000)) + "\n" + (",".join(["7"] * 5000) + "\n") * 2
    table = only_table(read(tmp_path, "wide.csv", wide))
    assert len(table.columns) == 5000 and table.columns[4999].type == "integer"
    assert "5,000 columns" in table.warnings[0] and table.runs[0].text.count(":") == 400
    wider = read(tmp_path, "wider.csv", ",".join(["x"] * 1_000_000))
    assert wider.tables == () and "read as text" in wider.warnings[0] and len(wider.blocks) > 100
    rows = INDEXED_ROWS + 1000
    long = read(tmp_path, "long.csv", "n\n" + "".join(f"{n}\n" for n in range(rows)))
    table = only_table(long)
    assert (table.rows, table.runs[-1].last) == (rows, INDEXED_ROWS)
    assert table.columns[0].maximum == str(rows - 1) and "50,000 of 51,000 rows" in table.warnings[0]


def test_json_records_point_into_the_file(tmp_path: Path) -> None:
    records = [{"id": n, "name": f"ship {n}", "tags": ["a", n], "ok": n % 2 == 0, "none": None} for n in range(45)]
    for indent in (None, 2):
        document = read(tmp_path, "ships.json", json.dumps(records, indent=indent))
        table = only_table(document)
        assert (table.name, table.rows, len(table.columns)) == ("ships", 45, 5)
        pieces = [json.loads("[" + document.text[run.start : run.end] + "]") for run in table.runs]
        assert [record for piece in pieces for record in piece] == records
        assert table.runs[0].text.split("\n")[1] == 'id: 1; name: ship 1; tags: ["a", 1]; ok: false'
        assert [c.type for c in table.columns] == ["integer", "text", "text", "boolean", "empty"]


def test_other_json_is_text(tmp_path: Path) -> None:
    mixed = read(tmp_path, "a.json", json.dumps({"title": "x", "calls": [{"a": 1}, {"b": 2}], "k": {"l": 3}}))
    assert [(b.kind, mixed.text[b.start : b.end]) for b in mixed.blocks] == [
        ("code", '"title": "x"'),
        ("rows", '{"a": 1}, {"b": 2}'),
        ("code", '"k": {"l": 3}'),
    ]
    assert only_table(mixed).name == "calls"
    for content in ("[1, 2, [3]]", '"word"', "5", "{}", "[]", '{"a": []}'):
        assert read(tmp_path, "b.json", content).tables == ()
    for content in ("{", "[1,]", '{"a" 1}', "5 }", "[" * 100_000, '{"a": 1} x', "nonsense words", "9" * 5000):
        document = read(tmp_path, "c.json", content)
        assert "not valid JSON" in document.warnings[0] and document.text == content
    surrogate = read(tmp_path, "d.json", '[{"a": "\\ud800"}, {"a": "b"}]')
    only_table(surrogate).runs[0].text.encode()
    only_table(surrogate).columns[0].samples[0].encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=20,
    ),
    st.sampled_from([None, 1]),
)
def test_any_json_is_sound(tmp_path: Path, value: object, indent: int | None) -> None:
    document = read(tmp_path, "a.json", json.dumps(value, indent=indent, ensure_ascii=False))
    check_document(document)
    assert not document.warnings


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "word " * n}) for n in range(30)]
    document = read(tmp_path, "a.jsonl", "\n".join([*lines[:5], "broken {", "", *lines[5:]]) + "\r\n")
    table = only_table(document)
    assert table.rows == 30 and table.warnings == ("1 of 31 lines are not valid JSON",)
    first, last = table.runs[0].start, table.runs[-1].end
    assert document.text[first:last].startswith(lines[0]) and document.text[first:last].endswith(lines[-1])
    scalars = read(tmp_path, "b.jsonl", "1\n2\n")
    assert only_table(scalars).columns[0].name == "value"
    prose = read(tmp_path, "c.jsonl", "no\njson\nhere\n")
    assert prose.tables == () and "3 of 3 lines are not JSON" in prose.warnings[0]


def columnar(rows: int) -> pa.Table:
    chance = random.Random(3)
    return pa.table(
        {
            "id": pa.array(range(rows)),
            "name": pa.array([f"ship {n % 7}\tx" for n in range(rows)]),
            "when": pa.array([datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=n) for n in range(rows)]),
            "day": pa.array([datetime.date(2024, 1, 1)] * rows),
            "x": pa.array([None if n % 3 == 0 else chance.random() for n in range(rows)]),
            "flag": pa.array([n % 2 == 0 for n in range(rows)]),
            "list": pa.array([[n, n + 1] for n in range(rows)]),
            "nothing": pa.nulls(rows),
            "bytes": pa.array([b"\xff\xfe"] * rows),
            "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow", "stream.arrow"])
def test_columnar_files(tmp_path: Path, name: str) -> None:
    table = columnar(100)
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, path)
    elif name.endswith("feather"):
        pyarrow.feather.write_feather(table, path)
    else:
        new = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    document = read_document(str(path))
    found = only_table(document)
    assert not document.faithful and found.rows == 100
    types = "integer text timestamp date number boolean text empty text text".split()
    assert [column.type for column in found.columns] == types
    ids, names, when, _, x, *_ = found.columns
    assert (ids.distinct, ids.minimum, ids.maximum) == (100, "0", "99")
    assert (names.distinct, x.nulls) == (7, 34)
    assert when.maximum == "2024-01-05 03:00:00"
    lines = document.text.split("\n")
    assert lines[0] == tab_separated(table.column_names) and len(lines) == 101
    assert lines[2].startswith("1\tship 1 x\t2024-01-01 01:00:00\t2024-01-01\t0.")
    assert lines[2].endswith("\tfalse\t[1, 2]\t\t(2 bytes)\tb")
    run = found.runs[0]
    assert document.text[run.start : run.end] == "\n".join(lines[1:21])


def test_a_long_parquet_file_is_profiled_whole(tmp_path: Path) -> None:
    rows = INDEXED_ROWS + 10_000
    table = pa.table({"n": pa.array(range(rows)), "w": pa.array(["x", None] * (rows // 2))})
    pyarrow.parquet.write_table(table, tmp_path / "long.parquet", row_group_size=7000)
    found = only_table(read_document(str(tmp_path / "long.parquet")))
    assert (found.rows, found.runs[-1].last) == (rows, INDEXED_ROWS)
    assert found.columns[0] == Column("n", "integer", 0, rows, "0", str(rows - 1), ("0", "1", "2", "3", "4"))
    assert found.columns[1].nulls == rows // 2
    assert "50,000 of 60,000 rows" in found.warnings[0]


def test_exotic_columns_become_plain(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    table = pa.table(
        {
            "zoned": pa.array([moment, None], pa.timestamp("us", tz="Europe/Berlin")),
            "nanos": pa.array([1_700_000_000_123_456_789, 0], pa.timestamp("ns")),
            "time": pa.array([datetime.time(8, 30), None]),
            "money": pa.array([decimal.Decimal("12.50"), decimal.Decimal("7.25")]),
            "huge": pa.array([decimal.Decimal(10) ** 40, None], pa.decimal256(50, 2)),
            "half": pa.array([0.5, 1.5], pa.float16()),
            "struct": pa.array([{"a": 1, "when": moment}, None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "codes": pa.array([datetime.date(2024, 1, 1)] * 2).dictionary_encode(),
            "large": pa.array(["x", "y"], pa.large_string()),
        }
    )
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    document = read_document(str(tmp_path / "a.arrow"))
    columns = only_table(document).columns
    types = "timestamp timestamp text number text number text text date text".split()
    assert [column.type for column in columns] == types
    assert columns[0].minimum == "2024-05-01 10:00:00" and columns[1].minimum == "1970-01-01 00:00:00"
    assert (columns[3].minimum, columns[3].maximum) == ("7.25", "12.50")
    assert '{"a": 1, "when": "2024-05-01 ' in document.text and "08:30:00" in document.text


def test_empty_columnar_tables(tmp_path: Path) -> None:
    for table in (pa.table({"a": pa.array([], pa.int32())}), pa.table({})):
        pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
        document = read_document(str(tmp_path / "e.parquet"))
        assert only_table(document).rows == 0 and document.blocks == ()
    with pytest.raises(ReadError) as caught:
        read(tmp_path, "bad.parquet", b"PAR1" + b"garbage" * 50 + b"PAR1")
    assert caught.value.reason == "broken"
