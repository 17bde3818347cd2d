"""Machine code that is loaded without Numba does what Numba's own does, and nothing that is damaged is run."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.kernels import machine_code, tile_packing
from windlass.kernels.compiled import Compiled
from windlass.kernels.machine_code import Kernel, UnknownCode, load
from windlass.kernels.tile_layout import W4M, W8, lower_half, packed_bytes

pytestmark = pytest.mark.skipif(not machine_code.SUPPORTED, reason="object files are loaded on x86-64 Linux only")


@pytest.fixture(scope="module")
def made() -> tuple[str, bytes]:
    return tile_packing.PACK_CODES.machine_code()


def test_loaded_code_does_what_numba_does(made: tuple[str, bytes]) -> None:
    symbol, code = made
    rng, kernel = np.random.default_rng(0), Kernel(load(code, symbol))
    for kind, most in ((W4M, 16), (W8, 256)):
        codes = rng.integers(0, most, 40 * 96).astype(np.uint8)
        scales, minimums = rng.integers(0, 1 << 16, (2, 120)).astype(np.uint16)
        found, expected = np.zeros((2, packed_bytes(kind, 40, 96)), np.uint8)
        arguments = (codes, scales, minimums, 40, 96, kind)
        assert kernel(*arguments, found, 0, lower_half(0, 40, 3)) == 0
        tile_packing.pack_codes(*arguments, expected, 0, lower_half(0, 40, 3))
        assert expected.any() and np.array_equal(found, expected)


def test_results_come_back() -> None:
    symbol, code = tile_packing.PACK_BYTE_BLOCKS.machine_code()
    raw = np.zeros(34 * 32, np.uint8)
    raw[34 * 3 : 34 * 3 + 2] = raw[34 * 20 : 34 * 20 + 2] = [0, 0x7C]
    out = np.zeros(packed_bytes(W8, 16, 64), np.uint8)
    assert Kernel(load(code, symbol))(raw, 16, 2, out, 0, lower_half(0, 16, 2)) == 2


def test_code_without_numba_is_only_addresses_of_the_c_library(made: tuple[str, bytes]) -> None:
    symbol, code = made
    with pytest.raises(UnknownCode, match="a call of no_such"):
        machine_code._outside("no_such_function")
    assert load(code, symbol) != load(code, symbol)


def test_damaged_files_are_refused(made: tuple[str, bytes]) -> None:
    symbol, code = made
    for size in (0, 5, 63, 64, len(code) // 2, len(code) - 100):
        with pytest.raises(UnknownCode):
            load(code[:size], symbol)
    with pytest.raises(UnknownCode, match="not an x86-64 object file"):
        load(code[:18] + b"\xb7" + code[19:], symbol)
    with pytest.raises(UnknownCode):
        load(code, "another_function")


def test_only_flat_arrays_are_taken() -> None:
    with pytest.raises(TypeError, match="flat contiguous"):
        Kernel(Compiled.address(tile_packing.PACK_CODES))(np.zeros((2, 2)))
