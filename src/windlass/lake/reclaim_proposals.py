"""Which files others may be able to rebuild: copies, contained tables, and tables that share most of their rows."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from windlass.core.workspace import Workspace
from windlass.lake.recipes import TABLE_KINDS
from windlass.lake.scan import Catalog

_TRIED_PARENTS = 3
# What people call the copy and not the original, in names of files and folders.
_SPARE = re.compile(
    r"(?<![a-z])(?:copy|copies|kopie|copia|archived?|archives|old|backups?|bak|tmp|temp|attachments?|downloads?|trash)"
    r"(?![a-z])|\(\d+\)|~",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CatalogFile:
    """A file of the last scan."""

    path: str
    size: int
    content_hash: str
    kind: str
    inode: int


def catalog_files(workspace: Workspace) -> dict[str, CatalogFile]:
    """Every file whose content is known, by its path."""
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT path, size, content_hash, coalesce(kind, ''), inode FROM files WHERE content_hash IS NOT NULL"
        )
        return {row[0]: CatalogFile(*row) for row in rows}


class Proposal(NamedTuple):
    """A file that another one may rebuild, why, and what its columns are called there (None: the same)."""

    child: str
    parent: str
    why: str
    names: dict[str, str] | None = None


def proposals_of(workspace: Workspace, files: dict[str, CatalogFile]) -> list[Proposal]:
    """Copies of the file in front, contained tables with their smallest parents, then those that share most rows."""
    found: list[Proposal] = []
    for group in Catalog(workspace).duplicates():
        kept = min(group, key=lambda path: (len(_SPARE.findall(path)), len(path), path))
        # Two names of one file on the disk: taking one away would free nothing.
        others = [copy for copy in group if copy in files and files[copy].inode != files[kept].inode]
        found += [Proposal(copy, kept, f"same content as {kept}") for copy in others]
    with workspace.reading() as connection:
        rows = connection.execute(_PAIRS).fetchall()
        paths: dict[int, list[str]] = defaultdict(list)
        for path, doc_id in connection.execute("SELECT path, document_id FROM files WHERE document_id IS NOT NULL"):
            paths[doc_id].append(path)
    tried: dict[int, int] = defaultdict(int)
    for child_doc, parent_doc, child_rows, parent_rows, share, columns, keys in rows:
        if tried[child_doc] == _TRIED_PARENTS or not paths[child_doc] or not paths[parent_doc]:
            continue
        child, parent = (min(paths[doc], key=lambda path: (len(path), path)) for doc in (child_doc, parent_doc))
        kinds = files[child].kind, files[parent].kind
        if (kinds[0] in ("csv", "tsv") and kinds[1] in TABLE_KINDS) or kinds == ("parquet", "parquet"):
            tried[child_doc] += 1
            names = dict(zip(json.loads(columns), json.loads(keys), strict=True)) if columns else None
            some = f"all {child_rows:,}" if share == 1 else f"{share:.0%} of the {child_rows:,}"
            called = ", under other column names" if columns != keys else ""
            why = f"{some} rows are among the {parent_rows:,} of {parent}{called}"
            found += [Proposal(path, parent, why, names) for path in paths[child_doc]]
    return found


_PAIRS = """
    SELECT one.document_id, other.document_id, one.rows, other.rows, share, pairs.columns, keys FROM (
        SELECT child, parent, 1.0 AS share, '' AS columns, '' AS keys FROM contained WHERE NOT trivial
        UNION ALL SELECT child, parent, share, columns, keys FROM overlaps
    ) AS pairs JOIN tables AS one ON one.id = child JOIN tables AS other ON other.id = parent
    WHERE (SELECT count(*) FROM tables WHERE document_id = one.document_id) = 1
        AND (SELECT count(*) FROM tables WHERE document_id = other.document_id) = 1
        AND (share = 1 OR one.rows <= other.rows) -- of two versions, the fuller one is the one to keep
    ORDER BY share DESC, keys != '', other.rows, other.id
"""
