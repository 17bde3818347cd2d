"""What every estimator of this package shares: parameters, checked input, tags.

The contract is scikit-learn's (`get_params`, `set_params`, fitted names that end in `_`, `n_features_in_`,
`feature_names_in_`, its words for bad input), without importing it: scikit-learn and SciPy take a second to import and
200 MB to install, and the rest of Windlass needs neither. Where scikit-learn is loaded, its `clone`, `Pipeline`, grid
search and `check_estimator` find all they look for.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import DataError, DataTypeError, NotFitted, UsageError
from windlass.core.randomness import bits

Kind = Literal["clusterer", "transformer", "density_estimator", "classifier"]
Floats = NDArray[np.float64]


class ConvergenceLog(NamedTuple):
    """One step of an iterative fit: its number, the objective after it, seconds since the start, and what else."""

    step: int
    objective: float
    seconds: float
    detail: dict[str, float]


class Estimator:
    """Base of all estimators: `__init__` stores its parameters untouched, everything is validated in `fit`."""

    _kind: Kind = "clusterer"
    _transforms = False
    _allow_nan = False
    _allow_sparse = False
    _positive_only = False
    _preserves = ("float64",)

    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters by name; `deep` is there for callers that pass it."""
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def set_params(self, **params: Any) -> Self:
        """Change constructor parameters.

        Raises:
            DataError: There is no such parameter (a `ValueError`, as scikit-learn raises).
        """
        known = _parameters(type(self))
        for name, value in params.items():
            if name not in known:
                raise DataError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}",
                    hint=f"valid parameters are {', '.join(known)}",
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = _parameters(type(self))
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if repr(getattr(self, name)) != repr(default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=self._kind,
            target_tags=TargetTags(required=self._kind == "classifier"),
            transformer_tags=TransformerTags(preserves_dtype=list(self._preserves)) if self._transforms else None,
            classifier_tags=ClassifierTags() if self._kind == "classifier" else None,
            input_tags=InputTags(
                allow_nan=self._allow_nan,
                sparse=self._allow_sparse,
                positive_only=self._positive_only,
                pairwise=getattr(self, "metric", None) == "precomputed",
            ),
        )

    def _read(self, X: Any, *, reset: bool, at_least: int = 1) -> Floats:
        """`X` as float64 `[n, d]`, finite unless the class allows NaN.

        Args:
            reset: True in `fit`: remember the columns. False later: hold `X` to them.
            at_least: The fewest rows there is an answer for.

        Raises:
            DataError, DataTypeError: In scikit-learn's words, with the place of the first bad value.
        """
        self._check_names(X, reset)
        array = as_matrix(X, type(self).__name__, allow_nan=self._allow_nan, at_least=at_least)
        self._check_width(array.shape[1], reset)
        return array

    def _check_width(self, width: int, reset: bool) -> None:
        if reset:
            self.n_features_in_ = width
        elif width != self.n_features_in_:
            raise DataError(
                f"X has {width} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                "input"
            )

    def _check_names(self, X: Any, reset: bool) -> None:
        names, seen, who = column_names(X), getattr(self, "feature_names_in_", None), type(self).__name__
        if reset:
            if names is not None:
                self.feature_names_in_ = names
            elif seen is not None:
                del self.feature_names_in_
        elif names is None and seen is not None:
            warnings.warn(
                f"X does not have valid feature names, but {who} was fitted with feature names",
                UserWarning,
                stacklevel=4,
            )
        elif names is not None and seen is None:
            warnings.warn(f"X has feature names, but {who} was fitted without feature names", UserWarning, stacklevel=4)
        elif names is not None and seen is not None and list(names) != list(seen):
            raise DataError(_name_difference(names, seen))

    def _fitted(self, name: str) -> Any:
        """The fitted attribute `name`.

        Raises:
            NotFitted: `fit` was not called.
        """
        if name not in self.__dict__:
            raise _not_fitted_class("sklearn.exceptions" in sys.modules)(
                f"This {type(self).__name__} instance is not fitted yet", hint="call fit first"
            )
        return self.__dict__[name]


def _parameters(kind: type) -> dict[str, Any]:
    """Names and defaults of the constructor's parameters."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    return {name: each.default for name, each in list(signature.parameters.items())[1:]}


@functools.cache
def _not_fitted_class(with_sklearn: bool) -> type[NotFitted]:
    """Our error, which is scikit-learn's too where that is loaded, so that its users' `except` catches it."""
    if not with_sklearn:
        return NotFitted
    theirs = sys.modules["sklearn.exceptions"].NotFittedError
    return type("NotFitted", (NotFitted, theirs), {"__doc__": NotFitted.__doc__})


def as_matrix(X: Any, who: str, *, allow_nan: bool = False, at_least: int = 1) -> Floats:
    """float64 `[n, d]` from an array, a list of rows or a data frame; no copy is made of float64 arrays.

    Raises:
        DataError, DataTypeError: No numbers, not two axes, too few rows or columns, NaN or infinity where none may be.
    """
    if hasattr(X, "tocsr"):
        raise DataTypeError(f"{who} got a sparse matrix", hint="pass X.toarray(): sparse input is not supported here")
    raw = np.asarray(X)
    if raw.dtype.kind == "c":
        raise DataError(f"Complex data not supported: {who} got {raw.dtype}")
    try:
        array = np.asarray(raw, dtype=np.float64)
    except TypeError as error:
        raise DataTypeError(str(error), hint=f"{who} needs numbers") from error
    except ValueError as error:
        raise DataError(f"{who} needs numbers: {error}", hint="for categories use KMedoids with a metric") from error
    if array.ndim != 2:
        raise DataError(
            f"Expected 2D array, got {array.ndim}D array instead",
            hint="Reshape your data: X.reshape(-1, 1) for one feature, X.reshape(1, -1) for one sample",
        )
    for axis, word, least in ((0, "sample", at_least), (1, "feature", 1)):
        if array.shape[axis] < least:
            raise DataError(
                f"Found array with {array.shape[axis]} {word}(s) (shape={array.shape}) while a minimum of {least} is "
                f"required by {who}." + (f" n_{word}s = {array.shape[axis]}" if array.shape[axis] else "")
            )
    _check_finite(array, who, allow_nan)
    return array


def _check_finite(array: Floats, who: str, allow_nan: bool) -> None:
    bad = np.isinf(array) if allow_nan else ~np.isfinite(array)
    if bad.any():
        row, column = (int(at) for at in np.argwhere(bad)[0])
        value = "NaN" if np.isnan(array[row, column]) else "infinity"
        raise DataError(
            f"Input X contains {value} (row {row}, column {column}): {who} does not accept it",
            hint="drop or fill such rows first (MatrixCompletion fills)" if value == "NaN" else "",
        )


def column_names(X: Any) -> NDArray[np.object_] | None:
    """The column names of a data frame whose names are all text, else None."""
    columns = getattr(X, "columns", None)
    if columns is None:
        return None
    names = list(columns)
    if names and all(isinstance(name, str) for name in names):
        return np.asarray(names, dtype=object)
    return None


def _name_difference(names: Any, seen: Any) -> str:
    lines = ["The feature names should match those that were passed during fit."]
    new, missing = sorted(set(names) - set(seen)), sorted(set(seen) - set(names))
    if new:
        lines += ["Feature names unseen at fit time:", *(f"- {name}" for name in new[:5])]
    if missing:
        lines += ["Feature names seen at fit time, yet now missing:", *(f"- {name}" for name in missing[:5])]
    if not new and not missing:
        lines += ["Feature names must be in the same order as they were in fit."]
    return "\n".join(lines) + "\n"


def seed_of(random_state: Any) -> int:
    """One seed from what scikit-learn's users pass: None (always the same seed, 0), an int, a NumPy generator.

    Raises:
        UsageError: It is none of these.
    """
    if random_state is None:
        return 0
    if isinstance(random_state, (int, np.integer)):
        return bits(int(random_state), "random_state") & 0x7FFFFFFFFFFFFFFF
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(0, 2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(0, 2**63 - 1))
    raise UsageError(f"random_state is {random_state!r}", hint="pass None, an int or a NumPy generator")


def read_weights(sample_weight: Any, count: int) -> Floats:
    """float64 `[n]`, all one when None.

    Raises:
        DataError: Another length, a negative or not finite weight, or all zero.
    """
    if sample_weight is None:
        return np.ones(count)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(count, float(weights))
    if weights.ndim != 1:
        raise DataError("Sample weights must be 1D array or scalar")
    if weights.shape != (count,):
        raise DataError(f"sample_weight.shape == {weights.shape}, expected ({count},)")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise DataError("sample weights must be finite, not negative, and not all zero")
    return weights


def canonical_order(X: NDArray[Any]) -> NDArray[np.int64]:
    """int64 `[n]`: rows in lexicographic order of their values (first column first, NaN last, ties by position).

    What is done in this order does not depend on the order in which rows came.

    Example:
        >>> canonical_order(np.array([[2.0, 0], [1, 5], [1, 3]])).tolist()
        [2, 1, 0]
    """
    return np.lexsort(X.T[::-1]).astype(np.int64, copy=False)
