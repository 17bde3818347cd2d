"""Which rows a filter lets pass, as a bool a row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from windlass.core.filters import And, Compare, Contains, Filter, IsIn, IsNull, Not, Or, StartsWith
from windlass.vectors.columns import Column

Mask = NDArray[np.bool_]


def passing(bound: Filter, columns: Mapping[str, Column]) -> Mask:
    """bool `[n]`: the rows for which `bound` is true; unknown is not true.

    Args:
        bound: What `Filter.bind` returned.
        columns: Every field that it mentions.
    """
    return _truth(bound, columns)[0]


def _truth(part: Filter, columns: Mapping[str, Column]) -> tuple[Mask, Mask]:
    """Where `part` is true, and where it is false; elsewhere it is unknown."""
    if isinstance(part, Compare | IsIn | Contains | StartsWith | IsNull):
        return columns[part.field].test(part)
    if isinstance(part, Not):
        true, false = _truth(part.part, columns)
        return false, true
    if isinstance(part, And | Or):
        found = [_truth(inner, columns) for inner in part.parts]
        every = np.logical_and.reduce([pair[0 if isinstance(part, And) else 1] for pair in found])
        some = np.logical_or.reduce([pair[1 if isinstance(part, And) else 0] for pair in found])
        return (every, some) if isinstance(part, And) else (some, every)
    raise TypeError(f"{part!r} is no filter")
