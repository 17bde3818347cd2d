"""The public data that the lake is measured on, where somebody has it.

The folder that `WINDLASS_SHARED_DATA` names holds `lake/rdatasets` (1,535 CSV tables of the R data sets collected by
V. Arel-Bundock, and the containments among them found by brute force) and `lake/text` (their documentation texts, and
all pairs of them above a Jaccard similarity of 0.3).
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path

from windlass.bench.shared_data import shared_path


def shared_folder(name: str) -> Path:
    """A folder of the shared data.

    Raises:
        DataMissing: It is not there.
    """
    return shared_path(f"lake/{name}")


def unpack_tables(target: Path) -> list[Path]:
    """The CSV tables, unpacked into `target`, in name order."""
    with zipfile.ZipFile(shared_folder("rdatasets") / "tables.zip") as archive:
        archive.extractall(target)
    return sorted(target.rglob("*.csv"), key=lambda path: path.name)


def true_containments() -> set[tuple[str, str]]:
    """(child, parent) file names of every full containment."""
    return set(true_overlaps(1.0))


def true_overlaps(threshold: float) -> dict[tuple[str, str], float]:
    """The share of the child's rows in the parent, of every (child, parent) at or above a threshold from 0.3 on."""
    with open(shared_folder("rdatasets") / "containment_truth.csv", encoding="utf-8", newline="") as file:
        rows = [(row[0], row[1], float(row[2])) for row in list(csv.reader(file))[1:]]
    return {(child, parent): share for child, parent, share in rows if share >= threshold}


def documentation_texts() -> list[tuple[str, str]]:
    """(id, text) of the documentation texts."""
    with gzip.open(shared_folder("text") / "rdocs.jsonl.gz", "rt", encoding="utf-8") as file:
        return [(entry["id"], entry["text"]) for entry in map(json.loads, file)]


def true_near_duplicates(threshold: float) -> set[tuple[str, str]]:
    """Pairs of ids, sorted, of at least that similarity."""
    with open(shared_folder("text") / "near_duplicate_truth.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {(min(row[:2]), max(row[:2])) for row in rows if float(row[2]) >= threshold}
