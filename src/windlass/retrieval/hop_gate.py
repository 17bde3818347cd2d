"""TreeHop's trained update of a query (arXiv 2504.20114) with NumPy: what a gate puts back into `q - weight * c`.

The gate compares query and passage feature by feature: softmax(Q * K / sqrt(g)) over the g features, without any token
axis, picks from V; a residual network and a linear map lead back to the vector's size. Two departures: the weight of
the passage is learned (it is 1 in the paper), and the softmax is scaled by g, for its outputs would vanish otherwise.
With the last map at zero, where training starts, the update is the linear one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import IndexMismatchError, ModelError, UsageError
from windlass.models.safetensors_file import open_tensors, write_tensors
from windlass.retrieval.multihop import unit_or

Floats = NDArray[np.float32]
_EPSILON = np.float32(1e-5)


@dataclass(frozen=True, slots=True)
class HopGate:
    """Trained next queries.

    Attributes:
        tensors: By name: `weight` (one number); `query`, `key`, `value` [gate, dim] and their `.bias` [gate];
            `block.N.norm`, `block.N.norm.bias` [gate] and `block.N` [gate, gate] with `.bias` for each block;
            `head` [gate, gate] with `.bias`; `out` [dim, gate].
        encoder: Fingerprint of the encoder whose vectors it was trained on.
    """

    tensors: Mapping[str, Floats]
    encoder: str

    def __post_init__(self) -> None:
        _require_shapes(self.tensors)

    @property
    def name(self) -> str:
        return "treehop"

    @property
    def dim(self) -> int:
        return int(self.tensors["out"].shape[0])

    @property
    def blocks(self) -> int:
        return _blocks(self.tensors)

    def next_queries(self, queries: Floats, passages: Floats) -> Floats:
        """Next queries, float32 [n, dim].

        Raises:
            UsageError: the vectors have another size.
        """
        if queries.shape[1:] != (self.dim,) or passages.shape != queries.shape:
            raise UsageError(f"the gate takes vectors of {self.dim} numbers, these have {queries.shape[1:]}")
        gate = self.tensors["query"].shape[0]
        product = self._linear("query", queries) * self._linear("key", passages) / np.float32(math.sqrt(gate))
        exponents = np.exp(product - product.max(axis=1, keepdims=True))
        picked = exponents / exponents.sum(axis=1, keepdims=True) * np.float32(gate) * self._linear("value", passages)
        inner = picked
        for number in range(self.blocks):
            inner = inner + np.maximum(self._linear(f"block.{number}", self._normalised(number, inner)), 0)
        put_back = (self._linear("head", inner) + picked) @ self.tensors["out"].T
        return unit_or(queries - self.tensors["weight"] * passages + put_back, queries)

    def require_encoder(self, fingerprint: str) -> None:
        """Refuse vectors of another encoder than the one it was trained on.

        Raises:
            IndexMismatchError: it is another one.
        """
        if fingerprint != self.encoder:
            raise IndexMismatchError(
                f"these hops were trained on vectors of {self.encoder}, this index has vectors of {fingerprint}",
                hint="train them again",
            )

    def save(self, path: Path) -> None:
        """Write it, all or nothing."""
        name = np.frombuffer(self.encoder.encode(), np.uint8)
        write_tensors(path, {**self.tensors, "encoder": name})

    @classmethod
    def load(cls, path: Path) -> HopGate:
        """Read what `save` wrote.

        Raises:
            ModelError: it is damaged or something else.
        """
        tensors = {name: np.array(tensor) for name, tensor in open_tensors(path).items()}
        encoder = tensors.pop("encoder", None)
        if encoder is None:
            raise ModelError(f"{path} holds no trained hops", hint="train them again")
        try:
            return cls(tensors, encoder.tobytes().decode())
        except ModelError as error:
            raise ModelError(f"{path}: {error}", hint="train them again") from error

    def _linear(self, name: str, rows: Floats) -> Floats:
        made: Floats = rows @ self.tensors[name].T + self.tensors[f"{name}.bias"]
        return made

    def _normalised(self, number: int, rows: Floats) -> Floats:
        centred = rows - rows.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + _EPSILON)
        made: Floats = scaled * self.tensors[f"block.{number}.norm"] + self.tensors[f"block.{number}.norm.bias"]
        return made


def shapes(dim: int, gate: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a gate, by name."""
    found: dict[str, tuple[int, ...]] = {"weight": (1,)}
    for name in ("query", "key", "value"):
        found |= {name: (gate, dim), f"{name}.bias": (gate,)}
    for number in range(blocks):
        found |= {f"block.{number}.norm": (gate,), f"block.{number}.norm.bias": (gate,)}
        found |= {f"block.{number}": (gate, gate), f"block.{number}.bias": (gate,)}
    return found | {"head": (gate, gate), "head.bias": (gate,), "out": (dim, gate)}


def _blocks(tensors: Mapping[str, Floats]) -> int:
    return sum(name.startswith("block.") and name.endswith(".norm") for name in tensors)


def _require_shapes(tensors: Mapping[str, Floats]) -> None:
    out = tensors.get("out")
    if out is None or out.ndim != 2:
        raise ModelError("trained hops have no matrix `out`")
    expected = shapes(out.shape[0], out.shape[1], _blocks(tensors))
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ModelError(f"trained hops {'lack' if name in expected else 'have an unknown'} tensor {name}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name] or tensor.dtype != np.float32:
            raise ModelError(f"tensor {name} is {tensor.dtype} {tensor.shape}, expected float32 {expected[name]}")
        if not np.isfinite(tensor).all():
            raise ModelError(f"tensor {name} holds NaN or infinity")
