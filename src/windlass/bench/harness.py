"""Runs benchmarks: one module a system, ours and the peer in turn, one report each.

A benchmark module defines `run(context: BenchContext) -> BenchReport`. It builds its workload under
`context.workdir`, measures with `compare`, and returns `context.report(...)`.
"""

from __future__ import annotations

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import windlass
from windlass.bench.machine import Machine, describe
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core import catalogue
from windlass.core.errors import UsageError
from windlass.core.program import Mode
from windlass.core.progress import Progress, Silent, check_cancelled


@dataclass(frozen=True, slots=True)
class BenchContext:
    """What a benchmark is given.

    Attributes:
        system: Id of the catalogue.
        quick: Run the short version (at most about 20 s on two cores).
        seed: Of every random choice.
        workdir: An empty folder of its own, removed afterwards.
        progress: Where it tells how far it is.
    """

    system: str
    quick: bool
    seed: int
    workdir: Path
    progress: Progress
    machine: Machine = field(default_factory=describe)
    started: float = field(default_factory=time.perf_counter)

    def report(self, *, mode: Mode, workload: str, metrics: Sequence[Metric]) -> BenchReport:
        """The report of this run; `workload` is one line without a full stop."""
        return BenchReport(
            system=self.system,
            mode=mode,
            workload=workload,
            quick=self.quick,
            machine=self.machine,
            seconds=time.perf_counter() - self.started,
            metrics=tuple(metrics),
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall and CPU seconds of each run of one side, in order, and what its last run returned."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    result: Any

    @property
    def wall_median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    @property
    def spread(self) -> str:
        """Fastest to slowest wall time, for the note of a metric."""
        return f"{min(self.wall):.3g} to {max(self.wall):.3g} s in {len(self.wall)} runs"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides of alternating runs; `peer` is None when there was none to run."""

    ours: Timing
    peer: Timing | None

    def metrics(self, name: str, *, peer_name: str, least_ratio: float | None = None) -> list[Metric]:
        """Two metrics, wall and CPU seconds; the target holds for the wall."""
        peer = self.peer
        note = self.ours.spread if peer is None else f"{self.ours.spread}, peer {peer.spread}"
        return [
            metric(
                name,
                "s",
                self.ours.wall_median,
                better="lower",
                peer=peer.wall_median if peer else None,
                peer_name=peer_name,
                least_ratio=least_ratio,
                note=note,
            ),
            metric(
                f"{name}, CPU",
                "s",
                self.ours.cpu_median,
                better="lower",
                peer=peer.cpu_median if peer else None,
                peer_name=peer_name,
            ),
        ]


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object] | None,
    *,
    repeats: int = 3,
    warm_up: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Time two ways of doing the same work in turn, so that a busy machine is unfair to neither.

    Runs ours, peer, peer, ours, ours, peer, ... after one untimed run of each (`warm_up`). CPU seconds count
    this process and the children it has waited for.

    Args:
        peer: None when the peer is not installed.
        repeats: Timed runs of each side, at least three.

    Raises:
        ValueError: fewer than three repeats.
        Cancelled: `progress` was cancelled between two runs.
    """
    sides = {"ours": ours} if peer is None else {"ours": ours, "peer": peer}
    timings = take_turns(sides, repeats=repeats, warm_up=warm_up, progress=progress)
    return Comparison(timings["ours"], timings.get("peer"))


def take_turns(
    sides: dict[str, Callable[[], object]],
    *,
    repeats: int = 3,
    warm_up: bool = True,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """As `compare`, for any number of ways: each round runs all of them, in turn forwards and backwards.

    Raises:
        ValueError: fewer than three repeats.
        Cancelled: `progress` was cancelled between two runs.
    """
    if repeats < 3:
        raise ValueError(f"{repeats} repeats have no median worth reporting: at least 3")
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, object] = {}
    watched = progress if progress is not None else Silent()
    if warm_up:
        for side in sides.values():
            check_cancelled(watched)
            side()
    for repeat in range(repeats):
        for name in sides if repeat % 2 == 0 else reversed(sides):
            check_cancelled(watched)
            cpu_before, wall_before = _cpu_seconds(), time.perf_counter()
            results[name] = sides[name]()
            wall[name].append(time.perf_counter() - wall_before)
            cpu[name].append(_cpu_seconds() - cpu_before)
    return {name: Timing(tuple(wall[name]), tuple(cpu[name]), results[name]) for name in sides}


def peer_module(name: str) -> ModuleType | None:
    """The peer's module, or None when it is not installed.

    Only its absence counts: a peer that is there and fails to import is an error, not a missing peer.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".")[0] == error.name.split(".")[0]:
            return None
        raise


def chosen(ids: Sequence[str], *, everything: bool = False) -> tuple[catalogue.System, ...]:
    """The rows to run: those named, or every row that is built.

    Raises:
        UsageError: nothing named, an unknown id, or one that is planned and has no benchmark yet.
    """
    built = tuple(row for row in catalogue.systems() if row.built)
    if everything:
        return built
    if not ids:
        names = ", ".join(row.id for row in built) or "none yet"
        raise UsageError("no system named", hint=f"name some, or --all; built: {names}")
    rows = tuple(catalogue.system(name) for name in dict.fromkeys(ids))
    for row in rows:
        if not row.built:
            raise UsageError(
                f"{row.id} is planned and has no benchmark yet", hint="`windlass systems` shows what is built"
            )
    return rows


def run_bench(
    ids: Sequence[str], *, quick: bool = False, seed: int = 0, progress: Progress | None = None
) -> Iterator[BenchReport]:
    """Run the benchmarks of `ids` one after the other and yield each report as it is done.

    Raises:
        UsageError: an unknown or planned id, before anything runs.
    """
    for row in chosen(ids):
        yield run_system(row, quick=quick, seed=seed, progress=progress)


def run_system(
    row: catalogue.System, *, quick: bool = False, seed: int = 0, progress: Progress | None = None
) -> BenchReport:
    """Run one benchmark in a temporary folder of its own.

    Raises:
        WindlassError: whatever the benchmark raises, e.g. a model that is not there.
    """
    module = importlib.import_module(row.bench)
    with tempfile.TemporaryDirectory(prefix=f"windlass-bench-{row.id}-") as folder:
        report: BenchReport = module.run(
            BenchContext(
                system=row.id,
                quick=quick,
                seed=seed,
                workdir=Path(folder),
                progress=progress if progress is not None else Silent(),
            )
        )
    return report


def results_folder() -> Path:
    """`docs/results` of the checkout that this Windlass runs from.

    Raises:
        UsageError: it was not installed from a checkout, so there is none.
    """
    root = Path(windlass.__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise UsageError(
            "results are saved to docs/results of a checkout, and this Windlass is not installed from one",
            hint="use --json and keep the output",
        )
    return root / "docs" / "results"


def _cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system
