"""Arrow columns of any type as columns of few: what text, DuckDB and people can take.

Times with a zone become UTC without one, nanoseconds are cut to microseconds, dictionaries are looked up,
and what is nested, binary or exotic becomes text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any


class PlainTable:
    """Batches of a table, read as often as asked for, their columns plain and named `c0`, `c1`, ...

    Attributes:
        schema: The plain Arrow schema.
    """

    def __init__(self, schema: Any, batches: Callable[[], Iterator[Any]]) -> None:
        import pyarrow as pa

        self.schema = pa.schema([(f"c{index}", _plain_type(field.type)) for index, field in enumerate(schema)])
        self._batches = batches

    def batches(self) -> Iterator[Any]:
        import pyarrow as pa

        for batch in self._batches():
            columns = [_plain(column, field.type) for column, field in zip(batch.columns, self.schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=self.schema)


def cells(column: Any) -> list[str]:
    """The values of a plain column as text; null is empty."""
    import pyarrow as pa

    types, kind = pa.types, column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_date(kind):
        column = column.cast(pa.string())
    return [cell(value) for value in column.to_pylist()]


def cell(value: Any) -> str:
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
        return json.dumps(value, ensure_ascii=False, default=cell)
    return str(value)


def type_name(plain_type: Any) -> str:
    """What `Column.type` calls a plain type."""
    import pyarrow as pa

    types = pa.types
    if types.is_boolean(plain_type):
        return "boolean"
    if types.is_integer(plain_type):
        return "integer"
    if types.is_floating(plain_type) or types.is_decimal(plain_type):
        return "number"
    if types.is_date(plain_type):
        return "date"
    return "timestamp" if types.is_timestamp(plain_type) else "text"


def _plain_type(arrow_type: Any) -> Any:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(arrow_type):
        return _plain_type(arrow_type.value_type)
    if types.is_timestamp(arrow_type):
        return pa.timestamp("us")
    if types.is_float16(arrow_type):
        return pa.float32()
    if types.is_date(arrow_type):
        return pa.date32()
    kept = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal128, types.is_null)
    return arrow_type if any(holds(arrow_type) for holds in kept) else pa.string()


def _plain(column: Any, wanted: Any) -> Any:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        return _plain(column.dictionary_decode(), wanted)
    if column.type == wanted:
        return column
    if not types.is_string(wanted):
        return column.cast(wanted, safe=False)
    if types.is_large_string(column.type) or types.is_time(column.type) or types.is_decimal(column.type):
        return column.cast(pa.string())
    return pa.array([None if value is None else cell(value) for value in column.to_pylist()], pa.string())
