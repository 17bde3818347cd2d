"""Codes: what they say about distances, beside the distances."""

from __future__ import annotations

import numpy as np
import pytest

from windlass.kernels.bitcodes import query_planes
from windlass.vectors.quantizers import SignCodes
from windlass.vectors.schema import Schema


def encoded(dim: int, count: int, metric: str, seed: int = 0) -> tuple[np.ndarray, SignCodes]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32) + 0.3
    return rows, SignCodes.of(Schema(dim=dim, metric=metric), lambda chosen: rows[chosen], np.arange(count))


@pytest.mark.parametrize("dim", [1, 3, 64, 100, 384])
def test_a_query_as_bits_is_the_query_to_half_a_step(dim):
    query = np.random.default_rng(dim).standard_normal(dim).astype(np.float32)
    planes, low, step, total = query_planes(query, -(-dim // 64))
    bits = np.unpackbits(planes.reshape(-1, 4, 1).view(np.uint8), axis=2, bitorder="little").reshape(-1, 4, 64)
    levels = (bits * np.array([1, 2, 4, 8])[:, None]).sum(axis=1).reshape(-1)[:dim]
    rounded = low + step * levels
    assert np.abs(rounded - query).max() <= step / 2 + 1e-6
    assert total == pytest.approx(rounded.sum(), abs=1e-3)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("dim", [384, 8, 100])
def test_the_estimate_is_the_distance_on_average(dim, metric):
    rows, codes = encoded(dim, 2000, metric)
    errors = []
    for query in np.random.default_rng(9).standard_normal((10, dim)).astype(np.float32):
        scores = codes.scores(query, np.arange(len(rows)))
        if metric == "ip":
            errors.append(scores / 2 - rows @ query)
        else:
            offset = ((query - codes.mean) ** 2).sum()
            errors.append(scores - offset + ((rows - query) ** 2).sum(axis=1))
    # A product with unit vectors is off by less than one over the root of the bits; a distance has it twice.
    lengths = np.linalg.norm(rows - codes.mean, axis=1).mean() * np.sqrt(dim)
    assert np.std(errors) / lengths <= (1 if metric == "ip" else 2) / np.sqrt(max(dim, 256))
    assert abs(np.mean(errors)) <= 0.15 * np.std(errors)


def test_a_row_of_the_mean_and_equal_rows_have_finite_scores():
    rows = np.ones((5, 4), np.float32)
    codes = SignCodes.of(Schema(dim=4, metric="l2"), lambda chosen: rows[chosen], np.arange(5))
    assert np.isfinite(codes.scores(rows[0], np.arange(5))).all()
