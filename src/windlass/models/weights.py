"""Where a decoder's weights come from: a GGUF file or a Hugging Face folder of safetensors, behind one
protocol.

Tensor names are those of GGUF (`blk.3.attn_q.weight`, `token_embd.weight`) whatever the source. Nothing is
read before it is asked for; torch is not needed, bfloat16 included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from windlass.core.errors import ModelError, NotFound
from windlass.models.block_formats import BY_NAME, Bytes, Floats, QuantTensor, to_float
from windlass.models.config import ModelConfig, config_from_hf
from windlass.models.gguf import GGUFSource
from windlass.models.mapped import MappedFile, TensorMeta, sample_digest
from windlass.models.name_maps import canonical
from windlass.models.safetensors_file import read_header

LARGEST_HEADER = 100 << 20
MOST_EXPERTS = 1 << 14
SAFETENSORS_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


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
    """Open a `.gguf` file, a folder with `config.json` and safetensors, or a folder that windlass saved.

    Raises:
        NotFound: nothing is there.
        ModelError: what is there is not a model that can be read.
    """
    if path.is_dir():
        from windlass.models.saved_model import SavedSource, is_saved_model

        return SavedSource(path) if is_saved_model(path) else SafetensorsSource(path)
    if not path.exists():
        raise NotFound(f"no such model: {path}", hint="give a .gguf file or a Hugging Face folder")
    return GGUFSource(path)


@dataclass(frozen=True)
class _Stored:
    """One tensor and the stretches of files, in order, that hold it; all but stacked experts have one."""

    meta: TensorMeta
    pieces: list[tuple[MappedFile, int, int]]


class SafetensorsSource:
    """A Hugging Face folder: `config.json`, and `model.safetensors` or the shards that its index names.

    Experts stored one by one, or fused, appear as the three-dimensional tensors that GGUF has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config: ModelConfig = config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
        self._files = [MappedFile(path) for path in _shards(folder)]
        self._tensors = _collect(self._files)

    @property
    def fingerprint(self) -> str:
        return sample_digest([MappedFile(self.path / "config.json"), *self._files])

    def names(self) -> list[str]:
        return list(self._tensors)

    def meta(self, name: str) -> TensorMeta:
        if name not in self._tensors:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name].meta

    def tensor(self, name: str) -> Floats:
        """The weights as float32, rows first. `f32` tensors may be views of the map: do not write to them."""
        meta = self.meta(name)
        if meta.format not in BY_NAME:
            raise ModelError(
                f"{self.path}: tensor {name} has unsupported tensor type {meta.format}",
                hint="readable: F32, F16, BF16",
            )
        return to_float(self.raw(name), meta.format, meta.shape)

    def quantized(self, name: str) -> QuantTensor | None:
        return None

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes, uint8; not copied unless they lie in several places."""
        self.meta(name)
        pieces = [file.slice(at, nbytes, f"tensor {name}") for file, at, nbytes in self._tensors[name].pieces]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


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


def _collect(files: list[MappedFile]) -> dict[str, _Stored]:
    """Every tensor under its own name, experts stacked."""
    tensors: dict[str, _Stored] = {}
    experts: dict[str, dict[int, _Stored]] = {}
    for file in files:
        for stored_name, entry in read_header(file.path).items():
            if "rotary_emb.inv_freq" in stored_name:
                continue
            kind, nbytes = SAFETENSORS_TYPES.get(entry.dtype, entry.dtype), entry.stop - entry.start
            for place in canonical(stored_name):
                meta = TensorMeta(place.name, entry.shape, kind, entry.start, nbytes)
                stored = _Stored(meta, [(file, entry.start, nbytes)])
                if place.half is not None:
                    stored = _half_of_rows(stored, place.half, stored_name)
                known: dict[Any, _Stored] = tensors
                key: str | int = place.name
                if place.expert is not None:
                    known, key = experts.setdefault(place.name, {}), place.expert
                if key in known:
                    raise ModelError(f"{file.path}: tensor {stored_name} occurs twice")
                known[key] = stored
    for name, parts in experts.items():
        if name in tensors:
            raise ModelError(f"{files[0].path}: tensor {name} is stored both fused and one by one")
        tensors[name] = _stack(name, parts, files[0].path.parent)
    return tensors


def _half_of_rows(fused: _Stored, half: int, stored_name: str) -> _Stored:
    """The first or second half of every expert's rows, without touching the data."""
    ((file, start, nbytes),), shape = fused.pieces, fused.meta.shape
    if len(shape) != 3 or shape[1] % 2 or 0 in shape or shape[0] > MOST_EXPERTS:
        raise ModelError(f"{file.path}: tensor {stored_name} has shape {shape}, expected [experts, 2 * size, hidden]")
    one = nbytes // shape[0] // 2
    pieces = [(file, start + (2 * expert + half) * one, one) for expert in range(shape[0])]
    meta = TensorMeta(
        fused.meta.name, (shape[0], shape[1] // 2, shape[2]), fused.meta.format, pieces[0][1], nbytes // 2
    )
    return _Stored(meta, pieces)


def _stack(name: str, parts: dict[int, _Stored], folder: Path) -> _Stored:
    first = parts.get(0)
    for expert in range(len(parts)):
        if expert not in parts or first is None:
            raise ModelError(f"{folder}: tensor {name} has {len(parts)} experts, number {expert} is missing")
        meta = parts[expert].meta
        if (meta.shape, meta.format) != (first.meta.shape, first.meta.format):
            raise ModelError(
                f"{folder}: tensor {name} has shape {meta.shape} ({meta.format}) in expert {expert}, "
                f"{first.meta.shape} ({first.meta.format}) in expert 0"
            )
    assert first is not None
    pieces = [parts[expert].pieces[0] for expert in range(len(parts))]
    shape, nbytes = (len(parts), *first.meta.shape), sum(size for _, _, size in pieces)
    return _Stored(TensorMeta(name, shape, first.meta.format, pieces[0][1], nbytes), pieces)
