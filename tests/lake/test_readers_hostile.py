"""Bombs, lies and damage: every file ends as a sound document or a `ReadError`, and the next one is read."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
from pathlib import Path

import docx
import openpyxl
import pptx
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from reportlab.pdfgen.canvas import Canvas

from windlass.core.errors import ReadError
from windlass.core.sandbox import Limits, Sandbox
from windlass.lake.document import Document
from windlass.lake.readers import read_document
from windlass.lake.readers.integrity import check_document

TARGET = "windlass.lake.readers.read:read_document"
MUTANTS = 200
CONTENT_TYPES = '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'


def reason_of(path: Path) -> str:
    with pytest.raises(ReadError) as caught:
        read_document(str(path))
    assert path.name in str(caught.value)
    return caught.value.reason


def valid_files(folder: Path) -> dict[str, bytes]:
    """A small honest file of every kind."""
    text = document = docx.Document()
    document.add_heading("Pilotage", 1)
    document.add_paragraph("Every vessel takes a pilot.")
    document.add_table(1, 2).cell(0, 0).text = "cell"
    text.save(str(folder / "a.docx"))
    show = pptx.Presentation()
    show.slides.add_slide(show.slide_layouts[1]).shapes.title.text = "Safety"
    show.save(str(folder / "a.pptx"))
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["ship", "tons"], ["Aurora", 12], ["Borealis", 3.5]):
        book.active.append(row)
    book.save(folder / "a.xlsx")
    canvas = Canvas(str(folder / "a.pdf"))
    canvas.drawString(50, 500, "The tide rises twice a day.")
    canvas.save()
    table = pa.table({"n": [1, 2, 3], "w": ["a", "b", None], "x": [0.5, 1.5, 2.5]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    pyarrow.feather.write_feather(table, folder / "a.arrow")
    (folder / "a.html").write_text("<html><h1>Tides</h1><table><tr><td>a<td>b</table><p>&amp; more</html>")
    (folder / "a.csv").write_text('ship,tons,note\nAurora,12,"two\nlines"\nBorealis,3.5,x\n' * 5)
    (folder / "a.json").write_text(json.dumps([{"a": 1, "b": "x"}, {"a": 2, "b": None}], indent=1))
    (folder / "a.jsonl").write_text('{"a": 1}\n{"a": "x"}\n' * 5)
    (folder / "a.md").write_text("# Title\n\n- item\n\n```\ncode\n```\n| a | b |\n|---|---|\n| 1 | 2 |\n" * 3)
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"words and words\n\n" * 20))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat or overwrite a few places."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        at = chance.randrange(len(data))
        length = chance.randrange(1, 1 + min(40, len(data)))
        action = chance.randrange(5)
        if action == 0:
            data[at] = chance.randrange(256)
        elif action == 1:
            del data[at : at + length]
        elif action == 2:
            data[at:at] = data[at : at + length] * chance.randrange(1, 4)
        elif action == 3:
            data[at : at + length] = chance.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f" * 8, b"<", b'"'])
        else:
            del data[at:]
    return bytes(data)


def repacked(content: bytes, chance: random.Random) -> bytes:
    """A whole archive, one of whose parts is damaged: past the checksum, into the parser."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    victim = chance.choice(sorted(name for name in parts if name.endswith((".xml", ".rels"))))
    parts[victim] = mutated(parts[victim], chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def test_damaged_files_never_hang_crash_or_raise_anything_else(tmp_path: Path) -> None:
    originals = tmp_path / "originals"
    originals.mkdir()
    chance = random.Random(20240501)
    paths: list[str] = []
    for name, content in valid_files(originals).items():
        for number in range(MUTANTS):
            packed = name.endswith(("docx", "pptx", "xlsx")) and number % 2
            mutant = repacked(content, chance) if packed else mutated(content, chance)
            path = tmp_path / f"{number}-{name}"
            path.write_bytes(mutant)
            paths.append(str(path))
    limits = Limits(seconds=20)
    kinds: dict[str, int] = {}
    with Sandbox(TARGET, workers=2, limits=limits) as sandbox:
        for index, outcome in sandbox.map((path,) for path in paths):
            if isinstance(outcome, Document):
                check_document(outcome)
                kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
            else:
                assert isinstance(outcome, ReadError), (paths[index], outcome)
                # A damaged length may well ask for exabytes, which is refused at once.
                columnar = paths[index].endswith((".arrow", ".parquet"))
                forbidden = ("timeout",) if columnar else ("timeout", "memory")
                assert outcome.reason not in forbidden, (paths[index], outcome)
    assert len(kinds) >= 10  # damage is not so heavy that nothing is read any more


def package(path: Path, main: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", CONTENT_TYPES)
        archive.writestr(main, content)


MAIN_PARTS = {"a.docx": "word/document.xml", "a.pptx": "ppt/presentation.xml", "a.xlsx": "xl/workbook.xml"}


@pytest.mark.parametrize("name", MAIN_PARTS)
def test_zip_bombs_are_counted_not_believed(tmp_path: Path, name: str) -> None:
    path, part = tmp_path / name, MAIN_PARTS[name]
    bomb = b"<a>" + (b"<b/>" + b" " * 2000) * 20_000 + b"</a>"
    package(path, part, bomb)
    assert path.stat().st_size < 100_000
    assert reason_of(path) == "bomb"
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the size is given twice
        at = data.rindex(signature)
        struct.pack_into("<I", data, at + offset, 1000)
    path.write_bytes(data)
    assert reason_of(path) == "broken"


def test_a_bomb_among_the_sheets_and_one_in_gzip(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.save(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "a.xlsx") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    cells = (b"<row><c><v>1</v></c></row>" + b" " * 1000) * 50_000
    parts["xl/worksheets/sheet1.xml"] = b"<worksheet><sheetData>" + cells + b"</sheetData></worksheet>"
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    assert reason_of(tmp_path / "a.xlsx") == "bomb"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(70 << 20)))
    assert reason_of(tmp_path / "b.txt.gz") == "bomb"


def test_honest_compression_is_no_bomb(tmp_path: Path) -> None:
    words = b"<w:p><w:r><w:t>The same words again and again.</w:t></w:r></w:p>" * 10_000
    space = b'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = b"<w:document " + space + b"><w:body>" + words + b"</w:body></w:document>"
    package(tmp_path / "a.docx", "word/document.xml", body)
    assert len(body) > 150 * (tmp_path / "a.docx").stat().st_size
    assert len(read_document(str(tmp_path / "a.docx")).blocks) == 10_000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", MAIN_PARTS)
def test_entities_are_refused(tmp_path: Path, name: str, encoding: str) -> None:
    entities = "".join(f'<!ENTITY e{n} "&e{n - 1};&e{n - 1};">' for n in range(1, 30))
    bomb = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY e0 "x">{entities}]><a>&e29;</a>'
    package(tmp_path / name, MAIN_PARTS[name], bomb.encode(encoding))
    assert reason_of(tmp_path / name) == "bomb"


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.parquet", "a.arrow"])
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str) -> None:
    for content in (b"not at all", b"PK\x03\x04 broken", b"%PDF-1.7 broken", b"PAR1broken", bytes(1000)):
        (tmp_path / name).write_bytes(content)
        assert reason_of(tmp_path / name) in ("broken", "unsupported")


def test_a_cell_at_the_far_end_of_a_sheet_costs_nothing(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["a", "b"])
    book.active["C1048576"] = 7
    book.active["XFD3"] = "beyond"
    book.save(tmp_path / "a.xlsx")
    document = read_document(str(tmp_path / "a.xlsx"))
    assert document.tables[0].rows == 1 and document.tables[0].runs[0].text == "_3: 7"


def test_many_bad_files_stop_nothing_in_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("words")
    (tmp_path / "deep.json").write_text("[" * 1_000_000)
    (tmp_path / "line.csv").write_text("x" * 20_000_000)
    (tmp_path / "nul.csv").write_bytes(b"a,b\n1,\0\n" * 1000)
    with open(tmp_path / "sparse.txt", "wb") as file:
        file.truncate(1 << 30)
    package(tmp_path / "bomb.docx", "word/document.xml", b"<a>" + (b"<b/>" + b" " * 2000) * 20_000)
    names = ["good.txt", "deep.json", "line.csv", "nul.csv", "sparse.txt", "bomb.docx", "missing", "good.txt"]
    with Sandbox(TARGET, workers=2) as sandbox:
        outcomes = dict(sandbox.map((str(tmp_path / name),) for name in names))
    reasons = [getattr(outcomes[index], "reason", "read") for index in range(len(names))]
    assert reasons == ["read", "read", "read", "read", "too-large", "bomb", "unreadable", "read"]
