"""Gaussian groups as sums: everything about a group follows from the sums of 1, x and x x^T over its members.

Sums are additive, so groups merge without a look at the points, and a unit may be one point or a thousand near ones.
Three families of covariance: `full`, `diagonal`, `spherical`; a unit's row of features holds 1, x, and of x x^T what
the family needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.blas import one_thread_a_product

Family = Literal["full", "diagonal", "spherical"]
Floats = NDArray[np.float64]
FLOOR = 1e-4
"""Least variance in any direction, of columns that were brought to variance 1: exact copies have none of their own."""
_STEPS = 60
_BLOCK = 8192


def features(points: Floats, family: Family) -> Floats:
    """float64 `[n, 1 + d + q]`: 1, x, and the products that the family needs."""
    n, d = points.shape
    ones = np.ones((n, 1))
    if family == "full":
        above = np.triu_indices(d)
        return np.hstack([ones, points, points[:, above[0]] * points[:, above[1]]])
    if family == "diagonal":
        return np.hstack([ones, points, points**2])
    return np.hstack([ones, points, (points**2).sum(axis=1, keepdims=True)])


def parameters(d: int, family: Family) -> float:
    """How many numbers describe one group besides its size."""
    return {"full": d + d * (d + 1) / 2, "diagonal": 2.0 * d, "spherical": d + 1.0}[family]


def covariances(sums: Floats, d: int, family: Family) -> tuple[Floats, Floats, Floats]:
    """Counts `[k]`, means `[k, d]` and regularised covariances `[k, d, d]` of groups given by their sums.

    A covariance is drawn towards a sphere by as much as the group has too few members for it.
    """
    counts = sums[:, 0]
    means = sums[:, 1 : d + 1] / counts[:, None]
    second = sums[:, d + 1 :] / counts[:, None]
    eye = np.eye(d)
    if family == "full":
        above = np.triu_indices(d)
        whole = np.zeros((len(sums), d, d))
        whole[:, above[0], above[1]] = second
        whole[:, above[1], above[0]] = second
        whole -= means[:, :, None] * means[:, None, :]
        size = np.maximum(np.trace(whole, axis1=1, axis2=2) / d, 0)
        share = np.minimum(1, (d + 1) / counts)
        return counts, means, (1 - share)[:, None, None] * whole + (share * size + FLOOR)[:, None, None] * eye
    if family == "diagonal":
        spread = np.maximum(second - means**2, 0)
        share = np.minimum(1, 2 / counts)[:, None]
        spread = (1 - share) * spread + share * spread.mean(axis=1, keepdims=True) + FLOOR
        return counts, means, spread[:, :, None] * eye
    size = np.maximum(second[:, 0] - (means**2).sum(axis=1), 0) / d + FLOOR
    return counts, means, size[:, None, None] * eye


def log_determinants(sums: Floats, d: int, family: Family) -> Floats:
    """float64 `[k]`: of the regularised covariances."""
    made = covariances(sums, d, family)[2]
    if family == "full":
        full: Floats = np.linalg.slogdet(made)[1]
        return full
    logs: Floats = np.log(np.diagonal(made, axis1=1, axis2=2)).sum(axis=1)
    return logs


def merge_gain(a: Floats, b: Floats, d: int, family: Family) -> Floats:
    """float64 `[p]`: what one Gaussian in place of two wins, as twice a log likelihood with each member in its group.

    Above zero, one Gaussian and the parameters it saves are worth more than the two. Halves of one Gaussian gain: cut
    in two, they fit better by 1.01 a member, but naming the half of each member costs 1.39.

    Args:
        a, b: Sums `[p, 1 + d + q]`.
    """
    together = a + b
    na, nb, n = a[:, 0], b[:, 0], together[:, 0]
    two = -(na * log_determinants(a, d, family) + nb * log_determinants(b, d, family))
    two += 2 * (na * np.log(na / n) + nb * np.log(nb / n))
    one = -n * log_determinants(together, d, family)
    gain: Floats = one - two + parameters(d, family) * np.log(n)
    return gain


@dataclass(frozen=True, slots=True)
class Mixture:
    """Groups with soft members.

    Attributes:
        family: Of the covariances.
        shares, means, covariances: `[k]`, `[k, d]`, `[k, d, d]`.
        sums: What they were made from.
        log_likelihood: Of all members, under the parameters before the last step.
    """

    family: Family
    shares: Floats
    means: Floats
    covariances: Floats
    sums: Floats
    log_likelihood: float

    @classmethod
    def of(cls, sums: Floats, d: int, family: Family, log_likelihood: float = -np.inf) -> Mixture:
        counts, means, made = covariances(sums, d, family)
        return cls(family, counts / counts.sum(), means, made, sums, log_likelihood)

    def log_joint(self, rows: Floats) -> Floats:
        """float64 `[n, k]`: log of share times density, of rows of features of this family."""
        d = self.means.shape[1]
        inverse = np.linalg.inv(self.covariances)
        linear = np.einsum("kij,kj->ki", inverse, self.means)
        constant = np.log(self.shares) - 0.5 * (
            np.linalg.slogdet(self.covariances)[1] + np.einsum("ki,ki->k", linear, self.means) + d * np.log(2 * np.pi)
        )
        if self.family == "full":
            above = np.triu_indices(d)
            square = -inverse[:, above[0], above[1]] * np.where(above[0] == above[1], 0.5, 1.0)
        elif self.family == "diagonal":
            square = -0.5 * np.diagonal(inverse, axis1=1, axis2=2)
        else:
            square = -0.5 * inverse[:, :1, 0]
        weights = np.hstack([constant[:, None], linear, square])
        with one_thread_a_product():
            made: Floats = rows @ weights.T
        return made

    def responsibilities(self, rows: Floats) -> tuple[Floats, Floats]:
        """Posteriors `[n, k]` and log densities `[n]`."""
        joint = self.log_joint(rows)
        top = joint.max(axis=1, keepdims=True)
        np.exp(joint - top, out=joint)
        total = joint.sum(axis=1, keepdims=True)
        joint /= total
        return joint, (top + np.log(total))[:, 0]


def group_sums(rows: Floats, weight: Floats, labels: NDArray[Any], k: int) -> Floats:
    """float64 `[k, p]`: sums of features by group."""
    out = np.zeros((k, rows.shape[1]))
    order = np.argsort(labels, kind="stable")
    begin = np.searchsorted(labels[order], np.arange(k))
    scaled = rows[order] * weight[order, None]
    filled = np.bincount(labels, minlength=k) > 0
    out[filled] = np.add.reduceat(scaled, begin[filled], axis=0)
    return out


def expectation_maximisation(
    rows: Floats, weight: Floats, start: Mixture, history: list[float] | None = None
) -> Mixture:
    """Improve a mixture until a step gains less than 1e-5 a member; groups of under 1.5 members are dropped.

    Args:
        rows, weight: Features `[n, p]` and how many members each row stands for.
        history: The log likelihood before each step is added to it.
    """
    mixture, before, d = start, -np.inf, start.means.shape[1]
    for _ in range(_STEPS):
        sums, now = np.zeros_like(mixture.sums), 0.0
        for first in range(0, len(rows), _BLOCK):
            part, count = rows[first : first + _BLOCK], weight[first : first + _BLOCK]
            soft, density = mixture.responsibilities(part)
            now += float(count @ density)
            soft *= count[:, None]
            with one_thread_a_product():
                sums += soft.T @ part
        if history is not None:
            history.append(now)
        mixture = Mixture.of(sums[sums[:, 0] >= min(1.5, sums[:, 0].max())], d, mixture.family, now)
        if now - before < 1e-5 * weight.sum():
            break
        before = now
    return mixture


def valley(a: Any, b: Any) -> float:
    """How deep the density of two Gaussians falls between their peaks: 1 is not at all, 0 to nothing.

    All peaks of a mixture of two lie on one curve (Ray and Lindsay, "The topography of multivariate normal mixtures",
    2005); the lowest point between its outermost peaks is compared to the lower of them.

    Args:
        a, b: (share, mean, covariance) each.
    """
    (share_a, mean_a, cov_a), (share_b, mean_b, cov_b) = a, b
    inverse_a, inverse_b = np.linalg.inv(cov_a), np.linalg.inv(cov_b)
    t = np.linspace(0, 1, 41)[:, None, None]
    mixed = (1 - t) * inverse_a + t * inverse_b
    pull = (1 - t[:, :, 0]) * (inverse_a @ mean_a) + t[:, :, 0] * (inverse_b @ mean_b)
    curve = np.linalg.solve(mixed, pull[:, :, None])[:, :, 0]
    logs = []
    for share, mean, cov, inverse in ((share_a, mean_a, cov_a, inverse_a), (share_b, mean_b, cov_b, inverse_b)):
        off = curve - mean
        distance = np.einsum("ij,jk,ik->i", off, inverse, off)
        logs.append(np.log(share) - 0.5 * (distance + np.linalg.slogdet(cov)[1]))
    height = np.exp(np.logaddexp(logs[0], logs[1]) - max(logs[0].max(), logs[1].max()))
    rising = np.r_[True, height[1:] >= height[:-1]]
    falling = np.r_[height[:-1] >= height[1:], True]
    peaks = np.flatnonzero(rising & falling)
    if len(peaks) < 2:
        return 1.0
    between = height[peaks[0] : peaks[-1] + 1].min()
    return float(between / min(height[peaks[0]], height[peaks[-1]]))
