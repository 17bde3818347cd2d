"""Parquet, Arrow and Feather: rendered as tab-separated lines, with types and ranges of the whole table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Any

from windlass.core.errors import ReadError
from windlass.lake.document import Column, Document
from windlass.lake.readers.columns import SAMPLES, shown
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.source import Source
from windlass.lake.readers.tables import INDEXED_ROWS, MOST_COLUMNS, TableBuilder, column_names, tab_separated

_BATCH_ROWS = 8192
_EXACT_ROWS = 100_000
_PROFILE_MEMORY = "256MB"


def read_parquet(source: Source) -> Document:
    """A Parquet file of any length: the first rows as text, all rows in the profile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.file)
        rows = file.metadata.num_rows

        def batches() -> Iterator[Any]:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)

        return _document("parquet", source, file.schema_arrow, rows, batches)
    except (pa.ArrowException, OSError) as error:
        raise source.broken(f"not a valid Parquet file ({_first_line(error)})") from error


def read_arrow(source: Source) -> Document:
    """An Arrow IPC file, an Arrow stream, or a Feather file."""
    import pyarrow as pa

    try:
        reader = _arrow_reader(source)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            rows = sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))

            def batches() -> Iterator[Any]:
                for index in range(reader.num_record_batches):
                    yield from _sliced(reader.get_batch(index))

        else:
            rows = sum(batch.num_rows for batch in reader)

            def batches() -> Iterator[Any]:
                for batch in _arrow_reader(source):
                    yield from _sliced(batch)

        return _document("arrow", source, reader.schema, rows, batches)
    except (pa.ArrowException, OSError) as error:
        raise source.broken(f"not a valid Arrow file ({_first_line(error)})") from error


def _arrow_reader(source: Source) -> Any:
    import pyarrow as pa

    source.file.seek(0)
    magic = source.file.read(6)
    source.file.seek(0)
    if magic == b"ARROW1":
        return pa.ipc.open_file(source.file)
    return pa.ipc.open_stream(source.file)


def _sliced(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(start, _BATCH_ROWS)


def _document(kind: str, source: Source, schema: Any, rows: int, batches: Any) -> Document:
    if len(schema.names) > MOST_COLUMNS:
        what = f"{source.name}: {len(schema.names):,} columns, more than {MOST_COLUMNS:,}"
        raise ReadError(what, reason="too-large", hint="store fewer columns in a file")
    names = column_names(schema.names, len(schema.names))
    composer = Composer()
    builder = TableBuilder(source.stem, names)
    composer.add_text(tab_separated(names))
    for row in _rows(batches(), min(rows, INDEXED_ROWS)):
        line = tab_separated(row)
        start = composer.add_text(line, "\n")
        builder.add(row, start, start + len(line))
    columns = _profile(schema, names, batches, rows) if names else ()
    table = builder.finish(0, composer.length, columns=columns, rows=rows)
    composer.tables.append(table)
    composer.blocks.extend(builder.blocks())
    return composer.document(kind, title=source.stem)


def _rows(batches: Iterator[Any], most: int) -> Iterator[list[str]]:
    done = 0
    for batch in batches:
        if done >= most:
            return
        taken = batch.slice(0, most - done)
        columns = [_cells(column) for column in taken.columns]
        yield from map(list, zip(*columns, strict=True))
        done += taken.num_rows


def _profile(schema: Any, names: Sequence[str], batches: Any, rows: int) -> tuple[Column, ...]:
    """One pass of DuckDB over all rows; distinct counts are exact for tables of ordinary size."""
    import duckdb
    import pyarrow as pa

    renamed = [f"c{index}" for index in range(len(names))]
    plain = [_is_plain(field.type) for field in schema]
    distinct = "count(DISTINCT {0})" if rows <= _EXACT_ROWS else "approx_count_distinct({0})"
    wanted = []
    for name, simple in zip(renamed, plain, strict=True):
        wanted.append(f"count({name}), {distinct.format(name)}")
        wanted.append(f"min({name}), max({name})" if simple else "NULL, NULL")
    flat = pa.schema([pa.field(name, field.type) for name, field in zip(renamed, schema, strict=True)])
    reader = pa.RecordBatchReader.from_batches(
        flat, (pa.RecordBatch.from_arrays(batch.columns, schema=flat) for batch in batches())
    )
    with duckdb.connect(config={"threads": 1, "memory_limit": _PROFILE_MEMORY}) as connection:
        connection.execute("SET enable_external_access = false")
        connection.register("whole", reader)
        found = connection.execute(f"SELECT {', '.join(wanted)} FROM whole").fetchone() or ()
    samples = _samples(batches(), len(names))
    return tuple(
        _column(name, field.type, rows, found[4 * index : 4 * index + 4], samples[index])
        for index, (name, field) in enumerate(zip(names, schema, strict=True))
    )


def _column(name: str, arrow_type: Any, rows: int, found: Sequence[Any], samples: tuple[str, ...]) -> Column:
    filled, distinct, minimum, maximum = found
    kind = _type_name(arrow_type) if filled else "empty"
    low = shown(_cell(minimum)) if minimum is not None else None
    high = shown(_cell(maximum)) if maximum is not None else None
    return Column(name, kind, rows - filled, distinct, low, high, samples)


def _samples(batches: Iterator[Any], width: int) -> list[tuple[str, ...]]:
    """The first few different values of each column, looked for in the first batch."""
    first = next(batches, None)
    if first is None:
        return [()] * width
    samples = []
    for column in first.slice(0, 1000).columns:
        values = dict.fromkeys(shown(_cell(value)) for value in column.to_pylist() if value is not None)
        samples.append(tuple(value for value in values if value)[:SAMPLES])
    return samples


def _type_name(arrow_type: Any) -> str:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(arrow_type):
        return _type_name(arrow_type.value_type)
    if types.is_boolean(arrow_type):
        return "boolean"
    if types.is_integer(arrow_type):
        return "integer"
    if types.is_floating(arrow_type) or types.is_decimal(arrow_type):
        return "number"
    if types.is_date(arrow_type):
        return "date"
    return "timestamp" if types.is_timestamp(arrow_type) else "text"


def _is_plain(arrow_type: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return not (types.is_nested(arrow_type) or types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


def _cell(value: Any) -> str:
    """A value as text; nested ones as JSON, bytes as their number."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_cell)
    return str(value)


def _cells(column: Any) -> list[str]:
    import pyarrow as pa

    types, kind = pa.types, column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_date(kind):
        column = column.cast(pa.string())
    return [_cell(value) for value in column.to_pylist()]


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
