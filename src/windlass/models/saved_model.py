"""A model that windlass made, as a folder: `windlass.json`, one safetensors file, and the tokenizer.

`windlass.json` is a manifest: the decoder's shape, the transforms that led here in order, the fingerprint of the model
they began with, and how each packed tensor is stored. It is written last and names the weights file by its content,
so whoever opens the folder sees the old model or the new one, also after a crash in the middle of saving over it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import ModelError, WorkspaceError
from windlass.models.block_formats import BY_NAME, Bytes, Floats, QuantTensor, split_blocks, to_float
from windlass.models.block_quantize import BlockTensor
from windlass.models.config import ModelConfig, MoEConfig
from windlass.models.mapped import MappedFile, TensorMeta, sample_digest
from windlass.models.safetensors_file import TensorEntry, read_header, write_tensors
from windlass.models.transforms import TransformPlan

FORMAT = 1
MANIFEST = "windlass.json"
TOKENIZER = "tokenizer.gguf.json"
HF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PARTS = ("codes", "scales", "zeros", "perm")
_NUMPY = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I8": "|i1", "U8": "|u1"}

Stored = NDArray[Any] | BlockTensor | QuantTensor


def save_model(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Stored],
    *,
    plans: Sequence[TransformPlan] = (),
    parent: str = "",
    tokenizer: Path | Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder, or write over one; all or nothing.

    Args:
        tensors: By GGUF name: float32 or float16 arrays, block tensors, or codes with scales.
        plans: The transforms that were applied, first one first.
        parent: Fingerprint of the model they were applied to.
        tokenizer: The Hugging Face folder to copy it from, or the metadata of a GGUF file.

    Raises:
        StorageError: it did not reach the disk; what was there before is intact.
    """
    storage.make_folder(folder)
    arrays: dict[str, NDArray[Any]] = {}
    packed: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, BlockTensor):
            arrays[name] = tensor.raw
            packed[name] = {"format": tensor.format, "shape": list(tensor.shape), "blocks": True}
        elif isinstance(tensor, QuantTensor):
            arrays |= {f"{name}.{part}": values for part, values in _parts_of(tensor).items()}
            low = int(tensor.codes.min(initial=0))
            packed[name] = {"format": tensor.format, "shape": list(tensor.shape), "group": tensor.group, "low": low}
        else:
            arrays[name] = tensor
    weights = f"weights-{_digest(arrays)}.safetensors"
    write_tensors(folder / weights, arrays)
    if isinstance(tokenizer, Path):
        for name in HF_TOKENIZER:
            if (tokenizer / name).exists() and tokenizer != folder:
                storage.write_atomic(folder / name, (tokenizer / name).read_bytes())
    elif tokenizer is not None:
        kept = {key: _plain(value) for key, value in tokenizer.items() if key.startswith("tokenizer.")}
        storage.write_atomic(folder / TOKENIZER, json.dumps(kept).encode())
    storage.write_manifest(
        folder / MANIFEST,
        FORMAT,
        {
            "config": asdict(config),
            "parent": parent,
            "plans": [asdict(plan) for plan in plans],
            "weights": weights,
            "packed": packed,
        },
    )
    for old in folder.glob("weights-*.safetensors"):
        if old.name != weights:
            with storage.writing(old):
                storage.LOCAL_DISK.remove(old)
    storage.remove_leftovers(folder)


class SavedSource:
    """A saved model folder as a `WeightSource`.

    Raises:
        ModelError: the folder is damaged, or of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        manifest = _read_manifest(folder)
        self.config = _config(manifest, folder)
        self.plans = [_plan(plan, folder) for plan in _sequence(manifest, "plans", folder)]
        self.parent = str(manifest.get("parent", ""))
        name = manifest.get("weights")
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{folder / MANIFEST} names weights {name!r}, which is no file of this folder")
        self.file = MappedFile(folder / name)
        self._entries = read_header(folder / name)
        self._packed = _checked_packed(manifest, self._entries, folder)
        parts = {f"{name}.{part}" for name, how in self._packed.items() if not how.get("blocks") for part in _PARTS}
        self._names = [*self._packed, *(name for name in self._entries if name not in parts | set(self._packed))]

    @property
    def fingerprint(self) -> str:
        return sample_digest([MappedFile(self.path / MANIFEST), self.file])

    def verify(self) -> None:
        """Read every weight and hold it against the digest in the name of the file.

        Raises:
            ModelError: the file is not the one that was saved.
        """
        arrays = {stored: self._array(stored) for stored in self._entries}
        if self.file.path.name != f"weights-{_digest(arrays)}.safetensors":
            raise ModelError(f"{self.file.path} is damaged: its content is not what was saved", hint="save it again")

    def tokenizer_metadata(self) -> dict[str, Any] | None:
        """The GGUF metadata of the tokenizer, when the model came from such a file."""
        from windlass.models.weights import read_json

        path = self.path / TOKENIZER
        return read_json(path) if path.exists() else None

    def names(self) -> list[str]:
        return list(self._names)

    def meta(self, name: str) -> TensorMeta:
        how = self._packed.get(name)
        if how is not None:
            stored = [self._entries[part] for part in self._stored_names(name, how)]
            nbytes = sum(entry.stop - entry.start for entry in stored)
            return TensorMeta(name, tuple(how["shape"]), how["format"], stored[0].start, nbytes)
        entry = self._entries.get(name)
        if entry is None:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        kind = {"F32": "f32", "F16": "f16", "BF16": "bf16"}.get(entry.dtype, entry.dtype)
        return TensorMeta(name, entry.shape, kind, entry.start, entry.stop - entry.start)

    def tensor(self, name: str) -> Floats:
        """The weights as float32, rows first."""
        how = self._packed.get(name)
        if how is not None and not how.get("blocks"):
            quantized = self.quantized(name)
            assert quantized is not None
            return quantized.dequantize()
        meta = self.meta(name)
        if meta.format not in BY_NAME:
            raise ModelError(f"{self.path}: tensor {name} has unsupported tensor type {meta.format}")
        return to_float(self.raw(name), meta.format, meta.shape)

    def quantized(self, name: str) -> QuantTensor | None:
        how = self._packed.get(name)
        if how is None:
            return None
        shape = tuple(how["shape"])
        if how.get("blocks"):
            return split_blocks(self.raw(name), how["format"], shape) if len(shape) == 2 else None  # type: ignore[arg-type]
        parts = {part: self._array(f"{name}.{part}") for part in _PARTS if f"{name}.{part}" in self._entries}
        codes = _unpack(parts["codes"], shape, how["low"])
        zeros, perm = parts.get("zeros"), parts.get("perm")
        if perm is not None and not np.array_equal(np.sort(perm), np.arange(shape[1])):
            raise ModelError(f"{self.path}: tensor {name} has an order of channels that names one twice or not at all")
        return QuantTensor(
            how["format"],
            (shape[0], shape[1]),
            codes,
            parts["scales"].astype(np.float32),
            None if zeros is None else zeros.astype(np.float32),
            how["group"],
            perm,
        )

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes as they lie in the file, uint8; of codes with scales only the codes."""
        how = self._packed.get(name)
        entry = self._entries[self._stored_names(name, how)[0] if how is not None else self.meta(name).name]
        return self.file.slice(entry.start, entry.stop - entry.start, f"tensor {name}")

    def _stored_names(self, name: str, how: Mapping[str, Any]) -> list[str]:
        if how.get("blocks"):
            return [name]
        return [f"{name}.{part}" for part in _PARTS if f"{name}.{part}" in self._entries]

    def _array(self, stored: str) -> NDArray[Any]:
        entry = self._entries[stored]
        raw = self.file.slice(entry.start, entry.stop - entry.start, f"tensor {stored}")
        return np.frombuffer(raw, _NUMPY[entry.dtype]).reshape(entry.shape)


def is_saved_model(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _parts_of(tensor: QuantTensor) -> dict[str, NDArray[Any]]:
    """Codes two to a byte where sixteen values do, numbers in half precision where nothing is lost."""
    low = int(tensor.codes.min(initial=0))
    shifted = tensor.codes.astype(np.int16) - low
    codes: NDArray[Any] = tensor.codes
    if shifted.max(initial=0) < 16 and shifted.shape[1] % 2 == 0:
        pairs = shifted.astype(np.uint8)
        codes = pairs[:, 0::2] | (pairs[:, 1::2] << 4)
    parts: dict[str, NDArray[Any]] = {"codes": codes, "scales": _narrow(tensor.scales)}
    if tensor.zeros is not None:
        parts["zeros"] = _narrow(tensor.zeros)
    if tensor.perm is not None:
        parts["perm"] = tensor.perm
    return parts


def _narrow(values: Floats) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


def _unpack(stored: NDArray[Any], shape: tuple[int, ...], low: int) -> NDArray[Any]:
    if stored.shape == shape:
        return stored
    codes = np.empty(shape, np.uint8)
    codes[:, 0::2], codes[:, 1::2] = stored & 15, stored >> 4
    return codes if low == 0 else codes.view(np.int8) + np.int8(low)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, values in arrays.items():
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return storage.read_manifest(folder / MANIFEST, FORMAT)
    except WorkspaceError as error:
        raise ModelError(f"{folder} is not a model that can be read: {error.what}", hint="save it again") from error


def _sequence(manifest: Mapping[str, Any], key: str, folder: Path) -> list[Any]:
    found = manifest.get(key)
    if not isinstance(found, list):
        raise ModelError(f"{folder / MANIFEST} has no list of {key}")
    return found


def _plan(plan: Any, folder: Path) -> TransformPlan:
    try:
        return TransformPlan(**plan)
    except TypeError as error:
        raise ModelError(f"{folder / MANIFEST} holds a plan that cannot be read: {error}") from error


def _config(manifest: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        values = dict(manifest["config"])
        if values["moe"] is not None:
            moe = dict(values["moe"])
            values["moe"] = MoEConfig(**{**moe, "dense_layers": tuple(moe["dense_layers"])})
        values["eos_ids"] = tuple(values["eos_ids"])
        config = ModelConfig(**values)
        wrong = [
            field.name for field in fields(config) if field.type == "int" and not isinstance(values[field.name], int)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / MANIFEST} describes no decoder: {error}") from error
    if wrong:
        raise ModelError(f"{folder / MANIFEST}: {wrong[0]} is {values[wrong[0]]!r}, expected a number")
    return config.check(str(folder / MANIFEST))


def _checked_packed(
    manifest: Mapping[str, Any], entries: Mapping[str, TensorEntry], folder: Path
) -> dict[str, dict[str, Any]]:
    """Every packed tensor's description, held against the arrays that are there."""
    packed = manifest.get("packed")
    if not isinstance(packed, dict):
        raise ModelError(f"{folder / MANIFEST} does not say how tensors are packed")
    for name, how in packed.items():
        try:
            fault = _fault(name, how, entries)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            fault = f"cannot be read: {error!r}"
        if fault:
            raise ModelError(f"{folder / MANIFEST}: tensor {name} {fault}")
    return packed


def _fault(name: str, how: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> str | None:
    shape = tuple(how["shape"])
    if not all(isinstance(size, int) and size > 0 for size in shape) or not isinstance(how["format"], str):
        return f"has shape {shape} and format {how['format']!r}"
    weights = 1
    for size in shape:
        weights *= size
    if how.get("blocks"):
        block = BY_NAME.get(how["format"])
        if block is None or shape[-1] % block.weights:
            return f"is stored as {how['format']!r}, which is no block format of this shape"
        entry = entries[name]
        expected = weights // block.weights * block.nbytes
        return None if entry.stop - entry.start == expected else f"has {entry.stop - entry.start} bytes, not {expected}"
    rows, columns = shape
    group, low = how["group"], how["low"]
    codes, grouped = entries[f"{name}.codes"], (rows, columns // group)
    fine = codes.dtype in ("I8", "U8") and codes.shape in (shape, (rows, columns // 2)) and columns % group == 0
    fine = fine and isinstance(low, int) and -128 <= low <= 0
    for part in ("scales", "zeros"):
        entry_of = entries.get(f"{name}.{part}") if part == "zeros" else entries[f"{name}.{part}"]
        fine = fine and (entry_of is None or (entry_of.shape == grouped and entry_of.dtype in ("F32", "F16")))
    perm = entries.get(f"{name}.perm")
    fine = fine and (perm is None or (perm.shape == (columns,) and perm.dtype == "I64"))
    return None if fine else "has parts that do not fit its shape"
