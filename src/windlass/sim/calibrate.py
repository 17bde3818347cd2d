"""From measured rows to fitted numbers, and this machine measured as a device.

`fit` turns rows (an operator and its seconds) into an `Efficiency`, `fit_collective` turns (bytes, seconds) into lines.
`measure_local` times a few products, copies and reads of this machine; `windlass doctor --calibrate` keeps the outcome
in one record under the user cache directory, which `hardware("local")` and every cost model read.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import SimulationError, UsageError
from windlass.core.program import ITEM_BYTES, OpCost
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.tasks import usable_cores
from windlass.kernels.blas import one_thread_a_product
from windlass.sim.cost import CollectiveFit, CollectiveKind, gemm_seconds
from windlass.sim.fitting import least_squares
from windlass.sim.hardware import Efficiency, HardwareSpec, Tier

Row = tuple[OpCost, float]
Floats = NDArray[np.float64]
FORMAT = 1
_LEAST_ROWS = 6


def fit(rows: Iterable[Row], hardware: HardwareSpec) -> Efficiency:
    """The efficiencies that describe `rows` best, class by class; a class without rows keeps the device's own.

    Errors are logarithms of predicted over measured, with soft-L1 from 10 % on, so that rows of microseconds count as
    much as rows of seconds and a few bad ones do not bend the curve.

    Args:
        rows: Operators and their measured seconds; `gemm`, `elementwise`, `copy` and attention.
        hardware: The device they ran on, with its peaks.

    Raises:
        UsageError: a time is not above 0, or a class has fewer than six rows.
    """
    by_class: dict[str, list[Row]] = {}
    for cost, seconds in rows:
        if not 0 < seconds < math.inf:
            raise UsageError(f"a {cost.kind} of shape {cost.shape} took {seconds} s", hint="drop rows that failed")
        name = cost.kind.split("_")[0] if cost.kind != "copy" else "elementwise"
        by_class.setdefault(name, []).append((cost, seconds))
    found = hardware.efficiency
    for name, chosen in by_class.items():
        if len(chosen) < _LEAST_ROWS:
            raise UsageError(f"{len(chosen)} rows of {name} are too few to fit", hint=f"at least {_LEAST_ROWS}")
        found = _FITS[name](chosen, hardware, found)
    return found


def prediction_errors(rows: Sequence[Row], hardware: HardwareSpec, fitted: Efficiency) -> Floats:
    """float64 [rows]: |predicted / measured - 1| of matrix products."""
    relative: Floats = np.abs(np.exp(residuals_of(fitted, rows, hardware)) - 1.0)
    return relative


def fit_collective(
    rows: Iterable[tuple[float, float]],
    *,
    kind: CollectiveKind,
    fabric: str,
    ranks: int,
    nodes: int = 1,
    protocols: int = 2,
    source: str = "",
) -> CollectiveFit:
    """The lower envelope of alpha-beta lines through (bytes, seconds); several times of one size count by their median.

    Raises:
        UsageError: fewer sizes than numbers to fit.
    """
    times: dict[float, list[float]] = {}
    for nbytes, seconds in rows:
        times.setdefault(float(nbytes), []).append(float(seconds))
    sizes = np.array(sorted(times))
    measured = np.array([float(np.median(times[size])) for size in sizes])
    if sizes.size < 2 * protocols + 1 or not (measured > 0).all():
        raise UsageError(
            f"{sizes.size} sizes are too few for {protocols} lines", hint="measure more sizes, all times above 0"
        )

    def seconds_of(z: Floats) -> Floats:
        lines: Floats = np.exp(z[0::2, None]) + sizes / np.exp(z[1::2, None])
        fastest: Floats = lines.min(axis=0)
        return fastest

    def residuals(z: Floats) -> Floats:
        logs: Floats = np.log(seconds_of(z) / measured)
        return logs

    best, least = np.empty(0), math.inf
    for start in _starts(sizes, measured, protocols):
        z = least_squares(residuals, start)
        error = float(np.abs(seconds_of(z) / measured - 1.0).mean())
        if error < least:
            best, least = z, error
    lines = tuple((float(a), float(b)) for a, b in np.exp(best).reshape(-1, 2))
    return CollectiveFit(kind, fabric, ranks, nodes, tuple(sorted(lines)), least, source)


def measure_local(progress: Progress | None = None) -> HardwareSpec:
    """This machine as a device named `local`: products of 1, 8, 64 and 512 rows, memory, disk, an empty operation.

    Takes some five seconds, at most ten. Each figure is the best of several tries, which is what the machine can do;
    a busy machine does less.

    Raises:
        Cancelled: between two measurements.
    """
    spec, rows = measured_products(progress)
    cores = usable_cores()
    with one_thread_a_product(), ThreadPoolExecutor(cores) as pool:
        passes = _pass_rows(pool, cores)
    named = f"{len(rows)} products and {len(passes)} passes over memory on this machine"
    return replace(spec, efficiency=replace(fit([*rows, *passes], spec), fitted_on=named))


def measured_products(progress: Progress | None = None) -> tuple[HardwareSpec, list[Row]]:
    """This machine with its peaks and no fit yet, and the products that a fit can be made on."""
    watched = progress if progress is not None else Silent()
    cores = usable_cores()
    watched.start("measure", 5, "measurements")
    with one_thread_a_product(), ThreadPoolExecutor(cores) as pool:
        peak = _step(watched, lambda: _peak_flops(pool, cores))
        memory = _step(watched, lambda: _memory_bandwidth(pool, cores))
        disk = _step(watched, _disk_bandwidth)
        start = _step(watched, _empty_operation)
        rows = _step(watched, lambda: _product_rows(pool, cores))
    watched.finish("measure")
    return _local_spec(cores, peak, memory, disk, start), rows


def local_device() -> HardwareSpec:
    """The device of the calibration record of this machine.

    Raises:
        SimulationError: it was never calibrated.
    """
    found = read_record().get("device")
    if found is None:
        raise SimulationError("this machine was never measured", hint="run `windlass doctor --calibrate` (20 s)")
    tiers = tuple(Tier(**tier) for tier in found["tiers"])
    return HardwareSpec(**{**found, "tiers": tiers, "efficiency": Efficiency(**found["efficiency"]), "freq_mhz": None})


def calibrate(progress: Progress | None = None) -> HardwareSpec:
    """Measure this machine and write its part of the calibration record."""
    spec = measure_local(progress)
    update_record("device", asdict(spec))
    return spec


def record_path() -> Path:
    """Where this machine's calibration record lies: one a machine, since a home folder may be shared by several."""
    named = os.environ.get("WINDLASS_CALIBRATION")
    if named:
        return Path(named).expanduser().absolute()
    machine = "".join(c if c.isalnum() else "-" for c in f"{platform.node()}-{platform.machine()}-{usable_cores()}")
    folder = Path(platformdirs.user_cache_dir("windlass", appauthor=False)) / "calibration"
    return folder / f"{machine}.json"


def read_record() -> dict[str, Any]:
    """The sections of the record; empty when there is none.

    Raises:
        WorkspaceError: it is damaged, or of a newer format.
    """
    try:
        return storage.read_manifest(record_path(), FORMAT)
    except FileNotFoundError:
        return {}


def update_record(section: str, content: dict[str, Any]) -> None:
    """Replace one section of the record; the others stay."""
    path = record_path()
    storage.make_folder(path.parent)
    storage.write_manifest(path, FORMAT, {**read_record(), section: content})


def _starts(sizes: Floats, measured: Floats, protocols: int) -> list[Floats]:
    """Where a fit of several lines may begin: cut the sizes at several places, a line through each piece."""
    places = np.unique((np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7]) * sizes.size).astype(int))
    starts = []
    for chosen in combinations(places[places >= 2].tolist(), protocols - 1):
        edges = [0, *chosen, sizes.size]
        pieces = [slice(a, b) for a, b in pairwise(edges) if b - a >= 2]
        lines = [_line(sizes[piece], measured[piece]) for piece in pieces]
        if len(lines) == protocols:
            starts.append(np.log(np.array(lines).ravel()))
    return starts


def _line(x: Floats, t: Floats) -> tuple[float, float]:
    """alpha and beta of the line with the least relative squares; both kept above 0."""
    columns = np.stack([1.0 / t, x / t], axis=1)
    alpha, slope = np.linalg.lstsq(columns, np.ones(t.size), rcond=None)[0]
    least = float(t.min())
    return max(float(alpha), 0.05 * least), 1.0 / max(float(slope), 0.05 * least / float(x.max()))


def _fit_gemm(rows: list[Row], hardware: HardwareSpec, start: Efficiency) -> Efficiency:
    m, n, k, nbytes, peak, measured = _gemm_columns(rows, hardware)

    def efficiency(z: Floats) -> Efficiency:
        # Rows that say nothing about a number let it run away; beyond these bounds nothing changes any more.
        compute, memory, quantised = (1.0 / (1.0 + np.exp(-np.clip(z[[0, 1, 4]], -12.0, 12.0)))).tolist()
        p, seconds = 1.0 + math.exp(min(float(z[2]), 4.0)), math.exp(min(max(float(z[3]), -30.0), 0.0))
        return replace(start, compute=compute, memory=memory, p=p, start=seconds, quantised=quantised)

    def residuals(z: Floats) -> Floats:
        logs: Floats = np.log(gemm_seconds(m, n, k, nbytes, peak, hardware, efficiency(z)) / measured)
        return logs

    # The shortest time measured is a bound on the start-up.
    first = np.array([1.0, 1.0, -0.5, math.log(float(measured.min()) / 2), -1.0])
    found = efficiency(least_squares(residuals, first))
    return replace(found, error=float(prediction_errors(rows, hardware, found).mean()))


def residuals_of(fitted: Efficiency, rows: Sequence[Row], hardware: HardwareSpec) -> Floats:
    """float64 [rows]: log(predicted / measured) of matrix products."""
    m, n, k, nbytes, peak, measured = _gemm_columns(rows, hardware)
    logs: Floats = np.log(gemm_seconds(m, n, k, nbytes, peak, hardware, fitted) / measured)
    return logs


def _fit_elementwise(rows: list[Row], hardware: HardwareSpec, start: Efficiency) -> Efficiency:
    ideal = np.array([cost.bytes for cost, _ in rows]) / hardware.mem_bw
    measured = np.array([seconds for _, seconds in rows])

    def residuals(z: Floats) -> Floats:
        logs: Floats = np.log((np.exp(z[0]) + ideal / np.exp(z[1])) / measured)
        return logs

    z = least_squares(residuals, np.array([math.log(float(measured.min()) / 2), -0.3]))
    error = float(np.abs(np.exp(residuals(z)) - 1.0).mean())
    begin, memory = np.exp(z).tolist()
    return replace(start, elementwise_start=begin, elementwise_memory=memory, elementwise_error=error)


def _fit_attention(rows: list[Row], hardware: HardwareSpec, start: Efficiency) -> Efficiency:
    compute = np.array([cost.flops / hardware.peak(cost.dtype) for cost, _ in rows])
    memory = np.array([cost.bytes for cost, _ in rows]) / hardware.mem_bw
    measured = np.array([seconds for _, seconds in rows])

    def residuals(z: Floats) -> Floats:
        parts = (compute / np.exp(z[0])) ** start.p + (memory / np.exp(z[1])) ** start.p
        logs: Floats = np.log((start.start + parts ** (1.0 / start.p)) / measured)
        return logs

    z = least_squares(residuals, np.array([-0.7, -0.3]))
    error = float(np.abs(np.exp(residuals(z)) - 1.0).mean())
    of_compute, of_memory = np.exp(z).tolist()
    return replace(start, attention_compute=of_compute, attention_memory=of_memory, attention_error=error)


_FITS: dict[str, Callable[[list[Row], HardwareSpec, Efficiency], Efficiency]] = {
    "gemm": _fit_gemm,
    "elementwise": _fit_elementwise,
    "attention": _fit_attention,
}


def _gemm_columns(rows: Sequence[Row], hardware: HardwareSpec) -> tuple[Floats, ...]:
    shapes = np.array([cost.shape for cost, _ in rows], np.float64)
    m, n, k = shapes.T
    nbytes = np.array([cost.bytes for cost, _ in rows])
    peak = np.array([hardware.peak(cost.dtype) for cost, _ in rows])
    return m, n, k, nbytes, peak, np.array([seconds for _, seconds in rows])


def _local_spec(cores: int, peak: float, memory: float, disk: float, start: float) -> HardwareSpec:
    import psutil

    total = int(psutil.virtual_memory().total)
    free = max(storage.free_bytes(Path(tempfile.gettempdir())), 1)
    ram = Tier("ram", total, memory, memory)
    return HardwareSpec(
        name="local",
        flops={"fp64": peak / 2, "fp32": peak},
        tiers=(ram, Tier("disk", free, disk, disk, 1e-4)),
        units=cores,
        kernel_launch_s=start,
        tdp_w=15.0 * cores,
        idle_w=5.0,
        l2_bytes=None,
        freq_mhz=None,
        usd_per_h=None,
        efficiency=Efficiency(),
        link=None,
        host=None,
        source=f"measured on this machine: {platform.machine()}, {cores} cores; power assumed, 15 W a core",
        verified=True,
    )


def _step(progress: Progress, measure: Callable[[], Any]) -> Any:
    check_cancelled(progress)
    value = measure()
    progress.advance("measure")
    return value


def _best(run: Callable[[], object], *, tries: int = 5, seconds: float = 0.5) -> float:
    """The shortest of `tries` runs, fewer when they take long; after one that is not counted."""
    run()
    begun, best = time.perf_counter(), math.inf
    for _ in range(tries):
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
        if time.perf_counter() - begun > seconds:
            break
    return max(best, 1e-9)


def _together(pool: ThreadPoolExecutor, cores: int, work: Callable[[int], object]) -> Callable[[], object]:
    """`work(core)` on every core at once; on one core without the pool's hand-over."""
    return (lambda: work(0)) if cores == 1 else (lambda: list(pool.map(work, range(cores))))


def _peak_flops(pool: ThreadPoolExecutor, cores: int) -> float:
    side = 768
    a, out = np.ones((side, side), np.float32), np.empty((cores, side, side), np.float32)
    seconds = _best(_together(pool, cores, lambda core: np.matmul(a, a, out=out[core])), seconds=1.0)
    return float(2.0 * side**3 * cores / seconds)


def _memory_bandwidth(pool: ThreadPoolExecutor, cores: int) -> float:
    source = np.ones((cores, 1 << 23), np.float32)  # 32 MiB a core, beyond the caches
    seconds = _best(_together(pool, cores, lambda core: source[core].sum()), seconds=1.0)
    return float(source.nbytes / seconds)


def _disk_bandwidth() -> float:
    size = 1 << 26
    with tempfile.NamedTemporaryFile(prefix="windlass-calibrate-") as file:
        file.write(b"\1" * size)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)  # else memory is measured
        before = time.perf_counter()
        file.seek(0)
        while file.read(1 << 22):
            pass
        return size / max(time.perf_counter() - before, 1e-9)


def _empty_operation() -> float:
    one = np.zeros(1, np.float32)
    count = 2000

    def many() -> None:
        for _ in range(count):
            np.add(one, one, out=one)

    return _best(many) / count


def _product_rows(pool: ThreadPoolExecutor, cores: int) -> list[Row]:
    """Products spread over the cores by columns, as the engine spreads them."""
    rows = []
    for m in (1, 8, 64, 512):
        for n, k in ((576, 576), (1536, 576), (576, 1536), (2048, 2048)):
            a = np.ones((m, k), np.float32)
            b = np.ones((cores, k, n // cores), np.float32)
            out = np.empty((cores, m, n // cores), np.float32)

            def run(core: int, a: Floats = a, b: Floats = b, out: Floats = out) -> None:  # type: ignore[assignment]
                np.matmul(a, b[core], out=out[core])

            rows.append((OpCost.gemm(m, n, k, "fp32"), _best(_together(pool, cores, run), seconds=0.15)))
    return rows


def _pass_rows(pool: ThreadPoolExecutor, cores: int) -> list[Row]:
    """One reading and one writing pass over arrays of 16 KiB to 32 MiB a core."""
    rows = []
    for size in (1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 22, 1 << 23):
        source, out = np.ones((cores, size), np.float32), np.empty((cores, size), np.float32)

        def run(core: int, source: Any = source, out: Any = out) -> None:
            np.multiply(source[core], 2.0, out=out[core])

        nbytes = 2.0 * cores * size * ITEM_BYTES["fp32"]
        cost = OpCost(float(cores * size), nbytes, "fp32", "elementwise", (cores, size))
        rows.append((cost, _best(_together(pool, cores, run), seconds=0.15)))
    return rows
