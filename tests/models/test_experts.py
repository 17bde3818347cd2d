"""Routers and experts in NumPy against a loop over tokens, and the promise that a batch changes no bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.models.experts import Experts, Router, rows_by_expert


def plain_choice(router: Router, scores: np.ndarray, bias: np.ndarray | None) -> tuple[list[int], list[float]]:
    """One token, float64, by the definitions."""
    values = scores.astype(np.float64)
    n = len(values)
    if router.kind == "sigmoid_bias":
        gates = [1 / (1 + math.exp(-value)) for value in values]
    elif router.kind == "topk_softmax":
        gates = list(values)
    else:
        gates = [math.exp(value - values.max()) / sum(math.exp(v - values.max()) for v in values) for value in values]
    ranked = [gate + (0.0 if bias is None else float(bias[i])) for i, gate in enumerate(gates)]
    if router.groups > 1:
        size = n // router.groups
        strength = [sum(sorted(ranked[g * size : (g + 1) * size])[-2:]) for g in range(router.groups)]
        kept = sorted(range(router.groups), key=lambda g: -strength[g])[: router.top_groups]
        ranked = [value if i // size in kept else -math.inf for i, value in enumerate(ranked)]
    chosen = sorted(sorted(range(n), key=lambda i: -ranked[i])[: router.top_k])
    weights = [gates[i] for i in chosen]
    if router.kind == "topk_softmax":
        weights = [math.exp(w - max(weights)) for w in weights]
        weights = [w / sum(weights) for w in weights]
    if router.normalise:
        weights = [w / sum(weights) for w in weights]
    return chosen, [w * router.scale for w in weights]


ROUTERS = [
    Router(2),
    Router(3, normalise=True),
    Router(2, "topk_softmax"),
    Router(2, "sigmoid_bias", normalise=True, scale=2.5),
    Router(3, "sigmoid_bias", groups=4, top_groups=2),
    Router(8, "softmax_topk", groups=2, top_groups=2),
]


@pytest.mark.parametrize("router", ROUTERS, ids=str)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), tokens=st.integers(0, 9))
def test_routers_choose_as_defined(router: Router, seed: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal((tokens, 8)) * 2).astype(np.float32)
    bias = rng.standard_normal(8).astype(np.float32) if router.kind == "sigmoid_bias" else None
    chosen, weights = router.choose(scores, bias)
    assert chosen.shape == weights.shape == (tokens, router.top_k) and weights.dtype == np.float32
    for token in range(tokens):
        expected, shares = plain_choice(router, scores[token], bias)
        assert chosen[token].tolist() == expected
        assert np.allclose(weights[token], shares, rtol=1e-5)


def test_topk_softmax_is_the_renormalised_softmax() -> None:
    scores = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    one, other = Router(4, "topk_softmax").choose(scores), Router(4, normalise=True).choose(scores)
    assert np.array_equal(one[0], other[0]) and np.allclose(one[1], other[1], rtol=1e-5)


def test_equal_scores_go_to_the_lower_number() -> None:
    assert Router(2).choose(np.zeros((1, 5), np.float32))[0].tolist() == [[0, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), max_size=20))
def test_counting_sort_groups_and_keeps_the_order(choices: list[list[int]]) -> None:
    chosen = np.array(choices, np.int64).reshape(-1, 2)
    order, starts = rows_by_expert(chosen, 7)
    flat = chosen.reshape(-1).tolist()
    assert order.tolist() == sorted(range(len(flat)), key=lambda place: flat[place])
    assert [flat[place] for e in range(7) for place in order[starts[e] : starts[e + 1]]] == sorted(flat)


@pytest.fixture(scope="module")
def layer() -> Experts:
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    shared = (draw(80, 48), draw(48, 40), draw(48))
    return Experts(Router(3), draw(10, 48), draw(10, 2 * 56, 48), draw(10, 48, 56), shared)


def test_sum_of_experts_equals_a_loop_over_tokens(layer: Experts) -> None:
    x = np.random.default_rng(5).standard_normal((21, 48)).astype(np.float32)
    made = layer(x)
    assert layer.shared is not None

    def gated(h: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        gate, up = np.split(gate_up.astype(np.float64) @ h, 2)
        return down.astype(np.float64) @ (gate / (1 + np.exp(-gate)) * up)

    for token, h in enumerate(x.astype(np.float64)):
        chosen, weights = plain_choice(layer.router, layer.gate.astype(np.float64) @ h, None)
        expected = sum(w * gated(h, layer.gate_up[e], layer.down[e]) for e, w in zip(chosen, weights, strict=True))
        gate_up, down, gate = layer.shared
        expected = expected + gated(h, gate_up, down) / (1 + math.exp(-float(gate.astype(np.float64) @ h)))
        assert np.abs(made[token] - expected).max() <= 1e-4 * np.abs(expected).max()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1 << 20))
def test_a_token_has_the_same_bits_alone_and_in_any_batch(layer: Experts, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 48)).astype(np.float32)
    together = layer(x)
    order = rng.permutation(tokens)
    assert np.array_equal(layer(x[order]), together[order])
    assert np.array_equal(layer(x[order[:1]])[0], together[order[0]])


def test_no_tokens_no_rows(layer: Experts) -> None:
    assert layer(np.zeros((0, 48), np.float32)).shape == (0, 48)
