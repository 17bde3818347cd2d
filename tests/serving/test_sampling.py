"""The sampler against a slow one that sorts everything, and against statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.conftest import request
from windlass.core.errors import NumericsError
from windlass.serving.batch import Sampled
from windlass.serving.request import SamplingParams, Sequence
from windlass.serving.sampling import candidates, draw, sample


def sequence(made: list[int] | None = None, index: int = 0, **params: Any) -> Sequence:
    seq = Sequence(request("a", [1, 2, 3], params.pop("max_tokens", 8), params=params), index)
    seq.tokens += made or []
    return seq


def by_sorting(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """Kept tokens and their probabilities, one rule after the other, everything sorted."""
    p = np.exp(logits.astype(np.float64) / temperature - np.max(logits.astype(np.float64) / temperature))
    kept = sorted((i for i in range(len(p)) if p[i] > 0), key=lambda i: (-p[i], i))
    kept = kept[:top_k] if top_k else kept
    if top_p < 1:
        total, reached, nucleus = sum(p[i] for i in kept), 0.0, []
        for i in kept:
            nucleus.append(i)
            reached += p[i]
            if reached >= top_p * total * (1 - 1e-12):
                break
        kept = nucleus
    kept = [i for i in kept if p[i] >= min_p * p[kept[0]]]
    total = sum(p[i] for i in kept)
    return {i: p[i] / total for i in sorted(kept)}


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([5, 50, 3000]),
    temperature=st.sampled_from([0.1, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 7, 2000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    ties=st.booleans(),
)
def test_candidates_are_those_of_the_slow_way(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float, ties: bool
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)
    if ties:
        logits = np.round(logits)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, weights = candidates(logits, params)
    expected = by_sorting(logits, temperature, top_k, top_p, min_p)
    assert ids.tolist() == list(expected)
    np.testing.assert_allclose(weights / weights.sum(), list(expected.values()), rtol=1e-9)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = np.zeros(4)
    for seed in range(4000):
        counts[draw(logits, sequence(temperature=1.0, seed=seed))] += 1
    assert np.abs(counts / 4000 - np.exp(logits)).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_draw_depends_on_seed_answer_and_place_alone() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 500)).astype(np.float32)
    alone = sample(logits[:1], [sequence(temperature=1.0, seed=5)])
    for place in range(6):
        others = [sequence(temperature=2.0, seed=number) for number in range(6)]
        mixed = rng.standard_normal((6, 500)).astype(np.float32)
        mixed[place], others[place] = logits[0], sequence(temperature=1.0, seed=5)
        assert sample(mixed, others)[place] == alone[0]
    many = {draw(logits[0], sequence(temperature=1.0, seed=seed)) for seed in range(50)}
    places = {draw(logits[0], sequence([4] * made, temperature=1.0, max_tokens=60)) for made in range(50)}
    answers = {draw(logits[0], sequence(index=index, temperature=1.0)) for index in range(50)}
    assert min(len(many), len(places), len(answers)) > 20


def test_greedy_takes_the_lower_of_two() -> None:
    logits = np.array([[0, 3, 3, 1], [2, 0, 2, 2]], np.float32)
    assert sample(logits, [sequence(), sequence()]) == [Sampled(1), Sampled(0)]


def test_penalties_biases_and_mask() -> None:
    logits = np.array([1.0, 2.0, 3.0, 4.0, -1.0], np.float32)
    seen = sequence([4, 3, 3], frequency_penalty=1.0, presence_penalty=0.5)
    assert draw(logits, seen) == 2  # 4 - 0.5 - 2 = 1.5
    assert draw(logits, sequence([3], repetition_penalty=4.0)) == 0  # 1, 2/4, 3/4, 4/4: ties to the lower id
    assert draw(logits, sequence(logit_bias={0: 100.0})) == 0
    assert draw(logits, sequence(), np.array([True, True, False, False, True])) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_fail_their_row_only(bad: float) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = bad
    results = sample(logits, [sequence(), sequence(temperature=1.0), sequence()])
    assert isinstance(results[1], NumericsError)
    assert results[0] == results[2] == Sampled(0)


def test_logprobs_are_of_the_unchanged_distribution() -> None:
    logits = np.random.default_rng(1).standard_normal(40).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    (made,) = sample(logits[None], [sequence(logprobs=3, temperature=2.0, seed=9, logit_bias={1: -50.0}, top_k=5)])
    assert isinstance(made, Sampled) and made.logprob == pytest.approx(exact[made.token])
    order = np.argsort(-exact)[:3]
    assert [token for token, _ in made.top] == order.tolist()
    np.testing.assert_allclose([logprob for _, logprob in made.top], exact[order], rtol=1e-6)
    (only,) = sample(logits[None], [sequence(logprobs=0)])
    assert isinstance(only, Sampled) and only.top == () and only.logprob is not None


def test_no_rows() -> None:
    assert sample(np.zeros((0, 7), np.float32), []) == []
