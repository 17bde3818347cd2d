"""The parts of `r2d2` that need more than one machine: tasks on Ray, and a terabyte on a virtual clock.

On Ray the same comparisons run as tasks that load their tables themselves; what they find must be what one process
finds. The terabyte is simulated: the tasks are those of the generated lake, its tables taken for larger ones; a task
takes what reading and hashing its bytes and comparing its rows takes at the speeds measured here, and workers take
tasks in order as they come free, which is what the task pool does. Network and scheduling cost nothing in it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np

from windlass.bench.harness import BenchContext, peer_module
from windlass.bench.lake.generated_lake import generated_lake, generated_table
from windlass.bench.report import Metric, metric
from windlass.core.randomness import uniform
from windlass.core.tasks import TaskPool
from windlass.kernels.sketches import count_members
from windlass.lake.containment import LakeTable, blocks_of, find_containment, possible_pairs, schema_groups
from windlass.lake.hashing import hash_table
from windlass.lake.table_files import file_cells

_TABLES = 2_000
_TERABYTE = 1e12
_ROW_BYTES = 60
_WORKERS = (16, 64)
_RAY_TABLES = 200


def on_ray(context: BenchContext) -> list[Metric]:
    """Pairs found by two Ray workers beside those of this process; nothing where Ray is not installed."""
    if peer_module("ray") is None:
        return []
    plain = generated_lake(_RAY_TABLES, context.seed)
    tables = [
        LakeTable(table.id, table.profile, partial(generated_table, int(table.id), context.seed)) for table in plain
    ]
    started = time.perf_counter()
    found = find_containment(tables, task_pool=TaskPool("ray", 2)).edges
    seconds = time.perf_counter() - started
    same = set(found) ^ set(find_containment(plain).edges)
    note = f"{len(found)} pairs of {_RAY_TABLES} tables in {seconds:.1f} s, the start of Ray counted"
    return [metric("pairs that differ on two Ray workers", "", len(same), better="lower", most=0, note=note)]


def terabyte(context: BenchContext, files: Sequence[Path]) -> list[Metric]:
    """Simulated hours for a lake of a terabyte.

    Args:
        context: Gives the seed.
        files: CSV files to measure the speed of reading and hashing on.
    """
    read_speed, row_seconds = _speeds(files)
    tables = sorted(generated_lake(_TABLES, context.seed), key=lambda table: table.id)
    groups = schema_groups([frozenset(table.columns) for table in tables])
    pairs = possible_pairs(tables, groups, np.ones(len(tables), np.bool_))
    weights = np.exp(2 * uniform(context.seed, "sizes", size=_TABLES)) * [table.profile.rows for table in tables]
    sizes = weights * (_TERABYTE / weights.sum())
    blocks = blocks_of(tables, pairs, lambda number: tables[number].load)
    tasks, read = [], 0.0
    for parent, block in blocks:
        own = [parent, *(number for _, children in block.parts for number, _ in children)]
        size = float(sizes[own].sum())
        read += size
        tasks.append(size / read_speed + size / _ROW_BYTES * row_seconds)
    profiling = (sizes / read_speed).tolist()
    hours = {workers: (finish(profiling, workers) + finish(tasks, workers)) / 3_600 for workers in _WORKERS}
    note = f"simulated; {read_speed / 1e6:.0f} MB/s a worker measured here, {read / _TERABYTE:.1f} TB read to compare"
    few, many = _WORKERS
    return [
        metric(f"1 TB in {_TABLES:,} tables, {few} workers", "h", hours[few], better="lower", note=note),
        metric(f"1 TB in {_TABLES:,} tables, {many} workers", "h", hours[many], better="lower", note=note),
    ]


def finish(tasks: Sequence[float], workers: int) -> float:
    """When the last of some tasks is done, if workers take them in order as they come free.

    Example:
        >>> finish([3.0, 1.0, 1.0, 1.0], 2)
        3.0
    """
    free = list(repeat(0.0, workers))
    for seconds in tasks:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def _speeds(files: Sequence[Path]) -> tuple[float, float]:
    """Bytes a second that one core reads and hashes, and seconds a row that comparing takes."""
    largest = sorted(files, key=lambda path: path.stat().st_size)[-8:]
    started = time.perf_counter()
    hashed = [hash_table(file_cells(str(path))) for path in largest]
    speed = sum(path.stat().st_size for path in largest) / (time.perf_counter() - started)
    started = time.perf_counter()
    for table in hashed:
        rows = table.row_hashes()
        count_members(rows, rows)
    return speed, (time.perf_counter() - started) / sum(table.rows for table in hashed)
