"""Every way a model file is known to be bad, by name: a typed error that says which file and which tensor."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import windlass.models
from tests.models.tiny_models import hf_config, moe_config, random_weights, tokenizer_json, write_folder, write_gguf
from windlass.core.errors import ContextLengthError, ModelError, NotFound, UnsupportedArchitecture, UsageError
from windlass.models.generate import LocalModel, generate
from windlass.models.gguf import GGUFSource

NAME = "model.layers.1.mlp.up_proj.weight"
OURS = r"blk\.1\.ffn_up\.weight"
Change = Callable[[Path], None]


def tensor(name: str) -> bytes:
    """How a tensor's entry begins in a GGUF header."""
    return struct.pack("<Q", len(name)) + name.encode()


def rewrite(at_end_of: str, skip: int, code: str, value: int) -> Change:
    """Overwrite one number of a tensor's entry, `skip` bytes after its name."""

    def change(path: Path) -> None:
        data = path.read_bytes()
        at = data.index(tensor(at_end_of)) + len(tensor(at_end_of)) + skip
        packed = struct.pack("<" + code, value)
        path.write_bytes(data[:at] + packed + data[at + len(packed) :])

    return change


def replaced(old: bytes, new: bytes) -> Change:
    def change(path: Path) -> None:
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new))

    return change


def cut(share: float) -> Change:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]) and None


UP = "blk.1.ffn_up.weight"
IN_GGUF: dict[str, tuple[Change, type[ModelError], str]] = {
    "truncated in the header": (cut(0.02), ModelError, r"m\.gguf.* at byte"),
    "truncated in a tensor": (cut(0.9), ModelError, r"m\.gguf: tensor \S+ claims bytes"),
    "sizes that overflow": (rewrite(UP, 4, "Q", (1 << 62) + 32), ModelError, rf"m\.gguf: tensor {OURS} claims"),
    "an offset outside the file": (rewrite(UP, 24, "Q", 1 << 50), ModelError, rf"m\.gguf: tensor {OURS} claims"),
    "an offset between two places": (rewrite(UP, 24, "Q", 33), ModelError, rf"m\.gguf: tensor {OURS} claims"),
    "more dimensions than there are": (rewrite(UP, 0, "I", 9), ModelError, rf"m\.gguf: tensor {OURS} has 9 dim"),
    "a wrong type": (rewrite(UP, 20, "I", 26), ModelError, rf"m\.gguf: tensor {OURS} has unsupported tensor type I32"),
    "an unsupported type": (rewrite(UP, 20, "I", 20), ModelError, rf"m\.gguf: tensor {OURS} has .* type IQ4_NL"),
    "an unknown type": (rewrite(UP, 20, "I", 200), ModelError, rf"m\.gguf: tensor {OURS} has unknown type number 200"),
    "a name twice": (replaced(tensor("blk.1.ffn_up.weight"), tensor("blk.0.ffn_up.weight")), ModelError, "twice"),
    "a missing tensor": (replaced(tensor(UP), tensor("blk.1.ffn_xx.weight")), ModelError, rf"{OURS} is missing"),
    "another shape": (rewrite(UP, 12, "Q", 32), ModelError, rf"m\.gguf: tensor {OURS} has shape \(32, 32\), expected"),
    "a billion entries": (
        lambda path: (
            path.write_bytes(path.read_bytes()[:16] + struct.pack("<Q", 10**9) + path.read_bytes()[24:]) and None
        ),
        ModelError,
        r"m\.gguf: .*1000000000 metadata entries",
    ),
    "another architecture": (replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0rwkv6"), ModelError, "rwkv6"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    return write_gguf(path, hf_config(), random_weights(hf_config()))


@pytest.mark.parametrize("name", IN_GGUF)
def test_bad_gguf(name: str, sound: Path, tmp_path: Path) -> None:
    change, kind, said = IN_GGUF[name]
    path = Path(shutil.copy(sound, tmp_path / "m.gguf"))
    change(path)
    with pytest.raises(kind, match=said):
        windlass.models.load(path)


def with_entry(**fields: Any) -> Callable[[Path], None]:
    """Change the header entry of one tensor."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header[NAME].update(fields)
        raw = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    return change


def with_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **fields}))

    return change


def with_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = random_weights(hf_config())
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def poison(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights[NAME][3, 4] = value

    return change


def two_shards(folder: Path) -> None:
    weights = random_weights(hf_config())
    (folder / "model.safetensors").unlink()
    for shard in ("a", "b"):
        save_file(weights, folder / f"{shard}.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))


def larger_vocabulary(folder: Path) -> None:
    described = tokenizer_json()
    described["model"]["vocab"]["extra"] = len(described["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(described))


def as_integers(weights: dict[str, np.ndarray]) -> None:
    weights[NAME] = weights[NAME].astype(np.int32)


IN_FOLDER: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "truncated": (lambda f: cut(0.9)(f / "model.safetensors"), ModelError, r"model\.safetensors.* ends at byte"),
    "sizes that overflow": (with_entry(shape=[1 << 62, 1 << 62]), ModelError, "its shape needs"),
    "an offset outside the file": (with_entry(data_offsets=[1 << 50, (1 << 50) + 8192]), ModelError, "the file has"),
    "negative dimensions": (with_entry(shape=[-64, -32]), ModelError, "no valid shape"),
    "negative offsets": (with_entry(data_offsets=[-8192, 0]), ModelError, "no valid shape and offsets"),
    "a wrong type": (with_weights(as_integers), ModelError, rf"tensor {OURS} has unsupported tensor type I32"),
    "an unknown type": (with_entry(dtype="F3"), ModelError, r"unsupported type 'F3'"),
    "a name twice": (two_shards, ModelError, "occurs twice"),
    "a missing shard": (missing_shard, NotFound, r"gone\.safetensors"),
    "a missing tensor": (with_weights(lambda w: w.pop(NAME) is None or None), ModelError, rf"{OURS} is missing"),
    "NaN weights": (with_weights(poison(np.nan)), ModelError, rf"tensor {OURS} holds NaN or infinite"),
    "infinite weights": (with_weights(poison(np.inf)), ModelError, rf"tensor {OURS} holds NaN or infinite"),
    "another architecture": (with_config(model_type="mamba"), UnsupportedArchitecture, r"config\.json.*'mamba'"),
    "a vocabulary that is not the model's": (larger_vocabulary, ModelError, r"knows \d+ tokens"),
    "a vocabulary of the wrong size": (with_config(vocab_size=77), ModelError, r"token_embd\.weight has shape"),
    "no context": (with_config(max_position_embeddings=0), ModelError, "max_position is 0"),
    "a million layers": (with_config(num_hidden_layers=1_000_000), ModelError, "n_layers is 1000000"),
    "clipped attention": (with_config(clip_qkv=8.0), ModelError, "clip_qkv"),
    "mixed attention": (
        with_config(layer_types=["sliding_attention", "full_attention"]), ModelError, "layer_types"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_FOLDER)
def test_bad_folders(name: str, tmp_path: Path) -> None:
    change, kind, said = IN_FOLDER[name]
    folder = write_folder(tmp_path / "model", hf_config(), random_weights(hf_config()))
    change(folder)
    with pytest.raises(kind, match=said):
        windlass.models.load(folder)


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_bad_prompts(engine: Any, tmp_path: Path) -> None:
    config = hf_config(head_dim=16)
    kinds = gguf.GGMLQuantizationType
    model = LocalModel.load(write_gguf(tmp_path / "m.gguf", config, random_weights(config), kinds.Q8_0), engine=engine)
    with pytest.raises(ContextLengthError, match="64"):
        model.complete("a" * 65)
    for tokens, said in (([], "empty"), ([config["vocab_size"]], "outside the vocabulary"), ([-1], "outside")):
        with pytest.raises(UsageError, match=said):
            list(generate(model.decoder, model.tokenizer, tokens, max_tokens=2))
    cache = model.decoder.cache()
    model.decoder.prefill(np.zeros(64, np.int64), cache)
    with pytest.raises(ContextLengthError, match=r"65 tokens.*64"):
        model.decoder.step(0, cache)
    with pytest.raises(UsageError):
        model.forward(np.zeros((0, 4), np.int64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_scales_in_gguf(value: float, tmp_path: Path) -> None:
    """In each engine: a block whose scale is no number."""
    config = hf_config(head_dim=16)
    kinds = gguf.GGMLQuantizationType
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kinds.Q4_1, kinds.Q8_0)
    meta = GGUFSource(path).meta(UP)
    data = bytearray(path.read_bytes())
    data[meta.offset : meta.offset + 2] = np.array(value, np.float16).tobytes()
    path.write_bytes(bytes(data))
    for engine in ("numpy", "compiled"):
        with pytest.raises(ModelError, match=rf"m\.gguf: tensor {OURS} holds NaN or infinite"):
            windlass.models.load(path, engine=engine)


def test_a_file_replaced_while_it_is_open_stays_the_old_one(sound: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sound, tmp_path / "m.gguf"))
    source = GGUFSource(path)
    before = source.tensor(UP).copy()
    other = write_gguf(tmp_path / "n.gguf", hf_config(), random_weights(hf_config(), seed=5))
    os.replace(other, path)
    assert np.array_equal(source.tensor(UP), before)
    assert not np.array_equal(GGUFSource(path).tensor(UP), before)


def test_experts_the_router_cannot_reach(tmp_path: Path) -> None:
    config = moe_config("mixtral")
    folder = write_folder(tmp_path / "model", config, random_weights(config))
    for change, said in (
        ({"num_local_experts": 4}, r"ffn_(gate_inp|gate_exps)\.weight has shape"),
        ({"num_experts_per_tok": 6}, "6 of 5 experts"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=said):
            windlass.models.load(folder)


@pytest.mark.parametrize(
    ("options", "said"), [({"engine": "steam"}, "steam"), ({"engine": "numpy", "dtype": "bfloat16"}, "need torch")]
)
def test_impossible_engines(options: dict[str, Any], said: str, sound: Path) -> None:
    with pytest.raises(UsageError, match=said):
        windlass.models.load(sound, **options)


def test_a_model_that_memory_cannot_hold_is_refused(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    with pytest.raises(ModelError, match=r"m\.gguf needs .* GB"):
        windlass.models.load(sound)
