"""Fields as one byte a row, on which a filter is decided for most rows without their values.

The cells of a field hold runs of its values in order, or one value each where there are few, and one cell holds the
nulls. A condition is decided for each cell once: true for all its rows, false for all, or only for some of them; rows
where the whole filter stays open are looked up. SQUASH's approximate mode leaves the last step out and returns rows
that fail the filter; here that cannot happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.filters import And, Compare, FieldType, Filter, IsIn, IsNull, Not, Or
from windlass.vectors.columns import Column, Numbers, Texts, packed_words, unpacked_words

Codes = NDArray[np.uint8]
Outcomes = NDArray[np.uint8]
"""For each row or cell the outcomes that are possible, as bits."""

TRUE, FALSE, NULL = 1, 2, 4
_OPEN = TRUE | FALSE | NULL
_NULL_CELL = 255


class FieldCells:
    """The cells of one field.

    Attributes:
        lows, highs: The least and the greatest value of each cell, as a column; None for texts.
        words, cell_of: Of a field of texts: its words in order, and the cell of each.
    """

    def __init__(
        self,
        kind: FieldType,
        lows: Numbers | None,
        highs: Numbers | None,
        words: list[str],
        cell_of: Codes,
    ) -> None:
        self.kind, self.lows, self.highs, self.words, self.cell_of = kind, lows, highs, words, cell_of

    @staticmethod
    def of(column: Column, cells: int) -> tuple[FieldCells, Codes] | None:
        """At most `cells` cells (up to 255) over a column, and the cell of each row; None for sets of texts."""
        if isinstance(column, Numbers):
            return _of_numbers(column, min(cells, _NULL_CELL))
        if isinstance(column, Texts):
            return _of_texts(column, min(cells, _NULL_CELL))
        return None

    def outcomes(self, leaf: Filter) -> Outcomes:
        """uint8 `[256]`: what a condition on this field may come to in each cell."""
        table = np.zeros(256, np.uint8)
        table[_NULL_CELL] = TRUE if isinstance(leaf, IsNull) else NULL
        if isinstance(leaf, IsIn) and not leaf.values:
            table[_NULL_CELL] = FALSE
        if self.lows is None or self.highs is None:
            true, false = Texts(np.arange(len(self.words), dtype=np.int32), self.words).test(leaf)
            np.bitwise_or.at(table, self.cell_of, (TRUE * true | FALSE * false).astype(np.uint8))
            return table
        some, every = _of_runs(leaf, self.lows, self.highs)
        table[: len(some)] = TRUE * some | FALSE * ~every
        return table

    def arrays(self) -> dict[str, Any]:
        """For `packing.pack`."""
        found: dict[str, Any] = {"kind": self.kind, "cell_of": self.cell_of, **packed_words(self.words)}
        if self.lows is not None and self.highs is not None:
            found |= {"lows": self.lows.data, "highs": self.highs.data}
        return found

    @staticmethod
    def restored(arrays: Mapping[str, Any]) -> FieldCells:
        kind = arrays["kind"]
        ends = [Numbers(kind, arrays[name]) if name in arrays else None for name in ("lows", "highs")]
        return FieldCells(kind, ends[0], ends[1], unpacked_words(arrays), arrays["cell_of"])


def possible(bound: Filter, cells: Mapping[str, FieldCells], codes: Mapping[str, Codes], count: int) -> Outcomes:
    """uint8 `[count]`: what a filter may come to for rows of which only the cells are known.

    Args:
        codes: The cells of the rows, by field; fields that are missing here or in `cells` leave everything open.
    """

    def leaf(part: Filter) -> Outcomes:
        (name,) = part.fields()
        if name not in cells or name not in codes:
            return np.full(count, _OPEN, np.uint8)
        return cells[name].outcomes(part)[codes[name]]

    return _joined(bound, leaf)


def possible_in(bound: Filter, cells: Mapping[str, FieldCells], present: Mapping[str, NDArray[np.bool_]]) -> bool:
    """Whether any row of a part may pass.

    Args:
        present: bool `[256]` by field: the cells that rows of the part are in.
    """

    def leaf(part: Filter) -> Outcomes:
        (name,) = part.fields()
        if name not in cells or name not in present:
            return np.full(1, _OPEN, np.uint8)
        return np.bitwise_or.reduce(cells[name].outcomes(part)[present[name]], keepdims=True, initial=0)

    return bool(_joined(bound, leaf)[0] & TRUE)


def _joined(part: Filter, leaf: Any) -> Outcomes:
    if isinstance(part, Not):
        return np.asarray(_NOT[_joined(part.part, leaf)])
    if isinstance(part, And | Or):
        table = _AND if isinstance(part, And) else _OR
        found = _joined(part.parts[0], leaf)
        for other in part.parts[1:]:
            found = table[found, _joined(other, leaf)]
        return found
    return np.asarray(leaf(part))


def _of_runs(leaf: Filter, lows: Numbers, highs: Numbers) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For which cells some value may pass, and for which all do."""
    if isinstance(leaf, IsNull):
        none = np.zeros(len(lows), np.bool_)
        return none, none
    if isinstance(leaf, IsIn):
        some, every = np.zeros(len(lows), np.bool_), np.zeros(len(lows), np.bool_)
        for value in leaf.values:
            one, all_of = _of_runs(Compare(leaf.field, "=", value), lows, highs)
            some, every = some | one, every | all_of
        return some, every
    assert isinstance(leaf, Compare)
    if leaf.op in ("=", "!="):
        inside = (
            lows.test(Compare(leaf.field, "<=", leaf.value))[0] & highs.test(Compare(leaf.field, ">=", leaf.value))[0]
        )
        alone = inside & (lows.data == highs.data)
        return (inside, alone) if leaf.op == "=" else (~alone, ~inside)
    first, last = lows.test(leaf)[0], highs.test(leaf)[0]
    return first | last, first & last


def _of_numbers(column: Numbers, cells: int) -> tuple[FieldCells, Codes]:
    filled = np.ones(len(column), np.bool_) if column.null is None else ~column.null
    values = column.data[filled]
    codes = np.full(len(column), _NULL_CELL, np.uint8)
    different = np.unique(values)
    if len(different) > cells:
        ordered = np.sort(values)
        firsts = np.unique(ordered[np.arange(cells) * len(ordered) // cells])
    else:
        firsts = different
    found = np.searchsorted(firsts, values, side="right") - 1
    codes[filled] = found
    ends = np.searchsorted(different, firsts)
    lasts = different[np.append(ends[1:], len(different)) - 1] if len(different) else different
    return FieldCells(column.kind, Numbers(column.kind, firsts), Numbers(column.kind, lasts), [], _NO_CELLS), codes


def _of_texts(column: Texts, cells: int) -> tuple[FieldCells, Codes]:
    order = sorted(range(len(column.words)), key=column.words.__getitem__)
    sizes = np.bincount(column.codes[column.codes >= 0], minlength=len(order))[order]
    cell_of = np.arange(len(order))
    if len(order) > cells:  # runs of words with about as many rows each
        before = np.cumsum(sizes) - sizes
        cell_of = np.unique(before * cells // max(1, int(sizes.sum())), return_inverse=True)[1]
    table = np.full(len(order) + 1, _NULL_CELL, np.uint8)  # the last entry is where the code of null, -1, points
    table[order] = cell_of
    words = [column.words[place] for place in order]
    return FieldCells("str", None, None, words, cell_of.astype(np.uint8)), table[column.codes]


def _pairs(decide: Any) -> NDArray[np.uint8]:
    """uint8 `[8, 8]`: outcomes of a pair of sets of outcomes."""
    table = np.zeros((8, 8), np.uint8)
    for left in range(8):
        for right in range(8):
            for one in (TRUE, FALSE, NULL):
                for other in (TRUE, FALSE, NULL):
                    if left & one and right & other:
                        table[left, right] |= decide({one, other})
    return table


_NO_CELLS: Codes = np.zeros(0, np.uint8)
_AND = _pairs(lambda both: FALSE if FALSE in both else NULL if NULL in both else TRUE)
_OR = _pairs(lambda both: TRUE if TRUE in both else NULL if NULL in both else FALSE)
_NOT = np.array([(kept & NULL) | (kept & TRUE) << 1 | (kept & FALSE) >> 1 for kept in range(8)], np.uint8)
