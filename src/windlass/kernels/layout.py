"""Forces of a drawn graph: every node pushes every other away, edges pull their ends together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def repel(x: Any, y: Any, charge: Any, own_x: Any, own_y: Any, own_charge: Any, out_x: Any, out_y: Any) -> None:
    """Forces of all nodes on some (float32): a pair's is the product of its charges over its distance.

    The pushing node is the outer loop, so that the inner one runs over neighbouring numbers without a sum.
    """
    least, count = np.float32(1e-4), np.uint64(own_x.size)
    for at in range(count):
        out_x[at] = np.float32(0)
        out_y[at] = np.float32(0)
    for other in range(x.size):
        from_x, from_y, strength = x[other], y[other], charge[other]
        for at in range(count):
            dx, dy = own_x[at] - from_x, own_y[at] - from_y
            push = strength * own_charge[at] / (dx * dx + dy * dy + least)
            out_x[at] += dx * push
            out_y[at] += dy * push


@compiled
def advance(
    indptr: Any, indices: Any, weights: Any, x: Any, y: Any, force_x: Any, force_y: Any, pull: float, gravity: float,
    most: float,
) -> None:  # fmt: skip
    """Add the pull of edges and of the middle to the forces, and move every node by at most `most`."""
    for node in range(x.size):
        for at in range(indptr[node], indptr[node + 1]):
            other = indices[at]
            dx, dy = x[other] - x[node], y[other] - y[node]
            strength = pull * weights[at] * math.sqrt(dx * dx + dy * dy)
            force_x[node] += strength * dx
            force_y[node] += strength * dy
        force_x[node] -= gravity * x[node]
        force_y[node] -= gravity * y[node]
    for node in range(x.size):
        length = math.sqrt(force_x[node] * force_x[node] + force_y[node] * force_y[node])
        if length > 0:
            scale = min(length, most) / length
            x[node] += scale * force_x[node]
            y[node] += scale * force_y[node]
