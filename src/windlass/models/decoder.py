"""The decoder in NumPy, float32 throughout: the body that is obviously right, and the fallback that runs
everywhere.

Pre-norm blocks with grouped-query attention, rotary positions and a gated feed-forward layer (Llama, SmolLM2,
Mistral, Qwen2, Qwen3) or a mixture of experts (Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE). Weights are decoded to
float32 once, so a model takes four bytes a weight: 540 MB for 135 million. The compiled engine keeps them packed;
this one is what it is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ContextLengthError, ModelError, UsageError
from windlass.kernels.blas import one_thread_a_product
from windlass.models.activations import rms_norm, silu, softmax
from windlass.models.block_formats import Floats
from windlass.models.config import ModelConfig
from windlass.models.experts import Experts, Router
from windlass.models.linear import DenseLinear
from windlass.models.weights import WeightSource, open_weights

Tokens = NDArray[np.int64]
Observer = Callable[[str, Floats], None]
"""Is told the name of a linear and the rows `[T, in]` that are about to pass it."""
PREFILL_CHUNK = 256
"""Tokens computed together; larger chunks use BLAS no better and grow the scores quadratically."""


class Cache(Protocol):
    """Keys and values of one sequence. `truncate` forgets the tail; `fork` copies, so both go on
    independently.
    """

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def truncate(self, length: int) -> None: ...

    def fork(self) -> Cache: ...


class TokenModel(Protocol):
    """What generation needs of a model, whoever computes it."""

    config: ModelConfig

    def cache(self) -> Any: ...

    def prefill(self, tokens: Tokens, cache: Any) -> Floats:
        """Append `tokens` (at least one) to the sequence in `cache`; float32 `[vocab]` logits after the
        last.
        """

    def step(self, token: int, cache: Any) -> Floats:
        """Append one token; float32 `[vocab]` logits after it."""

    def logits(self, tokens: Tokens) -> Floats:
        """Float32 `[len(tokens), vocab]`: logits after every token of a fresh sequence."""


class KVCache:
    """Float32 keys and values `[layer, kv_head, position, head_dim]`, grown by doubling."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.length = 0
        shape = (config.n_layers, config.n_kv_heads, 64, config.head_dim)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def reserve(self, length: int) -> None:
        """Make room for `length` positions."""
        room = self.keys.shape[2]
        if length <= room:
            return
        extra = max(length, 2 * room) - room
        pad = ((0, 0), (0, 0), (0, extra), (0, 0))
        self.keys, self.values = np.pad(self.keys, pad), np.pad(self.values, pad)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on.

        Raises:
            UsageError: `length` is negative or beyond what is stored.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length

    def fork(self) -> KVCache:
        """An independent copy."""
        twin = KVCache.__new__(KVCache)
        twin._config, twin.length = self._config, self.length
        twin.keys, twin.values = self.keys.copy(), self.values.copy()
        return twin


@dataclass(frozen=True)
class _FeedForward:
    gate_up: DenseLinear
    down: DenseLinear

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True)
class _Layer:
    attn_norm: Floats
    qkv: DenseLinear
    q_norm: Floats | None
    k_norm: Floats | None
    output: DenseLinear
    ffn_norm: Floats
    ffn: _FeedForward | Experts
    window: int | None


class Decoder:
    """A decoder model in float32 NumPy.

    Example:
        decoder = Decoder.load(Path("model.gguf"))
        cache = decoder.cache()
        logits = decoder.prefill(np.array([1, 42]), cache)
    """

    def __init__(self, source: WeightSource) -> None:
        self.config = source.config
        self._observer: Observer | None = None
        self._embedding = _matrix(source, "token_embd.weight", (self.config.vocab_size, self.config.hidden_size))
        self._layers = [self._read_layer(source, index) for index in range(self.config.n_layers)]
        self._norm = _vector(source, "output_norm.weight", self.config.hidden_size)
        self._head = self._embedding
        if not self.config.tie_embeddings:
            self._head = _matrix(source, "output.weight", self._embedding.shape)
        self._frequencies, self._magnitude = rotary_frequencies(self.config, source)

    @classmethod
    def load(cls, path: Path) -> Decoder:
        """Decode every weight of a GGUF file or a safetensors folder into memory.

        Raises:
            NotFound: nothing is at `path`.
            ModelError: the model is damaged, incomplete, or of an architecture that cannot be run.
        """
        return cls(open_weights(path))

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory."""
        head = 0 if self._head is self._embedding else self._head.nbytes
        layers = 0
        for layer in self._layers:
            ffn = (
                layer.ffn.nbytes if isinstance(layer.ffn, Experts) else layer.ffn.gate_up.nbytes + layer.ffn.down.nbytes
            )
            layers += layer.qkv.nbytes + layer.output.nbytes + ffn
        return self._embedding.nbytes + head + layers

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Tell `observer` what passes each linear inside this block; calibration listens here.

        Linears that share their input are told once, under the name of the first. Experts are told as
        `blk.N.ffn_gate_exps.weight` with the rows before routing.
        """
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def choices(self, layer: int, rows: Floats) -> NDArray[np.int64]:
        """The experts `[T, k]` that `rows [T, hidden]` (as `observed` shows them) are sent to in `layer`."""
        ffn = self._layers[layer].ffn
        if not isinstance(ffn, Experts):
            raise UsageError(f"layer {layer} has no experts")
        return ffn.choose(rows)[0]

    def _read_layer(self, source: WeightSource, index: int) -> _Layer:
        config, prefix = self.config, f"blk.{index}."
        hidden = config.hidden_size
        q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        qkv = [("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)]
        norm_sizes = {"head": (config.head_dim, config.head_dim), "full": (q_size, kv_size), None: (0, 0)}
        q_norm, k_norm = (
            _vector(source, f"{prefix}attn_{part}_norm.weight", size) if size else None
            for part, size in zip("qk", norm_sizes[config.qk_norm], strict=True)
        )
        return _Layer(
            attn_norm=_vector(source, prefix + "attn_norm.weight", hidden),
            qkv=_linear(source, prefix, qkv, hidden),
            q_norm=q_norm,
            k_norm=k_norm,
            output=_linear(source, prefix, [("attn_output", hidden)], q_size),
            ffn_norm=_vector(source, prefix + "ffn_norm.weight", hidden),
            ffn=self._read_experts(source, prefix) if config.has_experts(index) else self._read_ffn(source, prefix),
            window=config.window_of(index),
        )

    def _read_ffn(self, source: WeightSource, prefix: str) -> _FeedForward:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return _FeedForward(
            _linear(source, prefix, [("ffn_gate", inner), ("ffn_up", inner)], hidden),
            _linear(source, prefix, [("ffn_down", hidden)], inner),
        )

    def _read_experts(self, source: WeightSource, prefix: str) -> Experts:
        moe, hidden = self.config.moe, self.config.hidden_size
        assert moe is not None

        def read(part: str, *shape: int) -> Floats:
            return _matrix(source, f"{prefix}{part}.weight", shape)

        shared = None
        if moe.shared_size:
            wide = [read(f"ffn_{part}_shexp", moe.shared_size, hidden) for part in ("gate", "up")]
            gate = _vector(source, f"{prefix}ffn_gate_inp_shexp.weight", hidden)
            shared = (np.concatenate(wide), read("ffn_down_shexp", hidden, moe.shared_size), gate)
        count, size = moe.n_experts, moe.expert_size
        gate_up = np.empty((count, 2 * size, hidden), np.float32)
        gate_up[:, :size] = read("ffn_gate_exps", count, size, hidden)
        gate_up[:, size:] = read("ffn_up_exps", count, size, hidden)
        return Experts(
            Router(moe.n_active, normalise=moe.normalise),
            read("ffn_gate_inp", count, hidden),
            gate_up,
            read("ffn_down_exps", count, hidden, size),
            shared,
        )

    def cache(self) -> KVCache:
        return KVCache(self.config)

    def prefill(self, tokens: Tokens, cache: KVCache) -> Floats:
        checked = check_tokens(tokens, self.config, cache.length)
        for start in range(0, len(checked), PREFILL_CHUNK):
            hidden = self._forward(checked[start : start + PREFILL_CHUNK], cache)
        return self._to_logits(hidden[-1])

    def step(self, token: int, cache: KVCache) -> Floats:
        return self._to_logits(self._forward(check_tokens(np.array([token]), self.config, cache.length), cache)[-1])

    def logits(self, tokens: Tokens) -> Floats:
        cache, checked = self.cache(), check_tokens(tokens, self.config, 0)
        starts = range(0, len(checked), PREFILL_CHUNK)
        return np.concatenate([self._to_logits(self._forward(checked[s : s + PREFILL_CHUNK], cache)) for s in starts])

    def _to_logits(self, hidden: Floats) -> Floats:
        with one_thread_a_product():
            return rms_norm(hidden, self._norm, self.config.norm_eps) @ self._head.T

    def _forward(self, tokens: Tokens, cache: KVCache) -> Floats:
        """Hidden states `[T, hidden]` of `tokens`, appended to `cache`."""
        start, eps = cache.length, self.config.norm_eps
        cache.reserve(start + len(tokens))
        angles = np.arange(start, start + len(tokens))[:, None] * self._frequencies
        rotation = (
            (np.cos(angles) * self._magnitude).astype(np.float32),
            (np.sin(angles) * self._magnitude).astype(np.float32),
        )
        x = self._embedding[tokens]
        with one_thread_a_product():
            for index, layer in enumerate(self._layers):
                x = x + self._attend(rms_norm(x, layer.attn_norm, eps), layer, index, cache, rotation)
                x = x + self._feed_forward(rms_norm(x, layer.ffn_norm, eps), layer.ffn, index)
        cache.length = start + len(tokens)
        return x

    def _pass(self, linear: DenseLinear, x: Floats) -> Floats:
        if self._observer is not None:
            self._observer(linear.name, x)
        return linear(x)

    def _feed_forward(self, h: Floats, ffn: _FeedForward | Experts, index: int) -> Floats:
        if isinstance(ffn, Experts):
            if self._observer is not None:
                self._observer(f"blk.{index}.ffn_gate_exps.weight", h)
            return ffn(h)
        gate, up = np.split(self._pass(ffn.gate_up, h), 2, axis=-1)
        return self._pass(ffn.down, silu(gate) * up)

    def _attend(self, h: Floats, layer: _Layer, index: int, cache: KVCache, rotation: tuple[Floats, Floats]) -> Floats:
        config, start, count = self.config, cache.length, len(h)
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        q, k, v = np.split(self._pass(layer.qkv, h), (heads * size, (heads + kv_heads) * size), axis=-1)
        # A norm over the whole projection comes before the split into heads, one of each head after it.
        shapes = ((count, heads, size), (count, kv_heads, size))
        if config.qk_norm == "head":
            q, k = q.reshape(shapes[0]), k.reshape(shapes[1])
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, config.norm_eps), rms_norm(k, layer.k_norm, config.norm_eps)
        q, k, v = q.reshape(shapes[0]), k.reshape(shapes[1]), v.reshape(shapes[1])
        q, k = rotate(q, rotation, config.rope_style), rotate(k, rotation, config.rope_style)
        end = start + count
        cache.keys[index, :, start:end] = k.swapaxes(0, 1)
        cache.values[index, :, start:end] = v.swapaxes(0, 1)
        first = 0 if layer.window is None else max(0, start - layer.window + 1)
        keys, values = cache.keys[index, :, first:end], cache.values[index, :, first:end]
        grouped = q.swapaxes(0, 1).reshape(kv_heads, heads // kv_heads * count, size)
        scores = (grouped @ keys.swapaxes(1, 2)).reshape(heads, count, end - first) / np.float32(math.sqrt(size))
        age = np.arange(start, end)[:, None] - np.arange(first, end)[None, :]
        hidden = age < 0 if layer.window is None else (age < 0) | (age >= layer.window)
        weights = softmax(np.where(hidden, np.float32(-np.inf), scores))
        mixed = weights.reshape(kv_heads, -1, end - first) @ values
        return self._pass(layer.output, mixed.reshape(heads, count, size).swapaxes(0, 1).reshape(count, heads * size))


def check_tokens(tokens: Tokens, config: ModelConfig, already: int) -> Tokens:
    """`tokens` as int64, inside the vocabulary and the context.

    Raises:
        UsageError: nothing to compute, an id outside the vocabulary, or more tokens than the context holds.
    """
    ids = np.asarray(tokens, np.int64).reshape(-1)
    if len(ids) == 0:
        raise UsageError("the prompt is empty: at least one token is needed")
    if already + len(ids) > config.max_position:
        raise ContextLengthError(
            f"{already + len(ids)} tokens do not fit the model's context of {config.max_position}",
            hint="shorten the prompt or use a model with a longer context",
        )
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(wrong):
        raise UsageError(f"token id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    return ids


def rotate(x: Floats, rotation: tuple[Floats, Floats], style: str) -> Floats:
    """Turn the channel pairs of `x [T, heads, head_dim]` by the angles in `rotation` (cosine and sine, `[T,
    head_dim/2]`).
    """
    cosine, sine = rotation[0][:, None, :], rotation[1][:, None, :]
    half = x.shape[-1] // 2
    turned = np.empty_like(x)
    first, second = (slice(0, half), slice(half, None)) if style == "half" else (slice(0, None, 2), slice(1, None, 2))
    a, b = x[..., first], x[..., second]
    turned[..., first] = a * cosine - b * sine
    turned[..., second] = b * cosine + a * sine
    return turned


def rotary_frequencies(config: ModelConfig, source: WeightSource | None = None) -> tuple[NDArray[np.float64], float]:
    """Radians a position for each channel pair, float64 `[head_dim/2]`, and the factor on cosine and sine."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64)
    plain = config.rope_theta ** (-pairs / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling["type"] == "factors":
        assert source is not None
        return plain / _vector(source, scaling["tensor"], len(plain)).astype(np.float64), 1.0
    if scaling["type"] == "linear":
        return plain / scaling["factor"], 1.0
    if scaling["type"] == "llama3":
        return _llama3_frequencies(plain, scaling), 1.0
    return _yarn_frequencies(plain, scaling, config)


def _llama3_frequencies(plain: NDArray[np.float64], scaling: Any) -> NDArray[np.float64]:
    low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    turns = scaling.get("original_max_position_embeddings", 8192) * plain / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = (1 - blend) * plain / scaling["factor"] + blend * plain
    return blended


def _yarn_frequencies(
    plain: NDArray[np.float64], scaling: Any, config: ModelConfig
) -> tuple[NDArray[np.float64], float]:
    factor = scaling["factor"]
    original = scaling.get("original_max_position_embeddings", config.max_position)

    def pair_with_turns(turns: float) -> float:
        position = config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        return min(max(position, 0.0), config.head_dim - 1.0)

    low = math.floor(pair_with_turns(scaling.get("beta_fast", 32.0)))
    high = math.ceil(pair_with_turns(scaling.get("beta_slow", 1.0)))
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 1e-3), 0.0, 1.0)
    magnitude = scaling.get("attention_factor", 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return plain / factor * ramp + plain * (1 - ramp), float(magnitude)


def _vector(source: WeightSource, name: str, size: int) -> Floats:
    found = source.tensor(name).reshape(-1)
    if len(found) != size:
        raise ModelError(f"{source.path}: tensor {name} has {len(found)} numbers, expected {size}")
    return _finite(np.array(found, np.float32), name, source)


def _matrix(source: WeightSource, name: str, shape: tuple[int, ...]) -> Floats:
    found = source.meta(name).shape
    if found != shape:
        raise ModelError(f"{source.path}: tensor {name} has shape {found}, expected {shape}")
    return _finite(np.ascontiguousarray(source.tensor(name)), name, source)


def _finite(values: Floats, name: str, source: WeightSource) -> Floats:
    # One sum sees every NaN and every infinity without a mask as large as the tensor.
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise ModelError(
            f"{source.path}: tensor {name} holds NaN or infinite weights",
            hint="the file is damaged; fetch it again",
        )
    return values


def _linear(source: WeightSource, prefix: str, parts: list[tuple[str, int]], inputs: int) -> DenseLinear:
    """One linear out of several that share their input, rows one below the other."""
    weights = [_matrix(source, f"{prefix}{name}.weight", (rows, inputs)) for name, rows in parts]
    present = set(source.names())
    biases = [
        _vector(source, f"{prefix}{name}.bias", rows)
        if f"{prefix}{name}.bias" in present
        else np.zeros(rows, np.float32)
        for name, rows in parts
    ]
    has_bias = any(f"{prefix}{name}.bias" in present for name, _ in parts)
    weight = weights[0] if len(weights) == 1 else np.concatenate(weights)
    return DenseLinear(f"{prefix}{parts[0][0]}.weight", weight, np.concatenate(biases) if has_bias else None)
