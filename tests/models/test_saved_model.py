"""A saved model folder: everything comes back, damage is named, and a crash leaves the old model or the new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import windlass.models
from tests.models.tiny_models import hf_config, moe_config, random_weights, write_folder, write_gguf
from windlass.core import storage
from windlass.core.errors import ModelError, NotFound
from windlass.models.block_formats import QuantTensor
from windlass.models.block_quantize import quantize
from windlass.models.decoder import Decoder
from windlass.models.saved_model import MANIFEST, SavedSource, save_model
from windlass.models.store import locate
from windlass.models.transforms import TransformPlan
from windlass.models.weights import open_weights

PLANS = [TransformPlan("quantize", {"format": "q4_1"}, {"blk.0.ffn_up.weight": "q8_0"})]
TOKENS = np.arange(5, 25)


def quantised(source: Any, name: str = "q4_1") -> dict[str, Any]:
    """The matrices of a source in a block format, the rest as they are."""
    tensors: dict[str, Any] = {}
    for tensor in source.names():
        values = source.tensor(tensor)
        tensors[tensor] = quantize(values, name) if values.ndim > 1 else values
    return tensors


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_everything_comes_back(form: str, tmp_path: Path) -> None:
    config = hf_config()
    weights = random_weights(config)
    if form == "folder":
        path = write_folder(tmp_path / "source", config, weights)
    else:
        path = write_gguf(tmp_path / "m.gguf", config, weights, gguf.GGMLQuantizationType.Q8_0)
    original = windlass.models.load(path, engine="numpy")
    source = open_weights(path)
    kept = source.metadata if form == "gguf" else path  # type: ignore[attr-defined]
    tensors = quantised(source)
    save_model(tmp_path / "saved", source.config, tensors, plans=PLANS, parent=source.fingerprint, tokenizer=kept)
    saved = open_weights(locate(tmp_path / "saved"))
    assert isinstance(saved, SavedSource)
    assert (saved.config, saved.plans, saved.parent) == (source.config, PLANS, source.fingerprint)
    assert sorted(saved.names()) == sorted(source.names())
    for name, tensor in tensors.items():
        expected = tensor if isinstance(tensor, np.ndarray) else tensor.dequantize()
        assert np.array_equal(saved.tensor(name), expected) and saved.meta(name).shape == expected.shape
    loaded = windlass.models.load(tmp_path / "saved", engine="numpy")
    assert loaded.tokenizer.chat([{"role": "user", "content": "the sea"}]) == original.tokenizer.chat(
        [{"role": "user", "content": "the sea"}]
    )
    assert loaded.forward(TOKENS[None]).shape == (1, 20, config["vocab_size"])
    assert type(windlass.models.load(tmp_path / "saved").decoder).__name__ in ("CpuEngine", "Decoder")


def test_codes_with_scales_come_back_packed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = open_weights(write_folder(tmp_path / "source", hf_config(), random_weights(hf_config())))
    tensors: dict[str, Any] = {name: source.tensor(name) for name in source.names()}
    halves = rng.standard_normal((64, 2)).astype(np.float16).astype(np.float32)
    exact = rng.standard_normal((64, 2)).astype(np.float32)
    signed = QuantTensor("w4g16", (64, 32), rng.integers(-8, 8, (64, 32)).astype(np.int8), halves, None, 16)
    wide = QuantTensor(
        "w8g16", (64, 32), rng.integers(0, 256, (64, 32)).astype(np.uint8), exact, exact + 1, 16, rng.permutation(32)
    )
    tensors["blk.0.ffn_up.weight"], tensors["blk.1.ffn_up.weight"] = signed, wide
    save_model(tmp_path / "saved", source.config, tensors)
    saved = SavedSource(tmp_path / "saved")
    for name, expected in (("blk.0.ffn_up.weight", signed), ("blk.1.ffn_up.weight", wide)):
        found = saved.quantized(name)
        assert found is not None and (found.format, found.shape, found.group) == (expected.format, (64, 32), 16)
        assert np.array_equal(found.codes, expected.codes) and np.array_equal(found.scales, expected.scales)
        assert np.array_equal(found.dequantize(), expected.dequantize())
        assert np.array_equal(saved.tensor(name), expected.dequantize())
    assert saved.meta("blk.0.ffn_up.weight").nbytes == 64 * 32 // 2 + 64 * 2 * 2
    assert saved.quantized("blk.0.attn_q.weight") is None


def test_a_model_with_experts_comes_back(tmp_path: Path) -> None:
    config = moe_config("qwen3_moe")
    source = open_weights(write_folder(tmp_path / "source", config, random_weights(config)))
    save_model(tmp_path / "saved", source.config, {name: source.tensor(name) for name in source.names()})
    before, after = Decoder(source), Decoder(open_weights(tmp_path / "saved"))
    assert np.array_equal(before.logits(TOKENS), after.logits(TOKENS))


class _Crash(Exception):
    pass


def test_a_crash_while_saving_over_a_model_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before each operation on the disk in turn; what is there must open and be old or new, whole."""
    source = open_weights(write_folder(tmp_path / "source", hf_config(), random_weights(hf_config())))
    old = {name: source.tensor(name) for name in source.names()}
    new = {name: values * np.float32(0.5) for name, values in old.items()}
    seen = set()
    for limit in range(30):
        folder = tmp_path / f"saved{limit}"
        save_model(folder, source.config, old)
        steps = iter(range(limit))

        def crashing(operation: Any, steps: Any = steps) -> Any:
            def wrapped(*arguments: Any) -> Any:
                if next(steps, None) is None:
                    raise _Crash
                return operation(*arguments)

            return wrapped

        with monkeypatch.context() as patched:
            for name in ("create", "fsync", "rename", "fsync_folder"):
                patched.setattr(storage.LOCAL_DISK, name, crashing(getattr(storage.LOCAL_DISK, name)), raising=False)
            try:
                save_model(folder, source.config, new)
                finished = True
            except _Crash:
                finished = False
        values = SavedSource(folder).tensor("blk.0.ffn_up.weight")
        is_new = np.array_equal(values, new["blk.0.ffn_up.weight"])
        assert is_new or np.array_equal(values, old["blk.0.ffn_up.weight"])
        assert is_new or not finished
        seen.add(is_new)
        if finished:
            assert len(list(folder.glob("weights-*"))) == 1
            break
        shutil.rmtree(folder)
    assert seen == {True, False} and finished


def damaged(folder: Path, change: Any) -> None:
    content = storage.read_manifest(folder / MANIFEST, 1)
    change(content)
    storage.write_manifest(folder / MANIFEST, 1, content)


DAMAGE: dict[str, Any] = {
    "no config": lambda content: content.pop("config"),
    "config of text": lambda content: content["config"].update(hidden_size="big"),
    "impossible config": lambda content: content["config"].update(n_heads=0),
    "unknown field": lambda content: content["config"].update(colour=3),
    "weights elsewhere": lambda content: content.update(weights="../../etc/passwd"),
    "no weights": lambda content: content.update(weights="weights-0.safetensors"),
    "no packing": lambda content: content.update(packed=7),
    "wrong shape": lambda content: content["packed"]["blk.0.ffn_up.weight"].update(shape=[64, 64]),
    "huge shape": lambda content: content["packed"]["blk.0.ffn_up.weight"].update(shape=[1 << 40, 1 << 40]),
    "unknown format": lambda content: content["packed"]["blk.0.ffn_up.weight"].update(format="q9"),
    "packed and absent": lambda content: content["packed"].update(extra={"format": "q8_0", "shape": [32], "blocks": 1}),
    "codes without group": lambda content: content["packed"]["blk.0.ffn_up.weight"].pop("blocks"),
    "plans of text": lambda content: content.update(plans="quantize"),
    "a strange plan": lambda content: content.update(plans=[{"name": "x"}]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    source = open_weights(write_folder(root / "source", hf_config(), random_weights(hf_config())))
    save_model(root / "saved", source.config, quantised(source))
    return root / "saved"


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    damaged(folder, DAMAGE[name])
    with pytest.raises((ModelError, NotFound), match=r"copy"):
        open_weights(folder)


def test_a_changed_byte_and_a_newer_format_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(ModelError, match="99"):
        open_weights(folder)
    document["content"]["parent"] = "someone else"
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ModelError, match="checksum"):
        open_weights(folder)


def test_a_changed_weight_is_found_by_verify(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    SavedSource(folder).verify()
    (path,) = folder.glob("weights-*")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="not what was saved"):
        SavedSource(folder).verify()
