"""Sparse coding: posteriors against sums over all states, laws of the descent, bars that must be found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from windlass.core.errors import Cancelled, DataError, NotFitted, UsageError
from windlass.core.progress import Silent
from windlass.patterns.occlusion import MaximalCauses
from windlass.patterns.sparse_coding import (
    BinarySparseCoding,
    DiscreteSparseCoding,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
)
from windlass.patterns.truncated_em import SparseCoding, StateTree, corrected_prior, prior_mass

H, D, N = 5, 7, 40
ALL = {"n_components": H, "n_candidates": H, "max_active": H}
LINEAR = [BinarySparseCoding(**ALL), TernarySparseCoding(**ALL), DiscreteSparseCoding(values=(1.0, -0.5), **ALL)]


def prepared(model: SparseCoding, seed: int, n: int = N) -> np.ndarray:
    """A model with parameters drawn, as if it were in the middle of a fit, and data."""
    rng = np.random.default_rng(seed)
    data = np.abs(rng.standard_normal((n, D))) * 2
    model._seed = seed
    candidates = min(model.n_candidates, model.n_components)
    model._tree = StateTree.of(candidates, min(model.max_active, candidates), model._value_count())
    model._start(data, seed)
    model.components_ = np.abs(rng.standard_normal((model.n_components, D))) + 0.1
    model.noise_ = 0.9
    return data


def posterior(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = logs.max(axis=1, keepdims=True)
    weights = np.exp(logs - top)
    total = weights.sum(axis=1, keepdims=True)
    return weights / total, (top + np.log(total))[:, 0]


def gaussian(off: np.ndarray, variance: float) -> np.ndarray:
    """Log density of rows of independent normals."""
    return -0.5 * (off**2).sum(axis=-1) / variance - 0.5 * off.shape[-1] * np.log(2 * np.pi * variance)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("model", LINEAR, ids=lambda each: type(each).__name__)
def test_linear_posteriors_are_sums_over_all_states(model, temperature):
    data = prepared(model, 1)
    values = model._values()
    model._chances = np.linspace(0.1, 0.2, len(values))
    chance_of = {0.0: 1 - model._chances.sum(), **dict(zip(values.tolist(), model._chances.tolist(), strict=True))}
    states = np.array(list(itertools.product(chance_of, repeat=H)))
    prior = np.array([sum(np.log(chance_of[value]) for value in state) for state in states.tolist()])
    off = data[:, None, :] - (states @ model.components_)[None]
    logs = prior + gaussian(off, model.noise_**2 * temperature)
    weights, evidence = posterior(logs)
    found, moments = model._expect(data, temperature, np.ones(N, np.bool_))
    assert np.allclose(found, evidence, rtol=1e-9)
    assert np.allclose(moments["mean"], weights @ states, atol=1e-9)
    assert np.allclose(moments["active"], weights @ (states != 0), atol=1e-9)
    assert np.allclose(moments["second"], np.einsum("ns,sa,sb->ab", weights, states, states), rtol=1e-8)
    counts = [(weights @ (states == value)).sum() for value in values]
    assert np.allclose(moments["counts"], counts, rtol=1e-9)


def test_slab_posteriors_are_sums_over_all_spikes():
    model = SpikeSlabSparseCoding(**ALL)
    data = prepared(model, 2)
    rng = np.random.default_rng(0)
    root = rng.standard_normal((H, H))
    model.slab_mean_, model.slab_covariance_ = rng.standard_normal(H), root @ root.T / H + 0.3 * np.eye(H)
    model.prior_ = np.linspace(0.1, 0.5, H)
    elements, noise, psi, mu = model.components_, model.noise_**2, model.slab_covariance_, model.slab_mean_
    states = np.array(list(itertools.product((0, 1), repeat=H)), bool)
    logs, means, seconds = np.empty((N, len(states))), [], []
    for at, state in enumerate(states):
        part, inner = elements[state], psi[np.ix_(state, state)]
        whole = noise * np.eye(D) + part.T @ inner @ part
        left = data - mu[state] @ part
        logs[:, at] = np.log(np.where(state, model.prior_, 1 - model.prior_)).sum() - 0.5 * (
            np.einsum("ij,jk,ik->i", left, np.linalg.inv(whole), left)
            + np.linalg.slogdet(whole)[1]
            + D * np.log(2 * np.pi)
        )
        gain = inner @ part @ np.linalg.inv(whole)
        mean, second = np.zeros((N, H)), np.zeros((N, H, H))
        mean[:, state] = mu[state] + left @ gain.T
        second[np.ix_(np.arange(N), state, state)] = inner - gain @ part.T @ inner
        means.append(mean)
        seconds.append(second + mean[:, :, None] * mean[:, None, :])
    weights, evidence = posterior(logs)
    found, moments = model._expect(data, 1.0, np.ones(N, np.bool_))
    assert np.allclose(found, evidence, rtol=1e-9)
    assert np.allclose(moments["mean"], np.einsum("ns,snh->nh", weights, np.array(means)), atol=1e-7)
    assert np.allclose(moments["active"], weights @ states, atol=1e-7)
    assert np.allclose(moments["second"], np.einsum("ns,snab->ab", weights, np.array(seconds)), atol=1e-5)
    assert np.allclose(moments["together"], np.einsum("ns,sa,sb->ab", weights, states, states), atol=1e-6)


def test_occlusion_posteriors_are_sums_over_all_states():
    model = MaximalCauses(**ALL)
    data = prepared(model, 3)
    states = np.array(list(itertools.product((0.0, 1.0), repeat=H)))
    shown = (states[:, :, None] * model.components_).max(axis=1)
    active = states.sum(axis=1)
    prior = active * np.log(model._chance) + (H - active) * np.log(1 - model._chance)
    off = data[:, None, :] - shown[None]
    weights, evidence = posterior(prior + gaussian(off, model.noise_**2))
    found, moments = model._expect(data, 1.0, np.ones(N, np.bool_))
    assert np.allclose(found, evidence, rtol=1e-9)
    assert np.allclose(moments["mean"], weights @ states, atol=1e-7)
    assert np.allclose(moments["errors"], np.einsum("ns,ns->n", weights, (off**2).sum(axis=2)), rtol=1e-8)
    # With a sharp stand-in the shares are those of the cause that shows.
    share = (states[:, :, None] * model.components_) == np.maximum(shown, 1e-300)[:, None, :]
    expected = np.einsum("ns,shd->hd", weights, share.astype(float))
    assert np.abs(moments["weight"] - expected).mean() < 0.1 * expected.mean()


@pytest.mark.parametrize("model", [*LINEAR, SpikeSlabSparseCoding(**ALL)], ids=lambda each: type(each).__name__)
def test_without_truncation_the_evidence_never_falls(model):
    data = prepared(model, 4, n=150)
    everyone = np.ones(len(data), np.bool_)
    evidence = []
    for _ in range(50):
        found, moments = model._expect(data, 1.0, everyone)
        evidence.append(found.mean())
        model._maximise(data, moments, everyone)
    assert (np.diff(evidence) > -1e-7).all() and evidence[-1] > evidence[0]


def test_special_cases_of_discrete_coding():
    binary, discrete = BinarySparseCoding(**ALL), DiscreteSparseCoding(values=(1.0,), **ALL)
    ternary, signed = TernarySparseCoding(**ALL), DiscreteSparseCoding(values=(1.0, -1.0), **ALL)
    for a, b in ((binary, discrete), (ternary, signed)):
        data = prepared(a, 5)
        prepared(b, 5)
        first, second = (each._expect(data, 1.0, np.ones(N, np.bool_)) for each in (a, b))
        assert np.allclose(first[0], second[0]) and np.allclose(first[1]["mean"], second[1]["mean"])


def test_the_tree_holds_every_combination_once():
    for candidates, most, values in ((1, 1, 1), (4, 3, 1), (5, 5, 2), (3, 2, 3)):
        tree = StateTree.of(candidates, most, values)
        seen = set()
        for at in range(len(tree.parent)):
            state, place = [], at
            while place >= 0:
                state.append((int(tree.cause[place]), int(tree.value[place])))
                place = int(tree.parent[place])
            seen.add(frozenset(state))
        expected = sum(
            values**size * len(list(itertools.combinations(range(candidates), size))) for size in range(1, most + 1)
        )
        assert len(seen) == len(tree.parent) == expected
    with pytest.raises(UsageError, match="states a point"):
        StateTree.of(16, 8, 2)


def test_the_corrected_prior_undoes_the_truncation():
    for pi in (0.05, 0.2, 0.35):
        mass, mean = prior_mass(pi, 12, 3)
        assert corrected_prior(pi, 1000 * mean / mass, 1000, 12, 3) == pytest.approx(pi)


def bars(size: int, n: int, seed: int, *, hide: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    elements = np.zeros((2 * size, size, size))
    for i in range(size):
        elements[i, i, :] = elements[size + i, :, i] = 10
    elements = elements.reshape(2 * size, -1)
    active = (rng.random((n, 2 * size)) < 1 / size).astype(float)
    shown = (active[:, :, None] * elements).max(axis=1) if hide else active @ elements
    return shown + 2 * rng.standard_normal(shown.shape), elements


@pytest.mark.parametrize(("kind", "hide"), [(BinarySparseCoding, False), (MaximalCauses, True)])
def test_all_bars_are_found(kind, hide):
    data, elements = bars(4, 500, 1, hide=hide)
    model = kind(8, max_iter=70, random_state=1).fit(data)
    off = np.abs(model.components_[:, None] - elements[None]).mean(axis=2).min(axis=0)
    assert (off < 0.6).all()
    assert model.prior_[0] == pytest.approx(0.25, abs=0.05)
    assert model.noise_ == pytest.approx(2.0, abs=0.4)
    activity = model.active_probability(data)
    assert activity.shape == (500, 8) and (activity <= 1 + 1e-9).all()
    strange = 30 * np.eye(4).reshape(1, 16)
    assert model.score_samples(strange)[0] < model.score_samples(data).min()
    assert model.sample(7).shape == (7, 16)


def test_bad_input_says_what_to_do():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((30, 4))
    with pytest.raises(DataError, match="Negative values in data passed to MaximalCauses"):
        MaximalCauses(3).fit(data - 1)
    with pytest.raises(UsageError, match="n_components is 0"):
        BinarySparseCoding(0).fit(data)
    with pytest.raises(UsageError, match="values"):
        DiscreteSparseCoding(values=(0.0, 1.0)).fit(data)
    with pytest.raises(NotFitted):
        BinarySparseCoding().transform(data)
    constant = BinarySparseCoding(3, max_iter=5).fit(np.ones((20, 3)))
    assert np.isfinite(constant.components_).all() and np.isfinite(constant.score_samples(np.ones((2, 3)))).all()


def test_a_cancelled_fit_keeps_the_last_step():
    class Impatient(Silent):
        def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
            self.cancel()

    model = BinarySparseCoding(3)
    with pytest.raises(Cancelled):
        model.fit(np.random.default_rng(0).standard_normal((30, 4)), progress=Impatient())
    assert len(model.history_) == 1 and len(model.prior_) == 1
