"""Adapters and requests for `s-lora`: seeded, of mixed ranks, asked for as unevenly as in the paper."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from windlass.models.adapter import MODULES, module_shapes
from windlass.models.config import ModelConfig
from windlass.models.safetensors_file import write_tensors

RANKS = (4, 8, 16, 32)
ATTENTION = range(4)
"""The maps that the paper adapts: queries, keys, values, output."""


def write_adapters(
    folder: Path, config: ModelConfig, numbers: Iterable[int], *, seed: int, padded_to: int = 0
) -> list[Path]:
    """PEFT folders of random adapters, a number each, ranks in turn; `padded_to` adds rows and columns of zeros."""
    folders = []
    shapes = module_shapes(config)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        rank, tensors = RANKS[number % len(RANKS)], {}
        stored = max(rank, padded_to)
        for layer in range(config.n_layers):
            for module in ATTENTION:
                outputs, inputs = shapes[module]
                a, b = np.zeros((stored, inputs), np.float16), np.zeros((outputs, stored), np.float16)
                a[:rank] = rng.standard_normal((rank, inputs), np.float32) / math.sqrt(inputs)
                b[:, :rank] = 0.1 * rng.standard_normal((outputs, rank), np.float32) / math.sqrt(rank)
                at = f"base_model.model.model.layers.{layer}.{MODULES[module]}"
                tensors[f"{at}.lora_A.weight"], tensors[f"{at}.lora_B.weight"] = a, b
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": stored, "lora_alpha": stored, "bias": "none",
            "target_modules": [MODULES[module].rpartition(".")[2] for module in ATTENTION],
        }  # fmt: skip
        target = folder / f"adapter-{number}"
        target.mkdir(parents=True)
        (target / "adapter_config.json").write_text(json.dumps(settings))
        write_tensors(target / "adapter_model.safetensors", tensors)
        folders.append(target)
    return folders


def zipf_choices(adapters: int, requests: int, seed: int) -> list[int]:
    """Which adapter each request names: the k-th most popular with weight 1/k."""
    weights = 1.0 / np.arange(1, adapters + 1)
    chosen: Sequence[int] = np.random.default_rng(seed).choice(adapters, requests, p=weights / weights.sum()).tolist()
    return list(chosen)
