"""Office files are zip archives of XML: parts are counted as they inflate, XML is read without traps."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from windlass.core.errors import ReadError
from windlass.lake.readers.source import InflationCount, Source

FILE_BYTES = 512 << 20
_MOST_PARTS = 20_000
_CHUNK = 256 << 10
_RELATIONS = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"


class Package:
    """The parts of an Office file. What a part declares about its size is never believed.

    Raises:
        ReadError: `broken`, `encrypted`, `bomb` or `too-large`, here and in every method.
    """

    def __init__(self, source: Source) -> None:
        source.check_size(FILE_BYTES)
        self._source = source
        self._count = InflationCount(source)
        source.file.seek(0)
        try:
            self._archive = zipfile.ZipFile(source.file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            raise source.broken(f"damaged, or not an Office file ({error})") from error
        names = self._archive.namelist()
        if len(names) > _MOST_PARTS:
            what = f"{source.name}: an archive of {len(names):,} parts"
            raise ReadError(what, reason="bomb", hint="if you trust it, save it again")
        self._names = set(names)

    def __contains__(self, part: str) -> bool:
        return part in self._names

    def open(self, part: str) -> BinaryIO:
        """A stream of the part's bytes, counted, refusing a document type declaration."""
        if part not in self._names:
            raise self._source.broken(f"the part {part} is missing")
        info = self._archive.getinfo(part)
        if info.flag_bits & 1:
            raise ReadError(f"{self._source.name}: locked with a password", reason="encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._source.broken(f"the part {part} is compressed in a way no Office program uses")
        try:
            raw = self._archive.open(info)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._source.broken(f"the part {part} is damaged ({error})") from error
        return _CountedPart(raw, part, self._source, self._count)  # type: ignore[return-value]

    def events(self, part: str, *tags: str) -> Iterator[Any]:
        """Elements of a part named `tags` (in Clark notation), each as it closes.

        Entities are not expanded, nothing is fetched, and one text is at most what the parser allows (10 MB).
        """
        from lxml import etree

        options = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
        try:
            for _event, element in etree.iterparse(
                self.open(part),
                events=("end",),
                tag=tags or None,
                remove_comments=True,
                remove_pis=True,
                **options,
            ):
                yield element
        except etree.XMLSyntaxError as error:
            raise self._source.broken(f"the part {part} is not valid XML ({str(error)[:200]})") from error

    def root(self, part: str) -> Any:
        """The whole tree of a small part."""
        last = None
        for element in self.events(part):
            last = element
        if last is None:
            raise self._source.broken(f"the part {part} is empty")
        return last

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """`id -> (type, part)` of what `part` refers to inside the package; what is outside is left out."""
        folder, name = posixpath.split(part)
        table = posixpath.join(folder, "_rels", name + ".rels")
        if table not in self._names:
            return {}
        found = {}
        for relation in self.events(table, _RELATIONS):
            if relation.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target", "")))
                kind = relation.get("Type", "").rsplit("/", 1)[-1]
                found[relation.get("Id", "")] = (kind, target.lstrip("/"))
        return found


class _CountedPart:
    """A readable stream over one part. Enough of a file for lxml and zip readers."""

    def __init__(self, raw: Any, part: str, source: Source, count: InflationCount) -> None:
        self._raw = raw
        self._part = part
        self._source = source
        self._count = count
        self._tail = b""
        self._is_xml = part.lower().endswith((".xml", ".rels", ".vml"))

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._raw.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise self._source.broken(f"the part {self._part} is damaged ({error})") from error
        self._count.add(len(data))
        if self._is_xml:
            self._refuse_declarations(data)
        return data

    def close(self) -> None:
        self._raw.close()

    def _refuse_declarations(self, data: bytes) -> None:
        # Zero bytes dropped, so that UTF-16 hides nothing. No Office program writes a DOCTYPE.
        seen = (self._tail + data).replace(b"\0", b"")
        if b"<!DOCTYPE" in seen or b"<!ENTITY" in seen:
            what = f"{self._source.name}: the part {self._part} declares entities, as only attacks do"
            raise ReadError(what, reason="bomb")
        self._tail = (self._tail + data)[-32:]
