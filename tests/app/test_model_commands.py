"""`windlass models inspect` and `windlass generate` on tiny models, as a person meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest

from tests.models.tiny_models import hf_config, moe_config, random_weights, write_folder, write_gguf
from windlass.app import cli


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def windlass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["windlass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = hf_config(hidden_size=32, head_dim=16, intermediate_size=32, max_position_embeddings=256)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    kinds = gguf.GGMLQuantizationType
    return write_gguf(path, config, random_weights(config), kinds.Q4_1, kinds.Q8_0)


def test_inspect_names_shape_formats_and_engine(model: Path, windlass: Callable[..., Result]) -> None:
    result = windlass("models", "inspect", model)
    assert result.status == 0
    for said in ("llama: 2 layers of 32", "q4_1", "q8_0", "256 tokens", "with a chat template", "compiled"):
        assert said in result.out, said
    found = json.loads(windlass("models", "inspect", model, "--json").out)
    assert found["engine"] == "compiled" and found["obstacle"] is None and found["context"] == 256
    assert [share["format"] for share in found["formats"]] == ["q8_0", "q4_1", "f32"]
    assert found["file_bytes"] == sum(share["nbytes"] for share in found["formats"])


def test_inspect_says_why_a_model_is_not_compiled(tmp_path: Path, windlass: Callable[..., Result]) -> None:
    config = moe_config("mixtral")
    folder = write_folder(tmp_path / "experts", config, random_weights(config))
    result = windlass("models", "inspect", folder)
    assert "2 of 5 experts" in result.out and "active" in result.out and "not compiled: it has experts" in result.out
    assert windlass("models", "inspect", tmp_path / "none").status == 2
    (tmp_path / "broken.gguf").write_bytes(model_start := b"GGUF" + bytes(20))
    result = windlass("models", "inspect", tmp_path / "broken.gguf")
    assert result.status == 1 and "broken.gguf" in result.err and len(model_start) == 24


@pytest.mark.parametrize("engine", ["auto", "numpy"])
def test_generate_prints_what_the_json_holds(model: Path, engine: str, windlass: Callable[..., Result]) -> None:
    options = ("--max-tokens", 12, "--engine", engine)
    result = windlass("generate", model, "the harbour", *options)
    found = json.loads(windlass("generate", model, "the harbour", *options, "--json").out)
    assert result.status == 0 and result.out == found["text"] + "\n"
    assert found["tokens"] == 12 and found["finish"] == "length" and found["tokens_per_second"] > 0
    assert found["engine"] == {"auto": "compiled"}.get(engine, engine)
    assert "12 tokens" in result.err and "tokens/s" in result.err


def test_the_seed_decides_and_raw_leaves_the_template_out(model: Path, windlass: Callable[..., Result]) -> None:
    def made(*options: object) -> dict[str, object]:
        return json.loads(windlass("generate", model, "the sea", "--max-tokens", 10, "--json", *options).out)

    hot = ("--temperature", 2.0)
    assert made(*hot, "--seed", 3)["text"] == made(*hot, "--seed", 3)["text"] != made(*hot, "--seed", 4)["text"]
    answered, continued = made(), made("--raw")
    assert answered["prompt_tokens"] > continued["prompt_tokens"]  # type: ignore[operator]
    stopped = made("--stop", str(answered["text"])[2:4])
    assert stopped["finish"] == "stop" and str(answered["text"]).startswith(str(stopped["text"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", -1), "temperature"),
        (("--max-tokens", 0), "max_tokens"),
        (("--engine", "steam"), "steam"),
        (("--device", "cuda", "--engine", "numpy"), "torch"),
    ],
)
def test_impossible_options_are_one_line(
    model: Path, arguments: tuple[object, ...], said: str, windlass: Callable[..., Result]
) -> None:
    result = windlass("generate", model, "x", *arguments)
    assert result.status == 2 and said in result.err and result.out == ""
    assert len(result.err.strip().splitlines()) == 1


def test_a_prompt_beyond_the_context_and_an_empty_one(model: Path, windlass: Callable[..., Result]) -> None:
    result = windlass("generate", model, "sea " * 300)
    assert result.status == 2 and "256" in result.err
    assert windlass("generate", model, "", "--raw").status == 2
