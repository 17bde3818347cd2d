"""Where a decoder's weights come from: a GGUF file or a Hugging Face folder of safetensors, behind one
protocol.

Tensor names are those of GGUF (`blk.3.attn_q.weight`, `token_embd.weight`) whatever the source. Nothing is
read before it is asked for; torch is not needed, bfloat16 included.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from windlass.core.errors import ModelError, NotFound
from windlass.models.block_formats import BY_NAME, Bytes, Floats, QuantTensor, to_float
from windlass.models.config import ModelConfig, config_from_hf
from windlass.models.gguf import GGUFSource
from windlass.models.mapped import MappedFile, TensorMeta, sample_digest
from windlass.models.safetensors_file import read_header

LARGEST_HEADER = 100 << 20
SAFETENSORS_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
HF_TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
HF_LAYER_TO_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


class WeightSource(Protocol):
    """Tensors by name, decoded one at a time; memory stays at what the caller keeps."""

    config: ModelConfig
    path: Path

    @property
    def fingerprint(self) -> str: ...

    def names(self) -> list[str]: ...

    def meta(self, name: str) -> TensorMeta: ...

    def tensor(self, name: str) -> Floats: ...

    def quantized(self, name: str) -> QuantTensor | None: ...

    def raw(self, name: str) -> Bytes: ...


def open_weights(path: Path) -> WeightSource:
    """Open a `.gguf` file or a folder with `config.json` and safetensors.

    Raises:
        NotFound: nothing is there.
        ModelError: what is there is not a model that can be read.
    """
    if path.is_dir():
        return SafetensorsSource(path)
    if not path.exists():
        raise NotFound(f"no such model: {path}", hint="give a .gguf file or a Hugging Face folder")
    return GGUFSource(path)


class SafetensorsSource:
    """A Hugging Face folder: `config.json`, and `model.safetensors` or the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config: ModelConfig = config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
        self._files = [MappedFile(path) for path in _shards(folder)]
        self._tensors: dict[str, tuple[MappedFile, TensorMeta]] = {}
        for file in self._files:
            for meta in _tensor_metas(file):
                if meta.name in self._tensors:
                    raise ModelError(f"{file.path}: tensor {meta.name} occurs twice")
                self._tensors[meta.name] = (file, meta)

    @property
    def fingerprint(self) -> str:
        return sample_digest([MappedFile(self.path / "config.json"), *self._files])

    def names(self) -> list[str]:
        return list(self._tensors)

    def meta(self, name: str) -> TensorMeta:
        if name not in self._tensors:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name][1]

    def tensor(self, name: str) -> Floats:
        """The weights as float32, rows first. `f32` tensors may be views of the map: do not write to them."""
        meta = self.meta(name)
        if meta.format not in BY_NAME:
            raise ModelError(
                f"{self.path}: tensor {name} has unsupported tensor type {meta.format}",
                hint="readable: F32, F16, BF16",
            )
        raw = self._tensors[name][0].slice(meta.offset, meta.nbytes, f"tensor {name}")
        return to_float(raw, meta.format, meta.shape)

    def quantized(self, name: str) -> QuantTensor | None:
        return None

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes as they lie in the file, uint8, not copied."""
        meta = self.meta(name)
        return self._tensors[name][0].slice(meta.offset, meta.nbytes, f"tensor {name}")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a model folder, every failure a typed error that names the file."""
    try:
        if path.stat().st_size > LARGEST_HEADER:
            raise ModelError(f"{path} is larger than {LARGEST_HEADER} bytes")
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}", hint="the folder is not a complete Hugging Face model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}, expected an object")
    return values


def _shards(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        reason = f"; {pickled[0]} is a pickle and is not opened" if pickled else ""
        raise ModelError(f"{folder} holds no model.safetensors{reason}", hint="use a safetensors or GGUF version")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index} has no weight_map")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if "/" in name or "\\" in name or name.startswith("."):
            raise ModelError(f"{index} names {name!r}, which is not a file of this folder")
    return [folder / name for name in shards]


def _tensor_metas(file: MappedFile) -> list[TensorMeta]:
    return [
        TensorMeta(
            _gguf_name(name),
            entry.shape,
            SAFETENSORS_TYPES.get(entry.dtype, entry.dtype),
            entry.start,
            entry.stop - entry.start,
        )
        for name, entry in read_header(file.path).items()
        if "rotary_emb.inv_freq" not in name
    ]


def _gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in HF_TO_GGUF:
        return f"{HF_TO_GGUF[stem]}.{suffix}"
    layer = _LAYER_NAME.fullmatch(name)
    if layer is None:
        return name
    return f"blk.{layer[1]}.{HF_LAYER_TO_GGUF.get(layer[2], layer[2])}.{layer[3]}"
