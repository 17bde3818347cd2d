"""The public data that patterns are measured on, where somebody has it.

The folder that `WINDLASS_SHARED_DATA` names holds `patterns/`: clustering sets with reference labels, p-median problems
with their optima, traffic of two cities, and the accuracies of all cells of NAS-Bench-201.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.bench.shared_data import shared_path

OPTIMA = {"pmed1": 5819, "pmed10": 1255, "pmed20": 1789, "pmed40": 5128}


def shared_file(name: str) -> Path:
    """A file of the shared data, by its path under `patterns`.

    Raises:
        DataMissing: It is not there.
    """
    return shared_path(f"patterns/{name}")


def numeric_columns(name: str, columns: slice) -> NDArray[np.float64]:
    """float64 `[n, d]`: some columns of a compressed CSV file without a line of names."""
    with gzip.open(shared_file(name), "rt", encoding="utf-8", newline="") as file:
        return np.array([row[columns] for row in csv.reader(file) if row], np.float64)


def letters() -> NDArray[np.float64]:
    """float64 `[20000, 16]`: letter recognition."""
    return numeric_columns("kmedoids/letter.csv.gz", slice(0, 16))


def leaves() -> NDArray[np.float64]:
    """float64 `[1600, 64]`: textures of plant leaves."""
    return numeric_columns("kmedoids/plant_leaves_texture.csv.gz", slice(1, 65))


def p_median(name: str) -> tuple[NDArray[np.float64], int]:
    """All shortest paths `[n, n]` of a p-median problem, and its p."""
    with gzip.open(shared_file(f"kmedoids/{name}.txt.gz"), "rt", encoding="utf-8") as file:
        n, _, p = (int(part) for part in next(file).split())
        paths = np.full((n, n), np.inf)
        for line in file:
            if line.strip():
                u, v, length = (int(part) for part in line.split())
                paths[u - 1, v - 1] = paths[v - 1, u - 1] = length
    np.fill_diagonal(paths, 0)
    for via in range(n):
        np.minimum(paths, paths[:, via : via + 1] + paths[via], out=paths)
    return paths, p


def clusters(name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points and reference labels (0 is noise) of one clustering set."""
    parts = [np.loadtxt(shared_file(f"clusters/{name}.{kind}.gz"), ndmin=1) for kind in ("data", "labels0")]
    return parts[0], parts[1].astype(np.int64)
