"""Word n-grams of texts as hashes, straight from a UTF-8 buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.hashing import hash_bytes, load_long, mix64

SPACE, LETTER, WHOLE = range(3)
"""What a character is: between words, part of a word, or a word by itself (scripts without spaces)."""

_FACTOR = np.uint64(0x9FB21C651E98DF25)
_CARRIED = 64
_HIGH_BITS = np.uint64(0x8080808080808080)


@inlined
def _width(byte: Any) -> Any:
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@inlined
def _point(data: Any, at: Any, width: Any) -> Any:
    """The code point of the character of `width` bytes at `at`."""
    if width == 1:
        return np.int64(data[at])
    point = np.int64(data[at]) & ((1 << (7 - width)) - 1)
    for step in range(1, width):
        point = (point << 6) | (np.int64(data[at + step]) & 63)
    return point


@inlined
def _look(data: Any, at: Any, classes: Any) -> Any:
    """(class, bytes) of the character at `at`."""
    if data[at] < 0x80:
        return classes[data[at]], 1
    width = _width(data[at])
    return classes[_point(data, at, width)], width


@inlined
def _past_ascii(data: Any, at: Any, end: Any) -> Any:
    """The next byte above 127 from `at`, or `end`; eight bytes at a time."""
    while at + 8 <= end and load_long(data, at) & _HIGH_BITS == np.uint64(0):
        at += 8
    while at < end and data[at] < 0x80:
        at += 1
    return at


@compiled
def word_shingles(data: Any, texts: Any, classes: Any, length: Any, out: Any, offsets: Any) -> Any:
    """Hash every run of `length` words of each text.

    A text of fewer words gives the hashes of its single words, so that short texts can be compared at all.

    Args:
        data: uint8 array, valid UTF-8 in lower case.
        texts: int64[n + 1], where each text begins.
        classes: uint8[0x110000], `SPACE`, `LETTER` or `WHOLE` for each code point.
        length: Words a shingle, 1 to 64.
        out: uint64[>= bytes of data + n], written.
        offsets: int64[n + 1], where each text's shingles begin, written.

    Returns:
        How many shingles there are.
    """
    used = 0
    recent = np.zeros(_CARRIED, np.uint64)
    for number in range(texts.size - 1):
        offsets[number] = used
        at, end = texts[number], texts[number + 1]
        words = 0
        while at < end:
            kind, width = _look(data, at, classes)
            if kind == SPACE:
                at += width
                continue
            first = at
            at += width
            if kind == LETTER:
                while at < end:
                    kind, width = _look(data, at, classes)
                    if kind != LETTER:
                        break
                    at += width
            recent[words % length] = hash_bytes(data, first, at)
            words += 1
            if words < length:
                out[used + words - 1] = mix64(recent[words - 1])
            else:
                total = np.uint64(0)
                for place in range(length):
                    total = (total + recent[(words + place) % length]) * _FACTOR
                out[used + words - length] = mix64(total)
        used += words if words < length else words - length + 1
    offsets[texts.size - 1] = used
    return used


UNKNOWN, PLAIN, FOLDED = range(3)
"""What is known of a code point: nothing yet; it is its own normal form; or its text has to be normalised first."""


@compiled
def unknown_points(data: Any, known: Any, out: Any) -> Any:
    """Collect code points above 127 that are `UNKNOWN` into `out` (int64[room]), each once, marking them `FOLDED`.

    Args:
        data: uint8 array, valid UTF-8.
        known: uint8[0x110000].

    Returns:
        How many were found; when `out` is full there may be more.
    """
    found, at = 0, _past_ascii(data, 0, data.size)
    while at < data.size and found < out.size:
        width = _width(data[at])
        point = _point(data, at, width)
        if known[point] == UNKNOWN:
            known[point] = FOLDED
            out[found] = point
            found += 1
        at = _past_ascii(data, at + width, data.size)
    return found


@compiled
def mark_folded(data: Any, texts: Any, known: Any, out: Any) -> None:
    """Mark in `out` (bool[n]) the texts that have a code point above 127 that is not `PLAIN`."""
    for number in range(texts.size - 1):
        end = texts[number + 1]
        at = _past_ascii(data, texts[number], end)
        while at < end:
            width = _width(data[at])
            if known[_point(data, at, width)] != PLAIN:
                out[number] = True
                break
            at = _past_ascii(data, at + width, end)
