"""A low-rank adapter on disk: a PEFT folder read, checked against a model, and packed for the page pool.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Any of a layer's seven linear maps may have an
update `W x + scale * B (A x)`, each with a rank of its own; `scale` is alpha / rank, or alpha / sqrt(rank) when the
configuration says so. Pickled adapters are refused unread, as are updates that are not of this form (DoRA, trained
biases, other modules, embeddings).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import AdapterError
from windlass.models.config import ModelConfig
from windlass.models.safetensors_file import open_tensors

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]
Shapes = tuple[tuple[int, int], ...]

MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
)  # fmt: skip
"""What may have an update, in the order of the compiled engine's matrices."""
HIGHEST_RANK = 1024
_SETTINGS_BYTES = 1 << 20
_NAME = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d{1,6})\.([\w.]+?)\.lora_([AB])(?:\.\w+)?\.weight")
_REFUSED = ("use_dora", "lora_bias", "fan_in_fan_out")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, ready to be laid out in pages.

    Attributes:
        values: uint16, bits of half-precision numbers: for each update the rows of A, then the columns of B.
        lengths: int64 [vectors], of each row and column, in the order of `values`.
        tables: int64 [layers, 7, 3]: rank (0: no update), first row of A and first column of B among the vectors.
        scales: float32 [layers, 7].
        shapes: Outputs and inputs of the seven maps of the model it is for.
        digest: Names the content.
        base_model: What the configuration says it was trained on; empty when it does not.
    """

    values: NDArray[np.uint16]
    lengths: Integers
    tables: Integers
    scales: Floats
    shapes: Shapes
    digest: str
    base_model: str

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def rank(self) -> int:
        """Its highest rank."""
        return int(self.tables[:, :, 0].max())

    @property
    def modules(self) -> tuple[str, ...]:
        """What it updates in some layer, by short names."""
        return tuple(
            name.rpartition(".")[2] for place, name in enumerate(MODULES) if self.tables[:, place, 0].any()
        )  # fmt: skip


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Read and check everything; nothing of a broken adapter is kept.

    Args:
        folder: As `peft` saves it.
        config: The model that it is for.

    Raises:
        AdapterError: it is missing, damaged, of another kind, or for a model of another shape; names the tensor.
    """
    settings = _settings(folder)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), None)
        what = (
            f"{pickled} is a pickle, which can run code when read"
            if pickled
            else "adapter_model.safetensors is missing"
        )
        raise AdapterError(f"{folder}: {what}", hint="save it with safe_serialization=True")
    try:
        tensors = open_tensors(path)
    except Exception as error:
        raise AdapterError(f"{folder}: {error}") from error
    return _packed(folder, _pairs(folder, tensors, config), settings, config)


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / "adapter_config.json"
    try:
        if path.stat().st_size > _SETTINGS_BYTES:
            raise AdapterError(f"{path} is no adapter configuration: it is too large")
        settings = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", hint="name a folder that peft saved") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict) or str(settings.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterError(f"{path} does not describe a LoRA adapter")
    refused = [name for name in _REFUSED if settings.get(name)]
    refused += ["bias"] if settings.get("bias", "none") != "none" else []
    refused += ["modules_to_save"] if settings.get("modules_to_save") else []
    if refused:
        raise AdapterError(f"{path}: {', '.join(refused)} cannot be applied", hint="train it as a plain LoRA")
    return settings


def _pairs(
    folder: Path, tensors: Mapping[str, NDArray[Any]], config: ModelConfig
) -> dict[tuple[int, int], tuple[Floats, Floats]]:
    """A and B of each update by (layer, module), checked; in the order of the packed layout."""
    found: dict[tuple[int, int], dict[str, tuple[str, NDArray[Any]]]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in MODULES:
            raise AdapterError(f"{folder}: tensor {name} cannot be applied", hint=f"known: {', '.join(MODULES)}")
        layer, module = int(match[1]), MODULES.index(match[2])
        if layer >= config.n_layers:
            raise AdapterError(f"{folder}: tensor {name} is for layer {layer}, the model has {config.n_layers}")
        if found.setdefault((layer, module), {}).setdefault(match[3], (name, tensor))[1] is not tensor:
            raise AdapterError(f"{folder}: tensor {name} is there twice")
    if not found:
        raise AdapterError(f"{folder}: the adapter is empty")
    pairs, shapes = {}, module_shapes(config)
    for place in sorted(found):
        half = found[place]
        if len(half) != 2:
            (only,) = half.values()
            raise AdapterError(f"{folder}: tensor {only[0]} has no counterpart")
        pairs[place] = _checked(folder, half["A"], half["B"], shapes[place[1]])
    return pairs


def _checked(
    folder: Path, rows: tuple[str, NDArray[Any]], columns: tuple[str, NDArray[Any]], shape: tuple[int, int]
) -> tuple[Floats, Floats]:
    rank = rows[1].shape[0] if rows[1].ndim == 2 else 0
    if not 1 <= rank <= HIGHEST_RANK:
        raise AdapterError(
            f"{folder}: tensor {rows[0]} has shape {rows[1].shape}, expected a rank of 1 to {HIGHEST_RANK}"
        )
    for (name, tensor), expected in ((rows, (rank, shape[1])), (columns, (shape[0], rank))):
        if tensor.shape != expected:
            raise AdapterError(
                f"{folder}: tensor {name} has shape {tensor.shape}, this model and rank need {expected}",
                hint="the adapter was trained on another model",
            )
        if tensor.dtype.kind != "f":
            raise AdapterError(f"{folder}: tensor {name} is of type {tensor.dtype}")
        largest = np.abs(tensor).max(initial=0)
        if not largest <= np.finfo(np.float16).max:
            raise AdapterError(f"{folder}: tensor {name} holds {largest}, which half precision cannot")
    return rows[1].astype(np.float32), columns[1].astype(np.float32)


def module_shapes(config: ModelConfig) -> Shapes:
    """Outputs and inputs of the linear maps of every layer, in the order of `MODULES`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return (
        (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), (inner, hidden), (inner, hidden),
        (hidden, inner),
    )  # fmt: skip


def _packed(
    folder: Path,
    pairs: Mapping[tuple[int, int], tuple[Floats, Floats]],
    settings: Mapping[str, Any],
    config: ModelConfig,
) -> Adapter:
    shapes = module_shapes(config)
    tables = np.zeros((config.n_layers, len(MODULES), 3), np.int64)
    scales = np.zeros((config.n_layers, len(MODULES)), np.float32)
    parts: list[NDArray[np.float16]] = []
    lengths: list[int] = []
    for (layer, module), (rows, columns) in pairs.items():
        rank, (outputs, inputs) = len(rows), shapes[module]
        if config.rope_style == "interleaved" and module < 2:
            columns = _interleaved(columns, config.head_dim)
        tables[layer, module] = rank, len(lengths), len(lengths) + rank
        scales[layer, module] = _scale(folder, settings, layer, module, rank)
        parts += [rows.astype(np.float16).reshape(-1), columns.T.astype(np.float16).reshape(-1)]
        lengths += [inputs] * rank + [outputs] * rank
    values = np.concatenate(parts).view(np.uint16)
    digest = hashlib.sha256(values.tobytes() + tables.tobytes() + scales.tobytes()).hexdigest()[:16]
    base = settings.get("base_model_name_or_path")
    return Adapter(
        values, np.array(lengths, np.int64), tables, scales, shapes, digest, base if isinstance(base, str) else ""
    )  # fmt: skip


def _interleaved(columns: Floats, head_dim: int) -> Floats:
    """Outputs of queries or keys in the order of models whose rotary pairs are neighbours, as GGUF stores them."""
    heads = len(columns) // head_dim
    return columns.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(columns.shape)


def _scale(folder: Path, settings: Mapping[str, Any], layer: int, module: int, rank: int) -> float:
    claimed = _number(folder, settings, "r", "rank_pattern", layer, module)
    if claimed is not None and claimed != rank:
        raise AdapterError(
            f"{folder}: layer {layer} {MODULES[module]} has rank {rank}, the configuration says {claimed:g}"
        )
    alpha = _number(folder, settings, "lora_alpha", "alpha_pattern", layer, module)
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _number(
    folder: Path, settings: Mapping[str, Any], key: str, pattern_key: str, layer: int, module: int
) -> float | None:
    """A setting of all updates, or what a pattern (a suffix of the module's name, or an expression) has instead."""
    name, value = f"model.layers.{layer}.{MODULES[module]}", settings.get(key)
    patterns = settings.get(pattern_key) or {}
    if isinstance(patterns, dict):
        for pattern, special in patterns.items():
            if _matches(folder, str(pattern), name):
                value = special
                break
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{folder}: {key} of {name} is {str(value)[:40]!r}, expected a number")
    return float(value)


def _matches(folder: Path, pattern: str, name: str) -> bool:
    try:
        return len(pattern) <= 500 and re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None
    except re.error as error:
        raise AdapterError(f"{folder}: pattern {pattern!r}: {error}") from None
