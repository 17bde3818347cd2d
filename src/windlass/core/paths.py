"""File names as text that a database, JSON and a person can hold, whatever bytes they are made of.

A Unix file name is any bytes without NUL and slash. Bytes that are not UTF-8 become characters U+EF80..U+EFFF of the
private use area (the convention of the MirBSD OPTU encoding), and so does the UTF-8 form of those very characters:
the mapping loses nothing and `to_os(to_text(path)) == path` for every path.
"""

from __future__ import annotations

import os

_FIRST, _LAST = 0xEF80, 0xEFFF


def to_text(path: str | bytes) -> str:
    """The text form of an operating-system path (`bytes`, or `str` with surrogate escapes).

    Example:
        >>> to_os(to_text(b"caf\\xe9.txt"))
        b'caf\\xe9.txt'
    """
    text = os.fsencode(path).decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    return "".join(_escape(character) for character in text)


def to_os(text: str) -> bytes:
    """The bytes of the file name that `to_text` turned into `text`."""
    if text.isascii():
        return text.encode()
    return b"".join(
        bytes([ord(character) - 0xEF00]) if _FIRST <= ord(character) <= _LAST else character.encode("utf-8")
        for character in text
    )


def printable(text: str) -> str:
    """`text` for a line of output: control characters and undecodable bytes as visible escapes.

    Example:
        >>> printable("two\\nlines.txt")
        'two\\\\nlines.txt'
    """
    return "".join(_visible(character) for character in text)


def _escape(character: str) -> str:
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:
        return chr(point - 0xDC00 + 0xEF00)
    if _FIRST <= point <= _LAST:
        return "".join(chr(0xEF00 + byte) for byte in character.encode("utf-8"))
    return character


def _visible(character: str) -> str:
    if _FIRST <= ord(character) <= _LAST:
        return f"\\x{ord(character) - 0xEF00:02x}"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
