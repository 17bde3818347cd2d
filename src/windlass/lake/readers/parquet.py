"""Parquet, Arrow and Feather: rendered as tab-separated lines, with types and ranges of the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from windlass.core.errors import ReadError
from windlass.lake.document import Column, Document
from windlass.lake.readers.columns import SAMPLES, shown
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.plain_columns import PlainTable, cell, cells, type_name
from windlass.lake.readers.source import Source
from windlass.lake.readers.tables import INDEXED_ROWS, MOST_COLUMNS, TableBuilder, column_names, tab_separated

_Batches = Callable[[], Iterator[Any]]

_BATCH_ROWS = 8192
_SAMPLED_ROWS = 1000
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


def open_batches(source: Source, kind: str, rows: int) -> tuple[Any, Iterator[Any]]:
    """The plain schema of a `parquet` or `arrow` file with the file's own column names, and its batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source.file) if kind == "parquet" else None
    reader: Any = _arrow_reader(source) if file is None else None
    own = file.schema_arrow if file is not None else reader.schema

    def batches() -> Iterator[Any]:
        if file is not None:
            yield from file.iter_batches(batch_size=rows, use_threads=False)
        elif isinstance(reader, pa.ipc.RecordBatchFileReader):
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from reader

    table = PlainTable(own, batches)
    named = pa.schema([field.with_name(name) for field, name in zip(table.schema, own.names, strict=True)])
    return named, table.batches()


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


def _document(kind: str, source: Source, schema: Any, rows: int, batches: _Batches) -> Document:
    if len(schema.names) > MOST_COLUMNS:
        what = f"{source.name}: {len(schema.names):,} columns, more than {MOST_COLUMNS:,}"
        raise ReadError(what, reason="too-large", hint="store fewer columns in a file")
    table = PlainTable(schema, batches)
    names = column_names(schema.names, len(schema.names))
    composer = Composer()
    builder = TableBuilder(source.stem, names)
    composer.add_text(tab_separated(names))
    for row in _rows(table, min(rows, INDEXED_ROWS)):
        line = tab_separated(row)
        start = composer.add_text(line, "\n")
        builder.add(row, start, start + len(line))
    columns = _profile(table, names, rows) if names else ()
    composer.tables.append(builder.finish(0, composer.length, columns=columns, rows=rows))
    composer.blocks.extend(builder.blocks())
    return composer.document(kind, title=source.stem)


def _rows(table: PlainTable, most: int) -> Iterator[list[str]]:
    done = 0
    for batch in table.batches():
        if done >= most:
            return
        taken = batch.slice(0, most - done)
        yield from map(list, zip(*map(cells, taken.columns), strict=True))
        done += taken.num_rows


def _profile(table: PlainTable, names: Sequence[str], rows: int) -> tuple[Column, ...]:
    """One pass of DuckDB over all rows; distinct counts are exact for tables of ordinary size."""
    import duckdb
    import pyarrow as pa

    count = "count(DISTINCT {0})" if rows <= _EXACT_ROWS else "approx_count_distinct({0})"
    wanted = [f"count({name}), {count.format(name)}, min({name}), max({name})" for name in table.schema.names]
    reader = pa.RecordBatchReader.from_batches(table.schema, table.batches())
    with duckdb.connect(config={"threads": 1, "memory_limit": _PROFILE_MEMORY}) as connection:
        connection.execute("SET enable_external_access = false")
        connection.register("whole", reader)
        found = connection.execute(f"SELECT {', '.join(wanted)} FROM whole").fetchone() or ()
    samples = _samples(table)
    return tuple(
        _column(name, field.type, rows, found[4 * index : 4 * index + 4], samples[index])
        for index, (name, field) in enumerate(zip(names, table.schema, strict=True))
    )


def _column(name: str, plain_type: Any, rows: int, found: Sequence[Any], samples: tuple[str, ...]) -> Column:
    filled, distinct, minimum, maximum = found
    kind = type_name(plain_type) if filled else "empty"
    low = shown(cell(minimum)) if minimum is not None else None
    high = shown(cell(maximum)) if maximum is not None else None
    return Column(name, kind, rows - filled, distinct, low, high, samples)


def _samples(table: PlainTable) -> list[tuple[str, ...]]:
    """The first few different values of each column, looked for in the first batch."""
    first = next(table.batches(), None)
    if first is None:
        return [()] * len(table.schema)
    samples = []
    for column in first.slice(0, _SAMPLED_ROWS).columns:
        values = dict.fromkeys(map(shown, cells(column)))
        samples.append(tuple(value for value in values if value)[:SAMPLES])
    return samples


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]
