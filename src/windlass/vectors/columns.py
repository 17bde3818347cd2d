"""Columns of typed values: numbers, texts and sets of texts, each with nulls.

Texts are codes into a list of different words, so a filter looks at each word once and at each row through a table.
Columns never change; rows are added by joining columns.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from windlass.core.filters import Compare, Contains, FieldType, Filter, IsIn, IsNull, StartsWith, compare, microseconds
from windlass.vectors.errors import BadInput

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS = {"int": np.dtype(np.int64), "float": np.dtype(np.float64), "bool": np.dtype(np.bool_)}
_NUMBERS["timestamp"] = np.dtype(np.int64)
_LIMITS = (-(2**63), 2**63 - 1)


class Column(Protocol):
    """Values of one field, in the order of the rows."""

    kind: FieldType

    def __len__(self) -> int: ...
    def take(self, rows: Rows) -> Column: ...
    def values(self) -> list[Any]:
        """Python values; timestamps as microseconds since 1970, sets as sorted lists, nulls as None."""
        ...

    def test(self, leaf: Filter) -> tuple[Mask, Mask]:
        """For which rows a bound condition on this field is true, and for which it is false."""
        ...

    def arrays(self) -> dict[str, Any]:
        """What `restored` makes the column of again."""
        ...


class Numbers:
    """Whole numbers, numbers, truth values and timestamps."""

    def __init__(self, kind: FieldType, data: NDArray[Any], null: Mask | None = None) -> None:
        self.kind, self.data = kind, data
        self.null = null if null is not None and null.any() else None

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: Rows) -> Numbers:
        return Numbers(self.kind, self.data[rows], None if self.null is None else self.null[rows])

    def values(self) -> list[Any]:
        found: list[Any] = self.data.tolist()
        if self.null is not None:
            for row in np.flatnonzero(self.null):
                found[row] = None
        return found

    def test(self, leaf: Filter) -> tuple[Mask, Mask]:
        if isinstance(leaf, IsNull):
            null = np.zeros(len(self), np.bool_) if self.null is None else self.null
            return null, ~null
        if isinstance(leaf, Compare):
            true = self._compared(leaf.op, leaf.value)
        else:
            true = np.zeros(len(self), np.bool_)
            for value in cast(IsIn, leaf).values:
                true |= self._compared("=", value)
            if not cast(IsIn, leaf).values:
                return true, ~true
        if self.null is None:
            return true, ~true
        return true & ~self.null, ~true & ~self.null

    def _compared(self, op: str, value: Any) -> Mask:
        if self.data.dtype == np.int64 and not _LIMITS[0] <= value <= _LIMITS[1]:
            value = math.inf if value > 0 else -math.inf
        if self.data.dtype == np.int64 and isinstance(value, float) and abs(value) > 2**52 and math.isfinite(value):
            value = int(value)  # exact from here on, while float64 is no longer exact for what it is compared with
        return np.asarray(_OPERATIONS[op](self.data, value), np.bool_)

    def arrays(self) -> dict[str, Any]:
        return {"data": self.data} if self.null is None else {"data": self.data, "null": self.null}


class Texts:
    """One text a row, or none."""

    kind: FieldType = "str"

    def __init__(self, codes: NDArray[np.int32], words: list[str]) -> None:
        self.codes, self.words = codes, words

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Rows) -> Texts:
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        if len(used) and used[0] == -1:
            return Texts((codes - 1).astype(np.int32), [self.words[code] for code in used[1:]])
        return Texts(codes.astype(np.int32), [self.words[code] for code in used])

    def values(self) -> list[Any]:
        return [None if code < 0 else self.words[code] for code in self.codes.tolist()]

    def test(self, leaf: Filter) -> tuple[Mask, Mask]:
        null = self.codes < 0
        if isinstance(leaf, IsNull):
            return null, ~null
        if isinstance(leaf, IsIn) and not leaf.values:
            return np.zeros(len(self), np.bool_), np.ones(len(self), np.bool_)
        table = np.zeros(len(self.words) + 1, np.bool_)  # the last entry is where the code of null, -1, points
        table[:-1] = [_word_passes(leaf, word) for word in self.words]
        true = table[self.codes]
        return true, ~true & ~null

    def arrays(self) -> dict[str, Any]:
        return {"codes": self.codes, **packed_words(self.words)}


class Sets:
    """A set of texts a row, or none."""

    kind: FieldType = "set[str]"

    def __init__(self, offsets: Rows, codes: NDArray[np.int32], words: list[str], null: Mask | None = None) -> None:
        self.offsets, self.codes, self.words = offsets, codes, words
        self.null = null if null is not None and null.any() else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Rows) -> Sets:
        sizes = (self.offsets[1:] - self.offsets[:-1])[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        at = np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        inner = Texts(self.codes[at], self.words).take(np.arange(len(at)))
        return Sets(offsets, inner.codes, inner.words, None if self.null is None else self.null[rows])

    def values(self) -> list[Any]:
        words = [self.words[code] for code in self.codes.tolist()]
        found: list[Any] = [
            sorted(words[start:stop]) for start, stop in zip(self.offsets, self.offsets[1:], strict=False)
        ]
        if self.null is not None:
            for row in np.flatnonzero(self.null):
                found[row] = None
        return found

    def test(self, leaf: Filter) -> tuple[Mask, Mask]:
        null = np.zeros(len(self), np.bool_) if self.null is None else self.null
        if isinstance(leaf, IsNull):
            return null, ~null
        true = np.zeros(len(self), np.bool_)
        word = cast(Contains, leaf).value
        if word in self.words:
            hits = np.flatnonzero(self.codes == self.words.index(word))
            true[np.searchsorted(self.offsets, hits, side="right") - 1] = True
        return true, ~true & ~null

    def arrays(self) -> dict[str, Any]:
        found = {"offsets": self.offsets, "codes": self.codes, **packed_words(self.words)}
        return found if self.null is None else {**found, "null": self.null}


def column(name: str, kind: FieldType, values: Any, *, nullable: bool = True) -> Column:
    """A column of what a caller gave: a list, a NumPy or an Arrow array; None is null.

    Raises:
        BadInput: A value is of another type, or null where none may be; the message names the row.
    """
    if isinstance(values, np.ndarray) and values.dtype == _NUMBERS.get(kind) and kind != "timestamp":
        if kind == "float" and np.isnan(values).any():
            raise BadInput(f"field {name!r}, row {int(np.isnan(values).argmax())}: NaN", hint="give None for no value")
        return Numbers(kind, values.copy())
    listed = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    null = np.array([value is None for value in listed], np.bool_)
    if not nullable and null.any():
        raise BadInput(f"field {name!r}, row {int(null.argmax())}: no value", hint="the field is not nullable")
    if kind in _NUMBERS:
        data = [0 if value is None else _number(name, row, kind, value) for row, value in enumerate(listed)]
        return Numbers(kind, np.array(data, _NUMBERS[kind]), null)
    if kind == "str":
        return _texts(None if value is None else _text(name, row, value) for row, value in enumerate(listed))
    sets = [_words(name, row, value) for row, value in enumerate(listed)]
    inner = _texts(word for words in sets for word in words)
    offsets = np.concatenate([[0], np.cumsum([len(words) for words in sets])]).astype(np.int64)
    return Sets(offsets, inner.codes, inner.words, null)


def empty(kind: FieldType, count: int) -> Column:
    """A column of nulls."""
    return column("", kind, [None] * count)


def joined(columns: Sequence[Column]) -> Column:
    """The rows of columns of one kind, one after the other."""
    first = columns[0]
    if len(columns) == 1:
        return first
    if isinstance(first, Numbers):
        parts = cast(Sequence[Numbers], columns)
        return Numbers(first.kind, np.concatenate([part.data for part in parts]), _joined_nulls(parts))
    words: dict[str, int] = {}
    codes = np.concatenate([_recoded(part, words) for part in cast("Sequence[Texts | Sets]", columns)])
    if isinstance(first, Texts):
        return Texts(codes, list(words))
    sets = cast(Sequence[Sets], columns)
    sizes = np.concatenate([part.offsets[1:] - part.offsets[:-1] for part in sets])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Sets(offsets, codes, list(words), _joined_nulls(sets))


def restored(kind: FieldType, arrays: Mapping[str, Any]) -> Column:
    """The column that `arrays()` took apart."""
    if kind in _NUMBERS:
        return Numbers(kind, arrays["data"], arrays.get("null"))
    words = unpacked_words(arrays)
    if kind == "str":
        return Texts(arrays["codes"], words)
    return Sets(arrays["offsets"], arrays["codes"], words, arrays.get("null"))


def packed_words(words: Sequence[str]) -> dict[str, Any]:
    """Texts as their UTF-8 bytes and where each ends."""
    parts = [word.encode("utf-8") for word in words]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {"text": np.frombuffer(b"".join(parts), np.uint8), "ends": ends}


def unpacked_words(arrays: Mapping[str, Any]) -> list[str]:
    text, ends = arrays["text"].tobytes(), arrays["ends"].tolist()
    return [text[start:end].decode("utf-8") for start, end in zip([0, *ends], ends, strict=False)]


def _word_passes(leaf: Filter, word: str) -> bool:
    match leaf:
        case Compare():
            return compare(word, leaf.op, leaf.value)
        case IsIn():
            return word in leaf.values
        case StartsWith():
            return word.startswith(leaf.value)
    raise TypeError(f"{leaf} is no condition on a text")


def _texts(values: Iterable[str | None]) -> Texts:
    words: dict[str, int] = {}
    codes = [-1 if value is None else words.setdefault(value, len(words)) for value in values]
    return Texts(np.array(codes, np.int32), list(words))


def _recoded(part: Texts | Sets, words: dict[str, int]) -> NDArray[np.int32]:
    table = np.array([*(words.setdefault(word, len(words)) for word in part.words), -1], np.int32)
    return table[part.codes]


def _joined_nulls(parts: Sequence[Numbers] | Sequence[Sets]) -> Mask | None:
    if all(part.null is None for part in parts):
        return None
    return np.concatenate([np.zeros(len(part), np.bool_) if part.null is None else part.null for part in parts])


def _number(name: str, row: int, kind: FieldType, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if kind == "timestamp" and isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            pass  # refused below
    if kind == "timestamp" and isinstance(value, datetime | date):
        value = microseconds(value)
    fits = isinstance(value, bool) if kind == "bool" else isinstance(value, int) and not isinstance(value, bool)
    if kind == "float" and isinstance(value, float | int) and not isinstance(value, bool):
        fits = not math.isnan(value)
    if not fits or (kind in ("int", "timestamp") and not _LIMITS[0] <= value <= _LIMITS[1]):
        raise _wrong(name, row, kind, value)
    return value


def _text(name: str, row: int, value: Any) -> str:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
            return str(value)
        except UnicodeEncodeError:
            pass  # half of a surrogate pair cannot be stored
    raise _wrong(name, row, "str", value)


def _words(name: str, row: int, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong(name, row, "set[str]", value)
    return sorted({_text(name, row, word) for word in value})


def _wrong(name: str, row: int, kind: str, value: Any) -> BadInput:
    return BadInput(
        f"field {name!r}, row {row}: {value!r} is not of type {kind}; nothing of this call was stored",
        hint="convert it, or give None for no value",
    )
