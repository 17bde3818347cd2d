"""A decoder as a Hugging Face folder, for everything else that reads such folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import UsageError
from windlass.models.block_formats import Floats
from windlass.models.config import ModelConfig
from windlass.models.name_maps import hugging_face
from windlass.models.safetensors_file import write_tensors

_CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mixtral": "Mixtral",
    "olmoe": "Olmoe",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
}


def save_hugging_face(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Floats],
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write `config.json` and `model.safetensors`; each appears complete or not at all, the configuration last.

    Queries and keys that a GGUF file keeps for interleaved rotary pairs are put back into the order that the libraries
    expect.

    Args:
        tensors: By GGUF name, rows first, as `DecoderLM.tensors` or a `WeightSource` gives them.
        dtype: What to store them as.

    Raises:
        UsageError: rotary factors that came as a tensor, for which the format has no place.
        StorageError: it did not reach the disk.
    """
    described = hf_config(config)
    stored = {name: values.astype(dtype) for name, values in _renamed(config, tensors)}
    storage.make_folder(folder)
    write_tensors(folder / "model.safetensors", stored)
    storage.write_atomic(folder / "config.json", json.dumps({**described, "dtype": dtype}, indent=1).encode())


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The contents of `config.json`.

    Raises:
        UsageError: rotary factors that came as a tensor.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling["type"] == "factors":
        raise UsageError("rotary factors in a tensor of their own cannot be written as a Hugging Face model")
    rope = {} if scaling is None else {key: value for key, value in scaling.items() if key != "type"}
    eos = list(config.eos_ids)
    described: dict[str, Any] = {
        "architectures": [_CLASSES[config.arch] + "ForCausalLM"],
        "model_type": config.arch,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rope_parameters": {
            **rope,
            "rope_type": "default" if scaling is None else scaling["type"],
            "rope_theta": config.rope_theta,
        },
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position,
        "hidden_act": "silu",
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
    }
    if config.arch.startswith("qwen"):
        described |= {
            "use_sliding_window": config.sliding_window is not None,
            "max_window_layers": config.sliding_from if config.sliding_window is not None else config.n_layers,
            "qkv_bias": config.qkv_bias,
        }
    return described | {"sliding_window": config.sliding_window} | _experts(config)


def _experts(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    if moe is None:
        return {}
    found: dict[str, Any] = {"num_experts_per_tok": moe.n_active}
    if config.arch == "mixtral":
        return {**found, "num_local_experts": moe.n_experts, "intermediate_size": moe.expert_size}
    found |= {"num_experts": moe.n_experts, "norm_topk_prob": moe.normalise}
    if config.arch == "olmoe":
        return {**found, "intermediate_size": moe.expert_size}
    return {
        **found,
        "moe_intermediate_size": moe.expert_size,
        "shared_expert_intermediate_size": moe.shared_size,
        "mlp_only_layers": list(moe.dense_layers),
        "decoder_sparse_step": 1,
    }


def _renamed(config: ModelConfig, tensors: Mapping[str, Floats]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, values in tensors.items():
        if "_exps." in name:
            for expert, part in enumerate(values):
                yield hugging_face(name, arch=config.arch, expert=expert), part
        elif name.endswith("ffn_gate_inp_shexp.weight"):
            yield hugging_face(name, arch=config.arch), values.reshape(1, -1)
        elif config.rope_style == "interleaved" and (".attn_q." in name or ".attn_k." in name):
            yield hugging_face(name, arch=config.arch), _halves(values, config.head_dim)
        else:
            yield hugging_face(name, arch=config.arch), values


def _halves(rows: Floats, head_dim: int) -> Floats:
    """Rows of each head from pairs (2i, 2i + 1) into pairs (i, i + head_dim / 2)."""
    heads = len(rows) // head_dim
    paired = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)
