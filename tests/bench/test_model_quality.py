"""The quality report's own parts on a tiny model: what is rounded, what it weighs, what it costs."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models.tiny_models import hf_config, random_weights, write_folder, write_gguf
from windlass.bench.models.model_quality import FORMATS, Rounded, evaluation_text, format_quality
from windlass.models.decoder import Decoder
from windlass.models.evaluate import Remembered
from windlass.models.weights import WeightSource, open_weights

TOKENS = np.random.default_rng(0).integers(0, 200, 60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> WeightSource:
    config = hf_config(intermediate_size=256)
    return open_weights(write_folder(tmp_path_factory.mktemp("model"), config, random_weights(config)))


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_take_the_format_or_its_fallback(source: WeightSource, name: str) -> None:
    rounded = Rounded(source, name)
    kinds = {tensor: rounded.meta(tensor).format for tensor in rounded.names()}
    assert kinds["output_norm.weight"] == "f32"
    assert kinds["token_embd.weight"] == (name if name in ("f16", "bf16") else "q8_0")
    assert kinds["blk.0.ffn_down.weight"] == name  # rows of 256
    assert kinds["blk.0.attn_q.weight"] == {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0"}.get(name, name)
    for tensor in ("blk.0.ffn_down.weight", "token_embd.weight", "output_norm.weight"):
        assert rounded.raw(tensor).nbytes == rounded.meta(tensor).nbytes
        assert rounded.tensor(tensor).shape == source.meta(tensor).shape
    assert rounded.weights == sum(source.tensor(tensor).size for tensor in source.names())


def test_fewer_bits_cost_more(source: WeightSource) -> None:
    found = list(format_quality(source, Remembered(Decoder(source)), TOKENS, ("f16", "q8_0", "q5_1", "q4_0")))
    divergence = [each.report.kl for each in found]
    assert divergence == sorted(divergence) and divergence[0] < 1e-4 < divergence[-1]
    assert [each.nbytes for each in found] == sorted((each.nbytes for each in found), reverse=True)
    assert all(each.bits == pytest.approx(8 * each.nbytes / Rounded(source, "f16").weights) for each in found)


def test_a_model_in_its_own_format_loses_nothing(tmp_path: Path) -> None:
    kinds = gguf.GGMLQuantizationType
    config = hf_config(tie_word_embeddings=True)
    shipped = open_weights(write_gguf(tmp_path / "m.gguf", config, random_weights(config), kinds.Q4_0, kinds.Q8_0))
    (same,) = format_quality(shipped, Remembered(Decoder(shipped)), TOKENS, ("q4_0",))
    assert same.report.kl < 1e-4 and same.report.top1 > 0.95


def test_text_comes_from_the_shared_data_or_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINDLASS_SHARED_DATA", raising=False)
    text, name = evaluation_text()
    assert len(text) > 2000 and name == "the example folder"
    import lzma

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "wikitext2_eval.txt.xz").write_bytes(lzma.compress(b"a b c"))
    monkeypatch.setenv("WINDLASS_SHARED_DATA", str(tmp_path))
    assert evaluation_text() == ("a b c", "WikiText-2")
