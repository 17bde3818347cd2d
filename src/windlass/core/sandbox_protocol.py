"""What both sides of `windlass.core.sandbox` agree on: limits, the frame of a message, item names."""

from __future__ import annotations

import os
import struct
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

RESULT_BYTES = 256 << 20
HEADER = struct.Struct("<cQ")  # tag, length of the payload
RESULT, FAILURE = b"R", b"E"
"""Tags of an answer: a pickled result, or the fields of an error as JSON."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use. All are enforced by counting, never by what the input declares.

    Attributes:
        seconds: Wall time of one call.
        memory_bytes: Growth of the worker's resident memory over its idle size.
        inflated_bytes: Bytes that may come out of compressed input, in total for one file.
        inflated_ratio: The same as a multiple of the file's size (readers apply it past a harmless size).
    """

    seconds: float = 60.0
    memory_bytes: int = 512 << 20
    inflated_bytes: int = 200 << 20
    inflated_ratio: float = 100.0


_DEFAULT_LIMITS = Limits()
active_limits: ContextVar[Limits] = ContextVar("active_limits", default=_DEFAULT_LIMITS)
"""The limits that hold for the code that asks: a worker's own, or the defaults outside of any sandbox."""


def item_name(args: tuple[Any, ...]) -> str:
    """What a message calls an item: its first argument when that is a path or a name, printable on one line.

    Example:
        >>> item_name(("two\\nlines.txt",))
        'two\\\\nlines.txt'
    """
    first = args[0] if args else ""
    if not isinstance(first, str | os.PathLike):
        return "the call"
    name = str(os.fspath(first))
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return escaped or "the call"
