"""Adapters read from disk, laid out in pages, and applied by the compiled engine, against merged weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.models.adapters import Deltas, merged, write_adapter
from tests.models.test_cpu_engine import (
    TOKENS,
    Q,
    RoundedDecoder,
    Unpacked,
    relative,
    shape,
    write,
)
from tests.models.tiny_models import random_weights, write_folder
from windlass.core.errors import AdapterError, UsageError
from windlass.models.adapter import Adapter, read_adapter
from windlass.models.adapter_tables import AdapterTables, Layout, PlacedAdapter, TokenAdapters
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.gguf import GGUFSource
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch


def place(adapters: list[Adapter], pool: PagePool, config: Any) -> AdapterTables:
    """Put adapters into pages of the pool, far apart and out of order."""
    placed = []
    for adapter in adapters:
        layout = Layout.of(adapter, pool.data.shape[1])
        one = PlacedAdapter(adapter, layout, tuple(reversed(pool.take_many(layout.pages))))
        one.write(pool.data)
        placed.append(one)
    return AdapterTables.of(placed, pool.data.shape[1], config)


def run(engine: CpuEngine, tables: AdapterTables, pool: PagePool, parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Logits after every token of whole prompts, each with an adapter's number or -1, all in one batch."""
    tokens = [part for part, _ in parts]
    pages = [pool.take_many(-(-len(part) // pool.page_tokens)) for part in tokens]
    batch = TokenBatch.contiguous(tokens, pages, [0] * len(parts), pool.page_tokens, wanted="every")
    slots = np.concatenate([np.full(len(part), slot, np.int64) for part, slot in parts])
    logits = engine.forward_tokens(batch, pool, TokenAdapters(slots, tables))
    for page in [page for part in pages for page in part]:
        pool.release(page)
    return logits


class Adapted(RoundedDecoder):
    """The rounded reference, every linear of which also adds what an adapter's plain matrices make of its input."""

    def __init__(self, source: Any, deltas: Deltas) -> None:
        super().__init__(source)
        config = self.config

        def rows(delta: np.ndarray, module: int) -> np.ndarray:
            if module > 1 or config.rope_style != "interleaved":
                return delta
            return delta.reshape(-1, 2, config.head_dim // 2, delta.shape[1]).swapaxes(1, 2).reshape(delta.shape)

        def adapted(linear: Any, layer: int, modules: list[int], sizes: list[int]) -> Any:
            parts = []
            for module, size in zip(modules, sizes, strict=True):
                delta = deltas.get((layer, module))
                parts.append(np.zeros((size, 1)) if delta is None else rows(delta, module))
            width = max(part.shape[1] for part in parts)
            whole = np.concatenate([part if part.shape[1] == width else np.zeros((len(part), width)) for part in parts])
            if width == 1:
                return linear
            return lambda x: (linear(x) + x @ whole.T).astype(np.float32)

        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        inner, hidden = config.intermediate_size, config.hidden_size
        self._layers = [
            replace(
                layer,
                qkv=adapted(layer.qkv, at, [0, 1, 2], [q, kv, kv]),
                output=adapted(layer.output, at, [3], [hidden]),
                ffn=replace(
                    layer.ffn,
                    gate_up=adapted(layer.ffn.gate_up, at, [4, 5], [inner, inner]),
                    down=adapted(layer.ffn.down, at, [6], [hidden]),
                ),
            )
            for at, layer in enumerate(self._layers)
        ]


SHAPES = {
    "llama": shape(),
    "three heads a key": shape(num_attention_heads=6, num_key_value_heads=2),
    "qwen2 bias": shape("qwen2"),
    "qwen3 norm": shape("qwen3", head_dim=32),
    "rows not in tiles": shape(intermediate_size=160, num_attention_heads=2, num_key_value_heads=1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_mixed_batch_gives_each_request_its_own_adapter(name: str, tmp_path: Path) -> None:
    config = SHAPES[name]
    source = write(tmp_path, config)
    engine = CpuEngine(source, threads=2)
    kinds: list[dict[str, Any]] = [
        {"rank": 1},
        {"rank": 8, "alpha": 20.0, "modules": [0, 1, 2, 3]},
        {"rank": [3, 64, 8], "dtype": np.float16},
        {"rank": 5, "use_rslora": True, "modules": [4, 6], "layers": [1]},
    ]
    deltas = [write_adapter(tmp_path / f"a{seed}", config, seed=seed, **kind) for seed, kind in enumerate(kinds)]
    adapters = [read_adapter(tmp_path / f"a{seed}", source.config) for seed in range(len(kinds))]
    pool = engine.new_pool(pages=400)
    tables = place(adapters, pool, source.config)
    parts = [(TOKENS[:9], 0), (TOKENS[3:30], 2), (TOKENS[:12], -1), (TOKENS[:1], 3), (TOKENS[5:20], 1), (TOKENS, 3)]
    together = run(engine, tables, pool, parts)
    at, errors = 0, []
    for tokens, slot in parts:
        ours, at = together[at : at + len(tokens)], at + len(tokens)
        alone = run(engine, tables, pool, [(tokens, slot)])
        assert (alone == ours).all(), "a request's logits depend on its batch"
        reference = Adapted(Unpacked(source, engine), deltas[slot] if slot >= 0 else {}).logits(tokens)
        errors += [relative(a, b) for a, b in zip(ours, reference, strict=True)]
    # A value that lies between two codes may round the other way, which later tokens of its request then see.
    assert np.median(errors) <= 2e-5 and max(errors) <= 0.05
    engine.close()


def test_rows_of_queries_and_keys_are_those_of_the_model_file(tmp_path: Path) -> None:
    """GGUF stores them in another order than the folder that an adapter was trained on."""
    config = shape()
    weights = random_weights(config, 1)
    deltas = write_adapter(tmp_path / "a", config, 8, modules=[0, 1], strength=1.5)
    whole = Decoder.load(write_folder(tmp_path / "merged", config, merged(weights, deltas))).logits(TOKENS)
    plain = Decoder.load(write_folder(tmp_path / "plain", config, weights)).logits(TOKENS)
    for source in (write(tmp_path, config, Q.Q8_0), None):
        engine = CpuEngine(source, threads=1) if source else CpuEngine.load(tmp_path / "plain", threads=1)
        pool = engine.new_pool(pages=100)
        tables = place([read_adapter(tmp_path / "a", engine.config)], pool, engine.config)
        ours = run(engine, tables, pool, [(TOKENS, 0)])
        assert relative(ours, whole) < 0.1 < 0.3 < relative(ours, plain)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFSource]:
    yield write(tmp_path_factory.mktemp("tiny"), shape())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), page_elements=st.sampled_from([96, 100, 511, 4096, 1 << 20]))
def test_a_layout_holds_every_vector_whole(seed: int, page_elements: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([16, 32, 64, 96], 50).astype(np.int64)
    values = rng.integers(0, 1 << 16, int(lengths.sum())).astype(np.uint16)
    adapter = Adapter(values, lengths, np.zeros((1, 7, 3), np.int64), np.zeros((1, 7), np.float32), (), "", "")
    layout = Layout.of(adapter, page_elements)
    pages = rng.permutation(layout.pages + 5)[: layout.pages]
    data = np.zeros((layout.pages + 5, page_elements), np.uint16)
    PlacedAdapter(adapter, layout, tuple(pages.tolist())).write(data)
    assert (layout.offsets + lengths <= page_elements).all()
    found = [data[pages[p], o : o + n] for p, o, n in zip(layout.page_of, layout.offsets, lengths, strict=True)]
    assert (np.concatenate(found) == values).all()
    assert layout.pages <= -(-len(values) // (page_elements - 95))


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHER = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def reshaped(name: str, shape: tuple[int, ...]) -> Any:
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


def spoiled(value: float) -> Any:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[FIRST][0, 0] = value

    return change


BAD_TENSORS: dict[str, tuple[Any, str]] = {
    "nan": (spoiled(float("nan")), "lora_A"),
    "infinite": (spoiled(float("inf")), "lora_A"),
    "too large for half precision": (spoiled(1e6), "lora_A"),
    "rank 0": (reshaped(FIRST, (0, 64)), "rank"),
    "another model": (reshaped(FIRST, (8, 32)), "another model"),
    "ranks differ": (reshaped(OTHER, (64, 4)), "q_proj.lora_B"),
    "half is missing": (lambda tensors: tensors.pop(OTHER), "counterpart"),
    "no such layer": (lambda tensors: tensors.update({FIRST.replace("0", "9"): tensors[FIRST]}), "layer 9"),
    "unknown target": (lambda tensors: tensors.update({FIRST.replace("q_proj", "x_proj"): tensors[FIRST]}), "x_proj"),
    "embedding": (
        lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": tensors[FIRST]}),
        "lm_head",
    ),
    "integers": (lambda tensors: tensors.update({FIRST: np.zeros((8, 64), np.int32)}), "int32"),
    "empty": (lambda tensors: tensors.clear(), "empty"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_broken_tensors_are_named(name: str, tmp_path: Path, tiny: GGUFSource) -> None:
    change, said = BAD_TENSORS[name]
    write_adapter(tmp_path, shape(), 8)
    rewrite(tmp_path, change)
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path, tiny.config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "LoRA"),
        ({"r": 16}, "rank 8"),
        ({"lora_alpha": "big"}, "lora_alpha"),
        ({"rank_pattern": {"(": 8}}, "pattern"),
    ],
)
def test_other_kinds_of_adapters_are_refused(settings: Any, said: str, tmp_path: Path, tiny: GGUFSource) -> None:
    write_adapter(tmp_path, shape(), 8, **settings)
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path, tiny.config)


def test_files_that_cannot_be_read(tmp_path: Path, tiny: GGUFSource) -> None:
    with pytest.raises(AdapterError, match="adapter_config"):
        read_adapter(tmp_path / "nowhere", tiny.config)
    write_adapter(tmp_path / "cut", shape(), 8)
    path = tmp_path / "cut" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="truncated or damaged"):
        read_adapter(tmp_path / "cut", tiny.config)
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(AdapterError, match="pickle"):
        read_adapter(tmp_path / "cut", tiny.config)
    (tmp_path / "cut" / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not JSON"):
        read_adapter(tmp_path / "cut", tiny.config)
    (tmp_path / "cut" / "adapter_config.json").write_text(json.dumps([1]))
    with pytest.raises(AdapterError, match="LoRA"):
        read_adapter(tmp_path / "cut", tiny.config)


def test_a_step_refuses_adapters_of_another_model_or_pool(tmp_path: Path, tiny: GGUFSource) -> None:
    engine = CpuEngine(tiny, threads=1)
    write_adapter(tmp_path / "a", shape(), 8)
    adapter = read_adapter(tmp_path / "a", tiny.config)
    pool, small = engine.new_pool(pages=60), engine.new_pool(pages=4)
    tables = place([adapter], pool, tiny.config)
    with pytest.raises(UsageError, match="end at element"):
        run(engine, tables, small, [(TOKENS[:3], 0)])
    with pytest.raises(UsageError, match="adapter 1"):
        run(engine, tables, pool, [(TOKENS[:3], 1)])
    write_adapter(tmp_path / "other", shape(intermediate_size=128), 8)
    with pytest.raises(AdapterError, match="another model"):
        read_adapter(tmp_path / "other", tiny.config)
