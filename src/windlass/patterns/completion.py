"""`MatrixCompletion`: the missing cells of a table near low rank, in time close to one pass over the known ones.

`factors` names the paper and says what differs.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import Cancelled, DataError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.tasks import usable_cores
from windlass.kernels.least_squares import leverages, solve_rows_exactly
from windlass.patterns.estimator import ConvergenceLog, Estimator, Floats, column_names, seed_of
from windlass.patterns.factors import Factors
from windlass.patterns.observed import Observed, read_observed

_PATIENCE = 3
_COARSEST, _FINEST = 0.2, 0.05
"""To which share of its start a row's gradient is brought: the less a round gains, the finer."""
_WORTH_A_RANK = 0.99
"""A higher rank must lower the validation error to this share."""


class MatrixCompletion(Estimator):
    """Fills the missing cells of a matrix by two factors of low rank.

    A transformer in place of `IterativeImputer`: missing is NaN. Also takes a SciPy sparse matrix (stored cells are
    known, stored zeros too) or three lists (rows, columns, values). float32 input is computed in float32.

    Args:
        rank: How many directions the rows vary in; `auto` doubles it while the validation error falls by 1 %, then
            looks between the last two.
        solver: `inexact` takes a few steps of conjugate gradients for each row, `exact` solves each row; `auto` is
            inexact where that is faster.
        regularization: Ridge of a row, times its number of known cells.
        biases: Give every row and column a value of its own.
        max_iter: Rounds at most.
        tol: Stop when a round lowers the error by less than this share.
        validation_fraction: Share of the known cells that is held out to choose rank and end; 0 for none.
        n_jobs: Threads; -1 for all cores. The result does not depend on it.
        random_state: Same number, same result. None is one certain number too.

    Attributes:
        components_: `[rank, n]`: the directions.
        row_factors_: `[m, rank]`: how much of each is in a row.
        rank_: The rank used.
        validation_rmse_: Root mean squared error on the held-out cells; NaN when none were.
        uninformed_rows_, uninformed_columns_: Those without a known cell: only biases speak for them.
        history_: One `ConvergenceLog` a round; the objective is the training RMSE.

    Example:
        >>> table = np.outer([1.0, 2, 3, 4, 5], [1.0, 2, 4])
        >>> table[1, 1] = np.nan
        >>> model = MatrixCompletion(rank=1, regularization=1e-6, biases=False, validation_fraction=0)
        >>> round(float(model.fit_transform(table)[1, 1]), 3)
        4.0
    """

    _kind = "transformer"
    _transforms = True
    _allow_nan = True
    _allow_sparse = True

    components_: NDArray[Any]
    row_factors_: NDArray[Any]

    def __init__(
        self,
        rank: Any = "auto",
        *,
        solver: str = "auto",
        regularization: float = 0.01,
        biases: bool = True,
        max_iter: int = 50,
        tol: float = 1e-4,
        validation_fraction: float = 0.05,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.solver = solver
        self.regularization = regularization
        self.biases = biases
        self.max_iter = max_iter
        self.tol = tol
        self.validation_fraction = validation_fraction
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, progress: Progress | None = None) -> Self:
        """Find the factors.

        Raises:
            UsageError, DataError, DataTypeError: A parameter or a value makes no sense; the message names it.
            Cancelled: `progress` was cancelled; the attributes hold the last full round.
        """
        self._check_parameters()
        progress = progress or Silent()
        self._check_names(X, True)
        observed = read_observed(X, type(self).__name__)
        self._check_width(observed.shape[1], True)
        self._seed, self._began = seed_of(self.random_state), time.perf_counter()
        self.history_: list[ConvergenceLog] = []
        whole, held = observed, None
        if self.validation_fraction and observed.size >= 20:
            observed, held = observed.split(self.validation_fraction, self._seed)
            held = held if len(held[0]) else None
        progress.start("complete", self.max_iter, "rounds")
        try:
            found, error = self._search(observed, held, progress)
        except Cancelled:
            if "_running" in self.__dict__:
                self._keep(self.__dict__.pop("_running"), whole, float("nan"))
            raise
        progress.finish("complete")
        self.__dict__.pop("_running", None)
        self._keep(found, whole, error)
        return self

    def _check_parameters(self) -> None:
        if self.solver not in ("auto", "exact", "inexact"):
            raise UsageError(f"solver is {self.solver!r}", hint="auto, exact or inexact")
        if self.rank != "auto" and (not isinstance(self.rank, (int, np.integer)) or self.rank < 1):
            raise UsageError(f"rank is {self.rank!r}", hint="auto, or 1 or more")
        if not 0 <= self.validation_fraction < 0.9:
            raise UsageError(f"validation_fraction is {self.validation_fraction}", hint="0 to 0.9")
        if self.regularization < 0 or self.max_iter < 1:
            raise UsageError("regularization must not be negative, max_iter must be 1 or more")

    def _search(self, observed: Observed, held: Any, progress: Progress) -> tuple[Factors, float]:
        most = max(1, min(observed.shape))
        if self.rank != "auto":
            if self.rank > most:
                raise DataError(f"rank {self.rank} of a {observed.shape[0]} x {observed.shape[1]} matrix")
            if observed.size < self.rank * sum(observed.shape):
                warnings.warn(
                    f"{observed.size} known cells do not determine {self.rank * sum(observed.shape)} numbers of rank "
                    f"{self.rank}: try a lower rank or rank='auto'", UserWarning, stacklevel=3,
                )  # fmt: skip
            return self._fit_rank(int(self.rank), observed, held, progress)
        if held is None:
            return self._fit_rank(min(2, most), observed, None, progress)
        rank, tried = 1, {}
        tried[1] = self._fit_rank(1, observed, held, progress)
        while 2 * rank <= most // 2 and observed.size > 2 * rank * sum(observed.shape):
            tried[2 * rank] = self._fit_rank(2 * rank, observed, held, progress)
            if tried[2 * rank][1] > _WORTH_A_RANK * tried[rank][1]:
                break
            rank *= 2
        low, high = rank, min(2 * rank, max(tried))
        while high - low > max(1, low // 4):
            middle = (low + high) // 2
            tried[middle] = self._fit_rank(middle, observed, held, progress)
            low, high = (middle, high) if tried[middle][1] < tried[low][1] else (low, middle)
        return min(tried.values(), key=lambda found: found[1])

    def _fit_rank(self, rank: int, observed: Observed, held: Any, progress: Progress) -> tuple[Factors, float]:
        factors = Factors(
            observed.shape, rank, biases=self.biases, dtype=observed.rows.values.dtype, threads=self._threads()
        )
        factors.start(observed, self._seed, self.regularization)
        best, best_error, worse = factors, np.inf, 0
        before, tolerance = np.inf, _COARSEST
        for turn in range(self.max_iter):
            check_cancelled(progress)
            exact = self.solver == "exact"
            ridge = float(self.regularization)
            for side, turned in ((observed.columns, True), (observed.rows, False)):
                squared = factors.half_round(side, turned=turned, ridge=ridge, exact=exact, tolerance=tolerance)
            now = float(np.sqrt(squared / observed.size))
            error = _rmse(factors, held) if held is not None else now
            self.history_.append(
                ConvergenceLog(turn, now, time.perf_counter() - self._began, {"rank": rank, "validation": error})
            )
            self._running = factors
            progress.advance("complete", 1, f"rank {rank}, error {error:.4g}")
            if held is None:
                best_error = now
            elif error < best_error:
                best, best_error, worse = factors.copy(), error, 0
            else:
                worse += 1
            fall = (before - now) / now if now else 0.0
            if worse >= _PATIENCE or abs(fall) < self.tol:
                break
            # As exact as what a round gains is worth.
            tolerance = float(np.clip(0.3 * fall, _FINEST, _COARSEST)) if np.isfinite(fall) else _COARSEST
            before = now
        return best, best_error

    def _threads(self) -> int:
        return usable_cores() if self.n_jobs == -1 else int(self.n_jobs or 1)

    def _keep(self, factors: Factors, observed: Observed, error: float) -> None:
        self._factors, self._observed = factors, observed
        self.rank_ = factors.rank
        self.row_factors_ = factors.left[:, : factors.rank]
        self.components_ = factors.right[:, : factors.rank].T
        self.n_iter_ = len(self.history_)
        self.uninformed_rows_ = np.flatnonzero(np.diff(observed.rows.indptr) == 0)
        self.uninformed_columns_ = np.flatnonzero(np.diff(observed.columns.indptr) == 0)
        known = observed.rows
        left = known.values - factors.predict(known.owners, known.indices)
        self.training_rmse_ = float(np.sqrt(np.mean(left**2)))
        held_out = self.validation_fraction and np.isfinite(error) and observed.size >= 20
        self.validation_rmse_ = error if held_out else float("nan")

    def transform(self, X: Any) -> NDArray[Any]:
        """`[m, n]`: X with its missing cells filled and its known cells untouched.

        Each row is solved for by its own known cells, so rows need not be those of the fit.

        Raises:
            NotFitted, DataError: Before `fit`; other columns than in the fit.
        """
        factors: Factors = self._fitted("_factors")
        self._check_names(X, False)
        if not hasattr(X, "tocoo"):
            narrow = getattr(X, "dtype", None) == np.float32
            dense: Any = np.array(self._read(X, reset=False), np.float32 if narrow else np.float64)
        else:
            self._check_width(X.shape[1], False)
            triples = X.tocoo()
            dense = np.full(X.shape, np.nan)
            dense[triples.row, triples.col] = triples.data
        missing = np.isnan(dense)
        if missing.any():
            rows = np.flatnonzero(missing.any(axis=1))
            folded = self._fold(dense[rows])
            filled = folded @ factors.right.T.astype(np.float64) + factors.mean
            dense[rows] = np.where(missing[rows], filled, dense[rows])
        filled_in: NDArray[Any] = dense
        return filled_in

    def _fold(self, rows: NDArray[Any]) -> Floats:
        """float64 `[m, width]`: left factors of rows that may be new, the right ones fixed."""
        factors = self._factors
        known = ~np.isnan(rows)
        indptr = np.concatenate([[0], np.cumsum(known.sum(axis=1))]).astype(np.int64)
        indices = np.nonzero(known)[1].astype(np.int32)
        rank, biases = factors.rank, factors.biases
        right = factors.right.astype(np.float64)
        offsets = (right[:, rank + 1] if biases else np.zeros(len(right))) + factors.mean
        fixed = np.ascontiguousarray(right[:, : rank + biases])
        out = np.zeros((len(rows), rank + biases))
        solve_rows_exactly(
            indptr, indices, rows[known].astype(np.float64), fixed.ravel(), offsets,
            max(float(self.regularization), 1e-12), np.eye(rank + biases).ravel(), out, 0, len(rows),
            np.zeros(len(rows)),
        )  # fmt: skip
        return np.hstack([out, np.ones((len(rows), 1))]) if biases else out

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[Any]:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Add rows: their factors are solved for, the directions stay. Before `fit` it is `fit`.

        Raises:
            DataError: Other columns than in the fit.
        """
        if "_factors" not in self.__dict__:
            return self.fit(X, y)
        factors: Factors = self._factors
        self._check_names(X, False)
        rows = self._read(X, reset=False)
        added = self._fold(rows).astype(factors.left.dtype)
        factors = factors.copy()
        old = self._observed
        known = ~np.isnan(rows)
        at, columns = np.nonzero(known)
        observed = Observed.from_triples(
            np.concatenate([old.rows.owners, at + old.shape[0]]),
            np.concatenate([old.rows.indices, columns]),
            np.concatenate([old.rows.values, rows[known].astype(old.rows.values.dtype)]),
            (old.shape[0] + len(rows), old.shape[1]),
        )
        factors.left = np.concatenate([factors.left, added])
        self._keep(factors, observed, self.validation_rmse_)
        return self

    def values_at(self, rows: Any, columns: Any) -> Floats:
        """float64 `[p]`: the completed value of single cells of the fitted matrix, known or not.

        Raises:
            NotFitted, DataError: Before `fit`; a row or column that is not there.
        """
        factors: Factors = self._fitted("_factors")
        rows, columns = self._cells(rows, columns)
        return factors.predict(rows, columns)

    def standard_error(self, rows: Any, columns: Any) -> Floats:
        """float64 `[p]`: how far a predicted cell may be off, one standard deviation.

        Noise, plus what the row's factors and the column's factors are uncertain by. Infinite where the row or the
        column has fewer than two known cells: such a value would be invented.
        """
        factors: Factors = self._fitted("_factors")
        rows, columns = self._cells(rows, columns)
        total = np.ones(len(rows))
        sides = ((self._observed.rows, rows, columns, 0), (self._observed.columns, columns, rows, 1))
        for side, own, other, turned in sides:
            order = np.argsort(own, kind="stable")
            made = np.empty(len(rows))
            fixed = self._fixed(turned)
            leverages(
                side.indptr, side.indices, fixed, max(float(self.regularization), 1e-9), own[order],
                other[order], made,
            )  # fmt: skip
            total[order] += made
            total[np.diff(side.indptr)[own] < 2] = np.inf
        return self._noise(factors) * np.sqrt(total)

    def _fixed(self, turned: int) -> Floats:
        factors = self._factors
        other = factors.left if turned else factors.right
        chosen = [*range(factors.rank), *([factors.rank + turned] if factors.biases else [])]
        return np.ascontiguousarray(other[:, chosen], np.float64)

    def _noise(self, factors: Factors) -> float:
        """Standard deviation of what the factors leave, the fitted numbers taken off the count of cells."""
        used = factors.width * sum(self._observed.shape)
        free = max(self._observed.size - used, 0.05 * self._observed.size)
        return float(self.training_rmse_ * np.sqrt(self._observed.size / free))

    def _cells(self, rows: Any, columns: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.atleast_1d(np.asarray(rows, np.int64)), np.atleast_1d(np.asarray(columns, np.int64))
        shape = self._observed.shape
        if rows.shape != columns.shape or rows.ndim != 1:
            raise DataError("rows and columns must be lists of one length")
        for name, given, count in (("row", rows, shape[0]), ("column", columns, shape[1])):
            if len(given) and (given.min() < 0 or given.max() >= count):
                raise DataError(f"there is no {name} {int(given.max())}: the matrix has {count}")
        return rows, columns

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """The columns keep their names."""
        names = column_names(input_features) if input_features is not None else None
        if names is None and input_features is not None:
            names = np.asarray(input_features, dtype=object)
        if names is None:
            names = getattr(self, "feature_names_in_", None)
        if names is None:
            names = np.array([f"x{i}" for i in range(self._fitted("n_features_in_"))], dtype=object)
        return names


def _rmse(factors: Factors, held: tuple[Any, Any, Any]) -> float:
    return float(np.sqrt(np.mean((factors.predict(held[0], held[1]) - held[2]) ** 2)))
