"""What a decoder looks like: sizes, rotary settings, normalisation, experts; read from config.json or GGUF
metadata.

Architectures known here: Llama (SmolLM2 included), Mistral, Qwen2, Qwen3, and with experts Mixtral, OLMoE,
Qwen2-MoE and Qwen3-MoE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from windlass.core.errors import ModelError, UnsupportedArchitecture

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
LARGEST_COUNT = 1 << 24
"""No dimension of a decoder is larger; a header that claims more is damaged or hostile."""

LARGEST_DEPTH = 1 << 14
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "olmoe": "olmoe",
}
QK_NORM: Mapping[str, Literal["head", "full"]] = {"qwen3": "head", "qwen3_moe": "head", "olmoe": "full"}


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward layer.

    `n_active` of `n_experts` are chosen for each token, each with `expert_size` inner channels; `shared_size` is
    that of the expert every token passes (0: none). `normalise` makes the weights of the chosen ones sum to one.
    `dense_layers` have an ordinary feed-forward layer instead.
    """

    n_experts: int
    n_active: int
    expert_size: int
    shared_size: int
    normalise: bool
    dense_layers: tuple[int, ...] = ()

    def check(self, where: str) -> None:
        for name, value in (("n_experts", self.n_experts), ("expert_size", self.expert_size)):
            if not 0 < value <= LARGEST_COUNT:
                raise ModelError(f"{where}: {name} is {value}, expected 1 to {LARGEST_COUNT}")
        if not 0 < self.n_active <= self.n_experts:
            raise ModelError(f"{where}: {self.n_active} of {self.n_experts} experts cannot be active")
        if not 0 <= self.shared_size <= LARGEST_COUNT:
            raise ModelError(f"{where}: the shared expert's size is {self.shared_size}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one decoder. Every size is a count, never bytes.

    `rope_style` says which two channels make a rotary pair: `half` is (i, i + head_dim/2), `interleaved` is
    (2i, 2i+1). GGUF files of the `llama` architecture are stored for the second, everything else for the
    first. `rope_scaling` has a key `type` (`linear`, `llama3`, `yarn`, `factors`) and the numbers of that
    rule. `sliding_window` counts the newest keys a token may see (itself included) in layers from
    `sliding_from` on.
    """

    arch: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    rope_style: Literal["half", "interleaved"]
    norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: Literal["head", "full"] | None
    sliding_window: int | None
    moe: MoEConfig | None
    max_position: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    sliding_from: int = 0
    output_bias: bool = False
    mlp_bias: bool = False

    def check(self, where: str) -> ModelConfig:
        """Return self when the sizes make sense together; raise `ModelError` naming `where` and the field if
        not.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            is_count = field.type == "int" and field.name != "sliding_from"
            if is_count and not 0 < value <= LARGEST_COUNT:
                raise ModelError(f"{where}: {field.name} is {value}, expected 1 to {LARGEST_COUNT}")
        if self.n_layers > LARGEST_DEPTH:
            raise ModelError(f"{where}: n_layers is {self.n_layers}, expected 1 to {LARGEST_DEPTH}")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"{where}: {self.n_heads} heads cannot share {self.n_kv_heads} key heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"{where}: head_dim is {self.head_dim}, rotary pairs need an even number")
        if not (self.rope_theta > 0 and self.norm_eps >= 0):
            raise ModelError(f"{where}: rope_theta {self.rope_theta} and norm_eps {self.norm_eps} are out of range")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"{where}: sliding_window is {self.sliding_window}, expected at least 1")
        if self.moe is not None:
            self.moe.check(where)
        return self

    def window_of(self, layer: int) -> int | None:
        """How many newest keys a token sees in `layer`; None: all."""
        return self.sliding_window if layer >= self.sliding_from else None

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers


def packing_obstacle(config: ModelConfig) -> str | None:
    """Why the compiled CPU engine cannot pack this shape, or None when it can."""
    if config.moe is not None:
        return "it has experts"
    if config.qk_norm == "full":
        return "its queries and keys are normalised over all heads"
    for name, size, unit in (
        ("hidden_size", config.hidden_size, 32),
        ("intermediate_size", config.intermediate_size, 32),
        ("n_heads * head_dim", config.n_heads * config.head_dim, 32),
        ("head_dim", config.head_dim, 16),
    ):
        if size % unit:
            return f"{name} is {size}, not a multiple of {unit}"
    return None


class _Reader:
    """Typed access to a metadata mapping; every failure names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        value = self.values.get(self.prefix + key)
        if value is None:
            if default is ...:
                raise ModelError(f"{self.where}: {self.prefix}{key} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(f"{self.where}: {self.prefix}{key} is {str(value)[:60]!r}, expected {kind.__name__}")
        return value


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a Hugging Face `config.json` (both the old `rope_scaling` and the newer `rope_parameters` form).

    Raises:
        ModelError: a key is missing, of a wrong type, or the architecture is unknown.
    """
    read = _Reader(values, where)
    arch = read.get("model_type", str)
    if arch not in KNOWN:
        raise UnsupportedArchitecture(
            f"{where}: model_type {arch[:60]!r} is not supported",
            hint=f"known: {', '.join(KNOWN)}",
        )
    _refuse_other_activation(read.get("hidden_act", str, "silu"), where)
    if values.get("clip_qkv") is not None:
        raise ModelError(f"{where}: clip_qkv is {values['clip_qkv']!r}; clipped queries and keys are not supported")
    hidden, heads, layers = (read.get(k, int) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    rope = read.get("rope_parameters", dict, None) or read.get("rope_scaling", dict, None) or {}
    theta = _Reader(rope, where).get("rope_theta", float, None) or read.get("rope_theta", float, 10000.0)
    window, window_from = _hf_window(read, arch, layers)
    eos = values.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    if not all(isinstance(token, int) for token in eos_ids):
        raise ModelError(f"{where}: eos_token_id is {eos!r}, expected a number or a list of numbers")
    return ModelConfig(
        arch=arch,
        hidden_size=hidden,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=read.get("num_key_value_heads", int, heads),
        head_dim=read.get("head_dim", int, hidden // max(heads, 1)),
        intermediate_size=read.get("intermediate_size", int),
        vocab_size=read.get("vocab_size", int),
        rope_theta=theta,
        rope_scaling=_hf_rope_scaling(rope, where),
        rope_style="half",
        norm_eps=read.get("rms_norm_eps", float, 1e-6),
        tie_embeddings=read.get("tie_word_embeddings", bool, False),
        qkv_bias=read.get("qkv_bias", bool, arch.startswith("qwen2")) or read.get("attention_bias", bool, False),
        qk_norm=QK_NORM.get(arch),
        sliding_window=window,
        moe=_hf_experts(read, arch, layers),
        max_position=read.get("max_position_embeddings", int, 2048),
        bos_id=read.get("bos_token_id", int, None),
        eos_ids=eos_ids,
        sliding_from=window_from,
        output_bias=read.get("attention_bias", bool, False),
        mlp_bias=read.get("mlp_bias", bool, False),
    ).check(where)


def _refuse_other_activation(name: str, where: str) -> None:
    if name not in ("silu", "swish"):
        raise ModelError(f"{where}: hidden_act {name!r} is not supported, only silu")


def _hf_window(read: _Reader, arch: str, layers: int) -> tuple[int | None, int]:
    """The window, and the first layer that has it."""
    window, window_from = read.get("sliding_window", int, None), 0
    if arch.startswith("qwen"):
        if not read.get("use_sliding_window", bool, False):
            window = None
        elif arch != "qwen3_moe":
            window_from = min(read.get("max_window_layers", int, layers), layers)
    elif arch not in ("mistral", "mixtral"):
        window = None
    kinds = read.get("layer_types", list, None)
    if kinds is None and arch == "qwen2_moe" and window is not None:
        raise ModelError(f"{read.where}: use_sliding_window is not supported for {arch}")
    slides = [kind != "full_attention" for kind in kinds or []]
    if kinds is not None and slides != [window is not None and layer >= window_from for layer in range(len(slides))]:
        raise ModelError(f"{read.where}: layer_types mixes attention in a way that is not supported")
    return window, window_from


def _hf_rope_scaling(rope: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ModelError(f"{where}: rotary scaling {kind!r} is not supported, only linear, llama3 and yarn")
    rule = {key: value for key, value in rope.items() if key not in ("type", "rope_type", "rope_theta")}
    return _numbers({**rule, "type": kind}, where)


def _numbers(scaling: dict[str, Any], where: str) -> Mapping[str, Any]:
    """Check that every number of a scaling rule is one, and positive."""
    kept = {key: value for key, value in scaling.items() if isinstance(value, str | int | float)}
    for key, value in kept.items():
        if not isinstance(value, str) and not isinstance(value, bool) and not 0 < value < 1e12:
            raise ModelError(f"{where}: rotary scaling {key} is {value}, expected a positive number")
    if not isinstance(kept.get("factor"), int | float):
        raise ModelError(f"{where}: rotary scaling {scaling['type']!r} has no factor")
    return kept


def _hf_experts(read: _Reader, arch: str, layers: int) -> MoEConfig | None:
    if arch == "mixtral":
        counts = (read.get("num_local_experts", int), read.get("num_experts_per_tok", int))
        return MoEConfig(*counts, read.get("intermediate_size", int), 0, True)
    if arch == "olmoe":
        counts = (read.get("num_experts", int), read.get("num_experts_per_tok", int))
        return MoEConfig(*counts, read.get("intermediate_size", int), 0, read.get("norm_topk_prob", bool, False))
    if arch not in ("qwen2_moe", "qwen3_moe"):
        return None
    step, listed = read.get("decoder_sparse_step", int, 1), read.get("mlp_only_layers", list, [])
    if step < 1 or not all(isinstance(layer, int) for layer in listed):
        raise ModelError(f"{read.where}: decoder_sparse_step {step} and mlp_only_layers {listed} make no sense")
    return MoEConfig(
        read.get("num_experts", int, None) or read.get("num_local_experts", int),
        read.get("num_experts_per_tok", int),
        read.get("moe_intermediate_size", int),
        read.get("shared_expert_intermediate_size", int, 0) if arch == "qwen2_moe" else 0,
        read.get("norm_topk_prob", bool, False),
        tuple(layer for layer in range(min(layers, LARGEST_DEPTH)) if layer in listed or (layer + 1) % step),
    )


def config_from_gguf(
    metadata: Mapping[str, Any], tensor_shapes: Mapping[str, tuple[int, ...]], where: str
) -> ModelConfig:
    """Read GGUF metadata; `tensor_shapes` (rows first) settles what metadata leaves open (ties, vocabulary,
    biases).

    Raises:
        ModelError: a key is missing, of a wrong type, or the architecture is unknown.
    """
    name = _Reader(metadata, where).get("general.architecture", str)
    arch = GGUF_ARCHITECTURES.get(name)
    if arch is None:
        raise UnsupportedArchitecture(
            f"{where}: architecture {name[:60]!r} is not supported", hint=f"known: {', '.join(GGUF_ARCHITECTURES)}"
        )
    read = _Reader(metadata, where, prefix=f"{name}.")
    if "token_embd.weight" not in tensor_shapes:
        raise ModelError(f"{where}: tensor token_embd.weight is missing")
    hidden, heads = read.get("embedding_length", int), read.get("attention.head_count", int)
    experts = read.get("expert_count", int, 0)
    if experts and arch == "llama":
        arch = "mixtral"
    return ModelConfig(
        arch=arch,
        hidden_size=hidden,
        n_layers=read.get("block_count", int),
        n_heads=heads,
        n_kv_heads=read.get("attention.head_count_kv", int, heads),
        head_dim=read.get("attention.key_length", int, hidden // max(heads, 1)),
        intermediate_size=read.get("feed_forward_length", int),
        vocab_size=tensor_shapes["token_embd.weight"][0],
        rope_theta=read.get("rope.freq_base", float, 10000.0),
        rope_scaling=_gguf_rope_scaling(read, tensor_shapes),
        rope_style="interleaved" if name == "llama" else "half",
        norm_eps=read.get("attention.layer_norm_rms_epsilon", float, 1e-6),
        tie_embeddings="output.weight" not in tensor_shapes,
        qkv_bias="blk.0.attn_q.bias" in tensor_shapes,
        qk_norm=QK_NORM.get(arch),
        sliding_window=read.get("attention.sliding_window", int, None) or None,
        moe=_gguf_experts(read, arch, experts, tensor_shapes),
        max_position=read.get("context_length", int),
        bos_id=_Reader(metadata, where).get("tokenizer.ggml.bos_token_id", int, None),
        eos_ids=_gguf_eos(metadata, where),
        output_bias="blk.0.attn_output.bias" in tensor_shapes,
        mlp_bias="blk.0.ffn_up.bias" in tensor_shapes,
    ).check(where)


def _gguf_rope_scaling(read: _Reader, tensor_shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any] | None:
    if "rope_freqs.weight" in tensor_shapes:
        return {"type": "factors", "tensor": "rope_freqs.weight"}
    kind = read.get("rope.scaling.type", str, "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{read.where}: rotary scaling {kind!r} is not supported, only linear and yarn")
    scaling = {"type": kind, "factor": read.get("rope.scaling.factor", float)}
    original = read.get("rope.scaling.original_context_length", int, None)
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    return _numbers(scaling, read.where)


def _gguf_experts(
    read: _Reader, arch: str, experts: int, tensor_shapes: Mapping[str, tuple[int, ...]]
) -> MoEConfig | None:
    """Sizes come from the tensors where they are there: older files leave them out of the metadata."""
    if not experts:
        return None
    inner = tensor_shapes.get("blk.0.ffn_up_exps.weight", ())
    size = inner[1] if len(inner) == 3 else read.get("feed_forward_length", int)
    shared = tensor_shapes.get("blk.0.ffn_up_shexp.weight", (0,))[0]
    return MoEConfig(experts, read.get("expert_used_count", int), size, shared, arch in ("mixtral", "qwen3_moe"))


def _gguf_eos(metadata: Mapping[str, Any], where: str) -> tuple[int, ...]:
    read = _Reader(metadata, where, prefix="tokenizer.ggml.")
    named = (read.get(key, int, None) for key in ("eos_token_id", "eot_token_id", "eom_token_id"))
    return tuple(dict.fromkeys(token for token in named if token is not None))
