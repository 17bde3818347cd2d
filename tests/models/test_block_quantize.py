"""Quantisers: bit for bit those of `gguf` where it has one, optimal enough where the format leaves a choice."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.models.block_formats import BY_NAME
from windlass.models.block_quantize import quantize

PLAIN = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
SCALED = ["q4_k", "q5_k", "q6_k"]


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Heavy-tailed rows of different size, a row of zeros, of one value, of one sign, and one with an outlier."""
    rng = np.random.default_rng(seed)
    made = rng.standard_t(4, (rows, columns)) * np.exp(rng.standard_normal((rows, 1)))
    made[1] = 0
    made[2] = 0.37
    made[3] = np.abs(made[3])
    made[4] = -np.abs(made[4])
    made[5, 7] = 300
    return made.astype(np.float32)


@pytest.mark.parametrize("name", [*PLAIN, "f16", "bf16"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_the_plain_formats_equal_gguf_bit_for_bit(name: str, seed: int) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    given_weights = weights(8, 64, seed)
    expected = np.ascontiguousarray(gguf.quants.quantize(given_weights, kind)).view(np.uint8).reshape(-1)
    assert np.array_equal(quantize(given_weights, name).raw, expected)


def error(values: np.ndarray, name: str) -> float:
    return float(np.square(quantize(values, name).dequantize().astype(np.float64) - values).mean())


@pytest.mark.parametrize("name", SCALED)
def test_scales_of_scales_decode_as_gguf_decodes_them(name: str) -> None:
    made = quantize(weights(8, 512), name)
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.dequantize(made.raw.reshape(8, -1), kind)
    assert np.array_equal(made.dequantize(), expected)
    assert np.array_equal(made.split().dequantize(), expected)


@pytest.mark.parametrize(("name", "plain"), [("q4_k", "q4_1"), ("q5_k", "q5_1")])
def test_the_search_beats_plain_rounding_with_fewer_bits(name: str, plain: str) -> None:
    values = weights(64, 1024, 3)[6:]
    assert error(values, name) < 0.95 * error(values, plain)
    assert quantize(values, name).nbytes < quantize(values, plain).nbytes


def test_six_bits_lie_between_five_and_eight() -> None:
    values = weights(64, 1024, 3)[6:]
    assert error(values, "q8_0") < error(values, "q6_k") < 0.5 * error(values, "q5_k")


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_zeros_stay_zeros(name: str) -> None:
    assert not quantize(np.zeros((2, 512), np.float32), name).dequantize().any()


@pytest.mark.parametrize(
    ("name", "levels", "low"), [("q4_0", 16, -8), ("q5_0", 32, -16), ("q4_1", 16, 0), ("q5_1", 32, 0)]
)
def test_what_is_already_on_the_grid_comes_back(name: str, levels: int, low: int) -> None:
    grid = ((np.arange(512) % levels + low) * 0.5).astype(np.float32)
    assert np.array_equal(quantize(grid[None], name).dequantize(), grid[None])


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_every_weight_is_within_a_step(name: str) -> None:
    values = np.random.default_rng(9).standard_normal((8, 512)).astype(np.float32)
    made = quantize(values, name)
    # Rounding is half a step; the open end of a range and scales that are rounded themselves may cost as much again.
    steps = np.repeat(np.abs(made.split().scales), BY_NAME[name].group, axis=1)
    assert (np.abs(made.dequantize() - values) <= 1.05 * steps + 0.03 * np.abs(values).max()).all()
    assert np.abs(made.dequantize() - values).mean() <= 0.3 * steps.mean()


def test_large_tensors_are_quantised_in_parts_without_a_seam() -> None:
    values = weights(700, 2048, 4)
    whole = quantize(values, "q4_k")
    assert np.array_equal(whole.raw[-1152:], quantize(values[-1:], "q4_k").raw)


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(UsageError, match="iq2_xs"):
        quantize(np.zeros((2, 256), np.float32), "iq2_xs")
    with pytest.raises(UsageError, match="blocks of 256"):
        quantize(np.zeros((2, 64), np.float32), "q4_k")
