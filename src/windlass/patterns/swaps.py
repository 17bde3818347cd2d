"""The search that all k-medoids methods share: k medoids, what each object is near to, and swaps.

Schubert and Rousseeuw, "Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and CLARANS
Algorithms" (2021). What differs: rows of the matrix are read instead of columns, objects that a candidate does not
concern are passed over in strips, and without a matrix the row of a candidate is made from the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, check_cancelled
from windlass.kernels.medoids import (
    apply_swap,
    assign_two_nearest,
    best_swap,
    best_swap_by_pairs,
    removal_losses,
    swap_gain,
    walk_eagerly,
)
from windlass.patterns.dissimilarity import Batch, Features, Function, Matrix, Source

_WORK_A_CALL = 300_000_000
_ROUNDING = 1e-9


class Swaps:
    """Two or more medoids of a source, and the way to better ones.

    Args:
        source: The dissimilarities.
        medoids: int `[k]`, k >= 2, all different.
        weight: float64 `[n]`: how often each object counts.

    Attributes:
        medoids: int64 `[k]`.
        near, sec: int32 `[n]`: the slots of the nearest and second nearest medoid.
        d1, d2: `[n]`: the distances to them.
        total: The weighted sum of `d1`.
        swaps: How many were made.
    """

    def __init__(self, source: Source, medoids: NDArray[Any], weight: NDArray[np.float64]) -> None:
        n, k = source.n, len(medoids)
        self._candidates = source.candidates
        self._ids = getattr(source, "ids", np.arange(n))
        self._taken = np.zeros(self._candidates, np.bool_)
        self._taken[medoids] = True
        self.source, self.weight = source, weight
        self.medoids = np.array(medoids, np.int64)
        self.near, self.sec = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.d1, self.d2 = np.zeros(n, source.dtype), np.zeros(n, source.dtype)
        self.removal, self._gain = np.zeros(k), np.zeros(k)
        self._found = np.empty(n + 8, np.int32)
        self.swaps = 0
        if isinstance(source, (Matrix, Batch)):
            self._rows, self._at = source.rows, self.medoids
        else:  # the rows of the medoids alone are kept
            self._rows, self._at = np.stack([source.row(j).copy() for j in self.medoids]), np.arange(k)
        # Integers are added exactly; floats may differ in the last digits, and must not swap back and forth for ever.
        self._tolerance = 0.0 if source.dtype.kind == "i" else _ROUNDING
        assign_two_nearest(self._rows, self._at, self.medoids, self._ids, self.near, self.sec, self.d1, self.d2)
        self._settle()

    def _settle(self) -> None:
        self.total = float(removal_losses(self.near, self.d1, self.d2, self.weight, self.removal))

    def _features(self) -> tuple[Any, Any, int, Any]:
        """Features, sizes, metric code and a buffer, as the kernels take them; no features for a matrix."""
        if isinstance(self.source, Features):
            return self.source.features, self.source.sizes, self.source.code, np.empty(self.source.n, np.float32)
        none = np.zeros((0, 0), np.float32)
        return none, np.zeros(0, np.float32), -1, np.zeros(0, self.source.dtype)

    def evaluate(self, j: int) -> tuple[float, int, NDArray[Any]]:
        """The best swap of object `j`: the change of the total, the slot, and the row of `j`."""
        row = self.source.row(j)
        change, slot = swap_gain(row, self.near, self.d1, self.d2, self.weight, self.removal, self._gain, self._found)
        return float(change), int(slot), row

    def gains(self, change: float) -> bool:
        """Whether a change is a gain beyond rounding."""
        return change < -self._tolerance * self.total

    def swap(self, j: int, slot: int, row: NDArray[Any]) -> None:
        """Object `j`, whose distances are `row`, takes `slot`."""
        self._taken[self.medoids[slot]], self._taken[j] = False, True
        self.medoids[slot] = j
        if not isinstance(self.source, (Matrix, Batch)):
            self._rows[slot] = row
        apply_swap(row, slot, j, self._rows, self._at, self._ids, self.near, self.sec, self.d1, self.d2)
        self._settle()
        self.swaps += 1

    def eager(self, order: NDArray[np.int64], max_passes: int, progress: Progress) -> int:
        """Walk over all objects in `order`, again and again, and swap whenever it gains; returns the passes begun.

        Stops where no object gains, or after `max_passes`.

        Raises:
            Cancelled: Between two stretches of the walk; the state is that of the last swap.
        """
        if isinstance(self.source, Function):
            return self._eager_by_rows(order, max_passes, progress)
        features, sizes, metric, buffer = self._features()
        counters, totals = np.zeros(4, np.int64), np.array([self.total])
        n, before = self._candidates, self.swaps
        a_call = max(64, _WORK_A_CALL // (self.source.n * max(1, features.shape[0])))
        while counters[1] < n and counters[3] < max_passes * n:
            check_cancelled(progress)
            walk_eagerly(
                self._rows, self._at, features, sizes, metric, buffer, order, self._tolerance,
                min(a_call, max_passes * n - counters[3]), self.medoids, self._taken, self._ids, self.near,
                self.sec, self.d1, self.d2, self.weight, self.removal, self._gain, self._found, counters, totals,
            )  # fmt: skip
            self.total, self.swaps = float(totals[0]), before + int(counters[2])
            progress.advance("swaps", 0, f"total {self.total:.6g}")
        return -(-int(counters[3]) // n)

    def _eager_by_rows(self, order: NDArray[np.int64], max_passes: int, progress: Progress) -> int:
        n, since = len(order), 0
        for step in range(max_passes * n):
            check_cancelled(progress)
            j = int(order[step % n])
            since += 1
            if not self._taken[j]:
                change, slot, row = self.evaluate(j)
                if self.gains(change):
                    self.swap(j, slot, row)
                    since = 0
            if since >= n:
                return step // n + 1
        return max_passes

    def steepest(self, max_swaps: int, progress: Progress, *, by_pairs: bool = False) -> int:
        """Make the best swap of all, again and again, while one gains (FastPAM1); returns the scans made.

        Args:
            by_pairs: Look at every pair on its own, as the original PAM does: k times the work, for comparison.
        """
        for scan in range(max_swaps):
            check_cancelled(progress)
            if by_pairs:
                found = best_swap_by_pairs(
                    self._rows, self._taken, len(self.medoids), self.near, self.d1, self.d2, self.weight
                )
            elif isinstance(self.source, Function):
                found = self._best_by_rows()
            else:
                features, sizes, metric, buffer = self._features()
                found = best_swap(
                    self._rows, features, sizes, metric, buffer, self._taken, self.near, self.d1, self.d2,
                    self.weight, self.removal, self._gain, self._found,
                )  # fmt: skip
            change, j, slot = found
            if j < 0 or not self.gains(change):
                return scan + 1
            self.swap(int(j), int(slot), self.source.row(int(j)))
            progress.advance("swaps", 0, f"total {self.total:.6g}")
        return max_swaps

    def _best_by_rows(self) -> tuple[float, int, int]:
        best = (0.0, -1, -1)
        for j in range(self.source.n):
            if not self._taken[j]:
                change, slot, _ = self.evaluate(j)
                if change < best[0]:
                    best = (change, j, slot)
        return best
