"""Training of TreeHop's gate (extra `torch`).

A chain is walked from its question: the next query after each gold passage must find the one that follows, among wrong
passages that are as near (InfoNCE at temperature 0.15). First hops carry no gradient, for the question's vector is what
the encoder makes of it. After each epoch the gate is tried on chains set aside, and the best state is kept: the linear
update is the first of them, so that training never makes hops worse on what it can see.
"""

# mypy: disallow-subclassing-any=False, warn-return-any=False, disallow-untyped-calls=False

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from windlass.core.errors import NumericsError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import permutation, uniform
from windlass.core.storage import write_atomic
from windlass.retrieval.hop_gate import HopGate, shapes

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HopChains:
    """Chains as vectors.

    Attributes:
        questions: float32 [n, dim].
        gold: int64 [n, hops], positions in `passages`, in the order in which one leads to the next; -1 past the last.
        negatives: int64 [n, count], wrong passages.
        passages: float32 [m, dim], of length one.
    """

    questions: Floats
    gold: NDArray[np.int64]
    negatives: NDArray[np.int64]
    passages: Floats

    def taken(self, rows: NDArray[np.int64]) -> HopChains:
        return HopChains(self.questions[rows], self.gold[rows], self.negatives[rows], self.passages)


@dataclass(frozen=True, slots=True)
class HopTraining:
    """What training did.

    Attributes:
        gate: The best state.
        losses: Mean loss of each epoch.
        found: Share of second and later gold passages that rank first among their negatives, on the chains set
            aside: before training (the linear update), then after each epoch.
        epoch: After which epoch the best state stood; 0: before training.
    """

    gate: HopGate
    losses: tuple[float, ...]
    found: tuple[float, ...]
    epoch: int


class TreeHop(nn.Module):
    """The gate as a torch module; parameters are those of `HopGate`, one by one."""

    def __init__(self, dim: int, gate: int, blocks: int, seed: int) -> None:
        super().__init__()
        self.gate, self.blocks = gate, blocks
        self.tensors = nn.ParameterDict()
        for name, shape in shapes(dim, gate, blocks).items():
            self.tensors[_parameter(name)] = nn.Parameter(torch.from_numpy(_start(name, shape, seed)))

    def forward(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Next queries, [n, dim] of length one."""
        product = self._linear("query", queries) * self._linear("key", passages) / math.sqrt(self.gate)
        picked = torch.softmax(product, dim=-1) * self.gate * self._linear("value", passages)
        inner = picked
        for number in range(self.blocks):
            name = f"block.{number}"
            norm = nn.functional.layer_norm(inner, (self.gate,), self[f"{name}.norm"], self[f"{name}.norm.bias"])
            inner = inner + torch.relu(self._linear(name, norm))
        put_back = (self._linear("head", inner) + picked) @ self["out"].T
        return nn.functional.normalize(queries - self["weight"] * passages + put_back, dim=-1)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[_parameter(name)]

    def trained(self, encoder: str) -> HopGate:
        """Its present state, for NumPy."""
        tensors = {_name(name): value.detach().numpy().copy() for name, value in self.tensors.items()}
        return HopGate(tensors, encoder)

    def _linear(self, name: str, rows: Tensor) -> Tensor:
        return rows @ self[name].T + self[f"{name}.bias"]


def train_hops(
    chains: HopChains,
    encoder: str,
    *,
    gate: int | None = None,
    blocks: int = 3,
    epochs: int = 8,
    batch: int = 64,
    learning_rate: float = 6e-5,
    temperature: float = 0.15,
    held_out: float = 0.2,
    seed: int = 0,
    resume_at: Path | None = None,
    progress: Progress | None = None,
) -> HopTraining:
    """Train a gate and keep its best epoch.

    Args:
        chains: At least 20.
        encoder: Fingerprint of what made their vectors.
        gate: Features of the gate; None: twice the vector's size, as published.
        held_out: Share of the chains that epochs are compared on.
        resume_at: File in which the state is kept after each epoch; an interrupted training goes on from it and
            ends in the same weights.
        progress: Hears of the stage `hops`.

    Raises:
        UsageError: too few chains, or one without a second passage.
        NumericsError: the loss is no number; names epoch and batch.
        Cancelled: Stopped through `progress`.
    """
    progress = progress or Silent()
    _require_valid(chains)
    order = permutation(seed, "held out", size=len(chains.questions))
    cut = max(1, int(held_out * len(order)))
    judged, seen = chains.taken(order[:cut]), chains.taken(order[cut:])
    dim = chains.passages.shape[1]
    model = TreeHop(dim, gate or 2 * dim, blocks, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=2e-8)
    state = _State(model, optimizer, resume_at)
    if not state.found:
        state.keep(share_found(model, judged), None)
    progress.start("hops", epochs, "epochs")
    for epoch in range(len(state.losses), epochs):
        total = 0.0
        rows = permutation(seed, "epoch", epoch, size=len(seen.questions))
        for begin in range(0, len(rows), batch):
            check_cancelled(progress)
            part = seen.taken(rows[begin : begin + batch])
            loss = _loss(model, part, temperature)
            if not torch.isfinite(loss):
                raise NumericsError(f"the loss is {loss.item()} in epoch {epoch + 1}, batch {begin // batch + 1}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(part.questions)
        state.keep(share_found(model, judged), total / len(rows))
        progress.advance("hops", 1)
    progress.finish("hops")
    best = int(np.argmax(state.found))
    model.load_state_dict(state.best)
    return HopTraining(model.trained(encoder), tuple(state.losses), tuple(state.found), best)


def share_found(model: TreeHop, chains: HopChains) -> float:
    """Share of second and later gold passages that rank above all their negatives."""
    with torch.no_grad():
        scores = [parts.argmax(dim=1) == 0 for parts in _scores(model, chains)]
    return float(torch.cat(scores).float().mean())


def _loss(model: TreeHop, chains: HopChains, temperature: float) -> Tensor:
    scores = torch.cat(_scores(model, chains)) / temperature
    return nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def _scores(model: TreeHop, chains: HopChains) -> list[Tensor]:
    """For each hop after the first: cosines of the right passage, then of the wrong ones, [chains that long, 1 + n]."""
    passages, gold = torch.from_numpy(chains.passages), torch.from_numpy(chains.gold)
    query, found = torch.from_numpy(chains.questions), []
    wrong = passages[torch.from_numpy(chains.negatives)]
    for hop in range(1, gold.shape[1]):
        goes_on = gold[:, hop] >= 0
        query = model(query, passages[gold[:, hop - 1].clamp(min=0)])
        right = (query * passages[gold[:, hop].clamp(min=0)]).sum(dim=1, keepdim=True)
        scores = torch.cat([right, torch.einsum("nd,nkd->nk", query, wrong)], dim=1)
        found.append(scores[goes_on])
    return found


class _State:
    """Everything that an interrupted training needs, and the best weights so far."""

    def __init__(self, model: TreeHop, optimizer: torch.optim.Optimizer, path: Path | None) -> None:
        self._model, self._optimizer, self._path = model, optimizer, path
        self.losses: list[float] = []
        self.found: list[float] = []
        self.best: dict[str, Any] = {}
        if path is not None and path.exists():
            saved = torch.load(path, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.losses, self.found, self.best = saved["losses"], saved["found"], saved["best"]

    def keep(self, found: float, loss: float | None) -> None:
        if not self.found or found > max(self.found):
            self.best = {name: value.clone() for name, value in self._model.state_dict().items()}
        self.found.append(found)
        if loss is not None:
            self.losses.append(loss)
        if self._path is not None:
            self._save(self._path)

    def _save(self, path: Path) -> None:
        import io

        buffer = io.BytesIO()
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**state, "losses": self.losses, "found": self.found, "best": self.best}, buffer)
        write_atomic(path, buffer.getvalue())


def _start(name: str, shape: Sequence[int], seed: int) -> Floats:
    """The linear update to begin with: `out` is zero, the passage's weight one half."""
    if name == "weight":
        return np.full(shape, 0.5, np.float32)
    if name.endswith(".norm"):
        return np.ones(shape, np.float32)
    if name == "out" or name.endswith("bias"):
        return np.zeros(shape, np.float32)
    bound = 1 / math.sqrt(shape[1])
    return ((2 * uniform(seed, "start", name, size=tuple(shape)) - 1) * bound).astype(np.float32)


def _require_valid(chains: HopChains) -> None:
    if len(chains.questions) < 20:
        raise UsageError(f"{len(chains.questions)} chains are too few to learn from", hint="at least 20 are needed")
    if chains.gold.shape[1] < 2 or (chains.gold[:, :2] < 0).any():
        raise UsageError("a chain has no second passage")


def _parameter(name: str) -> str:
    return name.replace(".", "_of_")


def _name(parameter: str) -> str:
    return parameter.replace("_of_", ".")
