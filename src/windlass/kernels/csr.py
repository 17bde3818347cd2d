"""Edges to compressed sparse rows, and back: counting sorts, so that time and memory are linear in edges."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def count_rows(rows: Any, indptr: Any) -> None:
    """Where each row begins: `indptr` (int64 [n + 1], zeros at first) from the row number of every edge."""
    for edge in range(rows.size):
        indptr[rows[edge] + 1] += 1
    for row in range(indptr.size - 1):
        indptr[row + 1] += indptr[row]


@compiled
def place(rows: Any, columns: Any, weights: Any, indptr: Any, out_columns: Any, out_weights: Any) -> None:
    """Move every edge into its row, in the order in which edges come; `weights` may be of size 0.

    `indptr` is as `count_rows` makes it, and is again when this returns.
    """
    for edge in range(rows.size):
        row = rows[edge]
        at = indptr[row]
        out_columns[at] = columns[edge]
        if weights.size:
            out_weights[at] = weights[edge]
        indptr[row] = at + 1
    for row in range(indptr.size - 1, 0, -1):
        indptr[row] = indptr[row - 1]
    indptr[0] = 0


@compiled
def expand(indptr: Any, out: Any) -> None:
    """The row number of every entry."""
    for row in range(indptr.size - 1):
        for at in range(indptr[row], indptr[row + 1]):
            out[at] = row


@compiled
def merge_equal(indptr: Any, columns: Any, weights: Any, rule: int) -> Any:
    """Merge neighbouring equal columns of sorted rows in place; returns how many entries are left.

    Args:
        rule: What becomes of their weights: 0 sum, 1 largest, 2 first.
    """
    kept, start = 0, 0
    for row in range(indptr.size - 1):
        stop, begin = indptr[row + 1], kept
        for at in range(start, stop):
            if kept > begin and columns[kept - 1] == columns[at]:
                if weights.size and rule == 0:
                    weights[kept - 1] += weights[at]
                elif weights.size and rule == 1:
                    weights[kept - 1] = max(weights[kept - 1], weights[at])
            else:
                columns[kept] = columns[at]
                if weights.size:
                    weights[kept] = weights[at]
                kept += 1
        start = stop
        indptr[row + 1] = kept
    return kept


@compiled
def first_disorder(indptr: Any, columns: Any, nodes: int) -> Any:
    """The first entry outside 0..nodes-1 or not above the one before it in its row; -1 when there is none."""
    for row in range(indptr.size - 1):
        for at in range(indptr[row], indptr[row + 1]):
            if columns[at] < 0 or columns[at] >= nodes or (at > indptr[row] and columns[at] <= columns[at - 1]):
                return at
    return -1


@compiled
def row_sums(indptr: Any, weights: Any, out: Any) -> None:
    """Sum of each row's weights, or its number of entries when `weights` is of size 0 (float64)."""
    for row in range(indptr.size - 1):
        total = 0.0
        if weights.size:
            for at in range(indptr[row], indptr[row + 1]):
                total += weights[at]
        else:
            total = float(indptr[row + 1] - indptr[row])
        out[row] = total


def transposed(indptr: Any, columns: Any, weights: Any, nodes: int) -> tuple[Any, Any, Any]:
    """The same entries by column; rows come out sorted. `weights` may be of size 0."""
    back = np.zeros(nodes + 1, np.int64)
    count_rows(columns, back)
    rows = np.empty(columns.size, columns.dtype)
    expand(indptr, rows)
    out, out_weights = np.empty_like(columns), np.empty_like(weights)
    place(columns, rows, weights, back, out, out_weights)
    return back, out, out_weights
