"""Questions that only a whole table can answer: how many, how much in all, which is largest, and look-ups of a row.

Chunks of a table hold some of its rows, so counting over them is wrong by construction. Here a few deterministic
rules turn such a question into one SELECT over the whole table (see `table_intent` and `table_plan`), run by DuckDB
in memory, with no access to files or network, under a time limit; the SQL is the citation. When the rules are not
sure, the answer is None and the passages speak.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from windlass.core.errors import WindlassError
from windlass.lake.document import Column
from windlass.retrieval.table_intent import Intent, read_intent
from windlass.retrieval.table_plan import (
    DATED,
    NUMERIC,
    Plan,
    identifier,
    identity_column,
    make_plan,
    name_stems,
    number,
)
from windlass.retrieval.terms import STOP_WORDS, terms
from windlass.retrieval.types import Answer, Citation, Sentence

if TYPE_CHECKING:
    import duckdb
    import pyarrow

MOST_TABLES = 6
SECONDS = 5.0
_MOST_ROWS = 10
_FEW_VALUES = 500
_ROW = "windlass_row"


@dataclass(frozen=True, slots=True)
class TableSource:
    """A table that may be asked.

    Attributes:
        file: Path of its file, relative to the folder.
        doc_id: Document of that file.
        name: Of the table.
        columns: Its profile.
        rows: Its length.
        load: Reads the whole table, columns named as in `columns`.
        start: Where the table begins in the document's text.
    """

    file: str
    doc_id: int
    name: str
    columns: Sequence[Column]
    rows: int
    load: Callable[[], pyarrow.Table]
    start: int = 0


@dataclass(frozen=True, slots=True)
class _Result:
    """What came out of one plan: the sentence, its SQL, and the rows it speaks of when they are few."""

    text: str
    sql: str
    rows: tuple[int, int] | None


def answer_from_tables(question: str, tables: Sequence[TableSource]) -> Answer | None:
    """The answer that a whole table gives, with its SQL as citation; None when the rules are not sure.

    Args:
        question: In plain words.
        tables: All tables of the folder.

    A table that cannot be loaded is passed over.
    """
    begun = time.perf_counter()
    intent = read_intent(question, STOP_WORDS)
    if intent is None:
        return None
    results: list[tuple[float, int, TableSource, _Result]] = []
    for table in _likely(intent, tables):
        try:
            found = _ask(intent, table)
        except WindlassError:
            continue  # an unreadable table has its own state and message; the others may still answer
        if found is not None:
            results.append((found[0], table.rows, table, found[1]))
    if not results:
        return None
    best_score = max(result[0] for result in results)
    tied = [result for result in results if result[0] == best_score]
    if len({result[3].text.split(":", 1)[-1] for result in tied}) > 1:
        return None  # two tables with an equal claim disagree
    _, _, table, result = max(tied, key=lambda item: item[1])
    return _answer(question, table, result, time.perf_counter() - begun)


def _answer(question: str, table: TableSource, result: _Result, seconds: float) -> Answer:
    citation = Citation(
        number=1,
        file=table.file,
        doc_id=table.doc_id,
        start=table.start,
        end=table.start,
        quote="",
        support=1.0,
        rows=result.rows or (1, table.rows),
        table=table.name,
        sql=result.sql,
    )
    return Answer(
        question=question,
        found=True,
        text=f"{result.text} [1]",
        sentences=(Sentence(result.text, (citation,)),),
        mode="table",
        hits=(),
        passages_used=0,
        passages_found=0,
        timings={"table": seconds},
        evidence=1.0,
    )


def _likely(intent: Intent, tables: Sequence[TableSource]) -> list[TableSource]:
    """The tables whose name, columns or sampled values share most words with the question."""
    asked = {term.stem for term in intent.words} | intent.hints
    asked |= {word for bound in intent.bounds for word in bound.hints}

    def overlap(table: TableSource) -> float:
        names = set(name_stems(table.name)) | set(name_stems(table.file.rsplit("/", 1)[-1]))
        columns = {word for column in table.columns for word in name_stems(column.name)}
        samples = {term.stem for column in table.columns for value in column.samples for term in terms(value)}
        return 2 * len(asked & names) + 1.5 * len(asked & columns) + len(asked & samples)

    scored = [(overlap(table), index) for index, table in enumerate(tables) if table.rows and table.columns]
    best = sorted((item for item in scored if item[0] > 0), key=lambda item: (-item[0], item[1]))[:MOST_TABLES]
    return [tables[index] for _, index in best]


def _ask(intent: Intent, table: TableSource) -> tuple[float, _Result] | None:
    with _Database(table) as database:
        plan = make_plan(
            intent, table.name, table.file, table.columns, table.rows, lambda c: database.values(c, intent.text)
        )
        if plan is None:
            return None
        result = _run(plan, table, database)
        return None if result is None else (plan.score, result)


def _run(plan: Plan, table: TableSource, database: _Database) -> _Result | None:
    where = " WHERE " + " AND ".join(condition.sql for condition in plan.conditions) if plan.conditions else ""
    said = " where " + " and ".join(condition.said for condition in plan.conditions) if plan.conditions else ""
    source = identifier(table.name)
    columns = {column.name: column for column in table.columns}
    if plan.measure == "lookup":
        return _look_up(plan, table, database, where)
    if plan.measure == "top":
        return _top(plan, table, database, where, said)
    if plan.measure == "count":
        sql = f"SELECT count(*) FROM {source}{where}"
        value = database.rows(sql)[0][0]
        return _Result(f"{table.name}: {value:,} rows{said}.", sql, None)
    column = columns[plan.column or ""]
    function = {"distinct": "count(DISTINCT {})", "sum": "sum({})", "average": "avg({})", "median": "median({})",
                "maximum": "max({})", "minimum": "min({})"}[plan.measure]  # fmt: skip
    measured = identifier(column.name) if plan.measure == "distinct" or column.type in DATED else number(column)
    sql = f"SELECT {function.format(measured)}, count({measured}) FROM {source}{where}"
    value, used = database.rows(sql)[0]
    if value is None or not used:
        return None
    name = "different values of" if plan.measure == "distinct" else f"{plan.measure} of"
    over = "" if plan.measure == "distinct" else f" over {used:,} rows"
    return _Result(f"{table.name}: {name} {column.name}{said} is {_figure(value)}{over}.", sql, None)


def _look_up(plan: Plan, table: TableSource, database: _Database, where: str) -> _Result | None:
    keys = tuple(dict.fromkeys(condition.column for condition in plan.conditions))
    shown = [*keys, *(name for name in plan.shown if name not in keys)]
    listed = ", ".join(identifier(name) for name in shown)
    source = identifier(table.name)
    found = database.rows(
        f"SELECT {listed}, min({_ROW}) FROM {source}{where} GROUP BY ALL ORDER BY min({_ROW}) LIMIT {_MOST_ROWS + 1}"
    )
    if not 1 <= len(found) <= _MOST_ROWS or all(row[i] is None for row in found for i in range(len(keys), len(shown))):
        return None
    lines = ["; ".join(f"{name}: {_stored(value)}" for name, value in zip(shown, row, strict=False)) for row in found]
    sql = f"SELECT DISTINCT {listed} FROM {source}{where}"
    rows = (int(found[0][-1]), int(found[0][-1])) if len(found) == 1 else None
    return _Result(" / ".join(lines) + ".", sql, rows)


def _top(plan: Plan, table: TableSource, database: _Database, where: str, said: str) -> _Result | None:
    direction = "DESC" if plan.descending else "ASC"
    source, limit = identifier(table.name), min(plan.limit, _MOST_ROWS)
    if plan.group is not None:
        name = identifier(plan.group)
        also = f" AND {name} IS NOT NULL" if where else f" WHERE {name} IS NOT NULL"
        grouped = f"FROM {source}{where}{also} GROUP BY {name}"
        sql = f"SELECT {name}, count(*) {grouped} ORDER BY 2 {direction}, 1 LIMIT {limit}"
        found = database.rows(sql)
        listed = "; ".join(f"{plan.group} {_stored(key)}: {count:,} rows" for key, count in found)
        return _Result(f"{table.name}{said}: {listed}.", sql, None) if found else None
    column = next(column for column in table.columns if column.name == plan.column)
    measured = number(column) if column.type in NUMERIC else identifier(column.name)
    labels = list(plan.shown)
    identity = identity_column([c for c in table.columns if c.name not in (plan.column, *labels)])
    if identity is not None and not any("name" in name_stems(label) for label in labels):
        labels.append(identity.name)
    shown = ", ".join(identifier(name) for name in [*labels, column.name])
    also = f" AND {measured} IS NOT NULL" if where else f" WHERE {measured} IS NOT NULL"
    body = f" FROM {source}{where}{also} ORDER BY {measured} {direction}"
    found = database.rows(f"SELECT {shown}, {_ROW}{body}, {_ROW} LIMIT {limit}")
    if not found:
        return None
    names = [*labels, column.name]
    lines = ["; ".join(f"{name}: {_stored(value)}" for name, value in zip(names, row, strict=False)) for row in found]
    rows = (int(found[0][-1]), int(found[0][-1])) if len(found) == 1 else None
    return _Result(f"{' / '.join(lines)}{said}.", f"SELECT {shown}{body} LIMIT {limit}", rows)


class _Database:
    """One table in an in-memory DuckDB that can read nothing else, each query under a time limit."""

    def __init__(self, table: TableSource) -> None:
        self._table = table
        self._connection: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> _Database:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a SELECT. Raises `WindlassError` when it takes longer than the limit or fails."""
        import duckdb

        connection = self._open()
        timer = threading.Timer(SECONDS, connection.interrupt)
        timer.start()
        try:
            return connection.execute(sql).fetchall()
        except duckdb.Error as error:
            raise WindlassError(f"table {self._table.name} of {self._table.file}: {error}") from error
        finally:
            timer.cancel()

    def values(self, column: Column, question: str) -> list[str]:
        """Distinct values of a column that could stand in the question."""
        name, source = identifier(column.name), identifier(self._table.name)
        text = f"CAST({name} AS VARCHAR)"
        if column.distinct <= _FEW_VALUES:
            found = self.rows(f"SELECT DISTINCT {text} FROM {source} WHERE {name} IS NOT NULL LIMIT {2 * _FEW_VALUES}")
        else:
            plain = f"' ' || trim(regexp_replace(lower({text}), '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')) || ' '"
            asked = " ".join(re.findall(r"[^\W_]+", question.lower()))
            found = self.rows(
                f"SELECT DISTINCT {text} FROM {source} WHERE {name} IS NOT NULL AND length({plain}) > 3"
                f" AND contains(' {asked} ', {plain}) LIMIT 50"
            )
        return [row[0] for row in found if row[0] and row[0].strip()]

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            import duckdb
            import pyarrow

            loaded = self._table.load()
            numbers = pyarrow.array(range(1, loaded.num_rows + 1), pyarrow.int64())
            connection = duckdb.connect(":memory:", config={"threads": 2})
            connection.register("loaded", loaded.append_column(_ROW, numbers))
            connection.execute(f"CREATE TABLE {identifier(self._table.name)} AS SELECT * FROM loaded")
            connection.unregister("loaded")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            self._connection = connection
        return self._connection


def _figure(value: object) -> str:
    """A computed value as a person would write it: thousands grouped, two decimals."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == int(value) and abs(value) < 1e15:
            return _figure(int(value))
        return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.4g}"
    return _stored(value)


def _stored(value: object) -> str:
    """A value of the table as it stands there: a number of a ship is no amount and is not grouped."""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return " ".join(str(value).split())
