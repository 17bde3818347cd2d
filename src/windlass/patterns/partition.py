"""`ProbabilisticPartition`: groups whose number is found, the same every time.

Sultan, "Probabilistic Partitive Partitioning (PPP)" (2020) has k-means partition, a Gaussian mixture judge, no seed and
no k, and names no procedure. Ours: too many k-means cells; merging by what one Gaussian in place of two gains;
expectation maximisation; two groups without a valley between them made one; k-means again as a second opinion.
Nothing is drawn at random and rows are put into one order first, so neither seed nor row order can matter.
"""

from __future__ import annotations

import heapq
import time
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.kmeans import means, nearest
from windlass.patterns.estimator import ConvergenceLog, Estimator, Floats, canonical_order
from windlass.patterns.gaussians import (
    Family,
    Mixture,
    expectation_maximisation,
    features,
    group_sums,
    merge_gain,
    parameters,
    valley,
)

_NEIGHBOURS = 8
_ROUNDS = 4
_SHALLOW = 0.9
"""Two groups are one when the density between their peaks stays above this share of the lower peak."""
_MEMBERS_A_NUMBER = 10
"""Below so many members a parameter, two Gaussians fit better than one by chance alone."""
_MOST_AXES = 30
_MOST_UNITS = 20_000
_BLOCK = 65_536
_FEW_AXES = 8


class ProbabilisticPartition(Estimator):
    """Clusters of Gaussian shape; their number comes out, and 1 is a result.

    Args:
        max_clusters: No more than so many are looked for.
        scale: Bring columns to one variance first, as is right for columns of different units.
        separable_at: A point is separable when both opinions agree and its posterior is at least this.
        reduce_above: With more rows, near ones are first put together, at most 20,000 units.

    Attributes:
        labels_: int64 `[n]`, 0 for the largest group.
        n_clusters_: How many there are.
        weights_, means_, covariances_: `[k]`, `[k, d]`, `[k, d, d]` in the units of X.
        family_: Covariances that describe the data best: full, diagonal or spherical.
        agreement_: Share of the points that k-means, started from the means, puts into the same group.
        separable_mask_: bool `[n]`.
        report_: One dict a cluster: size, agreement, separable share, nearest cluster and the valley between.
        history_: One `ConvergenceLog` a round; the objective is the log likelihood.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> points = np.vstack([rng.standard_normal((80, 2)) + at for at in ((0, 0), (9, 0), (0, 9))])
        >>> ProbabilisticPartition().fit(points).n_clusters_
        3
    """

    _kind = "clusterer"

    labels_: NDArray[np.int64]
    n_clusters_: int

    def __init__(
        self, max_clusters: int = 256, *, scale: bool = True, separable_at: float = 0.95, reduce_above: int = 50_000
    ) -> None:
        self.max_clusters = max_clusters
        self.scale = scale
        self.separable_at = separable_at
        self.reduce_above = reduce_above

    def fit(self, X: Any, y: Any = None, *, progress: Progress | None = None) -> Self:
        """Find the groups.

        Raises:
            UsageError, DataError, DataTypeError: A parameter or a value makes no sense; the message names it.
            Cancelled: `progress` was cancelled; nothing is fitted then.
        """
        if self.max_clusters < 1:
            raise UsageError(f"max_clusters is {self.max_clusters}, it must be 1 or more")
        progress, self._began = progress or Silent(), time.perf_counter()
        given = self._read(X, reset=True)
        self._choose_axes(given)
        points = self._axes_of(given)
        ordered = points[canonical_order(points)]
        unit = self._units(ordered)
        progress.start("partition", None, "rounds")
        best: tuple[float, Mixture, list[ConvergenceLog]] | None = None
        for family in self._families(*points.shape):
            history: list[ConvergenceLog] = []
            rows, weight = unit_features(ordered, unit, family)
            mixture, score = self._mixture(rows, weight, points.shape[1], family, history, progress)
            if best is None or score > best[0]:
                best = (score, mixture, history)
        progress.finish("partition")
        assert best is not None
        self._keep(best[1], points, given)
        self.history_ = best[2]
        return self

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """`fit`, then `labels_`."""
        return self.fit(X, y).labels_

    def _choose_axes(self, X: Floats) -> None:
        """Columns that vary, brought to one scale; of more than 30, the directions that vary more than noise."""
        self._centre, spread = X.mean(axis=0), X.std(axis=0)
        varies = spread > 1e-12 * np.maximum(np.abs(self._centre), 1e-300)
        whole = float(np.sqrt(np.mean(spread[varies] ** 2))) if varies.any() else 1.0
        self._spread = np.where(varies, spread if self.scale else whole, 1.0)
        axes = np.eye(X.shape[1])[:, varies] if varies.any() else np.eye(X.shape[1])[:, :1]
        if varies.sum() > _MOST_AXES:
            ordered = X[canonical_order(X)]
            scaled = ((ordered - self._centre) / self._spread)[:, varies]
            sizes, directions = np.linalg.eigh(scaled.T @ scaled / len(X))
            # Of pure noise, no direction would vary more than this (Marchenko and Pastur).
            edge = np.median(sizes) * (1 + np.sqrt(varies.sum() / len(X))) ** 2
            kept = int(np.clip((sizes > edge).sum(), 2, _MOST_AXES))
            chosen = directions[:, ::-1][:, :kept]
            largest = np.abs(chosen).argmax(axis=0)
            axes = axes @ (chosen * np.sign(chosen[largest, np.arange(chosen.shape[1])]))
        self._axes = axes

    def _axes_of(self, X: Floats) -> Floats:
        made: Floats = ((X - self._centre) / self._spread) @ self._axes
        return made

    def _units(self, points: Floats) -> NDArray[np.int64]:
        """int64 `[n]`: which unit a point is part of. Near points share one where there are very many: the leaves of a
        tree of median cuts, so small that they hold no structure."""
        if len(points) <= self.reduce_above:
            return np.arange(len(points))
        cells = [np.arange(len(points))]
        while 2 * len(cells) <= min(_MOST_UNITS, len(points) // 4):
            halves: list[NDArray[np.int64]] = []
            for cell in cells:
                part = points[cell]
                cut = np.argsort(part[:, int(part.var(axis=0).argmax())], kind="stable")
                halves += [cell[cut[: len(cell) // 2]], cell[cut[len(cell) // 2 :]]]
            cells = halves
        unit = np.empty(len(points), np.int64)
        for number, cell in enumerate(cells):
            unit[cell] = number
        return unit

    def _families(self, n: int, d: int) -> tuple[Family, ...]:
        if n < 2 * (d + 2):
            return ("spherical",)
        enough = d <= 2 or (d <= _FEW_AXES and n >= 40 * d * d)  # for full covariances of small cells
        return ("full",) if enough else ("full", "diagonal", "spherical")

    def _mixture(
        self, rows: Floats, weight: Floats, d: int, family: Family, history: list[ConvergenceLog], progress: Progress
    ) -> tuple[Mixture, float]:
        """The mixture of one family, and its Bayesian information criterion (more is better)."""
        n = float(weight.sum())
        most = int(min(self.max_clusters, max(1, n / (d + 2)), max(16, 2 * np.sqrt(n))))
        labels = over_partition(np.ascontiguousarray(rows[:, 1 : d + 1]), weight, most)
        count, mixture = 0, Mixture.of(group_sums(rows, weight, np.zeros(len(rows), np.int64), 1), d, family)
        for turn in range(_ROUNDS):
            check_cancelled(progress)
            sums = group_sums(rows, weight, labels, int(labels.max()) + 1)
            merged = merge(sums[sums[:, 0] > 0], d, family)
            mixture = expectation_maximisation(rows, weight, Mixture.of(merged, d, family))
            labels = mixture.log_joint(rows).argmax(axis=1)
            groups = len(mixture.shares)
            detail = {"clusters": float(groups)}
            history.append(ConvergenceLog(turn, mixture.log_likelihood, time.perf_counter() - self._began, detail))
            progress.advance("partition", 1, f"{groups} groups")
            if groups == count:
                break
            count = groups
        joined = join_without_valley(mixture, d)
        if len(joined) < len(mixture.shares):
            mixture = expectation_maximisation(rows, weight, Mixture.of(joined, d, family))
        parted = split_at_valleys(mixture, rows, weight, d)
        if len(mixture.shares) < len(parted) <= self.max_clusters:
            mixture = expectation_maximisation(rows, weight, Mixture.of(parted, d, family))
        k = len(mixture.shares)
        return mixture, 2 * mixture.log_likelihood - (k * (parameters(d, family) + 1) - 1) * np.log(n)

    def _keep(self, mixture: Mixture, points: Floats, given: Floats) -> None:
        """Fitted attributes, the largest group first."""
        order = np.lexsort((*mixture.means.T[::-1], -mixture.shares))
        self._mixture_ = mixture = Mixture.of(mixture.sums[order], points.shape[1], mixture.family)
        self.family_, self.weights_, self.n_clusters_ = mixture.family, mixture.shares, len(order)
        back = self._axes * self._spread[:, None]
        self.means_ = self._centre + mixture.means @ back.T
        self.covariances_ = back @ mixture.covariances @ back.T
        posterior, _ = mixture.responsibilities(features(points, mixture.family))
        self.labels_ = posterior.argmax(axis=1).astype(np.int64)
        other, _ = lloyd(points, np.ones(len(points)), mixture.means)
        same = other == self.labels_
        self.agreement_ = float(same.mean())
        self.separable_mask_ = same & (posterior.max(axis=1) >= self.separable_at)
        self.report_ = [self._described(mixture, group, same) for group in range(self.n_clusters_)]
        if self.n_clusters_ == self.max_clusters > 1:
            warnings.warn(
                f"{self.max_clusters} groups were found, which is max_clusters: there may be more", UserWarning,
                stacklevel=3,
            )  # fmt: skip

    def _described(self, mixture: Mixture, group: int, same: NDArray[np.bool_]) -> dict[str, Any]:
        inside = self.labels_ == group
        parts = list(zip(mixture.shares, mixture.means, mixture.covariances, strict=True))
        others = [(valley(parts[group], parts[j]), j) for j in range(len(parts)) if j != group]
        closest = max(others, default=(0.0, -1))
        agreement = float(same[inside].mean()) if inside.any() else 0.0
        return {
            "size": int(inside.sum()),
            "agreement": agreement,
            "validated": agreement >= 0.9,
            "separable": float(self.separable_mask_[inside].mean()) if inside.any() else 0.0,
            "nearest": closest[1],
            "valley": closest[0],
        }

    def _posterior(self, X: Any) -> tuple[Floats, Floats]:
        mixture: Mixture = self._fitted("_mixture_")
        return mixture.responsibilities(features(self._axes_of(self._read(X, reset=False)), mixture.family))

    def predict(self, X: Any) -> NDArray[np.int64]:
        """int64 `[m]`: the most probable group of each row."""
        labels: NDArray[np.int64] = self._posterior(X)[0].argmax(axis=1).astype(np.int64)
        return labels

    def predict_proba(self, X: Any) -> Floats:
        """float64 `[m, k]`: posteriors; rows sum to 1."""
        return self._posterior(X)[0]

    def score_samples(self, X: Any) -> Floats:
        """float64 `[m]`: log density of each row, in the scaled columns."""
        return self._posterior(X)[1]


def unit_features(points: Floats, unit: NDArray[np.int64], family: Family) -> tuple[Floats, Floats]:
    """Mean features of each unit, and how many points it stands for: float64 `[u, p]` and `[u]`."""
    count = int(unit.max()) + 1
    if count == len(points):
        return features(points, family), np.ones(len(points))
    total: Any = 0.0
    for first in range(0, len(points), _BLOCK):
        part = features(points[first : first + _BLOCK], family)
        total = total + group_sums(part, np.ones(len(part)), unit[first : first + _BLOCK], count)
    return total / total[:, :1], total[:, 0]


def over_partition(points: Floats, weight: Floats, k: int) -> NDArray[np.int64]:
    """Up to k k-means cells without chance: the worst cell is cut at its mean across its longest axis, again and again
    (Su and Dy, "PCA-part", 2007), then Lloyd's rounds."""
    cells = [np.arange(len(points))]
    waiting = [(-_scatter(points, weight), 0)]
    while len(cells) < k and waiting:
        worst, at = heapq.heappop(waiting)
        if -worst <= 1e-10:
            break
        cell = cells[at]
        off = points[cell] - np.average(points[cell], axis=0, weights=weight[cell])
        axis = np.linalg.eigh((off * weight[cell, None]).T @ off)[1][:, -1]
        left = off @ axis <= 0
        if left.all() or not left.any():
            continue
        cells[at], new = cell[left], cell[~left]
        cells.append(new)
        for number in (at, len(cells) - 1):
            heapq.heappush(waiting, (-_scatter(points[cells[number]], weight[cells[number]]), number))
    start = np.array([np.average(points[cell], axis=0, weights=weight[cell]) for cell in cells])
    return lloyd(points, weight, start)[0]


def _scatter(points: Floats, weight: Floats) -> float:
    return float(weight @ ((points - np.average(points, axis=0, weights=weight)) ** 2).sum(axis=1))


def lloyd(points: Floats, weight: Floats, start: Floats, rounds: int = 30) -> tuple[NDArray[np.int64], Floats]:
    """Labels and centres of k-means from given centres; empty cells keep their centre."""
    narrow, centres = points.astype(np.float32), start.astype(np.float32)
    labels, _ = nearest(narrow, centres)
    for _ in range(rounds):
        moved, totals = means(narrow, labels, len(centres), weight.astype(np.float32))
        centres = np.where(totals[:, None] > 0, moved, centres)
        found, _ = nearest(narrow, centres)
        if (found == labels).all():
            break
        labels = found
    return labels, centres.astype(np.float64)


def merge(sums: Floats, d: int, family: Family, neighbours: int = _NEIGHBOURS) -> Floats:
    """Groups merged pair by pair, the best gain first, while one gains.

    Args:
        sums: float64 `[k, p]`.
        neighbours: Each group looks at so many of the nearest.

    Returns:
        Sums of the groups that are left.
    """
    groups: dict[int, Floats] = dict(enumerate(sums))
    waiting: list[tuple[float, int, int]] = []

    def look(at: int) -> None:
        others = [other for other in groups if other != at]
        if not others:
            return
        table = np.array([groups[other] for other in others])
        middle = groups[at][1 : d + 1] / groups[at][0]
        distance = ((table[:, 1 : d + 1] / table[:, :1] - middle) ** 2).sum(axis=1)
        near = np.argsort(distance, kind="stable")[:neighbours]
        gains = merge_gain(np.repeat(groups[at][None], len(near), axis=0), table[near], d, family)
        for gain, number in zip(gains, near, strict=True):
            if gain > 0:
                pair = sorted((at, others[number]))
                heapq.heappush(waiting, (-float(gain), pair[0], pair[1]))

    for at in list(groups):
        look(at)
    new = len(sums)
    while waiting:
        _, a, b = heapq.heappop(waiting)
        if a in groups and b in groups:
            groups[new] = groups.pop(a) + groups.pop(b)
            look(new)
            new += 1
    return np.array(list(groups.values()))


def split_at_valleys(mixture: Mixture, rows: Floats, weight: Floats, d: int) -> Floats:
    """Sums of the groups after each was cut in two where that pays and a valley lies between the halves.

    Merging counts every member to one group alone, so it joins halves that overlap much; here two Gaussians are judged
    as a mixture, by the Bayesian information criterion on the members of the group.
    """
    labels, family = mixture.log_joint(rows).argmax(axis=1), mixture.family
    out: list[Floats] = []
    for group, sums in enumerate(mixture.sums):
        inside = labels == group
        members, count = rows[inside], weight[inside]
        out.append(sums)
        if count.sum() < _MEMBERS_A_NUMBER * (parameters(d, family) + 1):
            continue
        halves = over_partition(np.ascontiguousarray(members[:, 1 : d + 1]), count, 2)
        if halves.max() < 1:
            continue
        two = expectation_maximisation(members, count, Mixture.of(group_sums(members, count, halves, 2), d, family))
        if len(two.shares) < 2:
            continue
        one = float(count @ Mixture.of(count[None] @ members, d, family).responsibilities(members)[1])
        parts = [(two.shares[at], two.means[at], two.covariances[at]) for at in (0, 1)]
        gain = 2 * (two.log_likelihood - one) - (parameters(d, family) + 1) * np.log(count.sum())
        if gain > 0 and valley(*parts) < _SHALLOW:
            out[-1:] = [two.sums[0], two.sums[1]]
    return np.array(out)


def join_without_valley(mixture: Mixture, d: int) -> Floats:
    """Sums of the groups after those that have no valley between them are made one, the flattest pair first."""
    sums = list(mixture.sums)
    flat: dict[tuple[int, int], float] = {}
    alive = list(range(len(sums)))

    def part(at: int) -> tuple[float, Floats, Floats]:
        one = Mixture.of(sums[at][None], d, mixture.family)
        return float(sums[at][0]), one.means[0], one.covariances[0]

    parts = {at: part(at) for at in alive}
    for place, a in enumerate(alive):
        for b in alive[:place]:
            flat[b, a] = valley(parts[b], parts[a])
    while flat:
        (a, b), depth = max(flat.items(), key=lambda item: (item[1], -item[0][0], -item[0][1]))
        if depth < _SHALLOW:
            break
        new = len(sums)
        sums.append(sums[a] + sums[b])
        parts[new] = part(new)
        alive = [at for at in alive if at not in (a, b)]
        flat = {pair: value for pair, value in flat.items() if not {a, b} & set(pair)}
        for other in alive:
            flat[other, new] = valley(parts[other], parts[new])
        alive.append(new)
    return np.array([sums[at] for at in alive])
