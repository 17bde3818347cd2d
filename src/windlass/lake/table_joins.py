"""How the tables of a folder fit together: joins between them, without those that only repeat another table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent
from windlass.core.workspace import Workspace, mark_changed
from windlass.lake.survey import MOST_ROWS, contained_tables, known_tables, survey, table_names

if TYPE_CHECKING:
    from windlass.lake.containment import LakeTable
    from windlass.lake.schema_graph import SchemaGraph

MOST_TABLES = 300


@dataclass(frozen=True, slots=True)
class TableJoin:
    """`columns` of one table refer to `keys` of another, with a probability and what it follows from."""

    child_file: str
    child: str
    columns: tuple[str, ...]
    parent_file: str
    parent: str
    keys: tuple[str, ...]
    probability: float
    mutual: bool
    why: str


def survey_all(workspace: Workspace, progress: Progress | None = None) -> int:
    """`survey`, and the joins anew when a table is new. Needs the workspace's lock.

    Folders of more than 300 tables or two million rows are left to `predict_joins`.

    Returns:
        How many tables and texts were new.

    Raises:
        Cancelled: Stopped through `progress`; what was committed stays.
        StorageError: The disk is full or failing.
    """
    with workspace.reading() as connection:
        before = connection.execute("SELECT coalesce(max(table_id), 0) FROM profiles").fetchone()
    new = survey(workspace, progress)
    with workspace.reading() as connection:
        after = connection.execute("SELECT coalesce(max(table_id), 0) FROM profiles").fetchone()
        tables, rows = connection.execute("SELECT count(*), coalesce(sum(rows), 0) FROM tables").fetchone()
    if before != after and 1 < tables <= MOST_TABLES and rows <= MOST_ROWS:
        _store(workspace, progress or Silent())
    if new:  # what the page remembers of the folder is out of date
        with workspace.transaction() as connection:
            mark_changed(connection)
    return new


def predict_joins(workspace: Workspace, progress: Progress | None = None) -> SchemaGraph:
    """The joins that are believed between the tables of a surveyed workspace.

    Tables are called by their names, and by file and name where two have the same. A table that is contained in
    another one takes no part: what it joins, the other joins as well.

    Raises:
        UsageError: More than 300 tables.
        Cancelled: Stopped through `progress`.
    """
    return _predicted([table for _, table in _named_tables(workspace)], progress or Silent())


def stored_joins(workspace: Workspace) -> list[TableJoin]:
    """The joins of the last survey, most probable first."""
    names = table_names(workspace)
    with workspace.reading() as connection:
        rows = connection.execute("SELECT child, columns, parent, keys, probability, mutual, why FROM joins").fetchall()
    joins = [
        TableJoin(
            *names[row[0]],
            tuple(json.loads(row[1])),
            *names[row[2]],
            tuple(json.loads(row[3])),
            row[4],
            bool(row[5]),
            row[6],
        )
        for row in rows
        if row[0] in names and row[2] in names
    ]
    return sorted(joins, key=lambda join: (-join.probability, join.child_file, join.child, join.columns))


def _store(workspace: Workspace, progress: Progress) -> None:
    named = _named_tables(workspace)
    graph = _predicted([table for _, table in named], progress)
    ids = {table.id: table_id for table_id, table in named}
    rows = [
        (
            ids[join.child],
            json.dumps(join.columns),
            ids[join.parent],
            json.dumps(join.keys),
            join.probability,
            join.mutual,
            graph.why(join),
        )
        for join in graph.joins
    ]
    with workspace.transaction() as connection:
        connection.execute("DELETE FROM joins")
        connection.executemany("INSERT INTO joins VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _predicted(tables: list[LakeTable], progress: Progress) -> SchemaGraph:
    from windlass.lake.join_candidates import find_joins
    from windlass.lake.schema_graph import build_schema

    if len(tables) > MOST_TABLES:
        raise UsageError(
            f"{len(tables)} tables are too many to predict joins between", hint=f"at most {MOST_TABLES} in one folder"
        )
    return build_schema([table.id for table in tables], find_joins(tables, progress=progress))


def _named_tables(workspace: Workspace) -> list[tuple[int, LakeTable]]:
    """(id of the row, table under a name of its own) of every table that is no part of another."""
    repeated = {entry.child for entry in contained_tables(workspace)}
    names = table_names(workspace)
    chosen = [(int(table.id), table) for table in known_tables(workspace)]
    chosen = [(number, table) for number, table in chosen if number in names and number not in repeated]
    counts = Counter(names[number][1] for number, _ in chosen)
    named = []
    for number, table in chosen:
        file, name = names[number]
        # A folder may hold two sheets of one name in files of one name only at different paths; those are told apart.
        named.append((number, replace(table, id=name if counts[name] == 1 else f"{file}: {name} ({number})")))
    return named
