"""GGUF and safetensors readers: block formats bit for bit, and no damaged header that escapes a typed error."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.mutants import mutants, outcomes, use
from tests.models.tiny_models import bpe_vocabulary, hf_config, moe_config, random_weights, write_folder, write_gguf
from windlass.core.errors import ModelError, NotFound
from windlass.models.block_formats import BY_NAME, FORMATS, split_blocks, to_float
from windlass.models.block_quantize import quantize
from windlass.models.gguf import GGUFSource
from windlass.models.saved_model import save_model
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


FORMS = ["gguf", "gguf with experts", "folder", "folder with experts", "config", "saved", "saved manifest"]


def good_files(form: str, root: Path) -> tuple[Path, Path, int]:
    """A sound model: the file to damage, the path to open, and how many bytes its header has."""
    config = hf_config(num_hidden_layers=1, hidden_size=32, head_dim=16, intermediate_size=32)
    if "experts" in form:
        config = moe_config("qwen2_moe", num_hidden_layers=1)
    weights = random_weights(config)
    if form.startswith("gguf"):
        kinds = gguf.GGMLQuantizationType
        file = write_gguf(root / "m.gguf", config, weights, None if "experts" in form else kinds.Q4_1, kinds.Q8_0)
        return file, file, GGUFSource(file).meta("token_embd.weight").offset
    folder = write_folder(root / "model", config, weights)
    if form == "config":
        return folder / "config.json", folder, 1 << 20
    if form.startswith("saved"):
        source = open_weights(folder)
        tensors = {name: source.tensor(name) for name in source.names()}
        tensors = {name: quantize(t, "q4_0") if t.ndim == 2 else t for name, t in tensors.items()}
        folder = root / "saved"
        save_model(folder, source.config, tensors, tokenizer=root / "model")
        if form == "saved manifest":
            return folder / "windlass.json", folder, 1 << 20
    file = next(folder.glob("*.safetensors"))
    return file, folder, 8 + int.from_bytes(file.read_bytes()[:8], "little")


def run_mutants(form: str, root: Path, count: int, seed: int) -> tuple[int, int]:
    file, opened, header = good_files(form, root)
    use(opened)
    return outcomes(file, opened, mutants(file.read_bytes(), header, count, seed))


@pytest.mark.parametrize("form", FORMS)
def test_mutated_files_end_in_a_typed_error_or_a_model(form: str, tmp_path: Path) -> None:
    refused, served = run_mutants(form, tmp_path, 60, 11)
    assert refused + served == 60 and refused >= 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_mutated_files(form: str, tmp_path: Path) -> None:
    refused, served = run_mutants(form, tmp_path, 10_000, 12)
    assert refused > 3000 and served > 20, (refused, served)


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
