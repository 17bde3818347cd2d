"""The block formats of GGUF: how many weights a block holds, how many bytes, and what they mean.

Each block is decoded into codes, scales and offsets (`w = scale * code + offset`), from which both the
float weights and the packed tiles of the CPU engine are made. Layouts follow the GGUF documentation;
little-endian throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantTensor:
    """One low-bit matrix: `w[o, i] = scales[o, i // group] * codes[o, i] + zeros[o, i // group]`.

    Attributes:
        format: Name of the storage format, `q4_1` for one.
        shape: (out_features, in_features).
        codes: int8 or uint8 `[out, in]`, one code a byte.
        scales: float32 `[out, in / group]`.
        zeros: float32 like `scales`, or None when every offset is zero.
        group: Input channels that share a scale.
        perm: Order of the input channels, None for the natural one.
    """

    format: str
    shape: tuple[int, int]
    codes: NDArray[Any]
    scales: Floats
    zeros: Floats | None
    group: int
    perm: NDArray[np.int64] | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)

    def dequantize(self) -> Floats:
        """The float32 matrix `[out, in]`, in the natural channel order."""
        rows, columns = self.shape
        grouped = self.codes.reshape(rows, columns // self.group, self.group).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            grouped *= self.scales[:, :, None]
            if self.zeros is not None:
                grouped += self.zeros[:, :, None]
        dense = grouped.reshape(self.shape)
        if self.perm is None:
            return dense
        natural = np.empty_like(dense)
        natural[:, self.perm] = dense
        return natural


Parts = tuple[NDArray[Any], Floats, Floats | None]
"""Codes `[blocks, weights]`, scales and offsets `[blocks, groups]` of many blocks."""


def _half(blocks: Bytes, at: int) -> Floats:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles then high nibbles of each block: `[blocks, n] -> [blocks, 2n]`."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _q8_0(blocks: Bytes) -> Parts:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0), None


def _q4_0(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q5_0(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return codes.view(np.int8) - np.int8(16), _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2)


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight 6-bit scales and eight 6-bit minimums out of 12 bytes a block."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 6) << 4)), axis=1)
    minimums = np.concatenate((middle & 63, (high >> 4) | ((middle >> 6) << 4)), axis=1)
    return scales, minimums


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    return _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * minimums.astype(np.float32)


def _q4_k(blocks: Bytes) -> Parts:
    scales, minimums = _k_scales(blocks)
    quarters = blocks[:, 16:].reshape(-1, 32)
    return _nibbles(quarters).reshape(len(blocks), 256), scales, -minimums


def _q5_k(blocks: Bytes) -> Parts:
    scales, minimums = _k_scales(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(len(blocks), 8, 32)
    bit = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> bit) & 1
    return (low | (high << 4)).reshape(len(blocks), 256), scales, -minimums


def _q6_k(blocks: Bytes) -> Parts:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    codes = (low & 15).reshape(-1, 2, 4, 32) | ((high & 3) << 4)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    return codes.reshape(-1, 256).view(np.int8) - np.int8(32), scales, None


@dataclass(frozen=True)
class BlockFormat:
    """`weights` in a block of `nbytes`, `group` of them sharing a scale. Plain number types have blocks of
    one.
    """

    name: str
    weights: int
    nbytes: int
    group: int = 0
    split: Callable[[Bytes], Parts] | None = None


FORMATS = {
    0: BlockFormat("f32", 1, 4),
    1: BlockFormat("f16", 1, 2),
    2: BlockFormat("q4_0", 32, 18, 32, _q4_0),
    3: BlockFormat("q4_1", 32, 20, 32, _q4_1),
    6: BlockFormat("q5_0", 32, 22, 32, _q5_0),
    7: BlockFormat("q5_1", 32, 24, 32, _q5_1),
    8: BlockFormat("q8_0", 32, 34, 32, _q8_0),
    12: BlockFormat("q4_k", 256, 144, 32, _q4_k),
    13: BlockFormat("q5_k", 256, 176, 32, _q5_k),
    14: BlockFormat("q6_k", 256, 210, 16, _q6_k),
    30: BlockFormat("bf16", 1, 2),
}
"""The formats that are read, by their number in a GGUF file."""

OTHER_NAMES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28:
    "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Formats that exist and are not read, so that the refusal can name them."""

BY_NAME = {block.name: block for block in FORMATS.values()}


def plain_to_float(raw: Bytes, name: str) -> Floats:
    """Bytes of `f32`, `f16` or `bf16` numbers as float32; `f32` that lies aligned is not copied."""
    if name == "f32":
        return raw.view(np.float32)
    if name == "f16":
        return raw.view(np.float16).astype(np.float32)
    widened = raw.view(np.uint16).astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def split_blocks(raw: Bytes, name: str, shape: tuple[int, int]) -> QuantTensor:
    """Codes, scales and offsets of a block-quantised matrix.

    Args:
        raw: uint8, the blocks of all rows one after the other.
        name: A key of `BY_NAME` whose blocks hold more than one weight.
        shape: (out_features, in_features); in_features is a multiple of the block's weights.
    """
    block = BY_NAME[name]
    assert block.split is not None
    # A damaged file may hold NaN scales; whoever keeps the weights says so by name, better than a warning does.
    with np.errstate(invalid="ignore", over="ignore"):
        codes, scales, zeros = block.split(raw.reshape(-1, block.nbytes))
    rows, columns = shape
    groups = (rows, columns // block.group)
    return QuantTensor(
        name,
        shape,
        codes.reshape(shape),
        scales.reshape(groups),
        None if zeros is None else zeros.reshape(groups),
        block.group,
    )


def to_float(raw: Bytes, name: str, shape: tuple[int, ...]) -> Floats:
    """Float32 weights of any readable format, in `shape` (rows first).

    Example:
        >>> to_float(np.array([0, 60], np.uint8), "f16", (1,))
        array([1.], dtype=float32)
    """
    if BY_NAME[name].split is None:
        return plain_to_float(raw, name).reshape(shape)
    columns = shape[-1]
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    # A few thousand rows at a time keep the one-byte codes of a large embedding out of memory.
    step = max(1, (1 << 22) // columns)
    if rows <= step:
        return split_blocks(raw, name, (rows, columns)).dequantize().reshape(shape)
    row_bytes = columns // BY_NAME[name].weights * BY_NAME[name].nbytes
    dense = np.empty((rows, columns), np.float32)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        part = raw[start * row_bytes : (start + count) * row_bytes]
        dense[start : start + count] = split_blocks(part, name, (count, columns)).dequantize()
    return dense.reshape(shape)
