"""Rows as they are stored: ids, serial numbers, encoded vectors, columns.

A row's *serial* is given once, when its id is first added, and stays when the row is replaced or moved; an id that was
deleted and comes back gets a new one. What is granted to a tenant is a serial, so a grant follows a row through every
reorganisation and never falls to another row that happens to have the same id later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.vectors.columns import Column, joined, packed_words, restored, unpacked_words
from windlass.vectors.errors import BadInput
from windlass.vectors.schema import Schema

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class StoredRows:
    """A run of rows.

    Attributes:
        ids: int64 `[n]`, or object `[n]` of texts.
        serials: int64 `[n]`.
        vectors: `[n, dim]` as `Schema.encode` makes them.
        scales: float32 `[n]` under `i8`, else empty.
        columns: One for each field of the schema.
    """

    ids: NDArray[Any]
    serials: Rows
    vectors: NDArray[Any]
    scales: NDArray[np.float32]
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> StoredRows:
        return StoredRows(
            self.ids[rows],
            self.serials[rows],
            np.ascontiguousarray(self.vectors[rows]),
            self.scales[rows] if len(self.scales) else self.scales,
            {name: column.take(rows) for name, column in self.columns.items()},
        )

    def packed(self, *, with_vectors: bool) -> dict[str, Any]:
        """Arrays and values for `packing.pack`."""
        found: dict[str, Any] = {"serials": self.serials, "scales": self.scales}
        found |= {"ids": self.ids} if self.ids.dtype == np.int64 else _prefixed("ids", packed_words(self.ids.tolist()))
        for name, column in self.columns.items():
            found |= _prefixed(f"field:{name}", column.arrays())
        if with_vectors:
            found["vectors"] = self.vectors
        return found


def unpacked(schema: Schema, values: dict[str, Any], vectors: NDArray[Any]) -> StoredRows:
    """The rows that `packed` took apart."""
    ids = values["ids"] if schema.ids == "int" else texts(unpacked_words(_with_prefix("ids", values)))
    columns = {name: restored(item.type, _with_prefix(f"field:{name}", values)) for name, item in schema.fields.items()}
    return StoredRows(ids, values["serials"], vectors, values["scales"], columns)


def joined_rows(parts: Sequence[StoredRows]) -> StoredRows:
    """One run after the other."""
    first = parts[0]
    return StoredRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.serials for part in parts]),
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.scales for part in parts]),
        {name: joined([part.columns[name] for part in parts]) for name in first.columns},
    )


def checked_ids(schema: Schema, ids: Any) -> NDArray[Any]:
    """int64 `[n]`, or object `[n]` of texts.

    Raises:
        BadInput: They are of the other kind, or not ids at all.
    """
    if schema.ids == "int":
        array = np.asarray(ids)
        if array.size == 0:
            return np.zeros(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.max() >= 2**63):
            raise BadInput("ids of this collection are whole numbers below 2**63", hint="give an int64 array [n]")
        return np.ascontiguousarray(array, np.int64)
    if isinstance(ids, str):
        raise BadInput("ids is one text", hint="give a list of texts")
    listed = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
    for row, value in enumerate(listed):
        try:
            if not isinstance(value, str) or not 1 <= len(value.encode("utf-8")) <= 4096:
                raise BadInput(f"id {row} is {value!r}", hint="ids of this collection are texts of 1 to 4,096 bytes")
        except UnicodeEncodeError as error:
            raise BadInput(f"id {row} holds half of a character", hint="use whole characters") from error
    return texts(listed)


def texts(listed: Sequence[str]) -> NDArray[Any]:
    """object `[n]`."""
    found = np.empty(len(listed), object)
    found[:] = listed
    return found


def keys_of(ids: NDArray[Any]) -> Rows:
    """int64 `[n]`: an id that is a number is its own key, a text has one of 64 bits by its hash."""
    if ids.dtype == np.int64:
        return ids
    digests = b"".join(hashlib.blake2b(value.encode("utf-8"), digest_size=8).digest() for value in ids)
    return np.frombuffer(digests, np.int64)


def first_duplicate(ids: NDArray[Any]) -> int | str | None:
    """The first id that stands twice, or None."""
    if len(ids) < 2:
        return None
    if ids.dtype == np.int64:
        ordered = np.sort(ids)
        same = ordered[1:][ordered[1:] == ordered[:-1]]
        return int(same[0]) if len(same) else None
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            return str(value)
        seen.add(value)
    return None


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _with_prefix(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in values.items() if name.startswith(start)}
