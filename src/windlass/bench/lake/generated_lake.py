"""A generated lake of tables in families: a base, selections and projections of it, and near misses."""

from __future__ import annotations

from functools import partial

import numpy as np

from windlass.core.randomness import integers, permutation, rand
from windlass.lake.containment import LakeTable
from windlass.lake.hashing import Cells, HashedTable
from windlass.lake.profile import profile_table

_FAMILIES, _ROWS, _COLUMNS = 40, 400, 6


def generated_lake(size: int, seed: int) -> list[LakeTable]:
    """So many tables of 40 families; a near miss has one row of its own."""
    tables = []
    for number in range(size):
        table = generated_table(number, seed)
        tables.append(LakeTable(f"{number:05}", profile_table(f"{number:05}", table), partial(_given, table)))
    return tables


def generated_table(number: int, seed: int) -> HashedTable:
    """One of them."""
    family, member = number % _FAMILIES, number // _FAMILIES
    draws = integers(seed, family, size=_COLUMNS * _ROWS, high=5_000).reshape(_COLUMNS, _ROWS)
    if member:
        rows = permutation(seed, number, size=_ROWS)[: 50 + int(300 * rand(seed, number))]
        draws = draws[:, np.sort(rows)]
        if member % 3 == 0:
            draws[0, 0] = 6_000
    columns = list(range(_COLUMNS)) if member % 2 == 0 else [0, 2, 3, 5]
    names = [f"f{family}_{place}" for place in columns]
    hashes = (draws[columns].astype(np.uint64) + np.uint64(family << 20)) * np.uint64(0x9E3779B97F4A7C15)
    spans = np.zeros(hashes.shape, np.int64)
    cells = Cells(tuple(names), np.zeros(1, np.uint8), spans, spans, np.empty(0, np.int64))
    return HashedTable(cells, np.ones(spans.shape, np.uint8), draws[columns].astype(np.float64), hashes)


def _given(table: HashedTable) -> HashedTable:
    return table
