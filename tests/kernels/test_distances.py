"""Scans, gathers and products against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import distances
from windlass.kernels.distances import DOT, L2, NO_MASK, NO_SCALES


def stored(kind: str, count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An array as it is stored, its scales, and the float64 numbers it stands for."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dim)).astype(np.float32)
    if kind == "f32":
        return x, NO_SCALES, x.astype(np.float64)
    if kind == "f16":
        half = x.astype(np.float16)
        return half.view(np.uint16), NO_SCALES, half.astype(np.float64)
    codes = rng.integers(-127, 128, (count, dim)).astype(np.int8)
    scales = rng.uniform(0.5, 2, count).astype(np.float32)
    return codes, scales, codes * scales.astype(np.float64)[:, None]


def reference(x: np.ndarray, query: np.ndarray, metric: int) -> np.ndarray:
    return x @ query if metric == DOT else -((x - query) ** 2).sum(1)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["f32", "f16", "i8"]),
    count=st.integers(0, 40),
    dim=st.integers(1, 100),
    k=st.integers(0, 50),
    metric=st.sampled_from([DOT, L2]),
    seed=st.integers(0, 10**6),
    masked=st.booleans(),
)
def test_scan_and_gather_equal_the_sorted_reference(kind, count, dim, k, metric, seed, masked):
    array, scales, x = stored(kind, count, dim, seed)
    rng = np.random.default_rng(seed + 1)
    query = rng.standard_normal(dim).astype(np.float32)
    mask = (rng.random(count) < 0.5).astype(np.uint8) if masked else NO_MASK
    allowed = np.flatnonzero(mask) if masked and count else np.arange(count)
    if masked and not len(mask):
        mask = NO_MASK
    exact = reference(x, query.astype(np.float64), metric)
    best = allowed[np.argsort(-exact[allowed], kind="stable")][:k]
    scores, rows = distances.scan_topk(array, query, k, metric=metric, scales=scales, allowed=mask)
    assert rows.tolist() == best.tolist()
    np.testing.assert_allclose(scores, exact[best], rtol=2e-4, atol=2e-3)
    shuffled = rng.permutation(allowed).astype(np.int64)
    again, gathered = distances.gather_topk(array, query, k, shuffled, metric=metric, scales=scales)
    assert gathered.tolist() == rows.tolist()
    assert again.tobytes() == scores.tobytes()


@given(values=st.lists(st.integers(0, 3), max_size=30), k=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_equal_scores_are_told_apart_by_order(values, k, seed):
    order = np.random.default_rng(seed).permutation(len(values)).astype(np.int64)
    vectors = np.array(values, np.float32).reshape(-1, 1)
    _, rows = distances.scan_topk(vectors, np.ones(1, np.float32), k, order=order)
    expected = sorted(range(len(values)), key=lambda row: (-values[row], order[row]))[:k]
    assert rows.tolist() == expected


def test_a_score_that_is_no_number_is_never_found():
    vectors = np.array([[np.inf], [1.0], [-np.inf]], np.float32)
    _, rows = distances.scan_topk(vectors, np.zeros(1, np.float32), 3)
    assert rows.tolist() == [1]


@pytest.mark.parametrize("metric", [DOT, L2])
def test_products_find_what_scans_find(metric):
    rng = np.random.default_rng(3)
    x, queries = rng.standard_normal((500, 33)).astype(np.float32), rng.standard_normal((7, 33)).astype(np.float32)
    mask = (rng.random(500) < 0.3).astype(np.uint8)
    scores, rows = distances.gemm_topk(x, queries, 9, metric=metric, allowed=mask)
    for number, query in enumerate(queries):
        expected_scores, expected = distances.scan_topk(x, query, 9, metric=metric, allowed=mask)
        assert rows[number].tolist() == expected.tolist()
        assert scores[number].tobytes() == expected_scores.tobytes()
    short_scores, short = distances.gemm_topk(x[:2], queries, 4, metric=metric)
    assert (short[:, 2:] == -1).all() and np.isneginf(short_scores[:, 2:]).all()
