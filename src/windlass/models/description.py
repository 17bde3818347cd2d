"""What a model file is, without loading it: shape, formats, memory, and which engine would run it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from windlass.core.errors import WindlassError
from windlass.models.block_formats import BY_NAME
from windlass.models.config import ModelConfig
from windlass.models.generate import compiled_obstacle
from windlass.models.tokenizer import tokenizer_of
from windlass.models.weights import WeightSource, open_weights

_TILE_BYTES = {"q4_0": 0.5625, "q4_1": 0.625, "q4_k": 0.625}
"""Bytes a weight takes in the compiled engine; every other format is held in 8 bits and a scale."""
_EIGHT_BITS = 1.0625


@dataclass(frozen=True)
class FormatShare:
    """How much of a model is stored in one format; `readable` is False when windlass has no reader for it."""

    format: str
    tensors: int
    parameters: int
    nbytes: int
    readable: bool


@dataclass(frozen=True)
class ModelDescription:
    """A model file or folder.

    Attributes:
        parameters, active_parameters: All weights, and those that one token uses.
        file_bytes: Bytes of all tensors as stored.
        engine: The engine that `auto` takes on this machine's CPU.
        obstacle: Why that is not the compiled one; None when it is.
        weight_bytes: Memory for the weights in that engine.
        cache_bytes_per_token: Memory for one token's keys and values in it.
        tokenizer: Size of the vocabulary that its tokenizer knows; None when there is none to build.
        tokenizer_fault: Why there is none.
        chat_template: Whether the model brings one.
    """

    path: str
    architecture: str
    parameters: int
    active_parameters: int
    layers: int
    hidden_size: int
    heads: int
    key_heads: int
    experts: int
    active_experts: int
    vocabulary: int
    context: int
    sliding_window: int | None
    formats: tuple[FormatShare, ...]
    file_bytes: int
    engine: str
    obstacle: str | None
    weight_bytes: int
    cache_bytes_per_token: int
    tokenizer: int | None
    tokenizer_fault: str | None
    chat_template: bool
    fingerprint: str

    @property
    def memory_at_full_context(self) -> int:
        return self.weight_bytes + self.context * self.cache_bytes_per_token


def describe(path: Path) -> ModelDescription:
    """Read the header of a `.gguf` file, a Hugging Face folder or a saved folder.

    Raises:
        NotFound: nothing is at `path`.
        ModelError: it is damaged or of an unknown architecture.
    """
    source = open_weights(path)
    config = source.config
    obstacle = compiled_obstacle(source)
    formats = _formats(source)
    parameters = sum(share.parameters for share in formats)
    size, template, fault = _tokenizer(source)
    half = 2 if obstacle is None else 4
    return ModelDescription(
        path=str(path),
        architecture=config.arch,
        parameters=parameters,
        active_parameters=parameters - _idle(config),
        layers=config.n_layers,
        hidden_size=config.hidden_size,
        heads=config.n_heads,
        key_heads=config.n_kv_heads,
        experts=0 if config.moe is None else config.moe.n_experts,
        active_experts=0 if config.moe is None else config.moe.n_active,
        vocabulary=config.vocab_size,
        context=config.max_position,
        sliding_window=config.sliding_window,
        formats=formats,
        file_bytes=sum(share.nbytes for share in formats),
        engine="compiled" if obstacle is None else "numpy",
        obstacle=obstacle,
        weight_bytes=_in_memory(source) if obstacle is None else 4 * parameters,
        cache_bytes_per_token=2 * config.n_layers * config.n_kv_heads * config.head_dim * half,
        tokenizer=size,
        tokenizer_fault=fault,
        chat_template=template,
        fingerprint=source.fingerprint,
    )


def _formats(source: WeightSource) -> tuple[FormatShare, ...]:
    """By the bytes they take, largest first."""
    found: dict[str, list[int]] = {}
    for name in source.names():
        meta = source.meta(name)
        row = found.setdefault(meta.format, [0, 0, 0])
        row[0] += 1
        row[1] += math.prod(meta.shape)
        row[2] += max(meta.nbytes, 0)
    shares = (FormatShare(name, row[0], row[1], row[2], name in BY_NAME) for name, row in found.items())
    return tuple(sorted(shares, key=lambda share: -share.nbytes))


def _in_memory(source: WeightSource) -> int:
    total = 0.0
    for name in source.names():
        meta = source.meta(name)
        one = 4.0 if len(meta.shape) == 1 else _TILE_BYTES.get(meta.format, _EIGHT_BITS)
        total += math.prod(meta.shape) * one
    return int(total)


def _idle(config: ModelConfig) -> int:
    """Parameters of the experts that a token does not use."""
    moe = config.moe
    if moe is None:
        return 0
    layers = config.n_layers - len(moe.dense_layers)
    return layers * (moe.n_experts - moe.n_active) * 3 * moe.expert_size * config.hidden_size


def _tokenizer(source: WeightSource) -> tuple[int | None, bool, str | None]:
    """Size, whether it has a chat template, and why there is none."""
    try:
        tokenizer = tokenizer_of(source)
    except WindlassError as error:
        return None, False, str(error)
    return tokenizer.size, tokenizer.template is not None, None
