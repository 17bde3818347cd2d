"""Robust least squares for a handful of parameters: Levenberg-Marquardt, with outliers pulled in.

The loss of a residual r is soft-L1, 2 (sqrt(1 + (r/s)^2) - 1) s^2: quadratic up to the scale s and linear beyond, so
that a few rows that were measured badly do not bend the curve. Fits here have at most a dozen parameters and a few
thousand rows; for more, use SciPy (the tests hold this to it).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def least_squares(
    residuals: Callable[[Floats], Floats], start: Floats, *, scale: float = 0.1, iterations: int = 200
) -> Floats:
    """The parameters near `start` with the least soft-L1 loss of `residuals`.

    Args:
        residuals: float64 [parameters] -> float64 [rows]; smooth almost everywhere.
        start: float64 [parameters].
        scale: Where the loss turns from quadratic to linear, in the unit of the residuals.

    Returns:
        float64 [parameters].
    """
    # A step that went too far may overflow; its loss is then infinite, and a shorter one is tried.
    with np.errstate(all="ignore"):
        return _descend(residuals, np.array(start, np.float64), scale, iterations)


def _descend(residuals: Callable[[Floats], Floats], found: Floats, scale: float, iterations: int) -> Floats:
    current = residuals(found)
    loss = _loss(current, scale)
    damping = 1e-3
    for _ in range(iterations):
        slope = _slope(residuals, found, current)
        weight = 1.0 / np.sqrt(1.0 + (current / scale) ** 2)
        normal = slope.T @ (weight[:, None] * slope)
        downhill = slope.T @ (weight * current)
        improved = False
        while damping < 1e12:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -downhill)
            tried = residuals(found + step)
            then = _loss(tried, scale)
            if then < loss:
                improved = True
                break
            damping *= 4.0
        if not improved:
            break
        gained, found, current, loss = loss - then, found + step, tried, then
        damping = max(damping / 6.0, 1e-9)
        if gained <= 1e-12 * loss:
            break
    return found


def _slope(residuals: Callable[[Floats], Floats], at: Floats, current: Floats) -> Floats:
    columns = []
    for index in range(at.size):
        step = 1e-6 * max(1.0, abs(at[index]))
        moved = at.copy()
        moved[index] += step
        columns.append((residuals(moved) - current) / step)
    return np.stack(columns, axis=1)


def _loss(values: Floats, scale: float) -> float:
    if not np.isfinite(values).all():
        return float("inf")
    return float((2.0 * scale**2 * (np.sqrt(1.0 + (values / scale) ** 2) - 1.0)).sum())
