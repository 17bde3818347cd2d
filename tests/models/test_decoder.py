"""The NumPy decoder against a float64 decoder written token by token, and generation on top of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import (
    hf_config,
    moe_config,
    random_weights,
    reference_logits,
    stack_experts,
    write_folder,
    write_gguf,
)
from windlass.core.errors import Cancelled, ModelError, UsageError
from windlass.models.config import config_from_hf
from windlass.models.decoder import PREFILL_CHUNK, Decoder
from windlass.models.generate import LocalModel, Sampling, StopText, generate
from windlass.models.gguf import GGUFSource

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 200, 20)]


def close(ours: np.ndarray, reference: np.ndarray) -> bool:
    return ours.dtype == np.float32 and float(np.abs(ours - reference).max()) <= 1e-4 * float(np.abs(reference).max())


CASES = {
    "llama": hf_config(),
    "tied": hf_config(tie_word_embeddings=True),
    "one head a key": hf_config(num_key_value_heads=4),
    "wide heads": hf_config(head_dim=16),
    "mistral window": hf_config("mistral", sliding_window=8),
    "qwen2 bias": hf_config("qwen2", use_sliding_window=False, sliding_window=4),
    "qwen3 norm": hf_config("qwen3", head_dim=16),
    "mixtral": moe_config("mixtral", sliding_window=8),
    "olmoe": moe_config("olmoe"),
    "olmoe renormalised": moe_config("olmoe", norm_topk_prob=True),
    "qwen2 experts": moe_config("qwen2_moe"),
    "qwen3 experts": moe_config("qwen3_moe", head_dim=16),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_float64_reference(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    weights = random_weights(config)
    decoder = Decoder.load(write_folder(tmp_path, config, weights))
    windowless = {**config, "sliding_window": None} if name == "qwen2 bias" else config
    assert close(decoder.logits(np.array(TOKENS)), reference_logits(windowless, weights, TOKENS))


@pytest.mark.parametrize(
    "name", ["llama", "mistral window", "qwen2 bias", "qwen3 norm", "mixtral", "olmoe", "qwen2 experts"]
)
def test_gguf_of_the_same_weights_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    weights = random_weights(config)
    window = {"llama.attention.sliding_window": 8} if config.get("sliding_window") == 8 else {}
    decoder = Decoder.load(write_gguf(tmp_path / "m.gguf", config, weights, **window))
    plain = {**config, "sliding_window": 8 if window else None}
    assert close(decoder.logits(np.array(TOKENS)), reference_logits(plain, weights, TOKENS))


def llama3_frequencies(theta: float, size: int) -> list[float]:
    """Wavelengths below 32/4 stay, above 32/1 are stretched eight times, between them a blend."""
    found = []
    for i in range(size // 2):
        frequency = theta ** (-2 * i / size)
        wavelength = 2 * math.pi / frequency
        if wavelength < 32 / 4:
            found.append(frequency)
        elif wavelength > 32:
            found.append(frequency / 8)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            found.append((1 - smooth) * frequency / 8 + smooth * frequency)
    return found


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_llama3_and_linear_scaling(form: str, tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 32
    linear = {"rope_type": "linear", "factor": 4.0}
    expected = {
        "llama3": (llama3, llama3_frequencies(100.0, 8)),
        "linear": (linear, [100.0 ** (-2 * i / 8) / 4 for i in range(4)]),
    }
    for name, (scaling, frequencies) in expected.items():
        config = hf_config(rope_theta=100.0)
        if form == "rope_parameters":
            config.pop("rope_theta")
            scaling = {**scaling, "rope_theta": 100.0}
        config[form] = scaling
        weights = random_weights(config)
        decoder = Decoder.load(write_folder(tmp_path / name, config, weights))
        assert close(decoder.logits(np.array(TOKENS)), reference_logits(config, weights, TOKENS, frequencies))


def test_gguf_rotary_factors_tensor(tmp_path: Path) -> None:
    config = hf_config()
    weights = random_weights(config)
    factors = np.array([1.0, 1.5, 4.0, 8.0], np.float32)
    path = write_gguf(tmp_path / "m.gguf", config, weights)
    source = GGUFSource(path)
    object.__setattr__(source.config, "rope_scaling", {"type": "factors", "tensor": "rope_freqs.weight"})
    read = source.tensor
    source.tensor = lambda name: factors if name == "rope_freqs.weight" else read(name)  # type: ignore[method-assign]
    frequencies = [10000.0 ** (-2 * i / 8) / float(f) for i, f in enumerate(factors)]
    assert close(Decoder(source).logits(np.array(TOKENS)), reference_logits(config, weights, TOKENS, frequencies))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    config = hf_config("mistral", sliding_window=8, max_position_embeddings=1024)
    return Decoder.load(write_folder(tmp_path_factory.mktemp("mistral"), config, random_weights(config)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 199), min_size=2, max_size=24), st.data())
def test_prefill_steps_truncate_and_fork_agree_with_one_pass(decoder: Decoder, tokens: list[int], data: Any) -> None:
    whole = decoder.logits(np.array(tokens))
    cut = data.draw(st.integers(1, len(tokens) - 1))
    cache = decoder.cache()
    assert np.allclose(decoder.prefill(np.array(tokens[:cut]), cache), whole[cut - 1], atol=1e-4)
    other = cache.fork()
    decoder.prefill(np.array([7, 8, 9]), other)
    for position in range(cut, len(tokens)):
        assert np.allclose(decoder.step(tokens[position], cache), whole[position], atol=1e-4)
    cache.truncate(cut)
    assert np.allclose(decoder.step(tokens[cut], cache), whole[cut], atol=1e-4)
    assert (other.length, cache.length) == (cut + 3, cut + 1)


def test_chunked_prefill_equals_steps_across_the_chunk_border(decoder: Decoder) -> None:
    tokens = np.random.default_rng(1).integers(0, 200, PREFILL_CHUNK + 5)
    together, stepwise = decoder.cache(), decoder.cache()
    last = decoder.prefill(tokens, together)
    for token in tokens:
        stepped = decoder.step(int(token), stepwise)
    assert np.allclose(last, stepped, atol=1e-3)


@pytest.mark.parametrize(("tokens", "said"), [([], "empty"), ([99999], "99999"), ([-1], "-1"), ([0] * 1025, "1024")])
def test_wrong_tokens_are_refused(decoder: Decoder, tokens: list[int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        decoder.logits(np.array(tokens, np.int64))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    config = hf_config()
    weights = random_weights(config)
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: value for key, value in weights.items() if key != name}
    poisoned = {**weights, name: np.where(np.arange(32) == 3, np.float32(np.nan), weights[name])}
    misshapen = {**weights, name: weights[name][:-1]}
    for label, broken in {"missing": missing, "NaN": poisoned, "shape": misshapen}.items():
        with pytest.raises(ModelError, match=rf"blk.1.ffn_up.weight.*{label}|{label}.*blk.1.ffn_up.weight"):
            Decoder.load(write_folder(tmp_path / label, config, broken))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt_neox"}, {"num_attention_heads": 0}, {"hidden_size": "big"}, {"num_key_value_heads": 3},
        {"hidden_act": "gelu"}, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {"head_dim": 7},
        {"vocab_size": 1 << 40}, {"rope_scaling": {"rope_type": "linear", "factor": -1}}, {"eos_token_id": "x"},
        {"rope_theta": 0.0}, {"sliding_window": 0, "model_type": "mistral"}, {"num_hidden_layers": True},
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="here"):
        config_from_hf(hf_config(**change) if "model_type" not in change else {**hf_config(), **change}, "here")


def test_fused_experts_are_split_on_load(tmp_path: Path) -> None:
    """Newer exports hold all experts of a layer in two tensors."""
    config = moe_config("qwen2_moe")
    weights = random_weights(config)
    stacked = stack_experts(config, weights)
    fused = {name: weight for name, weight in stacked.items() if "_exps." not in name}
    for layer in range(2):
        gate, up, down = (stacked[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        fused[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.concatenate((gate, up), axis=1)
        fused[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    one_by_one = Decoder.load(write_folder(tmp_path / "one", config, weights))
    together = Decoder.load(write_folder(tmp_path / "fused", config, fused))
    assert np.array_equal(one_by_one.logits(np.array(TOKENS)), together.logits(np.array(TOKENS)))


@pytest.mark.parametrize("damage", ["missing", "misshapen", "both"])
def test_incomplete_experts_are_named(damage: str, tmp_path: Path) -> None:
    config = moe_config("olmoe")
    weights = random_weights(config)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "misshapen":
        weights[name] = weights[name][:-1]
    else:
        weights["model.layers.1.mlp.experts.down_proj"] = np.zeros((6, 32, 64), np.float32)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_(up|down)_exps\.weight"):
        Decoder.load(write_folder(tmp_path, config, weights))


def test_impossible_expert_counts_are_refused() -> None:
    for change in (
        {"num_experts": 0},
        {"num_experts_per_tok": 9},
        {"decoder_sparse_step": 0},
        {"num_experts": 1 << 40},
    ):
        with pytest.raises(ModelError, match="here"):
            config_from_hf(moe_config("qwen2_moe", **change), "here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    config = hf_config(eos_token_id=2)
    return LocalModel.load(write_folder(tmp_path_factory.mktemp("llama"), config, random_weights(config)))


def test_generation_is_greedy_and_ends_at_the_limit(model: LocalModel) -> None:
    prompt = model.tokenizer.encode("the harbour")
    made = list(generate(model.decoder, model.tokenizer, prompt, max_tokens=6))
    context = list(prompt)
    for token in made:
        logits = model.decoder.logits(np.array(context))[-1].astype(np.float64)
        assert token.id == int(logits.argmax())
        assert token.logprob == pytest.approx(float(logits.max() - np.log(np.exp(logits).sum())), abs=1e-3)
        context.append(token.id)
    assert [token.finish for token in made] == [None] * 5 + ["length"]
    assert "".join(token.text for token in made) == model.tokenizer.decode(token.id for token in made)


def test_same_seed_same_text_other_seed_other_text(model: LocalModel) -> None:
    def sample(seed: int) -> list[int]:
        run = generate(model.decoder, model.tokenizer, [5, 6], max_tokens=20, temperature=1.5, seed=seed)
        return [token.id for token in run]

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) == 4


def test_sampling_follows_the_distribution_and_its_cuts() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    drawn = np.bincount([Sampling(1.0, seed=3).pick(logits, at)[0] for at in range(4000)], minlength=4) / 4000
    assert np.abs(drawn - [0.5, 0.25, 0.15, 0.1]).max() < 0.035
    assert {Sampling(1.0, top_k=2, seed=3).pick(logits, at)[0] for at in range(300)} == {0, 1}
    assert {Sampling(1.0, top_p=0.8, seed=3).pick(logits, at)[0] for at in range(300)} == {0, 1, 2}
    assert {Sampling(1e-3, seed=3).pick(logits, at)[0] for at in range(50)} == {0}


@settings(max_examples=200, deadline=None)
@given(st.text("ab#", max_size=20), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_text_shows_exactly_what_precedes_the_first_stop(text: str, stops: list[str], data: Any) -> None:
    holder, shown, at = StopText(stops), "", 0
    while at < len(text) and not holder.met:
        size = data.draw(st.integers(1, 4))
        shown += holder.add(text[at : at + size])
        at += size
        assert not any(stop in shown for stop in stops)
    arrived = text[:at]
    ends = [arrived.find(stop) for stop in stops if stop in arrived]
    assert holder.met == bool(ends)
    assert shown + holder.finish() == (arrived[: min(ends)] if ends else arrived)


def test_stop_string_ends_generation(model: LocalModel) -> None:
    whole = "".join(model.complete("the sea", max_tokens=24))
    stop = whole[6:9]
    assert "".join(model.complete("the sea", max_tokens=24, stop=[stop])) == whole[: whole.index(stop)]


def test_prompt_longer_than_the_context_names_both_numbers(model: LocalModel) -> None:
    with pytest.raises(UsageError, match=r"70 tokens.*64"):
        model.complete("a" * 70)
    assert len(list(generate(model.decoder, model.tokenizer, [3] * 60, max_tokens=50))) <= 4


def test_cancel_stops_between_tokens(model: LocalModel) -> None:
    asked = iter([False, False, True])
    run = generate(model.decoder, model.tokenizer, [5], max_tokens=20, cancel=lambda: next(asked))
    with pytest.raises(Cancelled):
        list(run)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0},
        {"stop": [""]}, {"seed": 1 << 70},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_before_any_work(model: LocalModel, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        generate(model.decoder, model.tokenizer, [1], **{"max_tokens": 4, **options})


def test_an_end_token_stops_and_is_not_shown(model: LocalModel) -> None:
    class Ends:
        config = model.decoder.config
        cache = staticmethod(lambda: None)

        def prefill(self, tokens: np.ndarray, cache: None) -> np.ndarray:
            return np.eye(self.config.vocab_size, dtype=np.float32)[model.tokenizer.encode("a")[0]]

        def step(self, token: int, cache: None) -> np.ndarray:
            return np.eye(self.config.vocab_size, dtype=np.float32)[2]

    made = list(generate(Ends(), model.tokenizer, [5], max_tokens=9))
    assert [(token.text, token.finish) for token in made] == [("a", None), ("", "stop")]


def test_fingerprint_follows_the_file(tmp_path: Path) -> None:
    config = hf_config()
    prints = [
        LocalModel.load(write_folder(tmp_path / str(n), config, random_weights(config, seed))).fingerprint
        for n, seed in enumerate([0, 0, 1])
    ]
    assert prints[0] == prints[1] != prints[2]
