"""How packed weights lie: tiles of 16 output rows by 32 inputs, so that one register holds four inputs of every row.

    w4m   256 B nibbles, 16 half scales, 16 half minimums     w = d * q + m        (Q4_1, Q4_K)
    w4    256 B nibbles, 16 half scales                       w = d * (q - 8)      (Q4_0)
    w8    256 B upper nibbles, 16 half scales; 256 B lower    w = d * (16 u + l - 128)      (Q8_0 and all others)

A 64-byte vector of nibbles holds for each row inputs 4v..4v+3 (low) and 16+4v..16+4v+3 (high). The upper nibbles of a
w8 matrix lie together, with the scales, and its lower nibbles behind them: the first part alone is a 4-bit guess of
the matrix that costs no memory of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

W4M, W4, W8, GUESS = 0, 1, 2, 3
"""Kinds of matrices; `GUESS` reads the upper nibbles of w8 alone."""
TILE_ROWS = 16
GROUP = 32
BLOCK_BYTES = (320, 288, 288, 288)
"""Bytes of 16 x 32 weights that lie together, by kind."""
LOWER_BYTES = 256
"""Bytes of the lower nibbles of 16 x 32 weights."""


def packed_bytes(kind: int, rows: int, columns: int) -> int:
    """Bytes a matrix `[rows, columns]` takes when packed; of a guess, those that are read."""
    return -(-rows // TILE_ROWS) * -(-columns // GROUP) * (BLOCK_BYTES[kind] + (LOWER_BYTES if kind == W8 else 0))


def lower_half(at: int, rows: int, blocks: int) -> int:
    """Where the lower nibbles of a w8 matrix that begins at `at` begin."""
    return at + -(-rows // TILE_ROWS) * blocks * BLOCK_BYTES[W8]


def round_to_int8(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Nearest `scale * code` with |code| <= 127 for each row and 32 columns; columns are padded with zeros.

    Returns:
        codes: uint8 bits of int8 `[rows, padded]`; scales: float16 bits as uint16 `[rows, padded / 32]`.
    """
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = weights
    grouped = padded.reshape(rows, -1, GROUP)
    scales = (np.abs(grouped).max(axis=2) / np.float32(127)).astype(np.float16)
    divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[:, :, None]
    codes = np.clip(np.rint(grouped / divisor), -127, 127).astype(np.int8)
    return codes.reshape(rows, -1).view(np.uint8), scales.view(np.uint16)
