"""The compiled engine against the NumPy decoder with the same rounding, and against itself in other batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import hf_config, random_weights, write_folder, write_gguf
from windlass.core.errors import ModelError, UsageError
from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.tile_packing import unpack_row
from windlass.models.cpu_engine import PREFILL_CHUNK, CpuEngine
from windlass.models.cpu_head import rank
from windlass.models.cpu_packing import LAYER_MATRICES
from windlass.models.cpu_tables import CANDIDATES
from windlass.models.decoder import Decoder, rms_norm
from windlass.models.generate import LocalModel, generate
from windlass.models.gguf import GGUFSource
from windlass.models.token_batch import TokenBatch

Q = gguf.GGMLQuantizationType
TOKENS = np.random.default_rng(4).integers(0, 250, 40)


def round_activations(x: np.ndarray) -> np.ndarray:
    """What the engine makes of the inputs of a linear: int8 for each 32 channels."""
    grouped = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(grouped).max(axis=-1, keepdims=True) / np.float32(127)
    return (np.rint(grouped / np.where(scale > 0, scale, 1)) * scale).reshape(x.shape).astype(np.float32)


class RoundedDecoder(Decoder):
    """The NumPy decoder that rounds what the engine rounds: activations before each linear, and the cache."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)

        class Rounded:
            def __init__(self, linear: Any) -> None:
                self.linear = linear

            def __call__(self, x: np.ndarray) -> np.ndarray:
                return self.linear(round_activations(x))

        self._layers = [
            replace(
                layer,
                qkv=Rounded(layer.qkv),
                output=Rounded(layer.output),
                ffn=replace(layer.ffn, gate_up=Rounded(layer.ffn.gate_up), down=Rounded(layer.ffn.down)),
            )
            for layer in self._layers
        ]

    def cache(self) -> Any:
        cache = super().cache()
        cache.keys, cache.values = np.zeros(cache.keys.shape, np.float16), np.zeros(cache.keys.shape, np.float16)
        return cache

    def _to_logits(self, hidden: np.ndarray) -> np.ndarray:
        return round_activations(rms_norm(hidden, self._norm, self.config.norm_eps)) @ self._head.T


class Unpacked:
    """A source whose matrices are read back out of an engine's tiles."""

    def __init__(self, source: GGUFSource, engine: CpuEngine) -> None:
        self.config, self.path, self.names, self.meta = source.config, source.path, source.names, source.meta
        self._source, self._engine = source, engine

    def tensor(self, name: str) -> np.ndarray:
        layer, slot = self.config.n_layers, {"token_embd.weight": 0, "output.weight": 1}.get(name)
        if name.startswith("blk."):
            _, number, stem, kind = name.split(".")
            layer = int(number)
            slot = LAYER_MATRICES.index(stem) if stem in LAYER_MATRICES and kind == "weight" else None
        if slot is None:
            return self._source.tensor(name)
        kind_number, at, lower, rows, blocks, _ = self._engine.packed.plan[layer, slot]
        matrix = np.zeros((rows, 32 * blocks), np.float32)
        for row in range(rows):
            unpack_row(
                self._engine.packed.arena,
                at,
                lower,
                kind_number,
                32 * blocks,
                row,
                matrix.reshape(-1),
                row * 32 * blocks,
            )
        return matrix


def check_against_reference(source: GGUFSource, engine: CpuEngine) -> np.ndarray:
    """Nearly every token to float32 rounding; a few may differ by one code where a value lay between two."""
    ours = engine.logits(TOKENS)
    expected = RoundedDecoder(Unpacked(source, engine)).logits(TOKENS)
    errors = [relative(a, b) for a, b in zip(ours, expected, strict=True)]
    assert np.median(errors) <= 1e-5 and max(errors) <= 0.03
    return ours


def shape(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 700}
    return hf_config(arch, **{**sizes, **changes})


def write(path: Path, config: dict[str, Any], linear: Any = Q.Q4_1, head: Any = Q.Q8_0, **metadata: Any) -> GGUFSource:
    return GGUFSource(write_gguf(path / "m.gguf", config, random_weights(config, 1), linear, head, **metadata))


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (shape(), {}),
    "tied": (shape(tie_word_embeddings=True), {}),
    "three heads a key": (shape(num_attention_heads=6, num_key_value_heads=2), {}),
    "window": (shape(), {"llama.attention.sliding_window": 9}),
    "qwen2 bias": (shape("qwen2"), {}),
    "qwen3 norm": (shape("qwen3", head_dim=32), {}),
    "rows not in tiles": (shape(intermediate_size=160, num_attention_heads=2, num_key_value_heads=1), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_rounded_reference(name: str, tmp_path: Path) -> None:
    config, metadata = CASES[name]
    source = write(tmp_path, config, **metadata)
    engine = CpuEngine(source, threads=2)
    ours = check_against_reference(source, engine)
    assert relative(ours, Decoder(source).logits(TOKENS)) <= 0.05
    engine.close()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_every_storage_format_runs(name: str, tmp_path: Path) -> None:
    source = write(tmp_path, shape(num_hidden_layers=1), Q[name], Q[name])
    engine = CpuEngine(source, threads=1)
    check_against_reference(source, engine)
    weights = source.tensor("blk.0.ffn_down.weight")
    error = np.abs(Unpacked(source, engine).tensor("blk.0.ffn_down.weight") - weights)
    assert error.max() <= (0 if name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0") else np.abs(weights).max() / 250)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_super_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library cannot write these formats, so random blocks with small scales stand in for weights."""
    config = shape(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1)
    rng = np.random.default_rng(0)
    block = gguf.GGML_QUANT_SIZES[Q[name]][1]

    def random_blocks(weight: np.ndarray, kind: Any) -> np.ndarray:
        made = rng.integers(0, 256, (weight.shape[0], weight.shape[1] // 256, block), dtype=np.uint8)
        halves = [208] if name == "Q6_K" else [0, 2]
        for at in halves:
            size = rng.uniform(1e-4, 4e-4, made.shape[:2]).astype(np.float16)
            made[:, :, at : at + 2] = size[:, :, None].view(np.uint8)
        return made.reshape(weight.shape[0], -1)

    monkeypatch.setattr(gguf.quants, "quantize", random_blocks)
    source = write(tmp_path, config, Q[name], Q[name])
    engine = CpuEngine(source, threads=1)
    check_against_reference(source, engine)
    weights = source.tensor("blk.0.ffn_down.weight")
    error = np.abs(Unpacked(source, engine).tensor("blk.0.ffn_down.weight") - weights)
    assert error.max() <= np.abs(weights).max() * (1 / 1000 if name == "Q4_K" else 1 / 250)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CpuEngine:
    return CpuEngine(write(tmp_path_factory.mktemp("engine"), shape(), **CASES["window"][1]), threads=2)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.data())
def test_prefill_steps_truncate_and_fork_give_the_same_bits(engine: CpuEngine, length: int, data: Any) -> None:
    tokens = np.random.default_rng(length).integers(0, 250, length)
    whole = engine.logits(tokens)
    cut = data.draw(st.integers(1, length - 1))
    cache = engine.cache()
    assert np.array_equal(engine.prefill(tokens[:cut], cache), whole[cut - 1])
    twin = cache.fork()
    engine.prefill(np.array([7, 8, 9]), twin)
    for position in range(cut, length):
        assert np.array_equal(engine.step(int(tokens[position]), cache), whole[position])
    cache.truncate(cut)
    twin.truncate(cut)
    for sequence in (twin, cache):
        assert np.array_equal(engine.step(int(tokens[cut]), sequence), whole[cut])
    engine._pool.check_integrity()


def test_prompts_longer_than_a_chunk_and_several_pages(engine: CpuEngine) -> None:
    tokens = np.random.default_rng(1).integers(0, 250, PREFILL_CHUNK + CHUNK + 3)
    together, stepwise = engine.cache(), engine.cache()
    last = engine.prefill(tokens, together)
    for token in tokens:
        stepped = engine.step(int(token), stepwise)
    assert np.array_equal(last, stepped)


def test_a_batch_gives_each_sequence_its_own_bits(engine: CpuEngine) -> None:
    prompts = [TOKENS[:5], TOKENS[5:30], TOKENS[3:4], TOKENS[10:27], TOKENS[:16]]
    alone = []
    for number, prompt in enumerate(prompts):
        cache = engine.cache()
        engine.prefill(prompt, cache)
        alone.append(engine.step(number, cache))
    caches = [engine.cache() for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        engine.prefill(prompt, cache)
    assert np.array_equal(engine.step_batch(np.arange(5), caches), np.stack(alone))
    with pytest.raises(UsageError, match="each needs exactly one"):
        engine.step_batch(np.arange(2), [caches[0], caches[0]])


def test_the_likeliest_token_is_the_best_logit(engine: CpuEngine) -> None:
    caches = [engine.cache() for _ in range(3)]
    for length, cache in zip((1, 7, 300), caches, strict=True):
        tokens = np.random.default_rng(length).integers(0, 250, length)
        expected = engine.prefill(tokens, engine.cache())
        assert engine.likeliest(tokens, cache) == expected.argmax()
    pool = engine.new_pool(pages=8)
    batch = TokenBatch.contiguous([TOKENS[:5], TOKENS[:20], TOKENS[7:9]], [[0], [3, 1], [2]], [0, 0, 0], 16)
    expected_rows = engine.forward_tokens(batch, pool).argmax(axis=1)
    assert engine.forward_greedy(batch, pool).tolist() == expected_rows.tolist()
    every = replace(batch, out_rows=np.arange(27))
    assert engine.forward_greedy(every, pool).tolist() == engine.forward_tokens(every, pool).argmax(axis=1).tolist()


def test_ranking_finds_the_highest_tiles() -> None:
    tops = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    ranked, candidates = np.zeros(CANDIDATES, np.float32), np.zeros(CANDIDATES, np.int64)
    for part in (tops, tops[::-1].copy(), np.sort(tops), tops[:10]):
        rank(part, 0, len(part), ranked, candidates)
        count = min(len(part), CANDIDATES)
        assert candidates[:count].tolist() == np.argsort(-part, kind="stable")[:count].tolist()


def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path) -> None:
    source = write(tmp_path, shape(num_attention_heads=6, num_key_value_heads=2))
    engines = [CpuEngine(source, threads=threads) for threads in (1, 2, 3, 5)]
    results = [engine.logits(TOKENS) for engine in engines]
    for engine, logits in zip(engines, results, strict=True):
        assert np.array_equal(logits, results[0])
        cache = engine.cache()
        steps = np.stack([engine.step(int(token), cache) for token in TOKENS])
        assert np.array_equal(steps, results[0])
        engine.close()


def test_pages_return_when_caches_go(engine: CpuEngine) -> None:
    before = sum(owners > 0 for owners in engine._pool.owners)
    cache = engine.cache()
    engine.prefill(TOKENS, cache)
    twin = cache.fork()
    assert cache.nbytes == 3 * engine._pool.page_bytes
    del cache
    engine._pool.check_integrity()
    assert sum(owners > 0 for owners in engine._pool.owners) == before + 3
    del twin
    engine._pool.check_integrity()
    assert sum(owners > 0 for owners in engine._pool.owners) == before


def test_weights_take_no_more_than_the_file(engine: CpuEngine, tmp_path: Path) -> None:
    source = write(tmp_path, shape())
    assert CpuEngine(source, threads=1).nbytes <= 1.05 * (tmp_path / "m.gguf").stat().st_size


def test_damage_and_odd_shapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="head_dim is 8"):
        CpuEngine(write(tmp_path, hf_config(hidden_size=32)))
    config = shape()
    source = write(tmp_path, config)
    meta = source.meta("blk.1.ffn_down.weight")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[meta.offset : meta.offset + 2] = b"\x00\x7e"
    (tmp_path / "nan.gguf").write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_down\.weight holds NaN"):
        CpuEngine(GGUFSource(tmp_path / "nan.gguf"))
    with pytest.raises(UsageError, match="threads is 0"):
        CpuEngine(source, threads=0)


@pytest.mark.parametrize(("tokens", "said"), [([], "empty"), ([99999], "99999"), ([-1], "-1"), ([0] * 701, "700")])
def test_wrong_tokens_are_refused(engine: CpuEngine, tokens: list[int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        engine.prefill(np.array(tokens, np.int64), engine.cache())


def test_local_model_picks_the_engine_by_the_file(tmp_path: Path) -> None:
    config = shape(num_hidden_layers=1)
    weights = random_weights(config)
    quantised = LocalModel.load(write_gguf(tmp_path / "q.gguf", config, weights, Q.Q4_1, Q.Q8_0))
    plain = LocalModel.load(write_gguf(tmp_path / "f.gguf", config, weights))
    folder = write_folder(tmp_path / "hf", config, weights)
    assert isinstance(quantised.decoder, CpuEngine) and isinstance(plain.decoder, Decoder)
    assert isinstance(LocalModel.load(folder).decoder, Decoder)
    compiled = LocalModel.load(folder, engine="compiled", threads=1)
    prompt = compiled.tokenizer.encode("the sea")
    made = [token.id for token in generate(compiled.decoder, compiled.tokenizer, prompt, max_tokens=5)]
    assert len(made) >= 1 and isinstance(compiled.decoder, CpuEngine)
