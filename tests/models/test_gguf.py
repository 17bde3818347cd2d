"""GGUF and safetensors readers: block formats bit for bit, and no damaged header that escapes a typed error."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.tiny_models import bpe_vocabulary, hf_config, random_weights, write_folder, write_gguf
from windlass.core.errors import ModelError, NotFound, WindlassError
from windlass.models.block_formats import BY_NAME, FORMATS, split_blocks, to_float
from windlass.models.gguf import GGUFSource
from windlass.models.tokenizer import tokenizer_from_gguf
from windlass.models.weights import SafetensorsSource, open_weights

HALVES = {
    "q8_0": [0],
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
}


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bits with finite scales: every code and every sub-scale occurs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, BY_NAME[name].nbytes), dtype=np.uint8)
    for at in HALVES[name]:
        blocks[:, at : at + 2] = (rng.standard_normal(count) * 0.1).astype(np.float16).view(np.uint8).reshape(count, 2)
    return blocks


@pytest.mark.parametrize("name", HALVES)
def test_every_block_format_equals_gguf_bit_for_bit(name: str) -> None:
    blocks = random_blocks(name, 600)
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.dequantize(blocks.reshape(6, -1), kind)
    assert np.array_equal(to_float(blocks.reshape(-1), name, expected.shape), expected)
    assert np.array_equal(split_blocks(blocks.reshape(-1), name, expected.shape).dequantize(), expected)


def test_large_tensors_are_decoded_in_parts_without_a_seam() -> None:
    blocks = random_blocks("q4_1", 3000 * 64)
    shape = (3000, 2048)
    assert np.array_equal(
        to_float(blocks.reshape(-1), "q4_1", shape), split_blocks(blocks.reshape(-1), "q4_1", shape).dequantize()
    )


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_numbers_equal_gguf(name: str) -> None:
    raw = np.random.default_rng(1).standard_normal(512).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = np.ascontiguousarray(gguf.quants.quantize(raw, kind)).view(np.uint8)
    assert np.array_equal(to_float(stored, name, (512,)), gguf.dequantize(stored, kind))


def test_the_format_table_agrees_with_gguf() -> None:
    for number, block in FORMATS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name.lower(), gguf.GGML_QUANT_SIZES[kind]) == (block.name, (block.weights, block.nbytes))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = hf_config(num_hidden_layers=1)
    Q = gguf.GGMLQuantizationType
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", config, random_weights(config), Q.Q4_1, Q.Q8_0)


def test_metadata_and_tensors_equal_the_library(path: Path) -> None:
    ours, theirs = GGUFSource(path), gguf.GGUFReader(path)
    pieces = bpe_vocabulary()[0]
    assert ours.metadata["tokenizer.ggml.tokens"] == pieces
    assert ours.metadata["llama.rope.freq_base"] == 10000.0 and ours.metadata["tokenizer.ggml.add_bos_token"] is False
    assert ours.names() == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.tensor(tensor.name), expected.reshape(ours.meta(tensor.name).shape))
        low_bit = ours.quantized(tensor.name)
        assert (low_bit is None) == (tensor.tensor_type == gguf.GGMLQuantizationType.F32)
        assert low_bit is None or np.array_equal(low_bit.dequantize(), expected)


def open_and_read_all(file: Path) -> None:
    source = open_weights(file)
    if isinstance(source, GGUFSource):
        tokenizer_from_gguf(source.metadata, "here").encode("the sea")
    for name in source.names():
        source.tensor(name)


def fuzz(good: bytes, header: int, file: Path, mutants: int) -> tuple[int, int]:
    """Mutate mostly inside the first `header` bytes; return how many were refused and how many were read."""
    chance, refused, read = random.Random(11), 0, 0
    for _ in range(mutants):
        data = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 4])):
            at = chance.randrange(header)
            what = chance.randrange(5)
            if what == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                data[at : at + 8] = struct.pack(
                    "<Q", chance.choice([0, 1, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
                )
            elif what == 2:
                del data[at : at + chance.randrange(1, 40)]
            elif what == 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            else:
                data = data[: chance.randrange(len(data))]
                header = max(1, min(header, len(data)))
        file.write_bytes(bytes(data))
        try:
            open_and_read_all(file if file.suffix == ".gguf" else file.parent)
            read += 1
        except WindlassError as error:
            assert "\n" not in error.what or "not JSON" in error.what
            refused += 1
        header = len(good) if header < 2 else header
    return refused, read


def test_mutated_gguf_ends_in_a_typed_error_or_a_model(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    refused, read = fuzz(good, GGUFSource(path).meta("token_embd.weight").offset, tmp_path / "m.gguf", 500)
    assert refused + read == 500 and refused > 200


def test_mutated_safetensors_ends_in_a_typed_error_or_a_model(tmp_path: Path) -> None:
    config = hf_config(num_hidden_layers=1)
    folder = write_folder(tmp_path, config, random_weights(config))
    good = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    refused, read = fuzz(good, header, folder / "model.safetensors", 300)
    assert refused + read == 300 and refused > 150


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    good, cut = path.read_bytes(), tmp_path / "m.gguf"
    source = GGUFSource(path)
    end = max(source.meta(name).offset + source.meta(name).nbytes for name in source.names())
    for length in [*range(0, 3000, 37), end - 1]:
        cut.write_bytes(good[:length])
        with pytest.raises(ModelError, match=r"m\.gguf"):
            GGUFSource(cut)


def header(*, version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HOSTILE = {
    "magic": (b"GGML" + bytes(40), "not a GGUF file"),
    "big-endian": (header(version=0x03000000), "version"),
    "a billion entries": (header(entries=10**9), "1000000000 metadata entries"),
    "endless string": (header(entries=1, rest=struct.pack("<Q", 1 << 63)), "at most 65536"),
    "endless array": (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 0, 1 << 62)), "are left"),
    "nested arrays": (
        header(entries=1, rest=text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50),
        "nested",
    ),
    "twice": (header(entries=2, rest=(text("a") + struct.pack("<IB", 0, 1)) * 2), "occurs twice"),
    "value type": (header(entries=1, rest=text("a") + struct.pack("<I", 77)), "unknown value type 77"),
    "no dimensions": (header(tensors=1, rest=text("t") + struct.pack("<I", 0)), "0 dimensions"),
    "overflowing dimensions": (header(tensors=1, rest=tensor("t", [1 << 62, 1 << 62], 0, 0)), "tensor t claims"),
    "empty tensor": (header(tensors=1, rest=tensor("t", [0], 0, 0)), r"shape \(0,\)"),
    "half a block": (header(tensors=1, rest=tensor("t", [33], 8, 0)), "blocks of 32"),
    "offset outside": (header(tensors=1, rest=tensor("t", [32], 0, 1 << 40)), "tensor t claims"),
    "unknown tensor type": (header(tensors=1, rest=tensor("t", [32], 99, 0)), "type number 99"),
    "split": (header(entries=1, rest=text("split.count") + struct.pack("<IH", 2, 3)), "one part"),
    "alignment": (header(entries=1, rest=text("general.alignment") + struct.pack("<II", 4, 0)), "power of two"),
    "architecture": (
        header(entries=1, rest=text("general.architecture") + struct.pack("<I", 8) + text("mamba")),
        "'mamba'",
    ),
    "no architecture": (header(), "general.architecture is missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    data, said = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=said):
        GGUFSource(tmp_path / "m.gguf")


def test_an_unreadable_tensor_type_is_named_with_its_tensor(path: Path, tmp_path: Path) -> None:
    good = path.read_bytes()
    at = good.index(text("blk.0.ffn_up.weight")) + len(text("blk.0.ffn_up.weight")) + 4 + 16
    (tmp_path / "m.gguf").write_bytes(good[:at] + struct.pack("<I", 23) + good[at + 4 :])
    source = GGUFSource(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight has unsupported tensor type IQ4_XS"):
        source.tensor("blk.0.ffn_up.weight")


def test_a_file_cut_while_mapped_is_noticed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(path.read_bytes())
    source = GGUFSource(tmp_path / "m.gguf")
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match="was cut while it was in use"):
        source.tensor("token_embd.weight")


def test_safetensors_reads_half_and_bfloat_and_shards(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    wide = values.view(np.uint32)
    stored = {
        "F32": values.tobytes(),
        "F16": values.astype(np.float16).tobytes(),
        "BF16": (wide >> 16).astype(np.uint16).tobytes(),
    }
    (tmp_path / "config.json").write_text(json.dumps(hf_config()))
    names = {}
    for kind, data in stored.items():
        entry = {f"lm_head.{kind}": {"dtype": kind, "shape": [3, 5], "data_offsets": [0, len(data)]}}
        head = json.dumps(entry).encode()
        (tmp_path / f"{kind}.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
        names[f"lm_head.{kind}"] = f"{kind}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    source = SafetensorsSource(tmp_path)
    assert np.array_equal(source.tensor("output.F32"), values)
    assert np.array_equal(source.tensor("output.F16"), values.astype(np.float16).astype(np.float32))
    assert np.array_equal(source.tensor("output.BF16"), (wide >> 16 << 16).view(np.float32))


def test_pickles_and_paths_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ModelError, match="pickle"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="not a file of this folder"):
        open_weights(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_weights(tmp_path / "none.gguf")
    with pytest.raises(NotFound, match=r"config\.json"):
        open_weights(tmp_path)
