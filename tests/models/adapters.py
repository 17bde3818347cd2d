"""Adapters that the tests write themselves, as peft lays them out, and the plain matrices that they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from windlass.models.adapter import MODULES

Deltas = dict[tuple[int, int], np.ndarray]


def shapes_of(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Outputs and inputs of the seven maps."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return [
        (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries), (inner, hidden), (inner, hidden),
        (hidden, inner),
    ]  # fmt: skip


def write_adapter(
    folder: Path,
    config: Mapping[str, Any],
    rank: int | Sequence[int] = 8,
    *,
    seed: int = 0,
    alpha: float | None = None,
    modules: Sequence[int] = range(7),
    layers: Sequence[int] | None = None,
    strength: float = 0.7,
    dtype: Any = np.float32,
    **settings: Any,
) -> Deltas:
    """Write an adapter of seeded random matrices; what it adds to each weight, in the order of Hugging Face.

    With several ranks, each module has the next one, told by `rank_pattern`. Numbers are ones that half precision has.
    """
    rng = np.random.default_rng(seed)
    ranks = [rank] * 7 if isinstance(rank, int) else [rank[module % len(rank)] for module in range(7)]
    tensors, deltas = {}, {}
    for layer in layers if layers is not None else range(config["num_hidden_layers"]):
        for module in modules:
            (outputs, inputs), r = shapes_of(config)[module], ranks[module]
            a = (rng.standard_normal((r, inputs)) / math.sqrt(inputs)).astype(np.float16).astype(dtype)
            b = (strength * rng.standard_normal((outputs, r)) / math.sqrt(r)).astype(np.float16).astype(dtype)
            at = f"base_model.model.model.layers.{layer}.{MODULES[module]}"
            tensors[f"{at}.lora_A.weight"], tensors[f"{at}.lora_B.weight"] = a, b
            top = ranks[module] if alpha is None else alpha
            scale = top / (math.sqrt(r) if settings.get("use_rslora") else r)
            deltas[layer, module] = (scale * (b.astype(np.float64) @ a.astype(np.float64))).astype(np.float32)
    described: dict[str, Any] = {
        "peft_type": "LORA",
        "r": ranks[modules[0]],
        "lora_alpha": ranks[modules[0]] if alpha is None else alpha,
        "target_modules": [MODULES[module].rpartition(".")[2] for module in modules],
        "bias": "none",
        **settings,
    }
    if not isinstance(rank, int):
        described["rank_pattern"] = {MODULES[module].rpartition(".")[2]: ranks[module] for module in modules}
        if alpha is None:
            described["alpha_pattern"] = dict(described["rank_pattern"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(described))
    save_file(tensors, folder / "adapter_model.safetensors")
    return deltas


def merged(weights: Mapping[str, np.ndarray], deltas: Deltas) -> dict[str, np.ndarray]:
    """The weights of a model that has the adapter built in."""
    changed = dict(weights)
    for (layer, module), delta in deltas.items():
        name = f"model.layers.{layer}.{MODULES[module]}.weight"
        changed[name] = changed[name] + delta
    return changed
