"""Any file name there and back, through everything that holds text."""

from __future__ import annotations

import json
import os
import sqlite3

from hypothesis import example, given
from hypothesis import strategies as st

from windlass.core.paths import printable, to_os, to_text

# Uniform bytes are hardly ever near valid UTF-8, where the mistakes would be.
_PIECES = st.one_of(
    st.binary(max_size=8),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.characters(min_codepoint=0xEF00, max_codepoint=0xF000).map(str.encode),
    st.sampled_from(
        [b"\xee\xbe\x80", b"\xee\xbf\xbf", b"\xee\xbe", b"\xed\xb2\x80", b"\xf0\x9f\x9a\xa2", b"\n", b"\xff"]
    ),
)
PATHS = st.lists(_PIECES, max_size=8).map(lambda pieces: b"".join(pieces).replace(b"\0", b""))


@given(PATHS)
@example("caf\u00e9 \U0001f6a2\n.txt".encode())
@example(b"caf\xe9")
@example("\uef80\uefff\uef7f".encode())
def test_every_path_comes_back(path: bytes) -> None:
    text = to_text(path)
    assert to_os(text) == path
    assert to_text(os.fsdecode(path)) == text


@given(PATHS, PATHS)
def test_different_paths_have_different_texts(one: bytes, other: bytes) -> None:
    assert (to_text(one) == to_text(other)) == (one == other)


@given(PATHS)
def test_the_text_passes_through_json_sqlite_and_utf8(path: bytes) -> None:
    text = to_text(path)
    assert text.encode("utf-8").decode("utf-8") == text
    assert json.loads(json.dumps(text)) == text
    connection = sqlite3.connect(":memory:")
    assert connection.execute("SELECT ?", (text,)).fetchone()[0] == text
    connection.close()


@given(PATHS)
def test_slashes_stand_where_they_stood(path: bytes) -> None:
    """Parts and endings can be taken from the text."""
    assert [to_os(part) for part in to_text(path).split("/")] == path.split(b"/")


@given(st.text().filter(lambda text: text.isprintable()))
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    if not any(0xEF80 <= ord(character) <= 0xEFFF for character in name):
        assert to_text(name.encode()) == name == printable(name)


@given(PATHS)
def test_printable_is_one_harmless_line(path: bytes) -> None:
    line = printable(to_text(path))
    assert line.isprintable()
    line.encode("utf-8")


def test_printable_shows_what_is_odd() -> None:
    assert printable(to_text(b"two\nlines \xff\x1b[31m.txt")) == "two\\nlines \\xff\\x1b[31m.txt"
