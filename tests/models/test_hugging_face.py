"""Folders written for other libraries: read back by ourselves here, by `transformers` where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.test_decoder import CASES, TOKENS
from tests.models.tiny_models import hf_config, random_weights, write_folder, write_gguf
from windlass.core.errors import UsageError
from windlass.models.decoder import Decoder
from windlass.models.gguf import GGUFSource
from windlass.models.hugging_face import save_hugging_face
from windlass.models.weights import open_weights

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SCALED = {
    "llama3": hf_config(rope_scaling=LLAMA3),
    "yarn": hf_config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
}
ALL = CASES | SCALED


def exported(name: str, form: str, tmp_path: Path) -> tuple[Decoder, Path]:
    """A decoder and the folder it was exported to."""
    config: dict[str, Any] = ALL[name]
    if form == "gguf":
        path = write_gguf(tmp_path / "m.gguf", config, random_weights(config))
    else:
        path = write_folder(tmp_path / "source", config, random_weights(config))
    source = open_weights(path)
    save_hugging_face(tmp_path / "out", source.config, {key: source.tensor(key) for key in source.names()})
    return Decoder(source), tmp_path / "out"


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    before, folder = exported(name, "folder", tmp_path)
    after = Decoder.load(folder)
    assert after.config == before.config
    assert np.array_equal(after.logits(np.array(TOKENS)), before.logits(np.array(TOKENS)))


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2 experts", "olmoe"])
def test_gguf_becomes_a_folder(name: str, tmp_path: Path) -> None:
    before, folder = exported(name, "gguf", tmp_path)
    after = Decoder.load(folder)
    assert after.config.rope_style == "half"
    assert np.allclose(after.logits(np.array(TOKENS)), before.logits(np.array(TOKENS)), atol=1e-3)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    config = hf_config()
    source = open_weights(write_folder(tmp_path / "source", config, random_weights(config)))
    tensors = {key: source.tensor(key) for key in source.names()}
    for dtype in ("float32", "float16"):
        save_hugging_face(tmp_path / dtype, source.config, tensors, dtype=dtype)
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float32", "float16")]
    assert sizes[1] < 0.6 * sizes[0]
    assert json.loads((tmp_path / "float16" / "config.json").read_text())["dtype"] == "float16"


def test_rotary_factors_in_a_tensor_are_refused(tmp_path: Path) -> None:
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", hf_config(), random_weights(hf_config())))
    object.__setattr__(source.config, "rope_scaling", {"type": "factors", "tensor": "rope_freqs.weight"})
    with pytest.raises(UsageError, match="rotary factors"):
        save_hugging_face(tmp_path / "out", source.config, {})


@pytest.mark.peers
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("wide heads",)])
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_transformers_reads_it(name: str, form: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from windlass.models.torch_decoder import DecoderLM

    if form == "gguf" and (name in SCALED or name in ("qwen3 experts", "olmoe renormalised")):
        pytest.skip("GGUF has no such variant")
    before, folder = exported(name, form, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    ours = before.logits(np.array(TOKENS))
    assert np.abs(theirs - ours).max() <= 1e-4 * max(1.0, np.abs(ours).max())
    again = tmp_path / "again"
    module = DecoderLM.load(folder)
    save_hugging_face(again, module.config, module.tensors())
    assert np.allclose(Decoder.load(again).logits(np.array(TOKENS)), ours, atol=1e-3)
