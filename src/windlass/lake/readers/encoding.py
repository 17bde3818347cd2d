"""Bytes to text: byte-order marks, UTF-8, files that mix encodings, and old code pages, in that order."""

from __future__ import annotations

import codecs
from typing import NamedTuple

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What people's files are really in; the full list makes the guess slower and, on short files, wilder.
_CODE_PAGES = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("koi8_r", "cp932", "euc_jp", "gb18030", "big5", "euc_kr"),
]
_SAMPLE_BYTES = 64 << 10
_NO_TEXT_CONTROLS = bytes(set(range(1, 32)) - set(b"\t\n\r\f\b\x1b"))


class Decoded(NamedTuple):
    """The text of a file, the name of the encoding, and what was odd about it."""

    text: str
    encoding: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes) -> Decoded:
    """Decode a whole file; never fails. A byte-order mark is removed, nothing else is changed.

    Example:
        >>> decode("naïve".encode("cp1252")).text
        'naïve'
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _decoded_wide(data[len(mark) :], name)
    if (wide := wide_encoding(data)) is not None:
        return _decoded_wide(data, wide)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError as error:
        first_odd = error.start
    return _decoded_mixed(data) or _decoded_code_page(data, first_odd)


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 without a mark, recognised by every other byte being zero; None for anything else."""
    sample = data[:4096]
    pairs = len(sample) // 2
    if pairs < 2:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if odd >= 0.7 * pairs and even <= 0.05 * pairs:
        return "utf-16-le"
    if even >= 0.7 * pairs and odd <= 0.05 * pairs:
        return "utf-16-be"
    return None


def is_binary(head: bytes, *, nul_share: float = 0.05) -> bool:
    """Whether the beginning of a file is no text: too many NULs, or more than one control byte in twenty.

    A few stray NULs in a log are text; a compiled program is not.
    """
    if not head or head.startswith(tuple(mark for mark, _ in _MARKS)) or wide_encoding(head):
        return False
    controls = len(head) - len(head.translate(None, _NO_TEXT_CONTROLS))
    return head.count(0) > nul_share * len(head) or controls > 0.05 * len(head)


def _decoded_wide(data: bytes, name: str) -> Decoded:
    text = data.decode(name, errors="replace")
    odd = text.count("\N{REPLACEMENT CHARACTER}")
    warnings = (f"{odd:,} characters could not be decoded from {name}",) if odd else ()
    return Decoded(text, name, warnings)


def _decoded_mixed(data: bytes) -> Decoded | None:
    """UTF-8 with stray bytes of Windows-1252 in it, as concatenated files have; None when it is not that."""
    odd = 0

    def read_as_windows(error: UnicodeError) -> tuple[str, int]:
        nonlocal odd
        if not isinstance(error, UnicodeDecodeError):
            raise error
        odd += error.end - error.start
        return _windows(error.object[error.start : error.end]), error.end

    codecs.register_error("windlass.windows", read_as_windows)
    text = data.decode("utf-8", errors="windlass.windows")
    good = len(text) - len(text.encode("ascii", errors="ignore")) - odd
    # Text of an old Asian code page makes valid UTF-8 by chance, but it is hardly ever mostly ASCII.
    mostly_ascii = len(text) - good - odd >= 0.75 * len(text)
    if good < max(1, odd / 2 if mostly_ascii else odd):
        return None
    what = f"{odd:,} bytes are not UTF-8 and were read as Windows-1252"
    return Decoded(text, "utf-8", (what,))


def _decoded_code_page(data: bytes, first_odd: int) -> Decoded:
    name = _guess(data[max(0, first_odd - 1024) :][:_SAMPLE_BYTES])
    try:
        text = data.decode(name)
    except UnicodeDecodeError:
        name, text = "cp1252", _windows(data)
    return Decoded(text, name, (f"not UTF-8; read as {name}",))


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = {match.encoding: match for match in from_bytes(sample, cp_isolation=_CODE_PAGES)}
    best = next(iter(matches.values()), None)
    if best is None:
        return "cp1252"
    # Western and Central European pages share most letters; without evidence the common one is right.
    if best.encoding in ("cp1250", "cp1254"):
        western = matches.get("cp1252")
        same = _windows(sample) == sample.decode(best.encoding, errors="replace")
        if same or best.coherence == 0 or (western is not None and western.coherence >= best.coherence):
            return "cp1252"
    return best.encoding


def _windows(data: bytes) -> str:
    """Windows-1252, its five undefined bytes as the control characters that Latin-1 has there."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return "".join(bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in data)
