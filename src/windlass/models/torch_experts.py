"""A mixture of experts as a torch module, one device, no token dropped: for training, compression and the GPU.

The same routers as `experts.Router`, differentiable. Tokens are sorted by expert and each expert multiplies a
contiguous slice once; the results are added in the order of the experts, so a run is repeatable. Which bits a product
has may depend on how many rows it has, as everywhere in torch; the NumPy body has no such dependence.
"""

# mypy: disallow-subclassing-any=False, warn-return-any=False, disallow-untyped-calls=False

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from windlass.core.errors import UsageError
from windlass.models.experts import Router
from windlass.models.torch_linear import TorchLinear


@dataclass(frozen=True)
class Routing:
    """Scores `[T, experts]` float32 before the router's rule, and its choice: experts `[T, k]` in ascending order and
    their weights `[T, k]`. Losses on the balance of the load are made from it.
    """

    scores: Tensor
    chosen: Tensor
    weights: Tensor

    def load(self, experts: int) -> Tensor:
        """Tokens sent to each expert, int64 `[experts]`."""
        return torch.bincount(self.chosen.reshape(-1), minlength=experts)


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, hidden: int, inner: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = TorchLinear(hidden, inner, bias=bias)
        self.up_proj = TorchLinear(hidden, inner, bias=bias)
        self.down_proj = TorchLinear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return made


class _Weights(nn.Module):
    """All experts of a layer: gate and up `[experts, 2 * size, hidden]`, down `[experts, hidden, size]`."""

    def __init__(self, experts: int, hidden: int, size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * size, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, size))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


class MoELayer(nn.Module):
    """Router, experts, and the expert that every token passes.

    Args:
        dim: Channels in and out.
        ffn: Inner channels of one expert.
        experts: How many there are.
        router: How they are chosen.
        shared: Inner channels of the shared expert, whose result is gated by a sigmoid; 0: none.

    Raises:
        UsageError: the router wants more experts than there are, or groups that do not divide them.

    Example:
        >>> layer = MoELayer(64, 96, experts=8, router=Router(2, normalise=True))
        >>> layer(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 64])
    """

    balance: Tensor | None

    def __init__(self, dim: int, ffn: int, *, experts: int, router: Router, shared: int = 0) -> None:
        super().__init__()
        if not 0 < router.top_k <= experts or experts % router.groups or not 0 < router.top_groups <= router.groups:
            raise UsageError(f"{router} cannot choose from {experts} experts")
        self.router = router
        self.gate = TorchLinear(dim, experts, bias=False)
        self.experts = _Weights(experts, dim, ffn)
        # Balances the load when trained without a loss for it; moved by the trainer, not by gradients.
        self.register_buffer("balance", torch.zeros(experts) if router.kind == "sigmoid_bias" else None)
        self.shared_expert = GatedMLP(dim, shared) if shared else None
        self.shared_expert_gate = TorchLinear(dim, 1, bias=False) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim] -> [..., dim]`."""
        rows = x.reshape(-1, x.shape[-1])
        mixed = self.mix(rows, self.route(rows))
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            mixed = mixed + torch.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return mixed.reshape(x.shape)

    def route(self, rows: Tensor) -> Routing:
        """Where the tokens `rows [T, dim]` go; computed in float32."""
        scores = F.linear(rows.float(), self.gate.weight.float())
        return Routing(scores, *choose(self.router, scores, self.balance))

    def mix(self, rows: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of the chosen experts for `rows [T, dim]`."""
        flat = routing.chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        k = self.router.top_k
        counts = routing.load(len(self.experts.gate_up_proj)).tolist()
        made = [
            self._expert(expert, part)
            for expert, part in enumerate(rows[order // k].split(counts))
            if len(part)
        ]  # fmt: skip
        if not made:
            return torch.zeros_like(rows)
        # Back to token order; experts ascend along each token's slots, which fixes the order of the sum.
        slots = torch.cat(made)[torch.argsort(order)].reshape(*routing.chosen.shape, rows.shape[-1])
        weighted = slots * routing.weights[..., None].to(slots.dtype)
        mixed = weighted[:, 0]
        for slot in range(1, k):
            mixed = mixed + weighted[:, slot]
        return mixed

    def _expert(self, expert: int, part: Tensor) -> Tensor:
        gate, up = F.linear(part, self.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.experts.down_proj[expert])


def choose(router: Router, scores: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`Router.choose` on tensors: experts int64 `[T, top_k]` ascending, weights `[T, top_k]`, differentiable."""
    if router.kind == "sigmoid_bias":
        gates = torch.sigmoid(scores)
    else:
        gates = scores if router.kind == "topk_softmax" else torch.softmax(scores, dim=-1)
    ranked = (gates if bias is None else gates + bias).detach()
    if router.groups > 1:
        ranked = _only_best_groups(router, ranked)
    order = torch.argsort(ranked, dim=-1, descending=True, stable=True)[:, : router.top_k]
    chosen = order.sort(dim=-1).values
    weights = gates.gather(-1, chosen)
    if router.kind == "topk_softmax":
        weights = torch.softmax(weights, dim=-1)
    if router.normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return chosen, weights * router.scale


def _only_best_groups(router: Router, ranked: Tensor) -> Tensor:
    grouped = ranked.unflatten(-1, (router.groups, -1))
    best = grouped.sort(dim=-1).values[..., -2:].sum(dim=-1)
    kept = torch.argsort(best, dim=-1, descending=True, stable=True)[:, : router.top_groups]
    allowed = torch.zeros_like(best, dtype=torch.bool).scatter(-1, kept, True)
    return grouped.masked_fill(~allowed[..., None], -torch.inf).flatten(-2)
