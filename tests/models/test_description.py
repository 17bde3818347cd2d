"""What `windlass models inspect` says, held against models whose facts are known."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.tiny_models import hf_config, moe_config, random_weights, write_folder, write_gguf
from windlass.core.errors import ModelError, NotFound
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.description import describe


def test_a_plain_folder(tmp_path: Path) -> None:
    config = hf_config()
    weights = random_weights(config)
    path = write_folder(tmp_path, config, weights)
    found = describe(path)
    assert found.parameters == found.active_parameters == sum(weight.size for weight in weights.values())
    assert found.file_bytes == sum(weight.nbytes for weight in weights.values())
    assert (found.engine, found.chat_template, found.tokenizer) == ("numpy", True, config["vocab_size"])
    cache = Decoder.load(path).cache()
    assert found.cache_bytes_per_token == cache.nbytes // cache.keys.shape[2]


def test_a_quantised_file_tells_the_memory_of_the_compiled_engine(tmp_path: Path) -> None:
    config = hf_config(hidden_size=64, head_dim=16, intermediate_size=96)
    kinds = gguf.GGMLQuantizationType
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kinds.Q4_1, kinds.Q8_0)
    found = describe(path)
    assert (found.engine, found.obstacle) == ("compiled", None)
    assert [share.format for share in found.formats] == ["q4_1", "q8_0", "f32"]
    engine = CpuEngine.load(path)
    assert found.weight_bytes == pytest.approx(engine.nbytes, rel=0.1)
    assert found.memory_at_full_context == found.weight_bytes + 64 * found.cache_bytes_per_token


def test_experts_that_sleep_are_not_counted_as_active(tmp_path: Path) -> None:
    config = moe_config("qwen3_moe")
    found = describe(write_folder(tmp_path, config, random_weights(config)))
    assert (found.experts, found.active_experts) == (4, 2)
    assert found.parameters - found.active_parameters == 1 * 2 * 3 * 24 * 32
    assert found.obstacle is not None and "experts" in found.obstacle


def test_a_missing_tokenizer_is_said_and_not_fatal(tmp_path: Path) -> None:
    config = hf_config()
    path = write_folder(tmp_path, config, random_weights(config))
    (path / "tokenizer.json").unlink()
    found = describe(path)
    assert found.tokenizer is None and found.tokenizer_fault is not None and "tokenizer.json" in found.tokenizer_fault


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        describe(tmp_path / "none.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(np.zeros(40, np.uint8)))
    with pytest.raises(ModelError):
        describe(tmp_path / "m.gguf")
