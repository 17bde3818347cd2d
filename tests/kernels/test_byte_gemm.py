"""Products of bytes, rounding, norms and attention against float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.kernels.byte_gemm import SHIFT, byte_product
from windlass.kernels.byte_panels import PANEL, pack_panels, round_rows
from windlass.kernels.cpu_encoder import attend_sequence, normalize_tokens, round_tokens
from windlass.kernels.isa import runnable


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, columns = x.shape
    codes = np.zeros(tokens * columns, np.uint8)
    steps, lows = np.zeros(tokens, np.float32), np.zeros(tokens, np.float32)
    round_tokens(x.reshape(-1), 0, columns, columns, codes, 0, steps, lows, 0, tokens)
    return codes, steps, lows


def restored(codes: np.ndarray, steps: np.ndarray, lows: np.ndarray) -> np.ndarray:
    by_token = codes.reshape(len(steps), -1).astype(np.float64) - SHIFT
    return by_token * steps[:, None].astype(np.float64) + lows[:, None]


def product(weights: np.ndarray, bias: np.ndarray, x: np.ndarray, bend: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel gives, and the float64 result on the same codes."""
    codes, scales = round_rows(weights)
    panels = -(-len(weights) // PANEL)
    padding = panels * PANEL - len(weights)
    sums = scales * codes.sum(1, dtype=np.int64)
    floats = np.concatenate([np.pad(part.astype(np.float32), (0, padding)) for part in (scales, sums, bias)])
    tokens = -(-len(x) // 4) * 4
    padded = np.zeros((tokens, x.shape[1]), np.float32)
    padded[: len(x)] = x
    xq, steps, lows = rounded(padded)
    out = np.full(tokens * panels * PANEL, np.nan, np.float32)
    byte_product(
        xq, 0, x.shape[1], steps, lows, 0, tokens, pack_panels(codes), 0, panels, floats, 0, out, 0, panels * PANEL,
        bend,
    )  # fmt: skip
    expected = restored(xq, steps, lows) @ (codes * scales[:, None].astype(np.float64)).T + bias
    if bend:
        expected = np.vectorize(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))(expected)
    return out.reshape(tokens, -1)[: len(x), : len(weights)], expected[: len(x)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_products_equal_float64_on_the_same_codes(rows: int, steps: int, tokens: int, bend: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, 8 * steps)).astype(np.float32)
    x = (random.standard_normal((tokens, 8 * steps)) * 10 ** random.uniform(-2, 1)).astype(np.float32)
    found, expected = product(weights, random.standard_normal(rows).astype(np.float32), x, bend)
    scale = np.abs(x).max() * np.abs(weights).sum(1).max()
    assert np.abs(found - expected).max() <= 1e-5 * scale + 4e-6


@pytest.mark.parametrize("pattern", ["one sign", "alternating", "pairs", "single"])
def test_the_largest_products_stay_within_16_bits(pattern: str) -> None:
    """Codes of 255 on every input that a positive weight meets, and of 0 elsewhere: the largest sums there are."""
    place = np.arange(64)
    signs = {
        "one sign": np.ones(64),
        "alternating": np.where(place % 2, -1.0, 1.0),
        "pairs": np.where(place // 2 % 2, -1.0, 1.0),
        "single": (place % 8 == 0).astype(float),
    }[pattern]
    weights = np.stack([signs, -signs]).astype(np.float32)
    for x in ((signs > 0).astype(np.float32)[None], (signs <= 0).astype(np.float32)[None]):
        found, expected = product(weights, np.zeros(2, np.float32), x, False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.sampled_from([0.2, 1.0, 5.0]), st.integers(0, 99))
def test_codes_are_near_and_their_sums_bounded(rows: int, steps: int, spread: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((rows, 8 * steps)) * np.exp(random.standard_normal((rows, 1)) * spread)).astype(
        np.float32
    )
    weights[0] = 0
    codes, scales = round_rows(weights)
    assert (np.abs(codes * scales[:, None] - weights) <= scales[:, None] * 0.501).all()
    # A scale is never coarser than the bound on sums asks for: four codes of 127 would be 508.
    assert (scales <= np.abs(weights).max(1) * 4 / 126 * 1.001).all()
    grouped = codes.reshape(rows, steps, 8).astype(int)
    for group in ((0, 1, 4, 5), (2, 3, 6, 7)):
        part = grouped[:, :, group]
        assert np.maximum(part, 0).sum(2).max() * 255 < 2**15
        assert np.minimum(part, 0).sum(2).min() * 255 >= -(2**15)


def test_weights_that_cannot_be_rounded_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of eight"):
        round_rows(np.ones((2, 12), np.float32))
    with pytest.raises(UsageError, match="not numbers"):
        round_rows(np.full((2, 8), np.nan, np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_activations_are_rounded_to_the_nearest_of_256(tokens: int, parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((tokens, 16 * parts)) + random.normal()).astype(np.float32)
    x[0] = 3.25  # a constant row has no spread
    codes, steps, lows = rounded(x)
    spread = x.max(1) - x.min(1)
    assert (np.abs(restored(codes, steps, lows) - x).max(1) <= spread / 510 * 1.001 + 1e-6).all()
    assert np.isfinite(steps).all() and steps[0] == 0


def test_norm_of_a_sum_and_its_codes() -> None:
    random = np.random.default_rng(1)
    x, update = random.standard_normal((2, 3, 64)).astype(np.float32)
    norm = random.standard_normal((2, 64)).astype(np.float32)
    total = (x + update).astype(np.float64)
    centred = total - total.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * norm[0] + norm[1]
    flat = x.reshape(-1).copy()
    codes, steps, lows = np.zeros(192, np.uint8), np.zeros(3, np.float32), np.zeros(3, np.float32)
    normalize_tokens(flat, 0, update.reshape(-1), 0, 64, norm.reshape(-1), 0, 1e-5, codes, 0, steps, lows, 0, 3)
    np.testing.assert_allclose(flat.reshape(3, 64), expected, atol=1e-5)
    spread = expected.max(1) - expected.min(1)
    assert (np.abs(restored(codes, steps, lows) - expected).max(1) <= spread / 510 * 1.01 + 1e-5).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 53), st.sampled_from([16, 32, 48]), st.sampled_from([1.0, 30.0]), st.integers(0, 99))
def test_attention_equals_float64(length: int, size: int, loud: float, seed: int) -> None:
    hidden, head = 2 * size, 1
    random = np.random.default_rng(seed)
    qkv = random.standard_normal((length, 3, 2, size)).astype(np.float32)
    qkv[:, 0] *= loud
    query, key, value = (qkv[:, part, head].astype(np.float64) for part in range(3))
    scores = query @ key.T
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    room = -(-length // 16) * 16
    keys, values = np.full(room * size, np.nan, np.float32), np.full(room * size, np.nan, np.float32)
    received = np.zeros(length, np.float32)
    flat = qkv.reshape(-1).copy()
    scratch = np.full(4 * (room + 1), np.nan, np.float32)
    attend_sequence(flat, head * size, hidden, length, size, keys, values, scratch, room + 1, received, 0)
    after = flat.reshape(length, 3, 2, size)
    error = 2e-5 + 1e-6 * np.abs(scores).max()  # float32 scores keep seven digits, and the exponential shows it
    np.testing.assert_allclose(after[:, 0, head], weights @ value, atol=error)
    np.testing.assert_array_equal(after[:, 0, 0], qkv[:, 0, 0])
    np.testing.assert_array_equal(after[:, 1:], qkv[:, 1:])
    np.testing.assert_allclose(received[1:-1], weights[1:-1, 1:-1].sum(0), atol=10 * error)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_other_instruction_sets_pass_the_same_tests(isa: str) -> None:
    if isa not in runnable():
        pytest.skip(f"this processor has no {isa}")
    here = Path(__file__).parent.parent
    tests = [str(here / "kernels" / "test_byte_gemm.py"), str(here / "models" / "test_cpu_bert.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not models and not shared", *tests],
        env={**os.environ, "WINDLASS_ISA": isa}, cwd=here.parent, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
