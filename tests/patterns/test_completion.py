"""Completion: exact recovery, NumPy's least squares, laws of the descent, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.core.errors import Cancelled, DataError, DataTypeError, NotFitted, UsageError
from windlass.core.progress import Silent
from windlass.patterns.completion import MatrixCompletion
from windlass.patterns.factors import Factors
from windlass.patterns.observed import Observed


def low_rank(m: int, n: int, rank: int, share: float, seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The full matrix, and the same with NaN where nothing is known."""
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) / np.sqrt(rank)
    seen = full + noise * rng.standard_normal((m, n))
    seen[rng.random((m, n)) >= share] = np.nan
    return full, seen


def observed(seen: np.ndarray) -> Observed:
    rows, columns = np.nonzero(~np.isnan(seen))
    return Observed.from_triples(rows, columns, seen[rows, columns], seen.shape)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_exactly_low_rank_is_recovered(seed):
    full, seen = low_rank(120, 100, 3, 0.5, seed)
    for solver in ("exact", "inexact"):
        model = MatrixCompletion(
            3, solver=solver, regularization=0, biases=False, validation_fraction=0, tol=1e-12, max_iter=300
        ).fit(seen)
        rows, columns = np.divmod(np.arange(full.size), 100)
        made = model.values_at(rows, columns).reshape(full.shape)
        assert np.linalg.norm(made - full) <= 1e-6 * np.linalg.norm(full)


@pytest.mark.parametrize("rank", [5, 24])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_half_round_solves_every_row_as_numpy_does(rank, dtype):
    rng = np.random.default_rng(rank)
    _, seen = low_rank(40, 60, 6, 0.6, 1, noise=0.1)
    seen[3] = np.nan
    seen[5, 4:] = np.nan  # fewer cells than the rank
    ridge, known = 0.02, observed(seen.astype(dtype))
    for biases in (False, True):
        expected = {}
        factors = Factors(seen.shape, rank, biases=biases, dtype=dtype)
        factors.right[:, :rank] = rng.standard_normal((60, rank))
        factors.mean = 0.3 if biases else 0.0
        if biases:
            factors.right[:, rank + 1] = rng.standard_normal(60)
        fixed = factors.right[:, : rank + biases].astype(float)
        for row in range(40):
            at = ~np.isnan(seen[row])
            target = seen[row, at] - factors.mean - (factors.right[at, rank + 1] if biases else 0)
            tall = np.vstack([fixed[at], np.sqrt(ridge * at.sum()) * np.eye(rank + biases)])
            expected[row] = np.linalg.lstsq(tall, np.r_[target, np.zeros(rank + biases)], rcond=None)[0]
        expected[3] = np.zeros(rank + biases)
        for exact in (True, False):
            tried = factors.copy()
            for _ in range(1 if exact else 12):
                tried.half_round(known.rows, turned=False, ridge=ridge, exact=exact, tolerance=1e-9)
            got = tried.left[:, : rank + biases]
            wanted = np.array([expected[row] for row in range(40)])
            assert np.allclose(got, wanted, rtol=0, atol=2e-3 if dtype == np.float32 else 1e-7)


def objective(factors: Factors, known: Observed, ridge: float) -> float:
    left = known.rows.values - factors.predict(known.rows.owners, known.rows.indices)
    counts = [np.diff(side.indptr) for side in (known.rows, known.columns)]
    sizes = [(each[:, : factors.rank] ** 2).sum(1) for each in (factors.left, factors.right)]
    return float((left**2).sum() + ridge * (counts[0] @ sizes[0]) + ridge * (counts[1] @ sizes[1]))


@pytest.mark.parametrize("exact", [True, False])
def test_no_half_round_raises_the_objective(exact):
    _, seen = low_rank(60, 50, 18, 0.7, 3, noise=0.2)
    known = observed(seen)
    factors = Factors(seen.shape, 18, biases=False, dtype=np.float64)
    factors.start(known, 0, 0.01)
    before = objective(factors, known, 0.01)
    for turn in range(24):
        side, turned = ((known.columns, True), (known.rows, False))[turn % 2]
        factors.half_round(side, turned=turned, ridge=0.01, exact=exact, tolerance=0.3)
        after = objective(factors, known, 0.01)
        assert after <= before * (1 + 1e-9)
        before = after


def test_known_cells_stay_and_order_does_not_matter():
    _, seen = low_rank(50, 30, 4, 0.6, 5, noise=0.05)
    model = MatrixCompletion(4, biases=False, validation_fraction=0, tol=0, max_iter=400, regularization=0.02)
    made = model.fit_transform(seen)
    known = ~np.isnan(seen)
    assert (made[known] == seen[known]).all() and np.isfinite(made).all()
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(50), rng.permutation(30)
    other = model.fit_transform(seen[rows][:, columns])
    assert np.allclose(other, made[rows][:, columns], atol=1e-4)
    turned = model.fit_transform(seen.T)
    assert np.allclose(turned.T, made, atol=1e-3)


def test_all_kinds_of_input_say_the_same():
    _, seen = low_rank(40, 25, 2, 0.7, 6)
    rows, columns = np.nonzero(~np.isnan(seen))
    values = seen[rows, columns]
    model = MatrixCompletion(2)
    made = model.fit(seen).values_at(rows, columns)
    assert (model.fit((rows, columns, values)).values_at(rows, columns) == made).all()
    frame = type("Coo", (), {"row": rows, "col": columns, "data": values, "shape": seen.shape})
    frame.tocoo = lambda self: self
    assert (model.fit(frame()).values_at(rows, columns) == made).all()
    assert np.allclose(model.transform(frame()), model.transform(seen))
    threads = MatrixCompletion(2, n_jobs=2).fit(seen).values_at(rows, columns)
    assert (threads == made).all()


def test_a_new_row_is_folded_in():
    _, seen = low_rank(60, 30, 3, 0.8, 7, noise=0.01)
    model = MatrixCompletion(3, regularization=1e-3, random_state=1).fit(seen[:50])
    directions = model.components_.copy()
    filled = model.transform(seen[50:])
    model.partial_fit(seen[50:])
    assert model.row_factors_.shape == (60, 3) and (model.components_ == directions).all()
    rows, columns = np.divmod(np.arange(10 * 30), 30)
    missing = np.isnan(seen[50:])
    assert np.allclose(model.values_at(rows + 50, columns).reshape(10, 30)[missing], filled[missing], atol=1e-9)


def test_the_rank_is_found():
    for rank in (1, 4):
        _, seen = low_rank(150, 120, rank, 0.6, 10 + rank, noise=0.05)
        model = MatrixCompletion(biases=False).fit(seen)
        assert model.rank_ == rank
        assert model.validation_rmse_ <= 0.09


def test_intervals_cover():
    inside, asked = 0, 0
    for seed in range(5):
        full, seen = low_rank(120, 80, 3, 0.4, 20 + seed, noise=0.1)
        model = MatrixCompletion(3, biases=False, regularization=1e-4, validation_fraction=0).fit(seen)
        rows, columns = np.nonzero(np.isnan(seen))
        noise = 0.1 * np.random.default_rng(seed).standard_normal(len(rows))
        off = np.abs(model.values_at(rows, columns) - full[rows, columns] - noise)
        inside += int((off <= 1.96 * model.standard_error(rows, columns)).sum())
        asked += len(rows)
    assert 0.90 <= inside / asked <= 0.98


def test_rows_and_columns_without_a_known_cell():
    _, seen = low_rank(30, 20, 2, 0.8, 8)
    seen[4], seen[:, 7] = np.nan, np.nan
    seen[9, 1:] = np.nan
    model = MatrixCompletion(2).fit(seen)
    assert model.uninformed_rows_.tolist() == [4] and model.uninformed_columns_.tolist() == [7]
    assert np.isinf(model.standard_error([4, 9, 0], [0, 3, 7])).all()
    assert np.isfinite(model.standard_error([0], [0])).all()
    assert np.isfinite(model.transform(seen)).all()


def test_bad_input_says_what_and_where():
    with pytest.raises(DataError, match="no cell is known"):
        MatrixCompletion().fit(np.full((3, 3), np.nan))
    with pytest.raises(DataError, match=r"infinity \(row 1, column 0\)"):
        MatrixCompletion().fit([[1.0], [np.inf]])
    with pytest.raises(DataError, match="row 1, column 2 is given twice"):
        MatrixCompletion().fit(([0, 1, 1], [0, 2, 2], [1.0, 2, 3]))
    with pytest.raises(DataTypeError, match="numbers"):
        MatrixCompletion().fit(([0], [0], np.array(["a"])))
    with pytest.raises(DataError, match="rank 9 of a 3 x 2 matrix"):
        MatrixCompletion(9).fit(np.ones((3, 2)))
    with pytest.raises(NotFitted):
        MatrixCompletion().values_at([0], [0])
    with pytest.raises(DataError, match="there is no column 5"):
        MatrixCompletion().fit(np.ones((3, 2))).values_at([0], [5])
    for name, value in (
        ("rank", 0),
        ("solver", "x"),
        ("regularization", -1),
        ("validation_fraction", 1),
        ("max_iter", 0),
    ):
        with pytest.raises(UsageError, match=name):
            MatrixCompletion(**{name: value}).fit(np.ones((3, 2)))
    with pytest.warns(UserWarning, match="do not determine"):
        MatrixCompletion(2).fit(np.eye(6) + np.where(np.eye(6) > 0, 0, np.nan))


def test_a_cancelled_fit_keeps_the_last_round():
    class Impatient(Silent):
        def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
            self.cancel()

    seen = low_rank(60, 40, 2, 0.7, 9)[1]
    model = MatrixCompletion(2)
    with pytest.raises(Cancelled):
        model.fit(seen, progress=Impatient())
    assert np.isfinite(model.transform(seen)).all() and len(model.history_) == 1
