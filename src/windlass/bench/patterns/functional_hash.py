"""`functional-hash`: the classes of NAS-Bench-201, and how many evaluations a search saves.

The fitness of a cell is its validation accuracy in the benchmark's table; an evaluation is a look-up that counts as one
training. The goal of a search is a cell as good as the fifth best of the space.
"""

from __future__ import annotations

import csv
import gzip
import statistics
from collections.abc import Iterable
from typing import Any

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.patterns.data import shared_file
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.errors import NotFound
from windlass.patterns.cell_probe import CellProbe
from windlass.patterns.equivalence_cache import EquivalenceCache
from windlass.patterns.evolution import RegularizedEvolution, SearchBudget
from windlass.patterns.functional_hash import FunctionalHasher, FunctionKey, mix_text
from windlass.patterns.search_space import OPERATIONS, Cell, CellSpace

_SPACE = CellSpace()


class _Remembered(FunctionalHasher[Cell]):
    """Keys that were computed before: many searches walk over the same cells."""

    def __init__(self, keys: dict[Cell, FunctionKey]) -> None:
        super().__init__(CellProbe(_SPACE))
        self.keys = keys

    def hash(self, candidate: Cell) -> FunctionKey:
        return self.keys[candidate]


def run(context: BenchContext) -> BenchReport:
    step = 10 if context.quick else 1
    cells = [_SPACE.cell(number) for number in range(0, _SPACE.size, step)]
    made = compare(lambda: _keys(cells), None, warm_up=False, progress=context.progress)
    keys: dict[Cell, FunctionKey] = made.ours.result
    forms = {cell: normal_form(cell) for cell in cells}
    classes = len({key.primary for key in keys.values()})
    pairs = len({(keys[cell].primary, forms[cell]) for cell in cells})
    wrong = pairs - classes + pairs - len(set(forms.values()))
    each = made.ours.wall_median / len(cells)
    metrics: list[Metric] = [
        metric("disagreements with the symbolic normal form", "", float(wrong), better="lower", most=0),
        metric("all keys", "s", made.ours.wall_median, better="lower", most=60, note=f"{1000 * each:.2f} ms a cell"),
    ]
    if not context.quick:
        metrics.insert(0, metric("classes off 4,660", "", float(abs(classes - 4660)), better="lower", most=0,
                                 note=f"{classes} of {len(cells)} cells"))  # fmt: skip
        metrics += _searches(context, keys, forms)
    return context.report(
        mode="measured",
        workload=f"{len(cells):,} cells of NAS-Bench-201, CIFAR-10 accuracies after 12 epochs from its table",
        metrics=metrics,
    )


def _keys(cells: Iterable[Cell]) -> dict[Cell, FunctionKey]:
    hasher = FunctionalHasher(CellProbe(_SPACE))
    return {cell: hasher.hash(cell) for cell in cells}


def _accuracies() -> dict[Cell, float]:
    with gzip.open(shared_file("nas/nasbench201_cifar10.csv.gz"), "rt", encoding="utf-8", newline="") as file:
        return {_SPACE.parse(row["cellstr"]): float(row["cifar10-val"]) for row in csv.DictReader(file)}


def _searches(context: BenchContext, keys: dict[Cell, FunctionKey], forms: dict[Cell, Any]) -> list[Metric]:
    try:
        table = _accuracies()
    except NotFound:
        return []
    goal = sorted(table.values())[-5]
    tables: dict[str, tuple[dict[Cell, FunctionKey] | None, bool]] = {
        "no cache": (None, False),
        "text hash": ({cell: _as_key(cell) for cell in table}, False),
        "WL graph hash": (_graph_keys(table), False),
        "functional hash": (keys, False),
        "functional hash, novelty": (keys, True),
    }
    medians = {}
    for name, (chosen, novelty) in tables.items():
        if name == "WL graph hash" and chosen is None:
            continue
        counts = []
        for seed in range(100):
            cache = None if chosen is None else EquivalenceCache(_Remembered(chosen))
            search = RegularizedEvolution(
                _SPACE, table.__getitem__, cache=cache, budget=SearchBudget(evaluations=5000), novelty=novelty
            )
            counts.append(search.run(seed, goal=goal).history[-1].evaluations)
        medians[name] = statistics.median(counts)
        context.progress.advance("search", 1, name)
    ours, best = medians["functional hash"], medians["functional hash, novelty"]
    unit, what = "evaluations", "to the top 5, median of 100 searches"
    return [
        metric(f"functional hash: {what}", unit, ours, better="lower", peer=medians["no cache"], peer_name="no cache",
               least_ratio=1.3),
        metric(f"functional hash: {what} (graph hash)", unit, ours, better="lower", peer=medians.get("WL graph hash"),
               peer_name="networkx WL hash", least_ratio=1.1),
        metric(f"with novelty: {what}", unit, best, better="lower", peer=medians["no cache"], peer_name="no cache",
               least_ratio=1.6),
        metric(f"text hash: {what}", unit, medians["text hash"], better="lower", peer=medians["no cache"],
               peer_name="no cache"),
    ]  # fmt: skip


def _as_key(value: object) -> FunctionKey:
    number = mix_text(0, repr(value))
    return FunctionKey(number, number, 0.0)


def _graph_keys(cells: Iterable[Cell]) -> dict[Cell, FunctionKey] | None:
    """Weisfeiler-Lehman hashes with operations as nodes, what carries nothing left out."""
    networkx = peer_module("networkx")
    if networkx is None:
        return None
    keys = {}
    for cell in cells:
        graph = networkx.DiGraph()
        for node in range(_SPACE.nodes):
            graph.add_node(node, op={0: "input", _SPACE.nodes - 1: "output"}.get(node, "sum"))
        for at, ((source, target), op) in enumerate(zip(_SPACE.edges, cell, strict=True)):
            if op:
                graph.add_node(f"e{at}", op=OPERATIONS[op])
                graph.add_edges_from([(source, f"e{at}"), (f"e{at}", target)])
        live = networkx.descendants(graph, 0) & networkx.ancestors(graph, _SPACE.nodes - 1)
        graph = graph.subgraph([0, _SPACE.nodes - 1, *live])
        keys[cell] = _as_key(networkx.weisfeiler_lehman_graph_hash(graph, node_attr="op", iterations=6))
    return keys


def normal_form(cell: Cell) -> Any:
    """The output of a cell as a sum of terms: pooling goes into sums, convolutions do not, zeros vanish."""
    values: list[dict[Any, int]] = [{("input",): 1}]
    for target in range(1, _SPACE.nodes):
        total: dict[Any, int] = {}
        for (source, to), op in zip(_SPACE.edges, cell, strict=True):
            if to != target or not values[source] or OPERATIONS[op] == "none":
                continue
            terms = values[source]
            if OPERATIONS[op] == "avg_pool_3x3":
                terms = {("pool", term): count for term, count in terms.items()}
            elif OPERATIONS[op] != "skip_connect":
                terms = {(op, frozenset(terms.items())): 1}
            for term, count in terms.items():
                total[term] = total.get(term, 0) + count
        values.append(total)
    return frozenset(values[-1].items())
