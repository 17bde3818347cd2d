"""Perplexity, divergence and agreement against a loop over tokens; calibration against the same sums by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import hf_config, moe_config, random_weights, write_folder
from windlass.core.errors import Cancelled, ModelError, NotFound, UsageError
from windlass.core.progress import Silent
from windlass.models import calibration
from windlass.models.decoder import Decoder
from windlass.models.evaluate import Remembered, evaluate, perplexity, windows
from windlass.models.linear import DenseLinear

TOKENS = np.random.default_rng(3).integers(0, 200, 150)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    config = hf_config()
    return Decoder.load(write_folder(tmp_path_factory.mktemp("llama"), config, random_weights(config)))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    config = hf_config()
    weights = random_weights(config)
    noise = np.random.default_rng(8)
    shaken = {name: w + 0.02 * noise.standard_normal(w.shape).astype(np.float32) for name, w in weights.items()}
    return Decoder.load(write_folder(tmp_path_factory.mktemp("shaken"), config, shaken))


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.data())
def test_every_token_but_the_first_is_scored_once_after_its_own_past(count: int, window: int, data: Any) -> None:
    stride = data.draw(st.integers(1, window))
    scored: list[int] = []
    for inputs, targets in windows(np.arange(count), window, stride):
        assert len(inputs) <= window
        ends = inputs[-len(targets) :]
        assert (targets == ends + 1).all()
        if inputs[0] > 0 and stride < window:
            assert len(inputs) - len(targets) >= min(window - stride, len(inputs) - len(targets))
        scored += targets.tolist()
    assert scored == list(range(1, count))


def by_hand(model: Decoder, reference: Decoder, window: int) -> tuple[float, float, float, float]:
    loss = theirs = kl = agreed = 0.0
    for start in range(0, len(TOKENS) - 1, window):
        inputs = TOKENS[start : start + window]
        rows = [each.logits(inputs).astype(np.float64) for each in (model, reference)]
        for at in range(min(window, len(TOKENS) - 1 - start)):
            q, p = (np.exp(side[at]) / np.exp(side[at]).sum() for side in rows)
            target = TOKENS[start + at + 1]
            loss -= math.log(q[target])
            theirs -= math.log(p[target])
            kl += float((p * np.log(p / q)).sum())
            agreed += float(q.argmax() == p.argmax())
    count = len(TOKENS) - 1
    return math.exp(loss / count), math.exp((loss - theirs) / count), kl / count, agreed / count


def test_report_equals_a_loop_over_tokens(model: Decoder, other: Decoder) -> None:
    report = evaluate(other, model, TOKENS, window=40, stride=40)
    expected = by_hand(other, model, 40)
    assert (report.ppl, report.ppl_ratio, report.kl, report.top1) == pytest.approx(expected, rel=1e-6)
    assert report.tokens == len(TOKENS) - 1 and report.bytes_ratio == 1 and report.tokens_per_s_ratio is not None
    assert 0.001 < report.kl < 1 and 0.3 < report.top1 < 1
    assert perplexity(other, TOKENS, window=40, stride=40) == pytest.approx(report.ppl)


def test_a_model_beside_itself_loses_nothing(model: Decoder) -> None:
    report = evaluate(model, Remembered(model), TOKENS, window=64, stride=16)
    assert (report.ppl_ratio, report.top1, report.bytes_ratio, report.tokens_per_s_ratio) == (1, 1, 1, None)
    assert report.kl == pytest.approx(0, abs=1e-12)


def test_remembered_logits_are_computed_once(model: Decoder) -> None:
    calls = []

    class Counted:
        nbytes = 7

        def logits(self, tokens: np.ndarray) -> np.ndarray:
            calls.append(len(tokens))
            return model.logits(tokens)

    reference = Remembered(Counted())
    for _ in range(3):
        evaluate(model, reference, TOKENS[:60], window=30, stride=30)
    assert calls == [30, 29] and reference.nbytes == 7


def test_more_context_explains_more(tmp_path: Path) -> None:
    """A model that repeats what came before: perplexity falls with the overlap of the windows."""

    class Repeats:
        nbytes = 1

        def logits(self, tokens: np.ndarray) -> np.ndarray:
            rows = np.zeros((len(tokens), 10), np.float32)
            for at in range(1, len(tokens)):
                rows[at, np.unique(tokens[:at])] = 3.0
            return rows

    tokens = np.random.default_rng(0).integers(0, 4, 90)
    assert perplexity(Repeats(), tokens, window=12, stride=4) < perplexity(Repeats(), tokens, window=12, stride=12)


def test_wrong_input_is_refused(model: Decoder) -> None:
    for tokens, window, stride in ((TOKENS[:1], 8, 8), (TOKENS, 8, 9), (TOKENS, 8, 0)):
        with pytest.raises(UsageError):
            evaluate(model, model, tokens, window=window, stride=stride)

    class Broken:
        nbytes = 1

        def __init__(self, value: float, size: int) -> None:
            self.value, self.size = value, size

        def logits(self, tokens: np.ndarray) -> np.ndarray:
            return np.full((len(tokens), self.size), self.value, np.float32)

    with pytest.raises(ModelError, match="NaN"):
        perplexity(Broken(math.nan, 300), TOKENS)
    with pytest.raises(UsageError, match="vocabularies"):
        evaluate(Broken(0.0, 7), model, TOKENS[:20])
    progress = Silent()
    progress.cancel()
    with pytest.raises(Cancelled):
        perplexity(model, TOKENS, progress=progress)


def test_calibration_sums_what_passes_each_linear(model: Decoder, tmp_path: Path) -> None:
    seen: dict[str, list[np.ndarray]] = {}
    with model.observed(lambda name, rows: seen.setdefault(name, []).append(rows)):
        model.logits(TOKENS[:60])
    found = calibration.collect(model, TOKENS[:61], second_moments=True)
    layers = range(model.config.n_layers)
    parts = ("attn_q", "attn_output", "ffn_gate", "ffn_down")
    assert set(found.inputs) == {f"blk.{layer}.{part}.weight" for layer in layers for part in parts} == set(seen)
    for name, rows in seen.items():
        x = np.concatenate(rows).astype(np.float64)
        assert np.array_equal(found.of(name).absmax, np.abs(x).max(axis=0).astype(np.float32))
        moment = found.of(name).second_moment
        assert moment is not None and np.allclose(moment, x.T @ x / len(x), atol=1e-4)
        assert found.of(name).rows == 60
    assert found.of("blk.1.attn_v.weight") is found.of("blk.1.attn_q.weight")
    assert found.of("blk.1.ffn_up.weight") is found.of("blk.1.ffn_gate.weight")
    with pytest.raises(NotFound, match=r"blk\.9"):
        found.of("blk.9.attn_q.weight")


def test_observing_ends_with_its_block_and_changes_nothing(model: Decoder) -> None:
    plain = model.logits(TOKENS[:20])
    names: list[str] = []
    with model.observed(lambda name, rows: names.append(name)):
        assert np.array_equal(model.logits(TOKENS[:20]), plain)
    told = len(names)
    model.logits(TOKENS[:20])
    assert len(names) == told > 0


def test_calibration_counts_experts(tmp_path: Path) -> None:
    config = moe_config("qwen3_moe")
    model = Decoder.load(write_folder(tmp_path, config, random_weights(config)))
    found = calibration.collect(model, TOKENS[:41])
    assert list(found.expert_counts) == [1]  # layer 0 is dense
    assert found.expert_counts[1].sum() == 2 * 40
    assert found.of("blk.1.ffn_up_exps.weight").rows == 40 and "blk.0.ffn_gate.weight" in found.inputs


def test_calibration_is_kept_on_disk_by_model_and_text(model: Decoder, tmp_path: Path) -> None:
    def get(fingerprint: str, tokens: np.ndarray, **more: Any) -> calibration.Calibration:
        return calibration.cached(model, fingerprint, tokens, folder=tmp_path / "kept", **more)

    first = get("a", TOKENS[:30], second_moments=True)
    (path,) = (tmp_path / "kept").iterdir()
    before = path.stat().st_mtime_ns
    again = get("a", TOKENS[:30], second_moments=True)
    assert path.stat().st_mtime_ns == before
    for name, expected in first.inputs.items():
        found = again.inputs[name]
        assert found.rows == expected.rows and np.array_equal(found.absmax, expected.absmax)
        assert np.array_equal(found.second_moment, expected.second_moment)
    for other in (("b", TOKENS[:30]), ("a", TOKENS[1:31])):
        get(*other)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    path.write_bytes(path.read_bytes()[:100])
    assert get("a", TOKENS[:30], second_moments=True).inputs.keys() == first.inputs.keys()


def test_the_cost_of_a_product_counts_weights_once(model: Decoder) -> None:
    linear = DenseLinear("w", np.zeros((30, 20), np.float32))
    assert (linear.in_features, linear.out_features, linear.nbytes) == (20, 30, 2400)
    cost = linear.cost(7)
    assert (cost.flops, cost.bytes, cost.shape) == (2 * 7 * 30 * 20, 2400 + 7 * 50 * 4, (7, 30, 20))
