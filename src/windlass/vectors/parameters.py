"""Parameters of an index: known by name, each within its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from windlass.vectors.errors import BadInput

P = TypeVar("P")


def checked(kind: type[P], what: str, parameters: Mapping[str, Any]) -> P:
    """The parameters of an index as the dataclass `kind`, which checks their ranges itself.

    Args:
        kind: A dataclass with a default for every field.
        what: What the index is called in errors.
        parameters: By name.

    Raises:
        BadInput: One is unknown or out of its range.
    """
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    for name in parameters:
        if name not in known:
            raise BadInput(f"{what} has no parameter {name!r}", hint=f"it has {', '.join(sorted(known))}")
    return kind(**parameters)


def known_ones(kind: type[P], stored: Mapping[str, Any]) -> P:
    """The parameters that an index was built with; what another version stored beside them is left out."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in stored.items() if name in known})


def require_ranges(parameters: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Hold numbers to their ranges, both ends included.

    Raises:
        BadInput: One is no number or out of its range; the message names it.
    """
    for name, (low, high) in ranges.items():
        value = getattr(parameters, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadInput(f"{name} is {value!r}", hint=f"give {low:g} to {high:,g}")
