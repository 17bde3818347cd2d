"""Weights of 8 bits for `byte_gemm`: how they are rounded, and how they lie.

They lie in panels of `PANEL` output rows, eight inputs at a time: for each register of `LANES` rows, inputs 0..3 of
each row and then inputs 4..7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.kernels.isa import LANES

PANEL = 2 * LANES
"""Output rows of a panel; a matrix is padded with rows of zeros to a multiple of it."""
TOGETHER = 4
"""Tokens that share what is loaded of a panel; `byte_product` takes a multiple of it."""
_LARGEST_SUM = 128  # 255 * 128 < 2**15
_GROUPS = ((0, 1, 4, 5), (2, 3, 6, 7))  # of eight inputs, those whose products meet in one 16-bit sum


def round_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes int8 [rows, columns] and scales float32 [rows], the nearest within what 16-bit sums allow.

    Raises:
        UsageError: `columns` is no multiple of eight, or a weight is not a finite number.
    """
    rows, columns = weights.shape
    if columns % 8:
        raise UsageError(f"weights [{rows}, {columns}] have no multiple of eight columns", hint="pad them with zeros")
    if not np.isfinite(weights).all():
        raise UsageError("weights hold values that are not numbers", hint="check the file they come from")
    grouped = weights.reshape(rows, columns // 8, 8)
    scales = np.abs(weights).max(axis=1) / np.float32(127)
    for group in _GROUPS:
        part = grouped[:, :, group]
        for sign in (1, -1):
            # Rounding can add a half for each of four weights.
            most = np.maximum(sign * part, 0).sum(axis=2).max(axis=1) / np.float32(_LARGEST_SUM - 2)
            np.maximum(scales, most, out=scales)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return np.rint(weights / divisors[:, None]).astype(np.int8), scales.astype(np.float32)


def pack_panels(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes [rows, columns] in panel order, flat; rows of zeros are added up to a multiple of `PANEL`."""
    rows, columns = codes.shape
    padded = np.zeros((-(-rows // PANEL) * PANEL, columns), np.int8)
    padded[:rows] = codes
    # panel, register, row, step of eight inputs, half, input -> panel, step, register, half, row, input
    cut = padded.reshape(-1, 2, LANES, columns // 8, 2, 4)
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 4, 2, 5)).reshape(-1).view(np.uint8)
