"""Tables straight from their files, without the text and passages that indexing makes of them."""

from __future__ import annotations

from collections.abc import Iterator

from windlass.core.errors import ReadError
from windlass.lake.hashing import Cells, arrow_cells, delimited_cells
from windlass.lake.profile import TableProfile, merge_profiles, profile_table
from windlass.lake.readers.delimited import find_layout
from windlass.lake.readers.detect import detect
from windlass.lake.readers.encoding import decode
from windlass.lake.readers.source import TEXT_BYTES, Source, gunzip, open_source
from windlass.lake.readers.tables import column_names

_BATCH_ROWS = 65_536


def profile_file(path: str) -> TableProfile:
    """Profile the table of one CSV, TSV, Parquet or Arrow file; several batches are profiled and merged.

    Files of strangers belong into the sandbox: call it as its target.

    Raises:
        ReadError: As the readers; `unsupported` for other kinds and for text that holds no table.
    """
    source = open_source(path)
    with source.file:
        parts = [profile_table(source.stem, cells) for cells in _batches(source)]
    return parts[0] if len(parts) == 1 else merge_profiles(parts)


def file_cells(path: str) -> Cells:
    """The cells of a CSV or TSV file; their spans point into its text as UTF-8.

    Raises:
        ReadError: As `profile_file`.
    """
    source = open_source(path)
    with source.file:
        return _delimited(source, detect(source).kind)


def _batches(source: Source) -> Iterator[Cells]:
    kind = detect(source).kind
    if kind in ("csv", "tsv"):
        yield _delimited(source, kind)
    elif kind in ("parquet", "arrow"):
        yield from _arrow_batches(source, kind)
    else:
        what = f"{source.name}: {kind} holds no single table"
        raise ReadError(what, reason="unsupported", hint="give a CSV or a Parquet file")


def _delimited(source: Source, kind: str) -> Cells:
    data = gunzip(source) if source.path.lower().endswith(".gz") else source.read(TEXT_BYTES)
    text = decode(data).text
    layout = find_layout(text, kind)
    if layout is None:
        raise ReadError(f"{source.name}: no table in it", reason="unsupported", hint="it is read as text")
    body = layout.body if text.isascii() else len(text[: layout.body].encode("utf-8", "replace"))
    cells = delimited_cells(text.encode("utf-8", "replace"), body, layout.delimiter, layout.names)
    if cells is not None:
        return cells
    raise ReadError(f"{source.name}: a quote is never closed", reason="broken", hint="`windlass up` reads what it can")


def _arrow_batches(source: Source, kind: str) -> Iterator[Cells]:
    import pyarrow as pa

    from windlass.lake.readers.parquet import open_batches

    try:
        schema, batches = open_batches(source, kind, _BATCH_ROWS)
        names = column_names(schema.names, len(schema.names))
        some = False
        for batch in batches:
            some = True
            yield arrow_cells(batch, names)
        if not some:
            yield arrow_cells(schema.empty_table(), names)
    except (pa.ArrowException, OSError) as error:
        raise source.broken(f"not a valid {kind} file ({str(error)[:200]})") from error
