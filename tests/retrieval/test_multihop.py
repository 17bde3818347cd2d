"""Rounds of searches: against a walk written the long way, and on a world where only hops can find the answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from windlass.core.errors import IndexMismatchError, ModelError, UsageError
from windlass.retrieval.hop_gate import HopGate, shapes
from windlass.retrieval.multihop import LinearHop, MultiHopRetriever


class Shelf:
    """Exact search over rows."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = vectors @ self.vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids = np.full((len(vectors), k), -1, np.int64)
        found = np.full((len(vectors), k), -np.inf, np.float32)
        ids[:, : order.shape[1]], found[:, : order.shape[1]] = order, np.take_along_axis(scores, order, 1)
        return ids, found

    def vectors_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.vectors[ids]


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def walked(
    shelf: Shelf, query: NDArray[np.float32], hops: int, top_n: int, links: Sequence[set[int]], preference: float
) -> list[list[int]]:
    """One question, round by round, as the paper tells it."""
    step, rounds = LinearHop(), []
    frontier = [(query, passage) for passage in shelf.nearest(query[None], top_n)[0][0].tolist() if passage >= 0]
    rounds.append([passage for _, passage in frontier])
    for _ in range(hops - 1):
        offers: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for before, origin in frontier:
            after = step.next_queries(before[None], shelf.vectors[[origin]])[0]
            scores = shelf.vectors @ after
            found = {p: float(scores[p]) for p in shelf.nearest(after[None], top_n)[0][0].tolist() if p >= 0}
            found |= {linked: float(scores[linked]) + preference for linked in links[origin]}
            for passage, score in found.items():
                if all(passage not in kept for kept in rounds) and score > offers.get(passage, (-9.0, None))[0]:
                    offers[passage] = score, after
        best = sorted(offers, key=lambda passage: (-offers[passage][0], passage))[:top_n]
        rounds.append(best)
        frontier = [(offers[passage][1], passage) for passage in best]
    return rounds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_rounds_are_those_of_a_plain_walk(seed: int, count: int, hops: int, top_n: int, linked: bool) -> None:
    random = np.random.default_rng(seed)
    shelf = Shelf(unit(random.standard_normal((count, 6))))
    queries = unit(random.standard_normal((3, 6)))
    links = [set(random.integers(0, count, 2).tolist()) if linked else set() for _ in range(count)]
    retriever = MultiHopRetriever(shelf, hops=hops, top_n=top_n, neighbours=links.__getitem__)
    for query, steps in zip(queries, retriever.explain(queries), strict=True):
        expected = walked(shelf, query, hops, top_n, links, 0.5)
        rounds = [[step.passage for step in steps if step.round == number + 1] for number in range(hops)]
        assert rounds == expected
        assert len({step.passage for step in steps}) == len(steps)
        assert all((step.origin is None) == (step.round == 1) for step in steps)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_one_hop_is_the_plain_search_and_batches_change_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    shelf = Shelf(unit(random.standard_normal((30, 8))))
    queries = unit(random.standard_normal((5, 8)))
    ids, scores = shelf.nearest(queries, 4)
    plain = MultiHopRetriever(shelf, hops=1, top_n=4).search(queries)
    assert np.array_equal(plain.ids, ids) and np.array_equal(plain.scores, scores)
    retriever = MultiHopRetriever(shelf, hops=3, top_n=4)
    together = retriever.search(queries, 10)
    for row, query in enumerate(queries):
        alone = retriever.search(query[None], 10)
        assert np.array_equal(alone.ids[0], together.ids[row])
        assert together.trace is not None and alone.trace is not None and alone.trace[0] == together.trace[row]


def test_hops_find_what_the_question_is_far_from() -> None:
    """The first passage holds the question's code and another one, the second that other code and a third."""
    random = np.random.default_rng(3)
    asked, bridge, answer = (unit(random.standard_normal((50, 256))).astype(np.float64) for _ in range(3))
    shelf = Shelf(np.concatenate([unit(asked + bridge), unit(bridge + answer)]))
    questions = unit(asked)
    direct = MultiHopRetriever(shelf, hops=1, top_n=2).search(questions)
    hopped = MultiHopRetriever(shelf, LinearHop(-1.0), hops=2, top_n=2).search(questions)
    wanted = np.arange(50, 100)[:, None]
    assert (direct.ids == wanted).any(axis=1).mean() < 0.1
    assert (hopped.ids == wanted).any(axis=1).mean() > 0.95


def test_what_makes_no_sense_is_refused_and_what_is_small_is_served() -> None:
    shelf = Shelf(unit(np.eye(3)))
    for wrong in ({"hops": 0}, {"top_n": 0}):
        with pytest.raises(UsageError, match="expected at least 1"):
            MultiHopRetriever(shelf, **wrong)
    with pytest.raises(UsageError, match="NaN"):
        MultiHopRetriever(shelf).search(np.full((1, 3), np.nan, np.float32))
    found = MultiHopRetriever(shelf, hops=3, top_n=9).search(np.eye(3, dtype=np.float32)[:1])
    assert sorted(found.ids[0][:3]) == [0, 1, 2] and (found.ids[0][3:] == -1).all()
    empty = MultiHopRetriever(Shelf(np.zeros((0, 3), np.float32)), hops=2).search(np.eye(3, dtype=np.float32)[:1])
    assert (empty.ids == -1).all()


def gate_of(random: np.random.Generator, dim: int = 6, gate: int = 10, blocks: int = 2) -> HopGate:
    made = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes(dim, gate, blocks).items()}
    return HopGate(made, "an encoder")


def by_hand(gate: HopGate, query: NDArray[np.float32], passage: NDArray[np.float32]) -> NDArray[np.float64]:
    t = {name: tensor.astype(np.float64) for name, tensor in gate.tensors.items()}
    size = len(t["query"])
    compared = [
        (t["query"][i] @ query + t["query.bias"][i]) * (t["key"][i] @ passage + t["key.bias"][i]) / size**0.5
        for i in range(size)
    ]
    total = sum(np.exp(value) for value in compared)
    picked = np.array(
        [np.exp(v) / total * size * (t["value"][i] @ passage + t["value.bias"][i]) for i, v in enumerate(compared)]
    )
    inner = picked.copy()
    for n in range(gate.blocks):
        norm = (inner - inner.mean()) / np.sqrt(inner.var() + 1e-5) * t[f"block.{n}.norm"] + t[f"block.{n}.norm.bias"]
        inner = inner + np.clip(t[f"block.{n}"] @ norm + t[f"block.{n}.bias"], 0, None)
    made = query - t["weight"] * passage + t["out"] @ (t["head"] @ inner + t["head.bias"] + picked)
    return made / np.linalg.norm(made)


def test_the_gate_computes_what_its_formula_says(tmp_path) -> None:
    random = np.random.default_rng(5)
    gate = gate_of(random)
    queries, passages = unit(random.standard_normal((20, 6))), unit(random.standard_normal((20, 6)))
    expected = np.stack([by_hand(gate, q, c) for q, c in zip(queries, passages, strict=True)])
    assert np.abs(gate.next_queries(queries, passages) - expected).max() < 1e-5
    gate.save(tmp_path / "hops.safetensors")
    again = HopGate.load(tmp_path / "hops.safetensors")
    assert np.array_equal(again.next_queries(queries, passages), gate.next_queries(queries, passages))
    again.require_encoder("an encoder")
    with pytest.raises(IndexMismatchError, match=r"an encoder.*another"):
        again.require_encoder("another")


def test_with_nothing_to_put_back_the_gate_is_the_linear_update() -> None:
    random = np.random.default_rng(6)
    tensors = dict(gate_of(random).tensors)
    tensors |= {"out": np.zeros_like(tensors["out"]), "weight": np.float32([0.5])}
    queries, passages = unit(random.standard_normal((9, 6))), unit(random.standard_normal((9, 6)))
    made = HopGate(tensors, "e").next_queries(queries, passages)
    assert np.array_equal(made, LinearHop(0.5).next_queries(queries, passages))
    same = LinearHop(1.0).next_queries(queries, queries)
    assert np.array_equal(same, queries)  # nothing is left: the question stays


def test_damaged_gates_are_named(tmp_path) -> None:
    random = np.random.default_rng(7)
    tensors = dict(gate_of(random).tensors)
    with pytest.raises(ModelError, match="lack tensor head"):
        HopGate({name: tensor for name, tensor in tensors.items() if name != "head"}, "e")
    with pytest.raises(ModelError, match="unknown tensor more"):
        HopGate({**tensors, "more": tensors["head"]}, "e")
    with pytest.raises(ModelError, match=r"tensor key .* expected float32 \(10, 6\)"):
        HopGate({**tensors, "key": tensors["head"]}, "e")
    with pytest.raises(ModelError, match=r"tensor head holds NaN"):
        HopGate({**tensors, "head": tensors["head"] * np.float32(np.nan)}, "e")
    with pytest.raises(UsageError, match="vectors of 6 numbers"):
        gate_of(random).next_queries(np.ones((1, 5), np.float32), np.ones((1, 5), np.float32))
    path = tmp_path / "hops.safetensors"
    gate_of(random).save(path)
    data = path.read_bytes()
    for cut in (4, 100, len(data) - 3):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError):
            HopGate.load(path)
