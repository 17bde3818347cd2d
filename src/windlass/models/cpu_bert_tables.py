"""The arrays that the compiled encoder works on, and what their entries mean."""

from __future__ import annotations

(
    ARENA, FLOATS, PLAN, NORMS, SIZES, EPSILON, CALLS,
    HIDDEN, QKV, UPDATE, INNER, CODES, MIXED, INNER_CODES, STEPS, LOWS, KEYS, VALUES, SCORES, LENGTHS, RECEIVED,
) = range(21)  # fmt: skip
"""Arrays by number (`kernels.views`). Of the model: `ARENA` uint8 panels; `FLOATS` float32 scales, sums, biases and
norms; `PLAN` int64 [layers, 4 matrices, 4]; `NORMS` int64 [layers + 1, 2], where each norm begins in `FLOATS`, the
embedding's in the row after the last layer. A row a token: `HIDDEN`, `QKV`, `UPDATE`, `CODES`; a block's: `INNER`,
`INNER_CODES`, `MIXED`."""
ARRAYS = 21
BLOCK = 32
"""Tokens that are taken through the second half of a layer together."""
TO_QKV, TO_OUTPUT, TO_INNER, TO_OUTER = range(4)
BYTE, FLOAT, PANELS, INPUTS = range(4)
"""Columns of `PLAN`: first byte, first float, panels, inputs."""
LAYERS, HIDDEN_SIZE, INNER_SIZE, HEADS = range(4)
"""Entries of `SIZES`."""
PRODUCT_CALL, ROUND_CALL, NORMALIZE_CALL, ATTEND_CALL = range(4)
"""Entries of `CALLS`."""
