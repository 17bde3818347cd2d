"""`MaximalCauses`: parts that hide one another, as objects in a picture or notes in a spectrogram do.

Luecke and Sahani, "Maximal Causes for Non-linear Component Extraction" (2008), learned as in Puertas et al. (2010).
What differs: posteriors use the maximum itself, and only the learning step its smooth stand-in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import uniform
from windlass.kernels.truncated_em import expect_maximum
from windlass.patterns.estimator import Floats
from windlass.patterns.truncated_em import SparseCoding, corrected_prior, normal, not_below_zero, started_elements

_LEAST = 1e-4
_SHARPNESS = 21.0


class MaximalCauses(SparseCoding):
    """Parts that are on or off; where several are on, the largest shows. Data must not lie below zero
    but for noise.

    See `SparseCoding`; `prior_` is the chance that a part is on.
    """

    _positive_only = True

    def __init__(
        self,
        n_components: int = 8,
        *,
        n_candidates: int = 8,
        max_active: int = 4,
        max_iter: int = 100,
        anneal: float = 2.0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_candidates = n_candidates
        self.max_active = max_active
        self.max_iter = max_iter
        self.anneal = anneal
        self.random_state = random_state

    def _check(self, data: Floats) -> None:
        super()._check(data)
        not_below_zero(data, type(self).__name__, "BinarySparseCoding or SpikeSlabSparseCoding")

    def _start(self, data: Floats, seed: int) -> None:
        self._scale = max(float(data.std(axis=0).mean()), 1e-12)
        self.components_ = np.maximum(started_elements(data, self.n_components, seed), _LEAST * self._scale)
        self.noise_, self._temperature = self._scale, self.anneal
        self._chance = min(0.5, 1 / self.n_components)

    def _mean_prior(self) -> float:
        return self._chance

    def _placed(self, points: Floats) -> Floats:
        return np.maximum(points, _LEAST * self._scale)

    def _expect(self, data: Floats, temperature: float, use: NDArray[np.bool_]) -> tuple[Floats, dict[str, Any]]:
        n, elements = len(data), self.components_
        precision = 1 / (temperature * self.noise_**2)
        rho = min(_SHARPNESS, 1 / (1 - 1 / max(temperature, 1.05)))
        evidence, mean, errors = np.empty(n), np.zeros((n, len(elements))), np.zeros(n)
        weighted, weight = np.zeros_like(elements), np.zeros_like(elements)
        odds = np.log(self._chance / (1 - self._chance))
        scaled = elements / elements.max()  # powers of it stay within what a float holds
        expect_maximum(
            data, elements, scaled**rho + 1e-280, rho, odds, precision, *self._tree.arrays, use, evidence, mean,
            weighted, weight, errors,
        )  # fmt: skip
        evidence += len(elements) * np.log1p(-self._chance)
        evidence -= 0.5 * data.shape[1] * np.log(2 * np.pi / precision)
        return evidence, {
            "mean": mean, "active": mean, "weighted": weighted, "weight": weight, "errors": errors,
            "sums": mean[use].sum(axis=0),
        }  # fmt: skip

    def _maximise(self, data: Floats, moments: dict[str, Any], use: NDArray[np.bool_]) -> None:
        weight = moments["weight"]
        fresh = moments["weighted"] / np.maximum(weight, 1e-12)
        self.components_ = np.where(weight > 1e-9, np.maximum(fresh, _LEAST * self._scale), self.components_)
        points, causes = int(use.sum()), len(weight)
        left = float(moments["errors"][use].sum())
        self.noise_ = float(max(np.sqrt(left / (points * data.shape[1])), _LEAST * self._scale))
        most = min(self.max_active, causes)
        self._chance = min(0.95, corrected_prior(self._chance, float(moments["sums"].sum()), points, causes, most))

    def _finish(self) -> None:
        self.prior_ = np.array([self._chance])

    def inverse_transform(self, activity: Any) -> Floats:
        """float64 `[n, D]`: for each row the largest of its activities times their elements."""
        elements = self._fitted("components_")
        made: Floats = (np.asarray(activity, np.float64)[:, :, None] * elements).max(axis=1)
        return made

    def sample(self, n_samples: int = 1, random_state: Any = 0) -> Floats:
        """float64 `[n, D]`: rows drawn from the model."""
        elements, seed = self._fitted("components_"), int(random_state)
        spikes = uniform(seed, "activity", size=(n_samples, len(elements))) < self._chance
        return self.inverse_transform(spikes) + self.noise_ * normal(seed, "noise", (n_samples, elements.shape[1]))
