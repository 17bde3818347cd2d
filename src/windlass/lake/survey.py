"""What the lake knows beyond single files: profiles of tables, tables in tables, near-copies of texts.

`survey` brings it in line with what was read, and only looks at what is new: a new table is profiled and compared
with all, an old pair is never looked at again. Everything goes with the document it is about.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from windlass.core.errors import ReadError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.workspace import Workspace
from windlass.lake.stored import document_text, stored_cells

if TYPE_CHECKING:
    from windlass.lake.containment import LakeTable
    from windlass.lake.hashing import HashedTable
    from windlass.lake.profile import TableProfile

VERSION = 1
"""Of profiles and signatures; what was made by another version is made again."""

TABULAR_KINDS = ("csv", "tsv", "parquet", "arrow", "xlsx", "json", "jsonl")
_LOT_CHARACTERS = 8 << 20
_COMMIT_TABLES = 50
_LEAST_ROWS = 5
MOST_ROWS = 2_000_000


@dataclass(frozen=True, slots=True)
class ContainedTable:
    """A table all of whose rows are in another one.

    Attributes:
        child, parent: Their ids.
        child_file, parent_file: The file to keep of each content.
        child_name, parent_name: Names of the tables.
        child_rows, parent_rows: How many rows they have.
        mutual: The parent is contained in the child, too: both hold the same rows.
        bytes: What the child's file takes, 0 when it holds more than this table.
    """

    child: int
    parent: int
    child_file: str
    parent_file: str
    child_name: str
    parent_name: str
    child_rows: int
    parent_rows: int
    mutual: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class OverlappingTable:
    """A table that shares `share` of its rows with another one, or all of them under other column names.

    Attributes:
        child_file, parent_file, child_name, parent_name, child_rows, parent_rows: As of `ContainedTable`.
        columns, keys: What the compared columns are called in both.
    """

    child_file: str
    parent_file: str
    child_name: str
    parent_name: str
    child_rows: int
    parent_rows: int
    share: float
    columns: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def renamed(self) -> dict[str, str]:
        """The columns that are called otherwise in the parent."""
        return {own: key for own, key in zip(self.columns, self.keys, strict=True) if own != key}


class NearCopy(NamedTuple):
    """Two files whose texts are nearly the same; `similarity` is the share of word sequences that both have."""

    first: str
    second: str
    similarity: float


def survey(workspace: Workspace, progress: Progress | None = None) -> int:
    """Profile new tables, compare them with all, and find near-copies of new texts. Needs the workspace's lock.

    Returns:
        How many tables and texts were new.

    Raises:
        Cancelled: Stopped through `progress`; what was committed stays.
        StorageError: The disk is full or failing.
    """
    progress = progress or Silent()
    new = _survey_tables(workspace, progress)
    _survey_overlaps(workspace, progress)
    return new + _survey_texts(workspace, progress)


def contained_tables(workspace: Workspace) -> list[ContainedTable]:
    """Contained tables worth a person's attention, largest files first; each child with its smallest parent.

    Of tables that hold the same rows, the one of the first path counts as the parent.
    """
    with workspace.reading() as connection:
        rows = connection.execute(_CONTAINED).fetchall()
    pairs = {(row[0], row[1]) for row in rows}
    found: dict[int, ContainedTable] = {}
    for row in sorted(rows, key=lambda row: (row[7], len(row[3]), row[3])):
        child, parent, child_file, parent_file, child_name, parent_name, child_rows, parent_rows, size = row
        mutual = (parent, child) in pairs
        facts = (child_file, parent_file, child_name, parent_name, child_rows, parent_rows, mutual, size)
        entry = ContainedTable(child, parent, *facts)
        first = (len(entry.parent_file), entry.parent_file) < (len(entry.child_file), entry.child_file)
        if entry.child_file != entry.parent_file and (first or not entry.mutual):
            found.setdefault(entry.child, entry)
    return sorted(found.values(), key=lambda entry: (-entry.bytes, entry.child_file))


def overlapping_tables(workspace: Workspace) -> list[OverlappingTable]:
    """Tables that share half of their rows or more with another, each with the one it shares most with; most first.

    Tables that are contained as a whole are in `contained_tables` only; of two that share as much with each other, the
    one with more rows counts as the parent.
    """
    whole = {entry.child for entry in contained_tables(workspace)}
    names = table_names(workspace)
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT child, parent, one.rows, other.rows, share, overlaps.columns, keys FROM overlaps"
            " JOIN tables AS one ON one.id = child JOIN tables AS other ON other.id = parent"
        ).fetchall()
    pairs = {(row[0], row[1]) for row in rows}
    found: dict[int, OverlappingTable] = {}
    for child, parent, child_rows, parent_rows, share, columns, keys in sorted(
        rows, key=lambda r: (-r[4], -r[3], r[1])
    ):
        turned = (parent, child) in pairs and (parent_rows, child) < (child_rows, parent)
        if child in whole or child in found or turned or child not in names or parent not in names:
            continue
        one, other = names[child], names[parent]
        called = tuple(json.loads(columns)), tuple(json.loads(keys))
        if one[0] != other[0]:
            found[child] = OverlappingTable(one[0], other[0], one[1], other[1], child_rows, parent_rows, share, *called)
    return sorted(found.values(), key=lambda entry: (-entry.share, entry.child_file))


def near_copies(workspace: Workspace) -> list[NearCopy]:
    """Files whose texts are nearly the same but not their bytes, most similar first."""
    with workspace.reading() as connection:
        rows = connection.execute(_NEAR).fetchall()
    pairs = []
    for one, other, similarity in rows:
        first, second = sorted((one, other), key=lambda path: (len(path), path))
        pairs.append(NearCopy(first, second, similarity))
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def table_profiles(workspace: Workspace) -> list[tuple[str, TableProfile]]:
    """(file, profile) of every table that is profiled, in path order."""
    from windlass.lake.profile_format import unpack_profile

    with workspace.reading() as connection:
        rows = connection.execute(
            f"SELECT ({_PATH.format('tables.document_id')}) AS file, profile FROM profiles JOIN tables ON"
            " tables.id = table_id WHERE profile IS NOT NULL ORDER BY file, table_id"
        )
        return [(row[0], unpack_profile(row[1])) for row in rows if row[0] is not None]


_PATH = "SELECT path FROM files WHERE files.document_id = {} ORDER BY length(path), path LIMIT 1"
_CONTAINED = f"""
    SELECT child, parent, ({_PATH.format("one.document_id")}), ({_PATH.format("other.document_id")}), one.name,
        other.name, one.rows, other.rows,
        CASE WHEN (SELECT count(*) FROM tables WHERE document_id = one.document_id) = 1
            THEN (SELECT size FROM files WHERE files.document_id = one.document_id LIMIT 1) ELSE 0 END
    FROM contained JOIN tables AS one ON one.id = child JOIN tables AS other ON other.id = parent
    WHERE NOT trivial AND EXISTS (SELECT 1 FROM files WHERE files.document_id = one.document_id)
        AND EXISTS (SELECT 1 FROM files WHERE files.document_id = other.document_id)
"""
_NEAR = f"""
    SELECT ({_PATH.format("first")}) AS one, ({_PATH.format("second")}) AS other, similarity FROM near_copies
    WHERE one IS NOT NULL AND other IS NOT NULL
"""


def _survey_tables(workspace: Workspace, progress: Progress) -> int:
    with workspace.reading() as connection:
        new = connection.execute(
            "SELECT tables.id, name FROM tables LEFT JOIN profiles ON table_id = tables.id AND version = ?"
            " WHERE table_id IS NULL ORDER BY tables.id",
            (VERSION,),
        ).fetchall()
    if not new:
        return 0
    from windlass.lake.containment import find_containment

    progress.start("profile", len(new), "tables")
    tables = known_tables(workspace)
    for start in range(0, len(new), _COMMIT_TABLES):
        lot = new[start : start + _COMMIT_TABLES]
        profiled = [(table_id, _profiled(workspace, table_id, name, progress)) for table_id, name in lot]
        # Pairs go in with the profile that they follow from: a profile without its pairs would never be compared.
        tables += [_lake_table(workspace, *entry) for entry in profiled if entry[1]]
        fresh = {str(table_id) for table_id, profile in profiled if profile}
        graph = find_containment(tables, fresh=fresh, progress=progress)
        with workspace.transaction() as connection:
            _store_profiles(connection, profiled)
            connection.executemany(
                "INSERT OR REPLACE INTO contained (child, parent, trivial) VALUES (?, ?, ?)",
                [(int(edge.child), int(edge.parent), edge.trivial) for edge in graph.edges],
            )
    progress.finish("profile")
    return len(new)


def _survey_overlaps(workspace: Workspace, progress: Progress) -> None:
    """Compare the parts of tables that are new with all; folders of more than two million rows are left out."""
    with workspace.reading() as connection:
        new = connection.execute(
            "SELECT table_id FROM profiles WHERE NOT overlapped AND profile IS NOT NULL"
        ).fetchall()
        total = connection.execute("SELECT coalesce(sum(rows), 0) FROM tables").fetchone()[0]
        contained = set(connection.execute("SELECT child, parent FROM contained").fetchall())
    if not new or total > MOST_ROWS:
        return
    from windlass.lake.overlap import find_overlaps

    tables = [table for table in known_tables(workspace) if _says_something(table)]
    found = find_overlaps(tables, fresh={str(row[0]) for row in new}, progress=progress)
    rows = [
        (int(edge.child), int(edge.parent), edge.share, json.dumps(edge.columns), json.dumps(edge.keys))
        for edge in found
        if (int(edge.child), int(edge.parent)) not in contained
    ]
    with workspace.transaction() as connection:
        connection.executemany("INSERT OR REPLACE INTO overlaps VALUES (?, ?, ?, ?, ?)", rows)
        connection.executemany("UPDATE profiles SET overlapped = 1 WHERE table_id = ?", new)


def _says_something(table: LakeTable) -> bool:
    """Whether shared rows of a table have a reason: there are several, with values that do not merely count up."""
    columns = table.profile.columns
    return table.profile.rows >= _LEAST_ROWS and any(c.column.distinct > 2 and not c.counts_up for c in columns)


def _profiled(workspace: Workspace, table_id: int, name: str, progress: Progress) -> TableProfile | None:
    from windlass.lake.profile import profile_table

    check_cancelled(progress)
    progress.advance("profile", detail=name)
    try:
        return profile_table(name, stored_cells(workspace, table_id))
    except ReadError:  # longer than what is kept of it
        return None


def _store_profiles(connection: sqlite3.Connection, profiled: Sequence[tuple[int, TableProfile | None]]) -> None:
    from windlass.lake.profile_format import pack_profile

    connection.executemany(
        "INSERT OR REPLACE INTO profiles (table_id, version, profile) VALUES (?, ?, ?)",
        [(table_id, VERSION, None if profile is None else pack_profile(profile)) for table_id, profile in profiled],
    )


def table_names(workspace: Workspace) -> dict[int, tuple[str, str]]:
    """(file, name) of every table of a file that is there, by the table's id."""
    with workspace.reading() as connection:
        rows = connection.execute(
            f"SELECT id, ({_PATH.format('tables.document_id')}) AS file, name FROM tables"
        ).fetchall()
    return {table_id: (file, name) for table_id, file, name in rows if file is not None}


def known_tables(workspace: Workspace) -> list[LakeTable]:
    """Every profiled table; its id is that of its row in the database, as text."""
    from windlass.lake.profile_format import unpack_profile

    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT table_id, profile FROM profiles WHERE version = ? AND profile IS NOT NULL", (VERSION,)
        ).fetchall()
    return [_lake_table(workspace, table_id, unpack_profile(profile)) for table_id, profile in rows]


def _lake_table(workspace: Workspace, table_id: int, profile: TableProfile | None) -> LakeTable:
    from windlass.lake.containment import LakeTable

    assert profile is not None
    return LakeTable(str(table_id), profile, partial(_load, workspace, table_id))


def _load(workspace: Workspace, table_id: int) -> HashedTable:
    from windlass.lake.hashing import hash_table

    return hash_table(stored_cells(workspace, table_id))


def _survey_texts(workspace: Workspace, progress: Progress) -> int:
    places = ", ".join("?" * len(TABULAR_KINDS))
    with workspace.reading() as connection:
        new = connection.execute(
            "SELECT id, characters FROM documents LEFT JOIN signatures ON document_id = id AND version = ?"
            f" WHERE document_id IS NULL AND kind NOT IN ({places}) ORDER BY id",
            (VERSION, *TABULAR_KINDS),
        ).fetchall()
    if not new:
        return 0
    progress.start("compare", len(new), "texts")
    for lot in _lots(new):
        check_cancelled(progress)
        signed = _signed(workspace, lot)
        pairs = _near_pairs(workspace, signed)
        with workspace.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO signatures (document_id, version, slots) VALUES (?, ?, ?)",
                [(doc_id, VERSION, slots) for doc_id, slots in signed.items()],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO near_copies (first, second, similarity) VALUES (?, ?, ?)", pairs
            )
        progress.advance("compare", len(lot))
    progress.finish("compare")
    return len(new)


def _lots(documents: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    lot: list[int] = []
    size = 0
    for doc_id, characters in documents:
        if lot and size + characters > _LOT_CHARACTERS:
            yield lot
            lot, size = [], 0
        lot.append(doc_id)
        size += characters
    if lot:
        yield lot


def _texts(workspace: Workspace, documents: Sequence[int]) -> list[str]:
    with workspace.reading() as connection:
        return [document_text(connection, doc_id) or "" for doc_id in documents]


def _signed(workspace: Workspace, documents: Sequence[int]) -> dict[int, bytes | None]:
    from windlass.lake.text_dedup import shingle_texts, sign_sets

    sets = shingle_texts(_texts(workspace, documents))
    table = sign_sets(sets)
    filled = sets.offsets[1:] > sets.offsets[:-1]
    return {doc_id: row.tobytes() if some else None for doc_id, row, some in zip(documents, table, filled, strict=True)}


def _near_pairs(workspace: Workspace, signed: dict[int, bytes | None]) -> list[tuple[int, int, float]]:
    """Verified pairs of which one text is among those just signed."""
    import numpy as np

    from windlass.lake.text_dedup import propose_pairs, shingle_texts, similarities

    with workspace.reading() as connection:
        known: list[tuple[int, Any]] = connection.execute(
            "SELECT document_id, slots FROM signatures WHERE version = ? AND slots IS NOT NULL", (VERSION,)
        ).fetchall()
    known += [(doc_id, slots) for doc_id, slots in signed.items() if slots is not None]
    if len(known) < 2:
        return []
    ids = np.array([doc_id for doc_id, _ in known])
    table = np.frombuffer(bytearray(b"".join(slots for _, slots in known)), np.uint32).reshape(len(known), -1)
    pairs = ids[propose_pairs(table, np.ones(len(ids), np.bool_))]
    pairs = np.sort(pairs[np.isin(pairs, list(signed)).any(axis=1)], axis=1)
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(pairs), 1000):
        some = pairs[start : start + 1000]
        involved, places = np.unique(some, return_inverse=True)
        sets = shingle_texts(_texts(workspace, involved.tolist()))
        exact = similarities(sets, places.reshape(-1, 2).astype(np.int64))
        found += [(int(a), int(b), float(share)) for (a, b), share in zip(some, exact, strict=True) if share == share]
    return found
