"""How to rebuild a Parquet file from another one, to the byte.

The rows and columns are named as in a `rows` recipe, and what differs is kept as an Arrow stream. The bytes also depend
on who wrote the file and how: compression, dictionaries, statistics and row groups are read from the child's footer,
the file is written with them, and the recipe exists only if the same bytes came out. So only files that pyarrow wrote
(as pandas does) have one. The recipe says by which version: another one may write the same rows otherwise, which
`same_rows` tells apart from a recipe that is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.lake.recipes import (
    RECIPE_VERSION,
    TextTable,
    columns_of,
    decode_rows,
    encode_rows,
    matched_rows,
    packed,
    parquet_table,
    unpacked,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_WRITER = "parquet-cpp-arrow"


def parquet_recipe(
    child: TextTable, parent: TextTable, names: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The recipe that gives the child's bytes from the parent, None when there is none; see `rows_recipe`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns_of(child, parent, names)
    found = None if columns is None else matched_rows(child, parent, columns)
    if columns is None or found is None:
        return None
    file = pq.ParquetFile(pa.BufferReader(child.raw))
    if not file.metadata.created_by.startswith(_WRITER):
        return None
    wanted = file.read()
    recipe: dict[str, Any] = {
        "version": RECIPE_VERSION,
        "kind": "parquet",
        "writer": file.metadata.created_by,
        "columns": columns,
        "rows": packed(encode_rows(found[0])),
        "schema": packed(wanted.schema.serialize().to_pybytes()),
        "content": _content(child),
    }
    try:
        base = _base(recipe, parent)
        differs = np.flatnonzero(~_equal_rows(base, wanted))
    except pa.ArrowException:  # types that do not become each other, or cannot be compared
        return None
    recipe["places"] = packed(encode_rows(differs))
    recipe["patch"] = packed(_stream(wanted.take(pa.array(differs)))) if len(differs) else ""
    for pages in ("1.0", "2.0"):
        recipe["settings"] = _settings(file, pages)
        if rebuild_parquet(recipe, parent) == child.raw:
            return recipe
    return None


def rebuild_parquet(recipe: Mapping[str, Any], parent: TextTable) -> bytes:
    """The child's bytes, as this version of pyarrow writes them.

    Raises:
        ValueError: The recipe does not fit the parent (`pyarrow.ArrowInvalid` is one).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _base(recipe, parent)
    if recipe["patch"]:
        patch = pa.ipc.open_stream(unpacked(recipe["patch"])).read_all()
        order = np.arange(table.num_rows)
        order[decode_rows(unpacked(recipe["places"]))] = table.num_rows + np.arange(patch.num_rows)
        table = pa.concat_tables([table, patch]).take(pa.array(order))
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, **recipe["settings"])
    return bytes(sink.getvalue().to_pybytes())


def same_rows(recipe: Mapping[str, Any], made: bytes) -> bool:
    """Whether rebuilt bytes hold the rows, in their order, the columns and the types of the child."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = pa.ipc.read_schema(pa.py_buffer(unpacked(recipe["schema"])))
    found = pq.read_schema(pa.BufferReader(made))
    return bool(found.equals(wanted)) and _content(parquet_table(made)) == recipe["content"]


def _base(recipe: Mapping[str, Any], parent: TextTable) -> pa.Table:
    """The parent's rows and columns in the child's types; rows that the child does not share are wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.ipc.read_schema(pa.py_buffer(unpacked(recipe["schema"])))
    table = pq.read_table(pa.BufferReader(parent.raw), use_threads=False).select(recipe["columns"])
    chosen = table.take(pa.array(decode_rows(unpacked(recipe["rows"]))))
    return chosen.rename_columns(schema.names).cast(schema).replace_schema_metadata(schema.metadata)


def _equal_rows(one: pa.Table, other: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[rows]: whether the rows are equal in every column, two nulls being equal."""
    import pyarrow.compute as pc

    equal = np.ones(one.num_rows, np.bool_)
    for left, right in zip(one.columns, other.columns, strict=True):
        both_null = pc.and_(pc.is_null(left), pc.is_null(right))
        equal &= pc.or_(pc.fill_null(pc.equal(left, right), False), both_null).to_numpy()
    return equal


def _stream(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _settings(file: pq.ParquetFile, pages: str) -> dict[str, Any]:
    """What to tell the writer, as far as the footer shows it."""
    footer = file.metadata
    settings: dict[str, Any] = {"version": footer.format_version, "data_page_version": pages}
    if b"ARROW:schema" not in (footer.metadata or {}):
        settings["store_schema"] = False
    if not footer.num_row_groups:
        return settings
    group = footer.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    settings["row_group_size"] = max(1, group.num_rows)
    settings["compression"] = {c.path_in_schema: _codec(c.compression) for c in columns}
    settings["use_dictionary"] = [c.path_in_schema for c in columns if c.has_dictionary_page] or False
    settings["write_statistics"] = [c.path_in_schema for c in columns if c.is_stats_set] or False
    settings["write_page_index"] = bool(columns and columns[0].has_column_index)
    return settings


def _codec(name: str) -> str:
    return "NONE" if name == "UNCOMPRESSED" else name


def _content(table: TextTable) -> str:
    """A hash of all values, whoever wrote them."""
    names = "\0".join(table.cells.names).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(names + table.hashes.tobytes(), digest_size=32).hexdigest()
