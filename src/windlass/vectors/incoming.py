"""What a caller gives to be stored, checked whole before anything of it is."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from windlass.core.access import checked_name
from windlass.core.filters import UnknownField
from windlass.vectors.columns import Column, column, empty
from windlass.vectors.errors import BadInput, DuplicateId
from windlass.vectors.rows import Rows, StoredRows, checked_ids, first_duplicate
from windlass.vectors.schema import Schema
from windlass.vectors.state import State

if TYPE_CHECKING:
    import pyarrow

Conflict = Literal["error", "replace", "skip"]


def incoming_rows(
    state: State,
    ids: Any,
    vectors: Any,
    attrs: Mapping[str, Any] | pyarrow.Table | None,
    tenants: Sequence[Several[str]] | None,
    on_conflict: Conflict,
) -> tuple[StoredRows, dict[str, Rows], int]:
    """Rows ready to be stored, the serials that each tenant may see, and how many rows were skipped.

    A row that replaces another keeps its serial, and with it its grants, unless it comes with tenants of its own.

    Raises:
        DuplicateId, DimensionMismatch, NonFiniteVector, ZeroVector, UnknownField, BadInput.
    """
    schema = state.schema
    asked = checked_ids(schema, ids)
    given = np.asarray(vectors)
    count = len(given) if given.ndim else 0
    if len(asked) != count:
        raise BadInput(f"{len(asked)} ids for {count} vectors", hint="give one for each")
    twice = first_duplicate(asked)
    if twice is not None:
        raise DuplicateId(f"id {twice!r} stands twice in one call", twice, hint="leave one of them out")
    checked = schema.checked(given) if count else np.zeros((0, schema.dim), np.float32)
    columns = incoming_columns(schema, attrs, count)
    names = _names(schema, tenants, count)
    serials = state.serials_of(asked)
    there = serials >= 0
    if on_conflict == "error" and there.any():
        first = asked.tolist()[int(there.argmax())]
        raise DuplicateId(f"id {first!r} is there already", first, hint="use on_conflict='replace' or 'skip'")
    new = ~there if names is None else np.ones(count, np.bool_)
    serials[new] = state.next_serial + np.arange(int(new.sum()))
    encoded, scales = schema.encode(checked)
    run = StoredRows(asked, serials, encoded, scales, columns)
    kept = np.flatnonzero(~there) if on_conflict == "skip" else np.arange(count)
    granted: dict[str, list[int]] = {}
    for row in kept.tolist() if names is not None else ():
        for name in (names or ())[row]:
            granted.setdefault(name, []).append(int(serials[row]))
    each = {name: np.array(sorted(found), np.int64) for name, found in granted.items()}
    return (run if len(kept) == count else run.take(kept)), each, count - len(kept)


def incoming_columns(
    schema: Schema, attrs: Mapping[str, Any] | pyarrow.Table | None, count: int, *, only_given: bool = False
) -> dict[str, Column]:
    """A column for each field, of nulls where nothing was given; or only for those that were.

    Raises:
        UnknownField, BadInput.
    """
    names = [] if attrs is None else list(attrs.column_names if hasattr(attrs, "column_names") else attrs)
    for name in names:
        if name not in schema.fields:
            raise UnknownField(name, schema.fields)
    columns = {}
    for name, item in schema.fields.items():
        if attrs is not None and name in names:
            columns[name] = column(name, item.type, attrs[name], nullable=item.nullable)
            if len(columns[name]) != count:
                raise BadInput(f"field {name!r} has {len(columns[name])} values for {count} rows")
        elif not only_given:
            if count and not item.nullable:
                raise BadInput(f"field {name!r} is missing", hint="the field is not nullable")
            columns[name] = empty(item.type, count)
    return columns


def need_tenants(schema: Schema) -> None:
    """Refuse what only a collection with tenants can do."""
    if not schema.tenants:
        raise BadInput("this collection has no tenants", hint="create it with Schema(tenants=True)")


def _names(schema: Schema, tenants: Sequence[Several[str]] | None, count: int) -> list[frozenset[str]] | None:
    if tenants is None:
        return None
    need_tenants(schema)
    if len(tenants) != count or any(isinstance(names, str) for names in tenants):
        raise BadInput(f"tenants has {len(tenants)} entries for {count} rows", hint="give a set of names for each row")
    return [frozenset(checked_name(name) for name in names) for names in tenants]
