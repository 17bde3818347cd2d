"""`r2d2`: which of 1,535 real tables are contained in which, against one DuckDB `EXCEPT` for each possible pair.

Profiles are given to ours, loaded tables to DuckDB. Pairs whose column names rule containment out are left out on both
sides, which is all the pruning DuckDB gets; its time is measured on a sample of them and scaled. The row "as in the
paper" runs the published funnel on the same hashes: numeric ranges, then ten sampled rows on four sampled columns.
Quality is counted against truth found by brute force, for whole containment and for shares of half and more. The other
figures: how the time grows on a generated lake, what a terabyte would take (simulated, see `r2d2_cluster`), and what
the retention plan costs above its bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.lake.data import true_containments, true_overlaps, unpack_tables
from windlass.bench.lake.generated_lake import generated_lake
from windlass.bench.lake.r2d2_cluster import on_ray, terabyte
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import integers, permutation
from windlass.lake.containment import LakeTable, find_containment, schema_groups
from windlass.lake.hashing import Cells, HashedTable, hash_table
from windlass.lake.overlap import find_overlaps
from windlass.lake.profile import profile_table
from windlass.lake.retention import Prices, Rebuild, plan_retention
from windlass.lake.table_files import file_cells

_QUICK_PAIRS, _PAIRS = 150, 1_000
_PAPER_ROWS, _PAPER_COLUMNS = 10, 4
_SIZES = (500, 1_000, 2_000)
_PLANNED = 2_000


def run(context: BenchContext) -> BenchReport:
    files = unpack_tables(context.workdir / "tables")
    tables = [lake_table(path) for path in files]
    ordered = sorted(tables, key=lambda table: table.id)
    groups = schema_groups([frozenset(table.columns) for table in ordered])
    pairs = np.array([(i, j) for small, large in groups for i in small for j in large if i != j])
    find_containment(tables[:50])
    sample = pairs[permutation(context.seed, "pairs", size=len(pairs))[: _QUICK_PAIRS if context.quick else _PAIRS]]
    peer = except_pairs(sample, ordered, {path.name: path for path in files}) if peer_module("duckdb") else None
    timed = compare(lambda: find_containment(tables), peer, warm_up=False, progress=context.progress)
    graph = timed.ours.result
    found, truth = {(edge.child, edge.parent) for edge in graph.edges}, true_containments()
    scaled = timed.peer.wall_median * len(pairs) / len(sample) if timed.peer else None
    scaled_cpu = timed.peer.cpu_median * len(pairs) / len(sample) if timed.peer else None
    named = "DuckDB EXCEPT for each pair"
    note = f"{timed.ours.spread}; DuckDB ran {len(sample)} of {len(pairs):,} pairs, scaled"
    kept, false = paper_funnel(ordered, pairs, truth, context.seed)
    return context.report(
        mode="measured",
        workload=f"{len(tables):,} CSV tables, {len(pairs):,} pairs by column names, {len(truth)} true containments",
        metrics=[
            metric(
                "all containments, profiles given",
                "s",
                timed.ours.wall_median,
                better="lower",
                peer=scaled,
                peer_name=named,
                least_ratio=20,
                note=note,
            ),
            metric("the same, CPU", "s", timed.ours.cpu_median, better="lower", peer=scaled_cpu, peer_name=named),
            metric("recall", "", len(found & truth) / len(truth), better="higher", least=1.0),
            metric("precision", "", len(found & truth) / max(1, len(found)), better="higher", least=1.0),
            metric("pairs left by profiles", "", graph.stages[1].pairs_out, better="lower"),
            metric("as in the paper: recall", "", kept / len(truth), better="higher", least=1.0),
            metric("as in the paper: false pairs", "", false, better="lower"),
            *shares(tables, context),
            *growth(context),
            *terabyte(context, files),
            *([] if context.quick else on_ray(context)),
            *planning(context),
        ],
    )


def shares(tables: list[LakeTable], context: BenchContext) -> list[Metric]:
    """Partial containments under equal names against the truth, and how many more have other column names."""
    tables = tables[:: 3 if context.quick else 1]
    names = {table.id for table in tables}
    timed = compare(lambda: find_overlaps(tables), None, warm_up=False, progress=context.progress)
    found = {(edge.child, edge.parent): edge.share for edge in timed.ours.result if not edge.renamed}
    truth = {pair: share for pair, share in true_overlaps(0.5).items() if names.issuperset(pair)}
    right = sum(abs(found.get(pair, 0.0) - share) < 1e-3 for pair, share in truth.items())
    return [
        metric(
            "tables that share half of their rows or more",
            "s",
            timed.ours.wall_median,
            better="lower",
            note=f"{len(truth)} pairs among {len(tables):,} tables",
        ),
        metric("the same: recall", "", right / len(truth), better="higher", least=1.0),
        metric("the same: precision", "", right / len(found), better="higher", least=1.0),
        metric("the same under other column names", "", len(timed.ours.result) - len(found), better="higher"),
    ]


def lake_table(path: Path) -> LakeTable:
    """A table without the leading column of row names, which the truth leaves out."""
    cells = file_cells(str(path))
    hashed = hash_table(chosen_columns(cells, [n for n, name in enumerate(cells.names) if name.lower() != "rownames"]))
    return LakeTable(path.name, profile_table(path.name, hashed), lambda: hashed)


def chosen_columns(cells: Cells, places: list[int]) -> Cells:
    starts, ends = (np.ascontiguousarray(spans[places]) for spans in (cells.starts, cells.ends))
    return replace(cells, names=tuple(cells.names[place] for place in places), starts=starts, ends=ends)


def except_pairs(sample: Any, tables: list[LakeTable], paths: dict[str, Path]) -> Callable[[], int]:
    """One query for each pair over tables that are loaded already; it may stop at the first row that is missing."""
    import duckdb

    connection = duckdb.connect()
    loaded: dict[int, str] = {}
    queries = []
    for child, parent in sample.tolist():
        for number in (child, parent):
            if number not in loaded:
                loaded[number] = f"t{number}"
                source = "read_csv(?, header = true, all_varchar = true)"
                path = str(paths[tables[number].id])
                connection.execute(f"CREATE TABLE t{number} AS SELECT * FROM {source}", [path])
        columns = ", ".join(f'"{column.name}"' for column in tables[child].profile.columns)
        missing = f"SELECT {columns} FROM {loaded[child]} EXCEPT SELECT {columns} FROM {loaded[parent]}"
        queries.append(f"SELECT 1 FROM ({missing}) LIMIT 1")

    def ask() -> int:
        contained = 0
        for query in queries:
            try:
                contained += connection.execute(query).fetchone() is None
            except duckdb.Error:  # a column whose name DuckDB reads differently
                continue
        return contained

    return ask


def paper_funnel(tables: list[LakeTable], pairs: Any, truth: set[tuple[str, str]], seed: int) -> tuple[int, int]:
    """(true pairs kept, false pairs kept) by numeric ranges and a sample of rows and columns."""
    true = false = 0
    hashed: dict[int, HashedTable] = {}
    for child, parent in pairs.tolist():
        own, other = tables[child], tables[parent]
        names = list(own.columns)
        ranges = [(own.profile.columns[own.columns[n]], other.profile.columns[other.columns[n]]) for n in names]
        if any(
            not math.isnan(a.low) and not math.isnan(b.low) and (a.low < b.low or a.high > b.high) for a, b in ranges
        ):
            continue
        for number in (child, parent):
            if number not in hashed:
                hashed[number] = tables[number].load()
        some = [names[int(n)] for n in permutation(seed, child, parent, size=len(names))[:_PAPER_COLUMNS]]
        rows = permutation(seed, child, parent, "rows", size=hashed[child].rows)[:_PAPER_ROWS]
        if np.isin(hashed[child].row_hashes(some)[rows], hashed[parent].row_hashes(some)).all():
            hit = (own.id, other.id) in truth
            true, false = true + hit, false + (not hit)
    return true, false


def growth(context: BenchContext) -> list[Metric]:
    """Time to compare generated lakes of growing size, in which every family grows."""
    seconds = []
    sizes = _SIZES
    for size in sizes:
        tables = generated_lake(size, context.seed)
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            find_containment(tables)
            runs.append(time.perf_counter() - started)
        seconds.append(sorted(runs)[1])
    exponent = math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])
    return [
        metric(f"generated lake of {sizes[-1]:,} tables", "s", seconds[-1], better="lower"),
        metric("time grows with tables to the power of", "", exponent, better="lower", most=1.3),
    ]


def planning(context: BenchContext) -> list[Metric]:
    """The retention plan of 2,000 files: time, what is saved, and how far it may be from the least cost."""
    prices = Prices(store=1e9, maintain=0, read=1e8, write=1e8, million_rows=0, read_speed=1e6, write_speed=1e6)
    draws = integers(context.seed, "plan", size=_PLANNED * 9, high=1 << 30).reshape(_PLANNED, 9).tolist()
    sizes = {f"{number:05}": 1 + row[0] % 100_000 for number, row in enumerate(draws)}
    names = list(sizes)
    options = [
        Rebuild(names[number], names[other], row[5] % (sizes[names[number]] + 1) // 2)
        for number, row in enumerate(draws)
        for other in {(number + 1 + row[2 + way] % 40) % _PLANNED for way in range(row[1] % 5)}
        if other != number
    ]
    timed = compare(
        lambda: plan_retention(sizes, options, prices=prices, latency_limit_s=1e9), None, progress=context.progress
    )
    plan = timed.ours.result
    return [
        metric("retention plan of 2,000 files", "s", timed.ours.wall_median, better="lower", most=2.0),
        metric("its cost above the least possible, at most", "%", 100 * plan.gap, better="lower", most=1.0),
        metric("its cost", "% of keeping all", 100 * plan.cost_after / plan.cost_before, better="lower"),
    ]
