"""`matrix-completion`: time to the accuracy of exact alternating least squares, and real tables beside imputers.

The exact peer is our own solver of the normal equations, compiled and vectorised like the rest, from the same start.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.patterns.data import shared_file
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.progress import Silent
from windlass.patterns.completion import MatrixCompletion


def run(context: BenchContext) -> BenchReport:
    metrics: list[Metric] = []
    cases = (
        [(1000, 64, 400, 4.0)] if context.quick else [(4000, 8, 200, 0.9), (4000, 64, 400, 4.0), (4000, 128, 450, 6.0)]
    )
    for size, rank, per_row, least in cases:
        metrics += _exact(context, size, rank, per_row, least)
    if not context.quick:
        metrics += _growth(context)
    tables = ["hangzhou_metro"] if context.quick else ["hangzhou_metro", "nyc_taxi"]
    for name in tables:
        for share in (0.4,) if context.quick else (0.4, 0.7):
            metrics += _table(context, name, share)
    return context.report(
        mode="measured",
        workload="synthetic rank k with noise 0.05, and traffic tables with cells hidden at random",
        metrics=metrics,
    )


def _synthetic(size: int, rank: int, per_row: int, seed: int) -> tuple[Any, Any]:
    """Known cells as three lists in float32, and 50,000 cells (rows, columns, noiseless values) to judge by."""
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal((size, rank)) / rank**0.25 for _ in range(2))
    rows = np.repeat(np.arange(size), per_row)
    columns = np.concatenate([rng.permutation(size)[:per_row] for _ in range(size)])
    values = np.einsum("ij,ij->i", left[rows], right[columns]) + 0.05 * rng.standard_normal(len(rows))
    asked = rng.integers(0, size, (2, 50_000))
    truth = np.einsum("ij,ij->i", left[asked[0]], right[asked[1]])
    return (rows, columns, values.astype(np.float32)), (*asked, truth)


def _model(rank: int, solver: str, rounds: int) -> MatrixCompletion:
    return MatrixCompletion(
        rank, solver=solver, regularization=1e-3, biases=False, validation_fraction=0, tol=0, max_iter=rounds
    )


class _Watch(Silent):
    """Notes the error on cells that a fit does not know after each of its rounds."""

    def __init__(self, model: MatrixCompletion, asked: Any) -> None:
        super().__init__()
        self.model, self.asked = model, asked
        self.errors: list[float] = []

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        made = self.model._running.predict(self.asked[0], self.asked[1])
        self.errors.append(float(np.sqrt(np.mean((made - self.asked[2]) ** 2))))


def _errors_by_round(model: MatrixCompletion, cells: Any, asked: Any) -> list[float]:
    watch = _Watch(model, asked)
    model.fit(cells, progress=watch)
    return watch.errors


def _rmse(model: MatrixCompletion, asked: Any) -> float:
    return float(np.sqrt(np.mean((model.values_at(asked[0], asked[1]) - asked[2]) ** 2)))


def _exact(context: BenchContext, size: int, rank: int, per_row: int, least: float) -> list[Metric]:
    """Rounds that each solver needs to 1.01 times the final error of the exact one; then the time of so many."""
    cells, asked = _synthetic(size, rank, per_row, context.seed)
    errors_of = {solver: _errors_by_round(_model(rank, solver, 12), cells, asked) for solver in ("exact", "auto")}
    goal = 1.01 * errors_of["exact"][-1]
    rounds = {
        solver: 1 + next(at for at, error in enumerate(errors) if error <= goal)
        for solver, errors in errors_of.items()
        if min(errors) <= goal
    }
    name = f"{size:,} x {size:,}, k = {rank}, {len(cells[0]):,} cells"
    if len(rounds) < 2:
        return [metric(f"{name}: reached the goal", "", 0.0, better="higher", least=1)]
    both = compare(
        lambda: _model(rank, "auto", rounds["auto"]).fit(cells),
        lambda: _model(rank, "exact", rounds["exact"]).fit(cells),
        progress=context.progress,
    )
    assert both.peer is not None
    note = f"{rounds['auto']} rounds against {rounds['exact']}"
    out = both.metrics(f"{name}: to 1.01 x the exact error", peer_name="exact ALS (ours, compiled)", least_ratio=least)
    errors = [_rmse(side.result, asked) for side in (both.ours, both.peer)]
    out.append(metric(f"{name}: RMSE", "", errors[0], better="lower", peer=errors[1], peer_name="exact ALS", note=note))
    return out


def _growth(context: BenchContext) -> list[Metric]:
    seconds = {}
    for rank, per_row in ((64, 200), (64, 400), (128, 400)):
        cells, _ = _synthetic(4000, rank, per_row, context.seed)
        made = compare(lambda cells=cells, rank=rank: _model(rank, "inexact", 4).fit(cells), None)  # type: ignore[misc]
        seconds[rank, per_row] = made.ours.cpu_median
    return [
        metric("time, cells doubled", "times", seconds[64, 400] / seconds[64, 200], better="lower", most=2.2),
        metric("time, k doubled", "times", seconds[128, 400] / seconds[64, 400], better="lower", most=2.6),
    ]


def _table(context: BenchContext, name: str, share: float) -> list[Metric]:
    """A traffic table, locations as columns, a share of the cells hidden."""
    with np.load(shared_file(f"completion/{name}.npz")) as file:
        full = file["values"].astype(np.float64).T
    hidden = np.random.default_rng(context.seed).random(full.shape) < share
    table = np.where(hidden, np.nan, full)
    results = {}
    ours = compare(lambda: MatrixCompletion(regularization=0.01).fit_transform(table), None, progress=context.progress)
    results["ours"] = _error(ours.ours.result, full, hidden)
    impute, experimental = peer_module("sklearn.impute"), peer_module("sklearn.experimental")
    best: tuple[float, float, str] | None = None
    if impute is not None and experimental is not None:
        peer_module("sklearn.experimental.enable_iterative_imputer")
        ways: dict[str, Any] = {"KNNImputer": impute.KNNImputer()}
        if full.shape[1] <= 100:
            ways["IterativeImputer"] = impute.IterativeImputer(max_iter=5, random_state=0)
        for label, way in ways.items():
            began = time.perf_counter()  # once: some take a minute
            made = way.fit_transform(table)
            found = (_error(made, full, hidden), time.perf_counter() - began, label)
            best = found if best is None or found[0] < best[0] else best
    title = f"{name}, {share:.0%} hidden"
    means = np.where(hidden, np.nanmean(table, axis=0), full)
    return [
        metric(
            f"{title}: RMSE", "", results["ours"], better="lower", peer=best[0] if best else None,
            peer_name=best[2] if best else "scikit-learn", least_ratio=1,
            note=f"column means {_error(means, full, hidden):.3g}",
        ),
        metric(
            f"{title}: time", "s", ours.ours.wall_median, better="lower", peer=best[1] if best else None,
            peer_name=best[2] if best else "scikit-learn", least_ratio=10,
        ),
    ]  # fmt: skip


def _error(made: np.ndarray, full: np.ndarray, hidden: np.ndarray) -> float:
    return float(np.sqrt(np.mean((made[hidden] - full[hidden]) ** 2)))
