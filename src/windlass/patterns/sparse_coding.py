"""Parts that add up: binary, ternary and discrete sparse coding, and spikes with Gaussian slabs.

Henniges et al., "Binary Sparse Coding" (2010); Exarchakis et al., "Ternary Sparse Coding" (2012) and "Discrete Sparse
Coding" (2017); Sheikh et al., "A Truncated EM Approach for Spike-and-Slab Sparse Coding" (2014). `truncated_em` says
what differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.randomness import uniform
from windlass.kernels.truncated_em import expect_linear, expect_slabs
from windlass.patterns.estimator import Floats
from windlass.patterns.truncated_em import SparseCoding, corrected_prior, normal, started_elements

_LEAST_NOISE = 1e-4


class _LinearCoding(SparseCoding):
    """Discrete activities: `y = sum of s_h W_h` and noise."""

    _tied = True
    _by_angle = False

    def __init__(
        self,
        n_components: int = 8,
        *,
        n_candidates: int = 8,
        max_active: int = 4,
        max_iter: int = 100,
        anneal: float = 5.0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_candidates = n_candidates
        self.max_active = max_active
        self.max_iter = max_iter
        self.anneal = anneal
        self.random_state = random_state

    def _values(self) -> Floats:
        raise NotImplementedError

    def _value_count(self) -> int:
        return len(self._values())

    def _start(self, data: Floats, seed: int) -> None:
        self._scale = max(float(data.std(axis=0).mean()), 1e-12)
        self.components_ = started_elements(data, self.n_components, seed)
        self.noise_ = self._scale
        count = len(self._values())
        self._chances = np.full(count, min(0.5, 1 / self.n_components) / count)

    def _mean_prior(self) -> float:
        return float(self._chances.sum())

    def _expect(self, data: Floats, temperature: float, use: NDArray[np.bool_]) -> tuple[Floats, dict[str, Any]]:
        n, elements = len(data), self.components_
        causes, values = len(elements), self._values()
        off = 1 - self._chances.sum()
        precision = 1 / (temperature * self.noise_**2)
        evidence = np.empty(n)
        mean, active = np.zeros((n, causes)), np.zeros((n, causes))
        second, counts = np.zeros((causes, causes)), np.zeros(len(values))
        gram = elements @ elements.T
        gram[np.diag_indices(causes)] = np.maximum(np.diagonal(gram), 1e-12)
        expect_linear(
            data @ elements.T, gram, values, np.log(self._chances / off), precision, self._by_angle,
            *self._tree.arrays, use, evidence, mean, active, second, counts,
        )  # fmt: skip
        size = np.einsum("ij,ij->i", data, data)
        evidence += causes * np.log(off) - 0.5 * precision * size
        evidence -= 0.5 * data.shape[1] * np.log(2 * np.pi / precision)
        sums = active[use].sum(axis=0)
        return evidence, {"mean": mean, "active": active, "second": second, "counts": counts, "sums": sums}

    def _maximise(self, data: Floats, moments: dict[str, Any], use: NDArray[np.bool_]) -> None:
        used, mean, second = data[use], moments["mean"][use], moments["second"]
        causes, points = len(second), len(used)
        cross = mean.T @ used
        self.components_ = ridge_solve(second, cross, self.components_)
        left = (used**2).sum() - 2 * (self.components_ * cross).sum()
        left += ((self.components_ @ self.components_.T) * second).sum()
        self.noise_ = float(max(np.sqrt(max(left, 0) / used.size), _LEAST_NOISE * self._scale))
        if self._tied:
            most = min(self.max_active, causes)
            total = corrected_prior(self._mean_prior(), float(moments["counts"].sum()), points, causes, most)
            total = min(total, 0.95)
            self._chances = np.full(len(self._chances), total / len(self._chances))
        else:
            chances = np.maximum(moments["counts"] / (points * causes), 1e-6)
            self._chances = chances * min(1.0, 0.95 / chances.sum())

    def _finish(self) -> None:
        self.prior_ = self._chances.copy()

    def sample(self, n_samples: int = 1, random_state: Any = 0) -> Floats:
        """float64 `[n, D]`: rows drawn from the model."""
        elements, values = self._fitted("components_"), self._values()
        draws = uniform(int(random_state), "activity", size=(n_samples, len(elements)))
        edges = np.cumsum(self._chances)
        place = np.searchsorted(edges, draws)
        activity = np.append(values, 0.0)[np.minimum(place, len(values))]
        noise = normal(int(random_state), "noise", (n_samples, elements.shape[1]))
        made: Floats = activity @ elements + self.noise_ * noise
        return made


class BinarySparseCoding(_LinearCoding):
    """Parts that are on or off and add up.

    See `SparseCoding` for parameters and attributes; `prior_` is the chance that a part is on.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> parts = np.eye(4) * 5
        >>> data = (rng.random((400, 4)) < 0.3) @ parts + 0.3 * rng.standard_normal((400, 4))
        >>> model = BinarySparseCoding(4, max_iter=40, anneal=1.0).fit(data)  # few parts: hot, they would melt into one
        >>> bool(np.abs(np.sort(model.components_.max(axis=1)) - 5).max() < 0.2)
        True
    """

    _by_angle = True

    def _values(self) -> Floats:
        return np.array([1.0])


class TernarySparseCoding(_LinearCoding):
    """Parts that are off, added or subtracted, both equally often.

    See `SparseCoding`. It starts cooler than binary coding: with two signs, a hot start lets elements cancel out.
    """

    def __init__(
        self,
        n_components: int = 8,
        *,
        n_candidates: int = 6,
        max_active: int = 3,
        max_iter: int = 150,
        anneal: float = 2.0,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            n_components,
            n_candidates=n_candidates,
            max_active=max_active,
            max_iter=max_iter,
            anneal=anneal,
            random_state=random_state,
        )

    def _values(self) -> Floats:
        return np.array([1.0, -1.0])


class DiscreteSparseCoding(_LinearCoding):
    """Parts that take any of some values, each with a chance of its own.

    Args:
        values: The values other than zero.
    """

    _tied = False

    def __init__(
        self,
        n_components: int = 8,
        *,
        values: Any = (1.0, 2.0),
        n_candidates: int = 6,
        max_active: int = 3,
        max_iter: int = 100,
        anneal: float = 2.0,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            n_components,
            n_candidates=n_candidates,
            max_active=max_active,
            max_iter=max_iter,
            anneal=anneal,
            random_state=random_state,
        )
        self.values = values

    def _values(self) -> Floats:
        values = np.asarray(self.values, np.float64)
        if values.ndim != 1 or not len(values) or (values == 0).any() or len(set(values.tolist())) < len(values):
            raise UsageError(f"values are {self.values!r}", hint="give different numbers other than zero")
        return values


class SpikeSlabSparseCoding(SparseCoding):
    """Parts that are on or off, and when on, of Gaussian strength; strengths may go together.

    See `SparseCoding`; `prior_` `[H]` is the chance that each is on, `slab_mean_` `[H]` and `slab_covariance_` `[H, H]`
    describe the strengths, `transform` gives expected strength.
    """

    def __init__(
        self,
        n_components: int = 8,
        *,
        n_candidates: int = 6,
        max_active: int = 3,
        max_iter: int = 100,
        anneal: float = 4.0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_candidates = n_candidates
        self.max_active = max_active
        self.max_iter = max_iter
        self.anneal = anneal
        self.random_state = random_state

    def _start(self, data: Floats, seed: int) -> None:
        count = self.n_components
        self._scale = max(float(data.std(axis=0).mean()), 1e-12)
        self.components_ = started_elements(data, count, seed)
        self.noise_ = float(np.sqrt(data.var(axis=0).mean() + 1e-3 * self._scale**2))
        self.noise_ = max(self.noise_, _LEAST_NOISE * self._scale)
        self.prior_ = np.clip(uniform(seed, "prior", size=count), 0.05, 0.95) * min(1.0, 4 / count)
        self.slab_mean_ = normal(seed, "slab", (count,))
        self.slab_covariance_ = np.eye(count)

    def _mean_prior(self) -> float:
        return float(self.prior_.mean())

    def _expect(self, data: Floats, temperature: float, use: NDArray[np.bool_]) -> tuple[Floats, dict[str, Any]]:
        n, elements = len(data), self.components_
        causes, noise = len(elements), self.noise_**2
        evidence, mean, active = np.empty(n), np.zeros((n, causes)), np.zeros((n, causes))
        second, together, crossed = (np.zeros((causes, causes)) for _ in range(3))
        expect_slabs(
            data @ elements.T, elements @ elements.T, self.slab_mean_, self.slab_covariance_, noise,
            np.log(self.prior_ / (1 - self.prior_)), 1 / temperature, *self._tree.arrays, use, evidence, mean, active,
            second, together, crossed,
        )  # fmt: skip
        base = np.einsum("ij,ij->i", data, data) / noise + data.shape[1] * np.log(2 * np.pi * noise)
        evidence += np.log1p(-self.prior_).sum() - 0.5 * base / temperature
        sums = active[use].sum(axis=0)
        return evidence, {
            "mean": mean, "active": active, "second": second, "together": together, "crossed": crossed, "sums": sums,
        }  # fmt: skip

    def _maximise(self, data: Floats, moments: dict[str, Any], use: NDArray[np.bool_]) -> None:
        used, mean, second = data[use], moments["mean"][use], moments["second"]
        cross = mean.T @ used
        self.components_ = ridge_solve(second, cross, self.components_)
        left = (used**2).sum() - 2 * (self.components_ * cross).sum()
        left += ((self.components_ @ self.components_.T) * second).sum()
        self.noise_ = float(max(np.sqrt(max(left, 0) / used.size), _LEAST_NOISE * self._scale))
        sums, together = moments["sums"], moments["together"]
        self.prior_ = np.clip(sums / len(used), 5e-5, 1 - 5e-5)
        mu = mean.sum(axis=0) / np.maximum(sums, 1e-9)
        crossed = mu[:, None] * moments["crossed"]
        spread = second - crossed - crossed.T + np.outer(mu, mu) * together
        psi = np.where(together > 1e-6, spread / np.maximum(together, 1e-6), 0.0)
        sizes, axes = np.linalg.eigh((psi + psi.T) / 2)
        self.slab_mean_, self.slab_covariance_ = mu, (axes * np.maximum(sizes, 1e-5)) @ axes.T

    def sample(self, n_samples: int = 1, random_state: Any = 0) -> Floats:
        """float64 `[n, D]`: rows drawn from the model."""
        elements, seed = self._fitted("components_"), int(random_state)
        spikes = uniform(seed, "activity", size=(n_samples, len(elements))) < self.prior_
        root = np.linalg.cholesky(self.slab_covariance_)
        slabs = self.slab_mean_ + normal(seed, "slabs", (n_samples, len(elements))) @ root.T
        noise = normal(seed, "noise", (n_samples, elements.shape[1]))
        made: Floats = (spikes * slabs) @ elements + self.noise_ * noise
        return made


def ridge_solve(second: Floats, cross: Floats, before: Floats) -> Floats:
    """Elements of the least squares; one that was hardly ever active stays where it was."""
    alive = np.diagonal(second) > 1e-9
    ridge = 1e-10 * max(float(np.trace(second)), 1e-30) / len(second)
    made = before.copy()
    inner = second[np.ix_(alive, alive)] + ridge * np.eye(int(alive.sum()))
    if alive.any():
        made[alive] = np.linalg.solve(inner, cross[alive])
    return made
