"""The decoder as a torch module: reference, training, compression and the GPU (extra `torch`).

Same shapes, same names and the same rotary rules as the NumPy body in `decoder.py`. Parameters carry Hugging Face
names (`model.layers.0.self_attn.q_proj.weight`), those of the experts in the fused form (`mlp.experts.gate_up_proj`).
Norms, softmax and routing are computed in float32 whatever the parameters are.
"""

# mypy: disallow-subclassing-any=False, warn-return-any=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from windlass.core.errors import ContextLengthError, ModelError, UsageError
from windlass.models.block_formats import Floats
from windlass.models.config import ModelConfig
from windlass.models.decoder import Tokens, check_tokens, rotary_frequencies
from windlass.models.experts import Router
from windlass.models.name_maps import canonical
from windlass.models.torch_experts import GatedMLP, MoELayer
from windlass.models.torch_linear import TorchLinear
from windlass.models.weights import WeightSource, open_weights


class TorchCache:
    """Keys and values of a batch of sequences, one pair of tensors `[B, kv_heads, T, head_dim]` a layer."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.keys, *self.values) if part is not None)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of one layer; everything stored of it so far."""
        old_keys, old_values = self.keys[layer], self.values[layer]
        if old_keys is not None and old_values is not None:
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on.

        Raises:
            UsageError: `length` is negative or beyond what is stored.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length
        for stored in (self.keys, self.values):
            stored[:] = [None if part is None else part[:, :, :length] for part in stored]

    def fork(self) -> TorchCache:
        """A cache with the same past that goes on independently; tensors are shared, since none is written to."""
        twin = TorchCache(0)
        twin.keys, twin.values, twin.length = list(self.keys), list(self.values), self.length
        return twin


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.window_of(layer)
        hidden, size = config.hidden_size, config.head_dim
        wide, narrow = config.n_heads * size, config.n_kv_heads * size
        self.q_proj = TorchLinear(hidden, wide, bias=config.qkv_bias)
        self.k_proj = TorchLinear(hidden, narrow, bias=config.qkv_bias)
        self.v_proj = TorchLinear(hidden, narrow, bias=config.qkv_bias)
        self.o_proj = TorchLinear(wide, hidden, bias=config.output_bias)
        if config.qk_norm is not None:
            sizes = (size, size) if config.qk_norm == "head" else (wide, narrow)
            self.q_norm, self.k_norm = (RMSNorm(length, config.norm_eps) for length in sizes)

    def forward(self, h: Tensor, rotation: tuple[Tensor, Tensor], hidden: Tensor, cache: TorchCache | None) -> Tensor:
        batch, count, _ = h.shape
        config = self.config
        q, k, v = self.q_proj(h), self.k_proj(h), self.v_proj(h)
        if config.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(-1, (-1, config.head_dim)) for part in (q, k, v))
        if config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (turn(part, rotation, config.rope_style).transpose(1, 2) for part in (q, k))
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        grouped = q.unflatten(1, (config.n_kv_heads, -1))
        scores = grouped @ k.unsqueeze(2).transpose(-1, -2) / math.sqrt(config.head_dim)
        shares = torch.softmax(scores.float().masked_fill(hidden[:, None, None], -torch.inf), dim=-1)
        # Padding sees nothing at all; its rows are no numbers otherwise.
        shares = shares.nan_to_num(0.0).to(v.dtype)
        mixed = (shares @ v.unsqueeze(2)).flatten(1, 2).transpose(1, 2)
        made: Tensor = self.o_proj(mixed.reshape(batch, count, -1))
        return made


class _Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = _Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        moe = config.moe
        self.mlp: nn.Module
        if moe is not None and config.has_experts(layer):
            router = Router(moe.n_active, normalise=moe.normalise)
            self.mlp = MoELayer(
                config.hidden_size, moe.expert_size, experts=moe.n_experts, router=router, shared=moe.shared_size
            )
        else:
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], hidden: Tensor, cache: TorchCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, hidden, cache)
        made: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return made


class _Body(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class DecoderLM(nn.Module):
    """A decoder language model.

    Args:
        config: Its shape. Parameters are random; `from_source` reads them.

    Example:
        model = DecoderLM.load(Path("model.gguf"), dtype=torch.bfloat16)
        cache = model.new_cache()
        logits = model(torch.tensor([[1, 42]]), cache)       # float32 [1, 2, vocab]
    """

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        self.lm_head = TorchLinear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)
        with_file = config.rope_scaling is not None and config.rope_scaling["type"] == "factors"
        self._set_rotary(*rotary_frequencies(config)) if not with_file else self._set_rotary(np.zeros(0), 1.0)

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DecoderLM:
        """Read a `.gguf` file or a Hugging Face folder.

        Raises:
            NotFound: nothing is at `path`.
            ModelError: the model is damaged, incomplete, or of an architecture that is not supported.
        """
        return cls.from_source(open_weights(path), device=device, dtype=dtype)

    @classmethod
    def from_source(cls, source: WeightSource, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DecoderLM:
        """Read every weight, one tensor at a time."""
        with torch.device("meta"):
            model = cls(source.config)
        model = model.to_empty(device=device).to(dtype)
        if source.config.tie_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        model._set_rotary(*rotary_frequencies(source.config, source))
        model.frequencies = model.frequencies.to(device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parts = [_read(source, place.name) for place in canonical(name)]
                values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)
                if name.endswith("shared_expert_gate.weight"):
                    values = values.reshape(1, -1)  # GGUF has it without the first dimension
                if values.shape != tuple(parameter.shape):
                    expected = tuple(parameter.shape)
                    raise ModelError(
                        f"{source.path}: tensor {canonical(name)[0].name} has shape {values.shape}, expected {expected}"
                    )
                parameter.copy_(torch.from_numpy(np.array(values, np.float32)))
        return model

    def tensors(self) -> dict[str, Floats]:
        """Every weight as float32 under its GGUF name, for `save_model` and `save_hugging_face`."""
        found: dict[str, Floats] = {}
        for name, parameter in self.named_parameters():
            places = canonical(name)
            parts = parameter.detach().float().cpu().chunk(len(places), dim=max(parameter.ndim - 2, 0))
            found |= {place.name: part.contiguous().numpy() for place, part in zip(places, parts, strict=True)}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of parameters."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def new_cache(self) -> TorchCache:
        """An empty cache for any batch."""
        return TorchCache(self.config.n_layers)

    def forward(self, tokens: Tensor, cache: TorchCache | None = None, *, padding: Tensor | None = None) -> Tensor:
        """Logits after every token.

        Args:
            tokens: int64 `[B, T]`.
            cache: What came before; extended by these tokens.
            padding: int64 `[B]`, how many of the first positions of each sequence (those in the cache counted) are
                padding, whose logits mean nothing.

        Returns:
            float32 `[B, T, vocab]`.

        Raises:
            UsageError: no tokens, or one outside the vocabulary.
            ContextLengthError: more tokens than the context holds.
        """
        start = 0 if cache is None else cache.length
        self._check(tokens, start)
        count = tokens.shape[1]
        index = torch.arange(start + count, device=tokens.device)
        first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device) if padding is None else padding
        positions = (index[None, start:] - first[:, None]).clamp(min=0)
        rotation = self._rotation(positions)
        x = self.model.embed_tokens(tokens)
        masks: dict[int | None, Tensor] = {}
        for layer, block in enumerate(self.model.layers):
            window = self.config.window_of(layer)
            if window not in masks:
                age = index[start:, None] - index[None, :]
                unseen = age < 0 if window is None else (age < 0) | (age >= window)
                masks[window] = unseen[None] | (index[None, None, :] < first[:, None, None])
            x = block(x, rotation, masks[window], cache)
        if cache is not None:
            cache.length = start + count
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits.float()

    def _check(self, tokens: Tensor, start: int) -> None:
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise UsageError(f"tokens have shape {list(tokens.shape)}, expected [batch, at least one]")
        if start + tokens.shape[1] > self.config.max_position:
            raise ContextLengthError(
                f"{start + tokens.shape[1]} tokens do not fit the model's context of {self.config.max_position}",
                hint="shorten the prompt or use a model with a longer context",
            )
        wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if len(wrong):
            raise UsageError(f"token id {int(wrong[0])} is outside the vocabulary of {self.config.vocab_size}")

    def _set_rotary(self, frequencies: Any, magnitude: float) -> None:
        self.register_buffer("frequencies", torch.from_numpy(np.asarray(frequencies, np.float64)), persistent=False)
        self._magnitude = magnitude

    def _apply(self, fn: Any, recurse: bool = True) -> DecoderLM:
        """Move and convert as every module does; the rotary frequencies keep their precision."""
        exact = self.frequencies
        super()._apply(fn, recurse)
        if exact.device.type != "meta":
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None, None].double() * self.frequencies
        dtype = self.model.embed_tokens.weight.dtype
        return (angles.cos() * self._magnitude).to(dtype), (angles.sin() * self._magnitude).to(dtype)


def turn(x: Tensor, rotation: tuple[Tensor, Tensor], style: str) -> Tensor:
    """Turn the channel pairs of `x [B, T, heads, head_dim]` by cosine and sine `[B, T, 1, head_dim/2]`."""
    cosine, sine = rotation
    a, b = x.chunk(2, dim=-1) if style == "half" else (x[..., 0::2], x[..., 1::2])
    turned = (a * cosine - b * sine, b * cosine + a * sine)
    return torch.cat(turned, dim=-1) if style == "half" else torch.stack(turned, dim=-1).flatten(-2)


class TorchModel:
    """A `DecoderLM` behind the protocol by which text is generated: one sequence, NumPy in and out."""

    def __init__(self, module: DecoderLM) -> None:
        self.config = module.config
        self.module = module.eval()

    @property
    def nbytes(self) -> int:
        return self.module.nbytes

    def cache(self) -> TorchCache:
        return self.module.new_cache()

    def prefill(self, tokens: Tokens, cache: TorchCache) -> Floats:
        return self._run(check_tokens(tokens, self.config, cache.length), cache)[-1]

    def step(self, token: int, cache: TorchCache) -> Floats:
        return self._run(check_tokens(np.array([token]), self.config, cache.length), cache)[-1]

    def logits(self, tokens: Tokens) -> Floats:
        return self._run(check_tokens(tokens, self.config, 0), None)

    def _run(self, tokens: Tokens, cache: TorchCache | None) -> Floats:
        with torch.inference_mode():
            batch = torch.from_numpy(tokens)[None].to(self.module.frequencies.device)
            made: Floats = self.module(batch, cache)[0].cpu().numpy()
        return made


def load_torch_model(source: WeightSource, device: str, dtype: str) -> TorchModel:
    """The weights of `source` on `device`, computed in `dtype`, ready to generate.

    Raises:
        UsageError: torch has no such device or number type.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise UsageError(f"dtype is {dtype!r}, expected one of {', '.join(kinds)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"torch cannot compute on {device!r}: {str(error).splitlines()[0]}") from error
    return TorchModel(DecoderLM.from_source(source, device=device, dtype=kinds[dtype]))


def _read(source: WeightSource, name: str) -> Floats:
    values = source.tensor(name)
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise ModelError(
            f"{source.path}: tensor {name} holds NaN or infinite weights", hint="the file is damaged; fetch it again"
        )
    return values
