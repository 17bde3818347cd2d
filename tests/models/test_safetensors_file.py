"""Our memory-mapped safetensors reader against the library that defines the format, and against damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ModelError
from windlass.models.safetensors_file import open_tensors, read_header

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "empty": np.zeros((0, 7), np.float64),
    "half": np.array([1.5, -2.0], np.float16),
    "count": np.array(5, np.int64),
    "flags": np.array([[True], [False]]),
}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / "m", metadata={"format": "pt"})
    ours = open_tensors(tmp_path / "m")
    assert ours.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([1.0, -0.5, 3.140625, np.inf], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    np.testing.assert_array_equal(open_tensors(tmp_path / "m")["w"], values)


def _file(header: object, data: bytes = b"\0" * 16) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1\0\0",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"{,}",
        _file({"w": 3}),
        _file({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 16]}}),
        _file({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}}),
        _file({"w": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}),
        _file({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        _file({"w": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]}}),
        _file({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}),
        _file({"w": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}),
    ],
)
def test_a_lying_header_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match="m"):
        open_tensors(tmp_path / "m")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_model_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant"
    content = bytearray(safetensors.numpy.save(TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 400 if len(content) > 400 else len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = open_tensors(path)
    except ModelError:
        return
    for tensor in tensors.values():
        tensor.sum()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        read_header(tmp_path / "absent")
