"""Graphs whose nodes have known groups: two that are generated, and public ones where somebody has them.

The folder that `WINDLASS_SHARED_DATA` names may hold `retrieval_graphs/NAME_edges.tsv.gz` and `NAME_labels.tsv.gz`
(email-Eu-core, LastFM Asia, Cora: node, group); rows of public graphs are left out where it does not.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.bench.graphs.generated import grouped_graph
from windlass.graphs.files import read_graph
from windlass.graphs.graph import Graph

_PUBLIC = {"email_eu_core_directed": "email_eu_core", "lastfm_asia": "lastfm_asia", "cora": "cora"}
_SMALLEST = 12


@dataclass(frozen=True)
class Labelled:
    """An undirected graph, and each node's group, -1 for none."""

    name: str
    graph: Graph
    group: NDArray[np.int64]

    def groups(self) -> list[NDArray[np.int64]]:
        """The members of each group of twelve or more."""
        found = [np.flatnonzero(self.group == label) for label in np.unique(self.group[self.group >= 0])]
        return [members for members in found if len(members) >= _SMALLEST]


def labelled_graphs(seed: int) -> Iterator[Labelled]:
    """The generated ones, then the public ones that are there."""
    for edges, inside in ((12_000, 0.6), (40_000, 0.35)):
        graph, group = grouped_graph(3_000, edges, seed, groups=20, inside=inside)
        yield Labelled(f"generated, {inside:.0%} of edges inside", graph, group)
    folder = public_folder()
    for edges_name, name in _PUBLIC.items() if folder is not None else ():
        assert folder is not None
        graph = read_graph(folder / f"{edges_name}_edges.tsv.gz")
        yield Labelled(name, graph, _labels(folder / f"{name}_labels.tsv.gz", graph.num_nodes))


def public_folder() -> Path | None:
    """Where the public graphs lie, if anywhere."""
    root = os.environ.get("WINDLASS_SHARED_DATA", "")
    folder = Path(root) / "retrieval_graphs"
    return folder if root and folder.is_dir() else None


def _labels(file: Path, nodes: int) -> NDArray[np.int64]:
    group = np.full(nodes, -1)
    names: dict[str, int] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for row in csv.reader(lines, delimiter="\t"):
            if row and row[0].isdigit() and int(row[0]) < nodes:
                group[int(row[0])] = names.setdefault(row[1], len(names))
    return group
