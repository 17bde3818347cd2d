"""Packed products against float64 on the same codes, for every layout, remainder and batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import isa, tile_packing
from windlass.kernels.compiled import compiled
from windlass.kernels.cpu_gemm import quantize_tokens, tile_product, vector_product
from windlass.kernels.tile_layout import BLOCK_BYTES, GUESS, W4, W4M, W8, lower_half, packed_bytes, round_to_int8
from windlass.models.block_formats import split_blocks

FORMATS = {"q4_1": W4M, "q4_0": W4, "q8_0": W8}


def packed(name: str, rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The float32 weights of random blocks of a format, and the arena they are packed in."""
    rng = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = gguf.quants.quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
    weights = gguf.dequantize(stored, kind)
    arena = np.zeros(packed_bytes(FORMATS[name], rows, columns), np.uint8)
    assert pack(name, stored, rows, columns // 32, arena) == 0
    return weights, arena


def pack(name: str, stored: np.ndarray, rows: int, blocks: int, arena: np.ndarray) -> int:
    raw = stored.reshape(-1)
    if name == "q8_0":
        return tile_packing.pack_byte_blocks(raw, rows, blocks, arena, 0, lower_half(0, rows, blocks))
    size, head = {"q4_0": (18, 2), "q4_1": (20, 4)}[name]
    return tile_packing.pack_blocks(raw, rows, blocks, size, head, arena, 0)


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
    lower = lower_half(0, rows, blocks)
    if tokens == 1:
        out = np.full(-(-rows // 16) * 16, np.nan, np.float32)
        vector_product(arena, 0, lower, kind, blocks, len(out) // 16, xq, dx, xsum, 0, out)
        return out[None, :rows]
    tiles = []
    for tile in range(-(-rows // 16)):
        out = np.full(16 * tokens, np.nan, np.float32)
        at = tile * blocks * BLOCK_BYTES[kind]
        tile_product(arena, at, lower + tile * blocks * 256, kind, blocks, xq, dx, xsum, tokens, 0, tokens, 0, out)
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
    pack(name, stored, 16, 2, arena)
    for x in (np.ones((1, 64)), -np.ones((2, 64)), np.where(np.arange(64) % 2, 1, -1)[None]):
        x = x.astype(np.float32)
        assert np.allclose(product(arena, FORMATS[name], 16, 64, x), x @ exact.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_keeps_every_weight(name: str) -> None:
    weights, arena = packed(name, 37, 160, 8)
    row = np.zeros(160, np.float32)
    for index in range(37):
        tile_packing.unpack_row(arena, 0, lower_half(0, 37, 5), FORMATS[name], 160, index, row, 0)
        assert np.array_equal(row, weights[index])


def test_packing_codes_gives_the_same_tiles_as_packing_blocks() -> None:
    _, arena = packed("q8_0", 37, 160, 8)
    rng = np.random.default_rng(8)
    stored = gguf.quants.quantize(rng.standard_normal((37, 160)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    parts, other = split_blocks(stored.reshape(-1), "q8_0", (37, 160)), np.zeros_like(arena)
    halves = parts.scales.astype(np.float16).view(np.uint16)
    codes, halves = parts.codes.view(np.uint8).reshape(-1), halves.reshape(-1)
    tile_packing.pack_codes(codes, halves, halves, 37, 160, W8, other, 0, lower_half(0, 37, 5))
    assert np.array_equal(arena, other)


def test_packing_counts_what_is_not_finite() -> None:
    stored = gguf.quants.quantize(np.ones((20, 64), np.float32), gguf.GGMLQuantizationType.Q4_1).reshape(20, 2, 20)
    stored[3, 1, :2] = [0, 0x7C]
    stored[19, 0, 2:4] = [1, 0xFE]
    arena = np.zeros(packed_bytes(W4M, 20, 64), np.uint8)
    assert pack("q4_1", stored, 20, 2, arena) == 2


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_guess_is_the_product_with_the_upper_half_of_each_code(tokens: int) -> None:
    weights, arena = packed("q8_0", 40, 96, 4)
    x = np.random.default_rng(1).standard_normal((tokens, 96)).astype(np.float32)
    xq, dx, _ = rounded(x)
    scales = np.abs(weights.reshape(40, 3, 32)).max(axis=2, keepdims=True) / 127
    codes = np.rint(weights.reshape(40, 3, 32) / scales)
    # The middle of the sixteen codes that share an upper half is at most 7.5 codes from each of them.
    coarse = (16 * np.floor(codes / 16) + 7.5) * scales
    assert np.abs(coarse - weights.reshape(40, 3, 32)).max() <= 7.51 * scales.max()
    expected = restored(xq, dx, tokens) @ coarse.reshape(40, 96).T
    ours = 16 * product(arena, GUESS, 40, 96, x)
    # Scales are rounded to half precision when they are stored.
    size = np.abs(restored(xq, dx, tokens)) @ np.abs(weights.T)
    assert (np.abs(ours - expected) / size).max() <= 1e-3


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
    codes, scales = round_to_int8(weights)
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
@pytest.mark.parametrize("name", ["generic", "avx2"])
def test_other_instruction_sets_pass_the_same_tests(name: str) -> None:
    if name not in isa.runnable():
        pytest.skip(f"this processor has no {name}")
    here = Path(__file__).parent.parent
    tests = [str(here / "kernels" / "test_cpu_gemm.py"), str(here / "models" / "test_cpu_engine.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests],
        env={**os.environ, "WINDLASS_ISA": name}, cwd=here.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "import windlass.kernels.isa"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WINDLASS_ISA": "mmx"}, capture_output=True, text=True
    )
    assert run.returncode == 1 and "WINDLASS_ISA is 'mmx'; choose one of avx512vnni" in run.stderr


@compiled
def _half(low: int, high: int) -> float:
    return tile_packing.half_to_float(low, high)
