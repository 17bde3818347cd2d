"""Tiny random models that the tests write themselves, and a float64 decoder that shares no code with ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

WORDS = ["the", " the", " sea", " ship", " harbour", "ing", "er", " a", " b"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in kept else chr(256 + [x for x in range(256) if x not in kept].index(b)) for b in range(256)]


def bpe_vocabulary() -> tuple[list[str], list[str]]:
    """Pieces (control tokens, bytes, merged words) and the merges that make the words, byte-level."""
    letters = byte_alphabet()
    pieces, merges = [*CONTROLS, *letters], []
    for word in WORDS:
        spelled = [letters[b] for b in word.encode()]
        made = spelled[0]
        for letter in spelled[1:]:
            if made + letter not in pieces:
                pieces.append(made + letter)
                merges.append(f"{made} {letter}")
            made += letter
    return pieces, merges


def hf_config(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    return {
        "model_type": arch,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": len(bpe_vocabulary()[0]),
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **changes,
    }


EXPERTS = {
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False, "num_key_value_heads": 4},
    "qwen2_moe": {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40, "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
}  # fmt: skip
"""Settings of the architectures with experts; the last has one dense layer."""


def moe_config(arch: str, **changes: Any) -> dict[str, Any]:
    return hf_config(arch, **{**EXPERTS[arch], **changes})


def expert_counts(config: dict[str, Any]) -> tuple[int, int, int]:
    """Experts, active ones, and inner channels of each."""
    count = config.get("num_local_experts") or config["num_experts"]
    size = config.get("moe_intermediate_size") or config["intermediate_size"]
    return count, config["num_experts_per_tok"], size


def has_experts(config: dict[str, Any], layer: int) -> bool:
    return config["model_type"] in EXPERTS and layer not in config.get("mlp_only_layers", ())


def expert_names(config: dict[str, Any], layer: int, expert: int) -> dict[str, str]:
    at = f"model.layers.{layer}."
    if config["model_type"] == "mixtral":
        return {
            part: f"{at}block_sparse_moe.experts.{expert}.{w}.weight"
            for part, w in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        }
    return {part: f"{at}mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")}


def router_name(config: dict[str, Any], layer: int) -> str:
    block = "block_sparse_moe" if config["model_type"] == "mixtral" else "mlp"
    return f"model.layers.{layer}.{block}.gate.weight"


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under their Hugging Face names, float32, scaled so that attention and activations are not flat."""
    rng = np.random.default_rng(seed)
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    arch = config["model_type"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * 1.5 / math.sqrt(columns)).astype(np.float32)

    def norm(length: int) -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(length)).astype(np.float32)

    def gated(at: str, inner: int) -> None:
        weights[f"{at}gate_proj.weight"], weights[f"{at}up_proj.weight"] = matrix(inner, hidden), matrix(inner, hidden)
        weights[f"{at}down_proj.weight"] = matrix(hidden, inner)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * 5, "model.norm.weight": norm(hidden)}
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        rows = {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}
        for part, count in rows.items():
            weights[f"{at}self_attn.{part}_proj.weight"] = matrix(count, hidden)
            if arch.startswith("qwen2"):
                weights[f"{at}self_attn.{part}_proj.bias"] = norm(count) - 1
        if arch.startswith("qwen3"):
            weights[at + "self_attn.q_norm.weight"], weights[at + "self_attn.k_norm.weight"] = norm(size), norm(size)
        if arch == "olmoe":
            weights[at + "self_attn.q_norm.weight"] = norm(heads * size)
            weights[at + "self_attn.k_norm.weight"] = norm(kv_heads * size)
        weights[at + "self_attn.o_proj.weight"] = matrix(hidden, heads * size)
        if has_experts(config, index):
            count, _, expert_size = expert_counts(config)
            weights[router_name(config, index)] = matrix(count, hidden)
            for expert in range(count):
                names = expert_names(config, index, expert)
                weights[names["gate"]], weights[names["up"]] = matrix(expert_size, hidden), matrix(expert_size, hidden)
                weights[names["down"]] = matrix(hidden, expert_size)
            if arch == "qwen2_moe":
                gated(at + "mlp.shared_expert.", config["shared_expert_intermediate_size"])
                weights[at + "mlp.shared_expert_gate.weight"] = matrix(1, hidden)
        else:
            gated(at + "mlp.", inner)
        weights[at + "input_layernorm.weight"], weights[at + "post_attention_layernorm.weight"] = (
            norm(hidden),
            norm(hidden),
        )
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return weights


def tokenizer_json() -> dict[str, Any]:
    pieces, merges = bpe_vocabulary()
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": c,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, c in enumerate(CONTROLS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges},
    }


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    """A Hugging Face folder with tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    settings = {"bos_token": CONTROLS[0], "eos_token": CONTROLS[2], "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors")
    return folder


HF_TO_GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}  # fmt: skip


def gguf_name(name: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    stem, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{HF_TO_GGUF[stem]}.{suffix}"


def write_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    quantize: gguf.GGMLQuantizationType | None = None,
    head: gguf.GGMLQuantizationType | None = None,
    **metadata: Any,
) -> Path:
    """A GGUF file of the same weights, q and k rows permuted for llama as converters do.

    Matrices are stored as `quantize` (the embedding as `head`), float32 when None.
    """
    arch = {"mistral": "llama", "mixtral": "llama"}.get(
        config["model_type"], config["model_type"].replace("_moe", "moe")
    )
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    if config["model_type"] in EXPERTS:
        count, active, size = expert_counts(config)
        writer.add_expert_count(count)
        writer.add_expert_used_count(active)
        writer.add_expert_feed_forward_length(size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    pieces, merges = bpe_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(metadata.pop("pre", "gpt-2"))
    writer.add_token_list(pieces)
    writer.add_token_types([3] * len(CONTROLS) + [1] * (len(pieces) - len(CONTROLS)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(metadata.pop("template", CHAT))
    for key, value in metadata.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    for name, weight in stack_experts(config, weights).items():
        _add_tensor(writer, name, weight, config, quantize, head, arch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stack_experts(config: dict[str, Any], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights with the experts of a layer in one tensor, as GGUF has them."""
    stacked = {name: weight for name, weight in weights.items() if ".experts." not in name}
    for layer in range(config["num_hidden_layers"]):
        if has_experts(config, layer):
            names = [expert_names(config, layer, expert) for expert in range(expert_counts(config)[0])]
            for part in ("gate", "up", "down"):
                stacked[f"blk.{layer}.ffn_{part}_exps.weight"] = np.stack([weights[each[part]] for each in names])
    return stacked


def _add_tensor(
    writer: Any, name: str, weight: np.ndarray, config: dict[str, Any], quantize: Any, head: Any, arch: str
) -> None:
    short = name if name.startswith("blk.") else gguf_name(name)
    if short.endswith("inp_shexp.weight"):
        weight = weight.reshape(-1)
    for part, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
        if part in name and arch == "llama":
            half = config["head_dim"] // 2
            weight = weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    kind = head if short in ("token_embd.weight", "output.weight") else quantize
    if weight.ndim == 1 or kind is None:
        writer.add_tensor(short, np.ascontiguousarray(weight))
    else:
        writer.add_tensor(short, gguf.quants.quantize(weight, kind), raw_dtype=kind)


GATED = ("gate", "up", "down")


def _reference_gated(w: dict[str, np.ndarray], names: list[str], h: np.ndarray) -> np.ndarray:
    gate, up, down = (w[name] for name in names)
    inner = gate @ h
    return down @ (inner / (1 + np.exp(-inner)) * (up @ h))


def _reference_experts(config: dict[str, Any], w: dict[str, np.ndarray], layer: int, h: np.ndarray) -> np.ndarray:
    """One token: the k likeliest experts one by one, and the shared one."""
    count, active, _ = expert_counts(config)
    scores = w[router_name(config, layer)] @ h
    shares = np.exp(scores) / np.exp(scores).sum()
    best = sorted(range(count), key=lambda expert: -shares[expert])[:active]
    total = sum(shares[expert] for expert in best) if config.get("norm_topk_prob", True) else 1.0
    made = np.zeros_like(h)
    for expert in best:
        names = expert_names(config, layer, expert)
        made += shares[expert] / total * _reference_gated(w, [names[part] for part in GATED], h)
    at = f"model.layers.{layer}.mlp.shared_expert"
    if f"{at}_gate.weight" in w:
        opened = 1 / (1 + np.exp(-float((w[f"{at}_gate.weight"] @ h)[0])))
        made += opened * _reference_gated(w, [f"{at}.{part}_proj.weight" for part in GATED], h)
    return made


def reference_logits(
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    tokens: list[int],
    frequencies: list[float] | None = None,
    magnitude: float = 1.0,
) -> np.ndarray:
    """Logits `[tokens, vocab]` in float64, one token, one head at a time; half-style rotary on unpermuted weights."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    size, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    window = config.get("sliding_window") or 10**9
    if frequencies is None:
        frequencies = [config["rope_theta"] ** (-2 * i / size) for i in range(size // 2)]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / math.sqrt(float(x @ x) / len(x) + config["rms_norm_eps"]) * weight

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        pairs = [
            complex(x[i], x[i + size // 2]) * magnitude * np.exp(1j * position * f) for i, f in enumerate(frequencies)
        ]
        return np.array([p.real for p in pairs] + [p.imag for p in pairs])

    def project(name: str, x: np.ndarray) -> np.ndarray:
        return w[name + ".weight"] @ x + w.get(name + ".bias", 0.0)

    states = [w["model.embed_tokens.weight"][token] for token in tokens]
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}."
        normed = [norm(x, w[at + "input_layernorm.weight"]) for x in states]
        made: dict[str, list[list[np.ndarray]]] = {}
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            made[part] = []
            for position, x in enumerate(normed):
                rows = project(f"{at}self_attn.{part}_proj", x)
                norm_weight = w.get(f"{at}self_attn.{part}_norm.weight")
                if norm_weight is not None and len(norm_weight) > size:
                    rows = norm(rows, norm_weight)
                ready = [
                    norm(row, norm_weight) if norm_weight is not None and len(norm_weight) == size else row
                    for row in rows.reshape(count, size)
                ]
                made[part].append([turn(row, position) if part != "v" else row for row in ready])
        for position in range(len(tokens)):
            mixed = []
            for head in range(heads):
                kv = head // (heads // kv_heads)
                seen = range(max(0, position - window + 1), position + 1)
                scores = np.array([made["q"][position][head] @ made["k"][past][kv] for past in seen]) / math.sqrt(size)
                shares = np.exp(scores - scores.max())
                mixed.append(sum(s * made["v"][past][kv] for s, past in zip(shares / shares.sum(), seen, strict=True)))
            states[position] = states[position] + project(at + "self_attn.o_proj", np.concatenate(mixed))
        for position, x in enumerate(states):
            h = norm(x, w[at + "post_attention_layernorm.weight"])
            if has_experts(config, index):
                states[position] = x + _reference_experts(config, w, index, h)
            else:
                states[position] = x + _reference_gated(w, [f"{at}mlp.{part}_proj.weight" for part in GATED], h)
    head_weight = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.array([head_weight @ norm(x, w["model.norm.weight"]) for x in states])
