"""Profiles as bytes: JSON with the sketches in base 85, compressed."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from windlass.core.errors import WorkspaceError
from windlass.lake.document import Column
from windlass.lake.profile import ColumnProfile, TableProfile

_ARRAYS = {"bottom": np.uint64, "slots": np.uint32, "registers": np.uint8}
_PLAIN = ("rows", "exact", "numbers", "mean", "spread", "low", "high")


def pack_profile(profile: TableProfile) -> bytes:
    """The profile with its sketches; the sets of hashes are left out."""
    return zlib.compress(json.dumps(profile_json(profile), separators=(",", ":")).encode("utf-8", "replace"), 1)


def unpack_profile(data: bytes) -> TableProfile:
    """What `pack_profile` packed.

    Raises:
        WorkspaceError: The bytes are damaged.
    """
    try:
        document = json.loads(zlib.decompress(data))
        columns = tuple(_column(column) for column in document["columns"])
        keys = tuple(map(tuple, document["keys"]))
        counts = document["duplicate_rows"], keys, document["left_out"], document["ragged"]
        return TableProfile(document["name"], document["rows"], columns, *counts)
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise WorkspaceError(
            f"a stored table profile is damaged: {error}", hint="run `windlass doctor FOLDER --repair`"
        ) from error


def profile_json(profile: TableProfile) -> dict[str, Any]:
    """The profile as plain values."""
    names = [field.name for field in fields(profile) if field.name != "columns"]
    return {
        **{name: getattr(profile, name) for name in names},
        "columns": [_column_json(column) for column in profile.columns],
    }


def _column_json(column: ColumnProfile) -> dict[str, Any]:
    items, weights = column.quantiles
    return {
        **asdict(column.column),
        **{f"{name}_": getattr(column, name) for name in _PLAIN},
        "quantiles": [_text(items), _text(weights)],
        "lengths": column.lengths,
        "top": column.top,
        **{name: None if (array := getattr(column, name)) is None else _text(array) for name in _ARRAYS},
    }


def _column(document: dict[str, Any]) -> ColumnProfile:
    described = {field.name: document[field.name] for field in fields(Column)}
    column = Column(**{**described, "samples": tuple(described["samples"])})
    quantiles = _array(document["quantiles"][0], np.float64), _array(document["quantiles"][1], np.int64)
    lengths, top = document["lengths"], tuple((value, count) for value, count in document["top"])
    arrays: dict[str, Any] = {
        name: None if document[name] is None else _array(document[name], kind) for name, kind in _ARRAYS.items()
    }
    plain: dict[str, Any] = {name: document[f"{name}_"] for name in _PLAIN}
    return ColumnProfile(
        column=column, quantiles=quantiles, lengths=(lengths[0], lengths[1], lengths[2]), top=top, **plain, **arrays
    )


def _text(array: Any) -> str:
    return base64.b85encode(array.tobytes()).decode()


def _array(text: str, kind: Any) -> Any:
    return np.frombuffer(bytearray(base64.b85decode(text)), kind)
