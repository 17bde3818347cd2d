"""Weights into the block formats of GGUF: the other direction of `block_formats`.

Formats of one scale a block (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1) are rounded by the rule that everybody uses, bit for bit.
The formats with scales of scales (Q4_K, Q5_K, Q6_K) leave the choice of scales open: here a grid of candidates is
fitted by least squares, and the one with the smallest squared error wins. Decoding follows the same layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.models.block_formats import BY_NAME, Bytes, Floats, QuantTensor, split_blocks, to_float

_ROWS_AT_ONCE = 1 << 20
"""Weights handled together; the search over scales needs some twenty times their memory."""
_STEPS = np.linspace(-1.0, 1.0, 9, dtype=np.float32)
"""Candidates of the search, in units of one level more or fewer than the plain range has."""


@dataclass(frozen=True)
class BlockTensor:
    """A matrix in a block format, as it lies in a file: `raw` uint8, the blocks of all rows one after the other."""

    format: str
    shape: tuple[int, ...]
    raw: Bytes

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def dequantize(self) -> Floats:
        """The float32 matrix."""
        return to_float(self.raw, self.format, self.shape)

    def split(self) -> QuantTensor:
        """Codes and scales of a matrix."""
        return split_blocks(self.raw, self.format, (self.shape[0], self.shape[1]))


def quantize(weights: Floats, name: str) -> BlockTensor:
    """Float32 weights (rows first) in format `name`: any of `FORMATS` that is read.

    Raises:
        UsageError: no such format, or rows that do not fill its blocks.

    Example:
        >>> packed = quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), "q8_0")
        >>> packed.nbytes, round(float(abs(packed.dequantize()[1, 31])), 3)
        (68, 1.0)
    """
    block, pack = BY_NAME.get(name), _PACKERS.get(name)
    if block is None or pack is None:
        raise UsageError(f"{name!r} is not a format to quantise to", hint=f"known: {', '.join(_PACKERS)}")
    if weights.shape[-1] % block.weights:
        raise UsageError(f"rows of {weights.shape[-1]} weights do not fill {name} blocks of {block.weights}")
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, block.weights)
    raw = np.empty((len(blocks), block.nbytes), np.uint8)
    step = max(1, _ROWS_AT_ONCE // block.weights)
    for start in range(0, len(blocks), step):
        raw[start : start + step] = pack(blocks[start : start + step])
    return BlockTensor(name, weights.shape, raw.reshape(-1))


def _f32(blocks: Floats) -> Bytes:
    return blocks.view(np.uint8)


def _f16(blocks: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return blocks.astype(np.float16).view(np.uint8)


def _bf16(blocks: Floats) -> Bytes:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = blocks.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 64
    return np.where(np.isnan(blocks), quiet, rounded).astype(np.uint16).view(np.uint8)


def _inverse(scales: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(scales == 0, np.float32(0), np.float32(1) / scales)


def _halves(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return values.reshape(-1, 1).astype(np.float16).view(np.uint8)


def _pair(codes: Bytes) -> Bytes:
    """The first half of a block's codes into low nibbles, the second into high ones."""
    half = codes.shape[1] // 2
    packed: Bytes = (codes[:, :half] & np.uint8(15)) | (codes[:, half:] << np.uint8(4))
    return packed


def _fifth_bits(codes: Bytes) -> Bytes:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _signed_extreme(blocks: Floats) -> Floats:
    """The weight of largest magnitude in each block, `[blocks, 1]`."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[:, None], axis=-1)


def _q8_0(blocks: Floats) -> Bytes:
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scales)
    away = np.trunc(np.abs(scaled) + np.float32(0.5))
    codes = (np.sign(scaled) * away).astype(np.int8)
    return np.concatenate((_halves(scales), codes.view(np.uint8)), axis=1)


def _around_zero(blocks: Floats, levels: int) -> tuple[Bytes, Floats]:
    """Codes and scales of `w = d (q - levels / 2)`; the extreme weight is met exactly by the lowest code."""
    half = levels // 2
    scales = _signed_extreme(blocks) / np.float32(-half)
    # Products and sums in float64, as the reference rounding has them.
    codes = np.trunc(blocks.astype(np.float64) * _inverse(scales).astype(np.float64) + (half + 0.5))
    return np.clip(codes, 0, levels - 1).astype(np.uint8), scales


def _from_minimum(blocks: Floats, levels: int) -> tuple[Bytes, Floats, Floats]:
    """Codes, scales and minimums of `w = d q + m`."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scales = (high - low) / np.float32(levels - 1)
    codes = np.trunc((blocks - low) * _inverse(scales) + np.float32(0.5))
    return np.clip(codes, 0, levels - 1).astype(np.uint8), scales, low


def _q4_0(blocks: Floats) -> Bytes:
    codes, scales = _around_zero(blocks, 16)
    return np.concatenate((_halves(scales), _pair(codes)), axis=1)


def _q4_1(blocks: Floats) -> Bytes:
    codes, scales, low = _from_minimum(blocks, 16)
    return np.concatenate((_halves(scales), _halves(low), _pair(codes)), axis=1)


def _q5_0(blocks: Floats) -> Bytes:
    codes, scales = _around_zero(blocks, 32)
    return np.concatenate((_halves(scales), _fifth_bits(codes), _pair(codes)), axis=1)


def _q5_1(blocks: Floats) -> Bytes:
    codes, scales, low = _from_minimum(blocks, 32)
    return np.concatenate((_halves(scales), _halves(low), _fifth_bits(codes), _pair(codes)), axis=1)


def _fit_affine(groups: Floats, levels: int) -> tuple[Floats, Floats]:
    """Scales and minimums (both >= 0) of `w = d q - m` with the smallest squared error found, `[groups]` each."""
    low, high = np.minimum(groups.min(axis=1), 0), groups.max(axis=1)
    best_error = np.full(len(groups), np.inf, np.float32)
    best_scale, best_low = np.zeros(len(groups), np.float32), np.zeros(len(groups), np.float32)
    for step in _STEPS:
        first = np.maximum(high - low, 0) / np.float32(levels - 1 + step)
        codes = _codes(groups, first, low, levels)
        scale, offset = _least_squares_line(codes, groups)
        # A minimum above zero cannot be stored: then the line goes through zero.
        through = (codes * groups).sum(axis=1) * _inverse((codes * codes).sum(axis=1))
        scale, offset = np.where(offset > 0, through, scale), np.minimum(offset, 0)
        scale = np.maximum(scale, 0)
        again = _codes(groups, scale, offset, levels)
        error = np.square(scale[:, None] * again + offset[:, None] - groups).sum(axis=1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_low = np.where(better, scale, best_scale), np.where(better, offset, best_low)
    return best_scale, -best_low


def _codes(groups: Floats, scale: Floats, low: Floats, levels: int) -> Floats:
    scaled: Floats = np.rint((groups - low[:, None]) * _inverse(scale)[:, None])
    return np.clip(scaled, 0, levels - 1)


def _least_squares_line(codes: Floats, groups: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept of `groups` over `codes`, row by row; slope 0 where all codes are equal."""
    mean_code, mean = codes.mean(axis=1), groups.mean(axis=1)
    centred = codes - mean_code[:, None]
    slope = (centred * groups).sum(axis=1) * _inverse(np.square(centred).sum(axis=1))
    return slope, mean - slope * mean_code


def _fit_symmetric(groups: Floats, levels: int) -> Floats:
    """Scales of `w = d q`, q from -levels/2 to levels/2 - 1, with the smallest squared error found, `[groups]`."""
    half = levels // 2
    extreme = _signed_extreme(groups)[:, 0]
    best_error = np.full(len(groups), np.inf, np.float32)
    best = np.zeros(len(groups), np.float32)
    for step in _STEPS:
        first = extreme / np.float32(-half + step)
        codes = np.clip(np.rint(groups * _inverse(first)[:, None]), -half, half - 1)
        scale = (codes * groups).sum(axis=1) * _inverse(np.square(codes).sum(axis=1))
        error = np.square(scale[:, None] * codes - groups).sum(axis=1)
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    return best


def _scales_of_scales(values: Floats, most: int) -> tuple[Floats, NDArray[np.int64]]:
    """A half-precision unit for each block and the integers that make `values [blocks, groups]` out of it."""
    extreme = _signed_extreme(values)[:, 0]
    with np.errstate(over="ignore"):
        unit = (extreme / np.float32(most)).astype(np.float16).astype(np.float32)
    return unit, np.rint(values * _inverse(unit)[:, None]).clip(-128, 127).astype(np.int64)


def _with_minimums(blocks: Floats, levels: int) -> tuple[Bytes, Bytes]:
    """The 16 bytes of scales that Q4_K and Q5_K share, and the codes `[blocks, 256]`."""
    groups = blocks.reshape(-1, 32)
    scales, minimums = (found.reshape(-1, 8) for found in _fit_affine(groups, levels))
    unit, scale_codes = _scales_of_scales(scales, 63)
    low_unit, low_codes = _scales_of_scales(minimums, 63)
    scale_codes, low_codes = scale_codes.clip(0, 63), low_codes.clip(0, 63)
    # Codes are chosen for the scales as they are stored.
    kept = (unit[:, None] * scale_codes).astype(np.float32).reshape(-1)
    low = (low_unit[:, None] * low_codes).astype(np.float32).reshape(-1)
    codes = _codes(groups, kept, -low, levels).astype(np.uint8).reshape(-1, 256)
    s, m = scale_codes.astype(np.uint8), low_codes.astype(np.uint8)
    packed = np.concatenate(
        (
            (s[:, :4]) | ((s[:, 4:] >> 4) << 6),
            (m[:, :4]) | ((m[:, 4:] >> 4) << 6),
            (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4),
        ),
        axis=1,
    )
    return np.concatenate((_halves(unit), _halves(low_unit), packed), axis=1), codes


def _q4_k(blocks: Floats) -> Bytes:
    head, codes = _with_minimums(blocks, 16)
    return np.concatenate((head, _pair(codes.reshape(-1, 64)).reshape(-1, 128)), axis=1)


def _q5_k(blocks: Floats) -> Bytes:
    head, codes = _with_minimums(blocks, 32)
    bit = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = np.bitwise_or.reduce((codes.reshape(-1, 8, 32) >> 4) << bit, axis=1)
    return np.concatenate((head, fifth, _pair(codes.reshape(-1, 64)).reshape(-1, 128)), axis=1)


def _q6_k(blocks: Floats) -> Bytes:
    groups = blocks.reshape(-1, 16)
    unit, scale_codes = _scales_of_scales(_fit_symmetric(groups, 64).reshape(-1, 16), -128)
    kept = (unit[:, None] * scale_codes).astype(np.float32).reshape(-1)
    codes = (np.clip(np.rint(groups * _inverse(kept)[:, None]), -32, 31) + 32).astype(np.uint8)
    quarters = codes.reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & 15) | ((quarters[:, :, 2:] & 15) << 4)
    shift = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = np.bitwise_or.reduce((quarters >> 4) << shift, axis=2)
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), scale_codes.astype(np.int8).view(np.uint8), _halves(unit))
    return np.concatenate(parts, axis=1)


_PACKERS: dict[str, Callable[[Floats], Bytes]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q8_0": _q8_0,
    "q5_1": _q5_1,
    "q5_0": _q5_0,
    "q4_1": _q4_1,
    "q4_0": _q4_0,
    "q6_k": _q6_k,
    "q5_k": _q5_k,
    "q4_k": _q4_k,
}
