"""The one entry of the readers: a path in, a `Document` or a `ReadError` out. Called inside the sandbox."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from windlass.core.errors import ReadError, UsageError, WindlassError
from windlass.lake.document import Document
from windlass.lake.readers.composing import clean_title, without_surrogates
from windlass.lake.readers.detect import TEXT_KINDS, Detected, detect
from windlass.lake.readers.encoding import decode
from windlass.lake.readers.integrity import check_document
from windlass.lake.readers.source import TEXT_BYTES, Source, gunzip, open_source

_READERS = "windlass.lake.readers."
_TEXT_READERS = {
    "text": "text:read_text",
    "code": "text:read_code",
    "markdown": "markdown:read_markdown",
    "html": "html:read_html",
    "csv": "delimited:read_delimited",
    "tsv": "delimited:read_delimited",
    "json": "records:read_json",
    "jsonl": "records:read_json_lines",
}
_FILE_READERS = {
    "pdf": "pdf:read_pdf",
    "docx": "word:read_word",
    "pptx": "slides:read_slides",
    "xlsx": "spreadsheet:read_workbook",
    "parquet": "parquet:read_parquet",
    "arrow": "parquet:read_arrow",
}


def read_document(path: str, kind: str | None = None) -> Document:
    """Read one file.

    Args:
        path: A regular file.
        kind: Read it as this kind whatever its name and bytes say; None to find out.

    Raises:
        ReadError: with the reason; the only error a file can cause.
        UsageError: `kind` is unknown.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     note = pathlib.Path(folder, "note.md")
        ...     _ = note.write_text("# Tides\\n\\nHigh water at noon.\\n")
        ...     [block.kind for block in read_document(str(note)).blocks]
        ['heading', 'paragraph']
    """
    if kind is not None and kind not in _TEXT_READERS and kind not in _FILE_READERS:
        known = ", ".join([*_TEXT_READERS, *_FILE_READERS])
        raise UsageError(f"unknown kind of file: {kind}", hint=f"one of {known}")
    source = open_source(path)
    with source.file:
        try:
            return _storable(_read(source, kind))
        except WindlassError:
            raise
        except MemoryError as error:
            raise ReadError(f"{source.name}: needs more memory than is allowed", reason="memory") from error
        except OSError as error:
            raise ReadError(f"{source.name}: {error.strerror or error}", reason="unreadable") from error
        except Exception as error:
            # Parsers of other people's formats raise whatever a damaged file makes them trip over.
            raise source.broken(f"cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


def _read(source: Source, kind: str | None) -> Document:
    if source.size == 0:
        return Document(kind or "text", "", source.stem, (), encoding="utf-8")
    detected = detect(source) if kind is None else Detected(kind, gzipped=source.path.lower().endswith(".gz"))
    if detected.kind not in TEXT_KINDS:
        document: Document = _function(_FILE_READERS[detected.kind])(source)
        return document
    data = gunzip(source) if detected.gzipped else source.read(TEXT_BYTES)
    if detected.kind == "html":
        decoder = _function("html:decode_html")
        decoded = decoder(data)
    else:
        decoded = decode(data)
    del data  # as large as the text; a reader should not pay for both
    if detected.kind in ("csv", "tsv"):
        document = _function(_TEXT_READERS[detected.kind])(source, decoded, detected.kind)
    else:
        document = _function(_TEXT_READERS[detected.kind])(source, decoded)
    return document


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(_READERS + module), function)
    return found


def _storable(document: Document) -> Document:
    """The document, sound, with a text that every database and socket can take."""
    check_document(document)
    text = without_surrogates(document.text)
    title = clean_title(without_surrogates(document.title))
    if text is document.text and title == document.title:
        return document
    return replace(document, text=text, title=title)
