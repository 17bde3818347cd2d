"""Which kind of file this is: by its name, unless its first bytes say otherwise."""

from __future__ import annotations

import os
from typing import NamedTuple

from windlass.core.errors import ReadError
from windlass.lake.readers.encoding import is_binary
from windlass.lake.readers.source import TEXT_BYTES, Source


class Format(NamedTuple):
    """A kind of file: its short name in records, and its name for people."""

    kind: str
    name: str


_FORMATS = {
    "text": (
        "plain text",
        "txt text log rst org adoc asciidoc tex srt vtt ini cfg conf toml yaml yml properties",
    ),
    "markdown": ("Markdown", "md markdown mdown mkd qmd rmd"),
    "code": (
        "source code",
        "py pyi js mjs cjs ts tsx jsx java kt kts scala c h cc cpp cxx hpp hh cs go rs rb php pl pm lua r jl "
        "swift m mm sh bash zsh fish ps1 bat sql css scss less vue svelte proto thrift cmake make mk gradle "
        "groovy hs ml mli ex exs erl clj lisp el f f90 f95 for pas vb vhd v sv asm s cu cuh tf dart zig nim",
    ),
    "html": ("HTML", "html htm xhtml"),
    "csv": ("comma-separated table", "csv"),
    "tsv": ("tab-separated table", "tsv tab"),
    "json": ("JSON", "json geojson"),
    "jsonl": ("JSON lines", "jsonl ndjson"),
    "pdf": ("PDF", "pdf"),
    "docx": ("Word document", "docx docm dotx"),
    "pptx": ("PowerPoint presentation", "pptx pptm ppsx potx"),
    "xlsx": ("Excel workbook", "xlsx xlsm xltx"),
    "parquet": ("Parquet table", "parquet pq parq"),
    "arrow": ("Arrow table", "arrow feather ipc"),
}

SUPPORTED: dict[str, Format] = {
    ending: Format(kind, name) for kind, (name, endings) in _FORMATS.items() for ending in endings.split()
}
"""File ending (lower case, no dot) to format. Text kinds may also be gzipped (`.csv.gz`)."""

TEXT_KINDS = frozenset({"text", "markdown", "code", "html", "csv", "tsv", "json", "jsonl"})
_PACKAGE_PARTS = {"word/document.xml": "docx", "ppt/presentation.xml": "pptx", "xl/workbook.xml": "xlsx"}
_MAGIC = (
    (b"%PDF-", "pdf"),
    (b"PK\x03\x04", "package"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\x1f\x8b", "gzip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "compound"),
)
_NO_TEXT_MAGIC = (
    *(
        b"\x7fELF",
        b"MZ\x90",
        b"\x89PNG",
        b"\xff\xd8\xff",
        b"GIF8",
        b"RIFF",
        b"BZh",
        b"\xfd7zXZ",
        b"7z\xbc\xaf",
    ),
    *(b"Rar!", b"\x28\xb5\x2f\xfd", b"SQLite format 3\0", b"\xca\xfe\xba\xbe", b"OggS", b"ID3", b"GGUF"),
)
_OLD_OFFICE = frozenset("doc xls ppt dot xlt pps msg".split())
HEAD_BYTES = 16 << 10


class Detected(NamedTuple):
    kind: str
    gzipped: bool = False


def ending_of(path: str) -> str:
    """The file's ending, lower case without the dot; that of the inner name for `.gz`."""
    stem, ending = os.path.splitext(os.path.basename(path).lower())
    if ending == ".gz":
        ending = os.path.splitext(stem)[1]
    return ending[1:]


def detect(source: Source) -> Detected:
    """Decide how a file is read.

    Strong first bytes win over the name (a PDF called `.txt` is a PDF); for a known name the content need
    only be plausible; a file without a known name is text when it looks like text.

    Raises:
        ReadError: `unsupported`, or `encrypted` for an Office file locked with a password.
    """
    source.file.seek(0)
    head = source.file.read(HEAD_BYTES)
    ending = ending_of(source.path)
    named = SUPPORTED[ending].kind if ending in SUPPORTED else None
    magic = next((kind for start, kind in _MAGIC if head.startswith(start)), None)
    if magic == "gzip":
        return _gzipped(source, named)
    if magic == "package":
        return Detected(_package_kind(source, named))
    if magic == "compound":
        raise _compound_error(source, named, ending)
    if magic is not None:
        return Detected(magic)
    if named is not None and named not in TEXT_KINDS:
        return Detected(named)  # its reader says what is wrong with it
    if named is not None:
        source.check_size(TEXT_BYTES)
    if head.startswith(_NO_TEXT_MAGIC) or is_binary(head, nul_share=0.05 if named is None else 0.3):
        raise _unsupported(source, ending)
    return Detected(named or _text_kind(head))


def _text_kind(head: bytes) -> str:
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "html" if start.startswith((b"<!doctype html", b"<html")) else "text"


def _gzipped(source: Source, named: str | None) -> Detected:
    if not source.path.lower().endswith(".gz") or named not in TEXT_KINDS:
        raise _unsupported(source, "gz")
    assert named is not None
    return Detected(named, gzipped=True)


def _package_kind(source: Source, named: str | None) -> str:
    """A zip archive is a document when it holds the main part of one."""
    if named in _PACKAGE_PARTS.values():
        assert named is not None
        return named
    import zipfile

    try:
        with zipfile.ZipFile(source.file) as archive:
            parts = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unsupported(source, "zip") from error
    for part, kind in _PACKAGE_PARTS.items():
        if part in parts:
            return kind
    raise _unsupported(source, "zip")


def _compound_error(source: Source, named: str | None, ending: str) -> ReadError:
    if named in _PACKAGE_PARTS.values():
        what = f"{source.name}: locked with a password, or in the format of Office 2003 and before"
        return ReadError(what, reason="encrypted", hint="open it in Office and save it without a password")
    hint = "save it as docx, xlsx or pptx" if ending in _OLD_OFFICE else ""
    return ReadError(f"{source.name}: old binary Office format", reason="unsupported", hint=hint)


def _unsupported(source: Source, ending: str) -> ReadError:
    what = f"a {ending} file" if ending else "a binary file"
    return ReadError(f"{source.name}: {what} that has no text to read", reason="unsupported")
