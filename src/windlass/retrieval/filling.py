"""Estimates for the empty number cells of a table, from its other numbers.

The columns are brought to one scale and completed as a matrix of low rank. Every estimate comes with how far it may be
off, and is never written over the source. Columns that number the rows are left out: nothing follows from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from windlass.core.errors import UsageError
from windlass.core.progress import Progress

if TYPE_CHECKING:
    import pyarrow

    from windlass.retrieval.table_questions import TableSource

_FEWEST_CELLS = 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """One empty cell: data row (from 0), column name, value, and one standard deviation of what it may be off by."""

    row: int
    column: str
    value: float
    error: float


@dataclass(frozen=True)
class FilledTable:
    """What could be estimated.

    Attributes:
        table: The table as it stands, unchanged.
        columns: The number columns that took part.
        estimates: By row, then column.
        refused: Empty cells of these columns without an estimate: their row or column holds fewer than two numbers.
        rank: How many directions the rows vary in.
        error_share: Error on known cells that were hidden, as a share of what a column's mean would give; NaN when the
            table is too small to hide any.
    """

    table: pyarrow.Table
    columns: list[str]
    estimates: list[Estimate]
    refused: int
    rank: int
    error_share: float


def fill_table(source: TableSource, progress: Progress) -> FilledTable:
    """Estimate the empty number cells of one table.

    Raises:
        NotFound: The table is gone.
        UsageError: It has fewer than two number columns with values that differ, or fewer than 20 numbers.
        Cancelled: `progress` was cancelled.
    """
    from windlass.patterns.completion import MatrixCompletion

    table, columns = source.load(), source.columns
    wanted = [
        column.name
        for column in columns
        if column.type in ("integer", "number") and not (column.type == "integer" and column.distinct >= table.num_rows)
    ]
    numbers = np.array(
        [table.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in wanted], np.float64
    ).T.reshape(table.num_rows, len(wanted))
    known = np.isfinite(numbers)
    middle = np.array([numbers[known[:, at], at].mean() if known[:, at].any() else 0.0 for at in range(len(wanted))])
    spread = np.array([numbers[known[:, at], at].std() if known[:, at].any() else 0.0 for at in range(len(wanted))])
    varies = spread > 0
    if varies.sum() < 2 or known[:, varies].sum() < _FEWEST_CELLS:
        raise UsageError(
            "this table has too few numbers to estimate others from",
            hint=f"at least two number columns that vary, and {_FEWEST_CELLS} numbers",
        )
    names = [name for name, keep in zip(wanted, varies, strict=True) if keep]
    scaled = np.where(known, (numbers - middle) / np.where(varies, spread, 1), np.nan)[:, varies]
    model = MatrixCompletion(biases=False, regularization=0.05, validation_fraction=0.1).fit(scaled, progress=progress)
    rows, places = np.nonzero(np.isnan(scaled))
    values, errors = model.values_at(rows, places), model.standard_error(rows, places)
    made = np.isfinite(errors)
    estimates = [
        Estimate(
            int(row), names[place], float(value * spread[varies][place] + middle[varies][place]),
            float(error * spread[varies][place]),
        )
        for row, place, value, error in zip(rows[made], places[made], values[made], errors[made], strict=True)
    ]  # fmt: skip
    return FilledTable(table, names, estimates, int((~made).sum()), model.rank_, model.validation_rmse_)


def with_estimates(filled: FilledTable) -> pyarrow.Table:
    """A new table: empty cells hold their estimates, and a last column `estimated` names the columns that do."""
    import pyarrow

    table = filled.table
    marks: list[list[str]] = [[] for _ in range(table.num_rows)]
    for name in filled.columns:
        column = table.column(name).to_pylist()
        for estimate in filled.estimates:
            if estimate.column == name:
                column[estimate.row] = estimate.value
                marks[estimate.row].append(name)
        at = table.column_names.index(name)
        table = table.set_column(at, name, pyarrow.array(column, pyarrow.float64()))
    title = "estimated"
    while title in table.column_names:
        title += "_"
    return table.append_column(title, pyarrow.array([" ".join(mark) for mark in marks]))
