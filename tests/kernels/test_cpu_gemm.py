"""Packed products against float64 on the same codes, for every layout, remainder and batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import llvmlite.binding
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import cpu_gemm, simd
from windlass.kernels.compiled import compiled
from windlass.kernels.cpu_gemm import (
    BLOCK_BYTES,
    W4,
    W4M,
    W8,
    packed_bytes,
    quantize_tokens,
    tile_product,
    vector_product,
)
from windlass.models.block_formats import split_blocks

FORMATS = {"q4_1": W4M, "q4_0": W4, "q8_0": W8}


def packed(name: str, rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The float32 weights of random blocks of a format, and the arena they are packed in."""
    rng = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = gguf.quants.quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
    weights = gguf.dequantize(stored, kind)
    arena = np.zeros(packed_bytes(FORMATS[name], rows, columns), np.uint8)
    size, head = {"q4_0": (18, 2), "q4_1": (20, 4), "q8_0": (34, 2)}[name]
    assert cpu_gemm.pack_blocks(stored.reshape(-1), rows, columns // 32, size, head, arena, 0) == 0
    return weights, arena


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, columns = x.shape
    blocks = columns // 32
    xq = np.zeros(tokens * columns, np.int8)
    dx, xsum = np.zeros(tokens * blocks, np.float32), np.zeros(tokens * blocks, np.float32)
    quantize_tokens(x.reshape(-1), columns, xq, dx, xsum)
    return xq, dx, xsum


def restored(xq: np.ndarray, dx: np.ndarray, tokens: int) -> np.ndarray:
    by_block = xq.reshape(-1, tokens, 32).astype(np.float64) * dx.reshape(-1, tokens, 1)
    return by_block.transpose(1, 0, 2).reshape(tokens, -1)


def product(arena: np.ndarray, kind: int, rows: int, columns: int, x: np.ndarray) -> np.ndarray:
    xq, dx, xsum = rounded(x)
    blocks, tokens = columns // 32, len(x)
    if tokens == 1:
        out = np.full(-(-rows // 16) * 16, np.nan, np.float32)
        vector_product(arena, 0, kind, blocks, len(out) // 16, xq, dx, xsum, 0, out)
        return out[None, :rows]
    tiles = []
    for tile in range(-(-rows // 16)):
        out = np.full(16 * tokens, np.nan, np.float32)
        at = tile * blocks * BLOCK_BYTES[kind]
        tile_product(arena, at, kind, blocks, xq, dx, xsum, tokens, 0, tokens, 0, out)
        tiles.append(out.reshape(tokens, 16))
    return np.concatenate(tiles, axis=1)[:, :rows]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 17), st.integers(0, 99))
def test_products_equal_float64_on_the_same_codes(name: str, rows: int, blocks: int, tokens: int, seed: int) -> None:
    weights, arena = packed(name, rows, 32 * blocks, seed)
    x = np.random.default_rng(seed + 1).standard_normal((tokens, 32 * blocks)).astype(np.float32)
    xq, dx, _ = rounded(x)
    expected = restored(xq, dx, tokens) @ weights.T.astype(np.float64)
    ours = product(arena, FORMATS[name], rows, 32 * blocks, x)
    size = np.abs(restored(xq, dx, tokens)) @ np.abs(weights.T.astype(np.float64)) + 1e-30
    assert (np.abs(ours - expected) / size).max() <= 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_a_token_gives_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    _, arena = packed(name, 48, 96, 5)
    x = np.random.default_rng(6).standard_normal((9, 96)).astype(np.float32)
    together = product(arena, FORMATS[name], 48, 96, x)
    for token in range(9):
        alone = product(arena, FORMATS[name], 48, 96, x[token : token + 1])
        assert np.array_equal(alone[0], together[token])


@pytest.mark.parametrize("name", FORMATS)
def test_extreme_codes_do_not_saturate(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    weights = np.where(np.arange(64) % 2, np.float32(1), np.float32(-1)) * np.ones((16, 1), np.float32)
    stored = gguf.quants.quantize(weights, kind)
    exact = gguf.dequantize(stored, kind).astype(np.float64)
    arena = np.zeros(packed_bytes(FORMATS[name], 16, 64), np.uint8)
    size, head = {"q4_0": (18, 2), "q4_1": (20, 4), "q8_0": (34, 2)}[name]
    cpu_gemm.pack_blocks(stored.reshape(-1), 16, 2, size, head, arena, 0)
    for x in (np.ones((1, 64)), -np.ones((2, 64)), np.where(np.arange(64) % 2, 1, -1)[None]):
        x = x.astype(np.float32)
        assert np.allclose(product(arena, FORMATS[name], 16, 64, x), x @ exact.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_keeps_every_weight(name: str) -> None:
    weights, arena = packed(name, 37, 160, 8)
    row = np.zeros(160, np.float32)
    for index in range(37):
        cpu_gemm.unpack_row(arena, 0, FORMATS[name], 160, index, row, 0)
        assert np.array_equal(row, weights[index])


def test_packing_codes_gives_the_same_tiles_as_packing_blocks() -> None:
    _, arena = packed("q8_0", 37, 160, 8)
    rng = np.random.default_rng(8)
    stored = gguf.quants.quantize(rng.standard_normal((37, 160)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    parts, other = split_blocks(stored.reshape(-1), "q8_0", (37, 160)), np.zeros_like(arena)
    halves = parts.scales.astype(np.float16).view(np.uint16)
    cpu_gemm.pack_codes(parts.codes.view(np.uint8), halves, halves, W8, other, 0)
    assert np.array_equal(arena, other)


def test_packing_counts_what_is_not_finite() -> None:
    stored = gguf.quants.quantize(np.ones((20, 64), np.float32), gguf.GGMLQuantizationType.Q4_1).reshape(20, 2, 20)
    stored[3, 1, :2] = [0, 0x7C]
    stored[19, 0, 2:4] = [1, 0xFE]
    arena = np.zeros(packed_bytes(W4M, 20, 64), np.uint8)
    assert cpu_gemm.pack_blocks(stored.reshape(-1), 20, 2, 20, 4, arena, 0) == 2


def test_a_coarse_copy_stays_within_half_a_step() -> None:
    weights, arena = packed("q8_0", 32, 96, 4)
    coarse, row = np.zeros(packed_bytes(W4, 32, 96), np.uint8), np.zeros(96, np.float32)
    cpu_gemm.coarsen(arena, 0, 2, 3, coarse, 0)
    for index in range(32):
        cpu_gemm.unpack_row(coarse, 0, W4, 96, index, row, 0)
        steps = np.repeat(np.abs(weights[index].reshape(3, 32)).max(axis=1), 32) / 8
        error = np.abs(row - weights[index])
        # The far end of the other sign has no code: its error may be a whole step.
        assert (error <= steps * 1.01).all() and np.median(error / steps) <= 0.35


def test_rounding_activations_is_nearest_and_keeps_zero() -> None:
    x = np.random.default_rng(2).standard_normal((3, 96)).astype(np.float32)
    x[1, 32:64] = 0
    xq, dx, xsum = rounded(x)
    assert np.abs(restored(xq, dx, 3) - x).max() <= np.abs(x).max() / 254 * 1.001
    assert dx.reshape(3, 3)[1, 1] == 0 and not xq.reshape(3, 3, 32)[1, 1].any()
    assert np.array_equal(xsum.reshape(3, 3), xq.reshape(3, 3, 32).astype(np.int32).sum(2))
    assert np.abs(xq).max() == 127


def test_rounding_weights_to_int8() -> None:
    weights = np.random.default_rng(3).standard_normal((5, 70)).astype(np.float32)
    weights[2] = 0
    codes, scales = cpu_gemm.round_to_int8(weights)
    assert codes.shape == (5, 96) and scales.shape == (5, 3)
    back = codes.view(np.int8).reshape(5, 3, 32) * scales.view(np.float16).astype(np.float32)[:, :, None]
    assert np.abs(back.reshape(5, 96)[:, :70] - weights).max() <= np.abs(weights).max() / 254 * 1.02
    assert not codes[2].any()


def test_halves_are_read_as_numpy_reads_them() -> None:
    bits = np.arange(0, 1 << 16, 41).astype(np.uint16)
    found = [_half(np.uint8(value & 255), np.uint8(value >> 8)) for value in bits]
    assert np.array_equal(found, bits.view(np.float16).astype(np.float32), equal_nan=True)


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_other_instruction_sets_pass_the_same_tests(isa: str) -> None:
    features = llvmlite.binding.get_host_cpu_features()
    if not all(features.get(need) for need in simd.NEEDS[isa]):
        pytest.skip(f"this processor has no {isa}")
    here = Path(__file__).parent.parent
    tests = [str(here / "kernels" / "test_cpu_gemm.py"), str(here / "models" / "test_cpu_engine.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests],
        env={**os.environ, "WINDLASS_ISA": isa}, cwd=here.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "import windlass.kernels.simd"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WINDLASS_ISA": "mmx"}, capture_output=True, text=True
    )
    assert run.returncode == 1 and "WINDLASS_ISA is 'mmx'; choose one of avx512vnni" in run.stderr


@compiled
def _half(low: int, high: int) -> float:
    return cpu_gemm.half_to_float(low, high)
