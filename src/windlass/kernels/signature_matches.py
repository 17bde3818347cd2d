"""How many slots of two signatures agree, for many pairs: the estimate of Jaccard similarity."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def compare_rows(table: Any, a: Any, b: Any, out: Any) -> None:
    """`out[i, j]` (float32): the share of slots in which rows `a[i]` and `b[j]` of `table` (uint32) agree."""
    slots = table.shape[1]
    share = np.float32(1) / np.float32(max(1, slots))
    for i in range(a.size):
        left = table[a[i]]
        for j in range(b.size):
            right = table[b[j]]
            same = np.uint32(0)
            for slot in range(slots):
                same += np.uint32(left[slot] == right[slot])
            out[i, j] = np.float32(same) * share
