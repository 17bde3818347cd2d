"""The engine of all sparse coding here: annealed expectation maximisation over truncated posteriors.

Luecke and Eggert, "Expectation Truncation and the Benefits of Preselection in Training Generative Models" (2010), as in
the library of Exarchakis et al., "ProSper" (2019). What differs: posteriors come from Gram matrices instead of
reconstructions (see the kernels), moments follow the model's derivation where the published code departs from it, and
elements that die are placed anew on the points that are explained worst.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import Cancelled, DataError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import uniform
from windlass.patterns.estimator import ConvergenceLog, Estimator, Floats, seed_of

_MOST_STATES = 20_000
_SHAKE = 0.1
_DEAD = 0.1
"""An element that is expected in fewer points than this has died."""


@dataclass(frozen=True, slots=True)
class StateTree:
    """Combinations of candidates as a tree; see the kernels."""

    parent: NDArray[np.int32]
    cause: NDArray[np.int32]
    value: NDArray[np.int32]
    singles: int
    candidates: int

    @classmethod
    def of(cls, candidates: int, most: int, values: int) -> StateTree:
        """All combinations of up to `most` of the candidates, each taking one of some values.

        Raises:
            UsageError: There are more than 20,000.
        """
        count = sum(math.comb(candidates, size) * values**size for size in range(2, most + 1))
        if count > _MOST_STATES:
            raise UsageError(
                f"{count:,} states a point for {candidates} candidates, {most} of them active at once",
                hint=f"at most {_MOST_STATES:,}: lower n_candidates or max_active",
            )
        nodes: list[tuple[int, int, int]] = []
        level = [(-1, c, v) for c in range(candidates) for v in range(values)]
        singles = len(level)
        for _ in range(most):
            first = len(nodes)
            nodes += level
            level = [
                (at, c, v)
                for at, node in enumerate(nodes[first:], start=first)
                for c in range(node[1] + 1, candidates)
                for v in range(values)
            ]
        columns = np.array(nodes, np.int32).T if nodes else np.zeros((3, 0), np.int32)
        parts = [np.ascontiguousarray(column) for column in columns]
        return cls(parts[0], parts[1], parts[2], singles, candidates)

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any, Any]:
        """As the kernels take it."""
        return self.parent, self.cause, self.value, self.singles, self.candidates


class SparseCoding(Estimator):
    """Base of the models: parts of which few are active at once in any point.

    Args:
        n_components: H, the number of elements.
        n_candidates: H', how many suit a point best and are combined.
        max_active: gamma, how many of them may be active at once.
        max_iter: Steps of expectation maximisation.
        anneal: Temperature at the start; it falls to 1 over the first four fifths of the steps.
        random_state: Same number, same result. None is one certain number too.

    Attributes:
        components_: `[H, D]`: the elements.
        prior_: How often each is active, or chance of each value.
        noise_: Standard deviation of what the elements leave.
        n_iter_: Steps made.
        history_: One `ConvergenceLog` a step; the objective is the mean truncated log evidence at its temperature.
    """

    _kind = "transformer"
    _transforms = True
    _cools_by = 0.8

    components_: Floats
    noise_: float
    n_components: int
    n_candidates: int
    max_active: int
    max_iter: int
    anneal: float
    random_state: Any

    def fit(self, X: Any, y: Any = None, *, progress: Progress | None = None) -> Self:
        """Learn elements, prior and noise.

        Raises:
            UsageError, DataError: A parameter or a value makes no sense; the message names it.
            Cancelled: `progress` was cancelled; the parameters are those of the last full step.
        """
        progress, began = progress or Silent(), time.perf_counter()
        data = np.ascontiguousarray(self._read(X, reset=True))
        self._check(data)
        seed = self._seed = seed_of(self.random_state)
        candidates = min(int(self.n_candidates), int(self.n_components))
        self._tree = StateTree.of(candidates, min(int(self.max_active), candidates), self._value_count())
        self._start(data, seed)
        self.history_: list[ConvergenceLog] = []
        progress.start("learn", self.max_iter, "steps")
        for step in range(self.max_iter):
            try:
                check_cancelled(progress)
            except Cancelled:
                self._finish()
                raise
            done = step / self.max_iter
            temperature = max(1.0, 1 + (self.anneal - 1) * (1 - done / self._cools_by))
            evidence = self._step(data, temperature, min(1.0, done * 1.5), revive=done < self._cools_by)
            if done < self._cools_by:
                self._shake(data, step, 1 - done / self._cools_by)
            self.n_iter_ = step + 1
            detail = {"temperature": temperature, "noise": float(self.noise_)}
            self.history_.append(ConvergenceLog(step, evidence, time.perf_counter() - began, detail))
            progress.advance("learn", 1, f"evidence {evidence:.5g}")
        progress.finish("learn")
        self._finish()
        return self

    def _check(self, data: Floats) -> None:
        for name in ("n_components", "n_candidates", "max_active", "max_iter"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise UsageError(f"{name} is {value!r}, it must be 1 or more")
        if self.max_active > 12:
            raise UsageError(f"max_active is {self.max_active}", hint="12 at most")
        if self.anneal < 1:
            raise UsageError(f"anneal is {self.anneal}, a temperature of 1 or more")

    def _step(self, data: Floats, temperature: float, cut: float, *, revive: bool) -> float:
        """One step of expectation and maximisation; returns the mean log evidence before it.

        With a cut above 0, only as many points are learned from, those of the highest evidence, as the truncated prior
        says that few enough causes are active in.
        """
        use = np.ones(len(data), np.bool_)
        if cut > 0:
            share = 1 - (1 - self._share_within()) * cut
            keep = max(1, int(len(data) * share))
            if keep < len(data):
                evidence, _ = self._expect(data, temperature, np.zeros(len(data), np.bool_))
                use[np.argsort(-evidence, kind="stable")[keep:]] = False
        evidence, moments = self._expect(data, temperature, use)
        self._maximise(data, moments, use)
        if revive:
            self._revive(data, moments["sums"], evidence)
        return float(evidence[use].mean())

    def _revive(self, data: Floats, sums: Floats, evidence: Floats) -> None:
        dead = np.flatnonzero(sums < _DEAD)
        if len(dead) and len(data) > len(dead):
            worst = np.argsort(evidence, kind="stable")[: len(dead)]
            self.components_[dead] = self._placed(data[worst])

    def _shake(self, data: Floats, step: int, share: float) -> None:
        """A little noise, which falls to none: elements that had become equal would stay so."""
        size = _SHAKE * share * float(data.std(axis=0).mean())
        drawn = normal(self._seed, f"shake {step}", self.components_.shape)
        self.components_ = self._placed(self.components_ + size * drawn)

    def _placed(self, points: Floats) -> Floats:
        return points.copy()

    def _value_count(self) -> int:
        return 1

    def _share_within(self) -> float:
        return prior_mass(self._mean_prior(), len(self.components_), min(self.max_active, len(self.components_)))[0]

    def _mean_prior(self) -> float:
        raise NotImplementedError

    def _start(self, data: Floats, seed: int) -> None:
        raise NotImplementedError

    def _expect(self, data: Floats, temperature: float, use: NDArray[np.bool_]) -> tuple[Floats, dict[str, Any]]:
        """Log evidence of every point at a temperature, and moments of those in use."""
        raise NotImplementedError

    def _maximise(self, data: Floats, moments: dict[str, Any], use: NDArray[np.bool_]) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Set what is only a view of the parameters."""

    def _asked(self, X: Any) -> tuple[Floats, Floats, dict[str, Any]]:
        self._fitted("components_")
        data = np.ascontiguousarray(self._read(X, reset=False))
        evidence, moments = self._expect(data, 1.0, np.ones(len(data), np.bool_))
        return data, evidence, moments

    def transform(self, X: Any) -> Floats:
        """float64 `[n, H]`: expected activity of each element in each row."""
        made: Floats = self._asked(X)[2]["mean"]
        return made

    def fit_transform(self, X: Any, y: Any = None) -> Floats:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def active_probability(self, X: Any) -> Floats:
        """float64 `[n, H]`: the chance that each element is active in each row."""
        made: Floats = self._asked(X)[2]["active"]
        return made

    def score_samples(self, X: Any) -> Floats:
        """float64 `[n]`: log evidence of each row over the states looked at: low for what the parts do not explain."""
        return self._asked(X)[1]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def inverse_transform(self, activity: Any) -> Floats:
        """float64 `[n, D]`: the rows that activities `[n, H]` stand for."""
        made: Floats = np.asarray(activity, np.float64) @ self._fitted("components_")
        return made

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """One name an element."""
        name = type(self).__name__.lower()
        return np.array([f"{name}{h}" for h in range(len(self._fitted("components_")))], dtype=object)


def started_elements(data: Floats, count: int, seed: int) -> Floats:
    """float64 `[H, D]`: the mean of the data and Gaussian noise of a quarter of its deviation."""
    spread = max(float(data.std(axis=0).mean()), 1e-3)
    made: Floats = data.mean(axis=0) + normal(seed, "elements", (count, data.shape[1])) * spread / 4
    return made


def normal(seed: int, key: str, shape: tuple[int, ...]) -> Floats:
    """Standard normal numbers as a function of seed and key (Box and Muller)."""
    radius = np.sqrt(-2 * np.log1p(-uniform(seed, key, "radius", size=shape)))
    made: Floats = radius * np.cos(2 * np.pi * uniform(seed, key, "angle", size=shape))
    return made


def prior_mass(pi: float, causes: int, most: int) -> tuple[float, float]:
    """How likely at most `most` of the causes are active, and how many then are on average times that."""
    sizes = np.arange(most + 1)
    chances = np.array([math.comb(causes, int(size)) for size in sizes]) * pi**sizes * (1 - pi) ** (causes - sizes)
    return float(chances.sum()), float(chances @ sizes)


def corrected_prior(pi: float, active: float, points: float, causes: int, most: int) -> float:
    """The prior of which a sample truncated to few causes has so many active."""
    mass, mean = prior_mass(pi, causes, most)
    made = mass / max(mean, 1e-300) * pi * active / max(points, 1)
    return float(np.clip(made, 1e-5, 1 - 1e-5))


def not_below_zero(data: Floats, who: str, instead: str) -> None:
    """Raises `DataError` when a column lies below zero by more than noise would: nothing could explain it."""
    middle, spread = data.mean(axis=0), data.std(axis=0)
    below = np.flatnonzero(middle + 3 * spread / np.sqrt(len(data)) < 0)
    if len(below):
        raise DataError(
            f"Negative values in data passed to {who} (column {int(below[0])}, {middle[below[0]]:.4g} on average)",
            hint=f"use {instead} for such data",
        )
