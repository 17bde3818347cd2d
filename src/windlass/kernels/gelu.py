"""The exact (erf) form of gelu without an exponential: `x / 2 * (1 + erf(x / sqrt 2))`, off by at most 2e-6.

It is `max(x, 0) - |x| * erfc(|x| / sqrt 2) / 2`, and `erfc(t / sqrt 2) = 1 / (1 + c1 t + ... + c5 t^5)^32` for
`t >= 0`, coefficients fitted so that t/2 times the error is at most 1.5e-7 over all t: five squarings and a division.
"""

from __future__ import annotations

import numpy as np

_FITTED = (
    1.986556077097581e-05,
    -8.002947616673385e-05,
    1.390520582077196e-03,
    1.0258348587492961e-02,
    2.4933496220367293e-02,
    1.0,
)
# Each is scaled by 2^(1/32): the power then is twice as large, which is the 1/2 of the tail.
TAIL = tuple(np.float32(value * 2.0 ** (1 / 32)) for value in _FITTED)
"""Coefficients of the polynomial, highest power first."""
