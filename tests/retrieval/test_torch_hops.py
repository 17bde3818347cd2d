"""Training of the gate: what it learns on a planted world, and that an interrupted one ends where a whole one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.core.errors import Cancelled, NumericsError, UsageError
from windlass.core.progress import Silent

torch = pytest.importorskip("torch")

from windlass.retrieval.torch_hops import HopChains, TreeHop, train_hops  # noqa: E402


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def planted(count: int = 400, dim: int = 24, seed: int = 0) -> HopChains:
    """The answer lies where a fixed rotation of the first passage points; the linear update knows nothing of it."""
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.standard_normal((dim, dim)))[0]
    first = unit(random.standard_normal((count, dim)))
    questions = unit(first + 0.3 * random.standard_normal((count, dim)))
    second = unit(first @ rotation + 0.1 * random.standard_normal((count, dim)))
    gold = np.stack([np.arange(count), count + np.arange(count)], axis=1)
    negatives = count + (np.arange(count)[:, None] + random.integers(1, count, (count, 5))) % count
    return HopChains(questions, gold, negatives, np.concatenate([first, second]))


def test_a_planted_world_is_learned() -> None:
    made = train_hops(planted(), "e", epochs=12, learning_rate=3e-3, batch=32)
    assert made.found[0] < 0.5 and max(made.found) >= 0.9 and made.epoch > 0
    assert made.losses[-1] < made.losses[0] / 3
    chains = planted()
    queries, passages = chains.questions[:50], chains.passages[:50]
    found = made.gate.next_queries(queries, passages) @ chains.passages[400:].T
    assert (found.argmax(axis=1) == np.arange(50)).mean() > 0.5  # of 400; the linear update finds none


def test_numpy_and_torch_compute_the_same_and_training_starts_at_the_linear_update() -> None:
    model = TreeHop(10, 20, 3, seed=1)
    random = np.random.default_rng(2)
    queries, passages = unit(random.standard_normal((30, 10))), unit(random.standard_normal((30, 10)))
    linear = unit(queries - 0.5 * passages)
    assert np.abs(model.trained("e").next_queries(queries, passages) - linear).max() < 1e-6
    with torch.no_grad():
        for value in model.tensors.values():
            value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
        expected = model(torch.from_numpy(queries), torch.from_numpy(passages)).numpy()
    assert np.abs(model.trained("e").next_queries(queries, passages) - expected).max() < 1e-5


def test_gradients_are_those_of_finite_differences() -> None:
    model = TreeHop(4, 6, 1, seed=1).double()
    queries = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    passages = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model["out"].copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(4)))
    names = list(model.tensors)

    def output(*values: Any) -> Any:
        state = dict(zip((f"tensors.{name}" for name in names), values, strict=True))
        return torch.func.functional_call(model, state, (queries, passages))

    assert torch.autograd.gradcheck(output, tuple(model.tensors[name].detach().requires_grad_() for name in names))


def test_the_best_epoch_is_kept_even_when_it_is_none() -> None:
    random = np.random.default_rng(8)
    passages = unit(random.standard_normal((200, 12)))
    gold = np.stack([np.arange(60), np.arange(60, 120)], axis=1)
    wrong = 120 + random.integers(0, 80, (60, 5))
    questions = unit(passages[gold[:, 1]] + 0.5 * passages[gold[:, 0]])  # the linear update is right about all of them
    made = train_hops(HopChains(questions, gold, wrong, passages), "e", epochs=3, learning_rate=0.05)
    assert made.epoch == 0 and made.found[0] == 1.0
    assert np.array_equal(made.gate.tensors["weight"], np.float32([0.5]))


class StopsAfter(Silent):
    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    @property
    def cancelled(self) -> bool:
        return self.left <= 0

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self.left -= 1


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-3}
    whole = train_hops(planted(80), "e", **options)
    with pytest.raises(Cancelled):
        train_hops(planted(80), "e", resume_at=tmp_path / "state", progress=StopsAfter(2), **options)
    rest = train_hops(planted(80), "e", resume_at=tmp_path / "state", **options)
    assert rest.losses == whole.losses and rest.found == whole.found
    assert all(np.array_equal(rest.gate.tensors[name], tensor) for name, tensor in whole.gate.tensors.items())


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(UsageError, match="3 chains are too few"):
        train_hops(planted().taken(np.arange(3)), "e")
    chains = planted(40)
    with pytest.raises(UsageError, match="no second passage"):
        train_hops(HopChains(chains.questions, chains.gold[:, :1], chains.negatives, chains.passages), "e")
    broken = np.full_like(chains.questions, np.nan)
    with pytest.raises(NumericsError, match="epoch 1, batch 1"):
        train_hops(HopChains(broken, chains.gold, chains.negatives, chains.passages), "e")
