"""A mixture of experts in NumPy: which experts a token goes to, and the sum of what they make of it.

Tokens are sorted by expert, each expert multiplies its rows once, and the results are added in the order of the
experts. Rows are multiplied in full tiles of eight, so BLAS takes the same path for a token whatever else is in the
batch: its result has the same bits alone and among others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from windlass.models.activations import sigmoid, silu, softmax
from windlass.models.block_formats import Floats

Indices = NDArray[np.int64]
RouterKind = Literal["softmax_topk", "topk_softmax", "sigmoid_bias"]
TILE = 8
"""Rows multiplied together; fewer are padded with zeros."""


@dataclass(frozen=True)
class Router:
    """How the scores of the experts become a choice of `top_k` and their weights.

    Attributes:
        kind: `softmax_topk` takes the largest of a softmax over all experts. `topk_softmax` takes the largest scores
            and a softmax over those alone. `sigmoid_bias` takes the largest of `sigmoid(score) + bias`, weighted by
            `sigmoid(score)`: the bias balances load and leaves the weights alone.
        normalise: Divide the weights by their sum.
        scale: Factor on the weights.
        groups, top_groups: With more than one group of neighbouring experts, only the `top_groups` groups with the
            largest sum of their two best are chosen from.
    """

    top_k: int
    kind: RouterKind = "softmax_topk"
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1

    def choose(self, scores: Floats, bias: Floats | None = None) -> tuple[Indices, Floats]:
        """Experts int64 `[T, top_k]` in ascending order, and their float32 weights, for `scores [T, experts]`.

        Of equal scores the expert with the lower number wins.
        """
        gates = self._gates(scores)
        ranked = self._in_best_groups(gates if bias is None else gates + bias)
        order = np.argsort(-ranked, axis=-1, kind="stable")[:, : self.top_k]
        chosen = np.sort(order, axis=-1)
        weights = np.take_along_axis(gates, chosen, axis=-1)
        if self.kind == "topk_softmax":
            weights = softmax(weights)
        if self.normalise:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return chosen, weights * np.float32(self.scale)

    def _gates(self, scores: Floats) -> Floats:
        if self.kind == "topk_softmax":
            return scores
        if self.kind == "sigmoid_bias":
            return sigmoid(scores)
        return softmax(scores)

    def _in_best_groups(self, ranked: Floats) -> Floats:
        if self.groups == 1:
            return ranked
        tokens, experts = ranked.shape
        grouped = ranked.reshape(tokens, self.groups, experts // self.groups)
        best = np.sort(grouped, axis=-1)[:, :, -2:].sum(axis=-1)
        kept = np.argsort(-best, axis=-1, kind="stable")[:, : self.top_groups]
        allowed = np.zeros((tokens, self.groups), bool)
        np.put_along_axis(allowed, kept, True, axis=-1)
        limited: Floats = np.where(allowed[:, :, None], grouped, np.float32(-np.inf)).reshape(tokens, experts)
        return limited


def rows_by_expert(chosen: Indices, experts: int) -> tuple[Indices, Indices]:
    """Counting sort of the (token, slot) pairs of `chosen [T, k]` by expert, tokens in order within each.

    Returns:
        Positions into `chosen.reshape(-1)`, int64 `[T * k]`, and where each expert's begin, int64 `[experts + 1]`.

    Example:
        >>> rows_by_expert(np.array([[0, 2], [0, 1]]), 3)
        (array([0, 2, 3, 1]), array([0, 2, 3, 4]))
    """
    flat = chosen.reshape(-1)
    starts = np.zeros(experts + 1, np.int64)
    np.cumsum(np.bincount(flat, minlength=experts), out=starts[1:])
    # NumPy sorts 16-bit integers stably by counting.
    return np.argsort(flat.astype(np.uint16 if experts <= 1 << 16 else np.int64), kind="stable"), starts


class Experts:
    """The feed-forward layer of a mixture: router, experts and the expert that every token passes.

    Args:
        router: How experts are chosen.
        gate: Router matrix `[experts, hidden]`.
        gate_up: `[experts, 2 * size, hidden]`, the gate's rows before those of the up projection.
        down: `[experts, hidden, size]`.
        shared: Gate-and-up `[2 * size, hidden]`, down `[hidden, size]` and the gate `[hidden]` on the result.
    """

    def __init__(
        self,
        router: Router,
        gate: Floats,
        gate_up: Floats,
        down: Floats,
        shared: tuple[Floats, Floats, Floats] | None = None,
    ) -> None:
        self.router, self.gate, self.gate_up, self.down, self.shared = router, gate, gate_up, down, shared

    @property
    def nbytes(self) -> int:
        shared = 0 if self.shared is None else sum(part.nbytes for part in self.shared)
        return self.gate.nbytes + self.gate_up.nbytes + self.down.nbytes + shared

    def __call__(self, x: Floats) -> Floats:
        """`[T, hidden] -> [T, hidden]`."""
        chosen, weights = self.choose(x)
        order, starts = rows_by_expert(chosen, len(self.gate))
        mixed = np.zeros_like(x)
        for expert in np.flatnonzero(np.diff(starts)):
            places = order[starts[expert] : starts[expert + 1]]
            tokens = places // self.router.top_k
            made = feed_forward(x[tokens], self.gate_up[expert], self.down[expert])
            mixed[tokens] += made * weights.reshape(-1, 1)[places]
        if self.shared is not None:
            gate_up, down, gate = self.shared
            mixed += feed_forward(x, gate_up, down) * sigmoid(tiled_product(x, gate[None, :]))
        return mixed

    def choose(self, x: Floats) -> tuple[Indices, Floats]:
        """Experts and weights `[T, top_k]` of the tokens `x [T, hidden]`."""
        return self.router.choose(tiled_product(x, self.gate))


def feed_forward(x: Floats, gate_up: Floats, down: Floats) -> Floats:
    """`down(silu(gate(x)) * up(x))` for rows `x [T, hidden]`."""
    gate, up = np.split(tiled_product(x, gate_up), 2, axis=-1)
    return tiled_product(silu(gate) * up, down)


def tiled_product(x: Floats, weight: Floats) -> Floats:
    """`x W^T` in tiles of `TILE` rows, so that a row's bits do not depend on how many others there are."""
    rows = len(x)
    padded = np.zeros((-(-rows // TILE), TILE, x.shape[1]), np.float32)
    padded.reshape(-1, x.shape[1])[:rows] = x
    made: Floats = np.matmul(padded, weight.T)
    return made.reshape(-1, len(weight))[:rows]
