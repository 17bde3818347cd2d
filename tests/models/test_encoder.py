"""The encoder on a tiny random BERT that the test makes, against a plain float64 one written here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from windlass.core.errors import Cancelled, ModelError, UsageError
from windlass.core.progress import Silent
from windlass.models import bert, encoder
from windlass.models.encoder import BertEncoder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["ship", "berth", "tide", "crane", "##s", "##ing", "the", "a", "moor", "42", ",", "é", "港", "🚢"]
HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 24, 2, 3, 40, 40
EPS = 1e-12


def make_folder(
    folder: Path, *, seed: int = 0, scale: float = 0.3, dtype: Any = np.float32, **config: Any
) -> dict[str, np.ndarray]:
    """Write a random model folder; returns its weights."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(dtype)

    tensors = {
        "embeddings.word_embeddings.weight": weight(len(SPECIAL + WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": weight(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": weight(2, HIDDEN),
    }
    sizes = {
        "attention.self.query": (HIDDEN, HIDDEN),
        "attention.self.key": (HIDDEN, HIDDEN),
        "attention.self.value": (HIDDEN, HIDDEN),
        "attention.output.dense": (HIDDEN, HIDDEN),
        "intermediate.dense": (INNER, HIDDEN),
        "output.dense": (HIDDEN, INNER),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        for name, shape in sizes.items():
            tensors[f"encoder.layer.{layer}.{name}.weight"] = weight(*shape)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = weight(shape[0])
        norms += [f"encoder.layer.{layer}.attention.output.LayerNorm", f"encoder.layer.{layer}.output.LayerNorm"]
    for name in norms:
        tensors[f"{name}.weight"] = (1 + weight(HIDDEN)).astype(dtype)
        tensors[f"{name}.bias"] = weight(HIDDEN)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    fields = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": len(SPECIAL + WORDS),
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": EPS,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(fields | config))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def make_tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """States [tokens, hidden] and the last layer's attention [heads, tokens, tokens] of one sequence, in float64."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.position_embeddings.weight"][: len(ids)])
    attention = np.zeros((HEADS, len(ids), len(ids)))
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            linear(f"{name}.attention.self.{part}", x).reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(HIDDEN // HEADS)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        context = (attention @ value).swapaxes(0, 1).reshape(len(ids), HIDDEN)
        x = norm(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", context))
        inner = linear(f"{name}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", inner))
    return x, attention


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def expected(weights: dict[str, np.ndarray], texts: list[str], limit: int = POSITIONS) -> np.ndarray:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(limit)
    return np.stack([unit(reference(weights, tokenizer.encode(text).ids)[0].mean(0)) for text in texts])


TEXTS = [
    "the ship berths",
    "",
    "a crane, mooring the ships 42 tides",
    "🚢 港 É unknownword",
    "  \n\t ",
    "ship " * 100,
    "tide",
    "the the the the a a a",
]
texts = st.lists(st.lists(st.sampled_from([*WORDS, "zzz", " ", "\x00"]), max_size=60).map(" ".join), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    make_folder(made)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return make_folder(tmp_path_factory.mktemp("weights"))


def test_vectors_equal_the_reference(folder: Path, weights: dict[str, np.ndarray]) -> None:
    made = BertEncoder.load(folder)
    vectors = made.encode_passages(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), HIDDEN) and made.dim == HIDDEN
    np.testing.assert_allclose(vectors, expected(weights, TEXTS), atol=2e-6)
    np.testing.assert_array_equal(made.encode_queries(TEXTS), vectors)


@settings(max_examples=40, deadline=None)
@given(chosen=texts, batch=st.integers(POSITIONS, 200), threads=st.integers(1, 3))
def test_a_text_has_the_same_vector_in_any_company(
    folder: Path, weights: dict[str, np.ndarray], chosen: list[str], batch: int, threads: int
) -> None:
    made = BertEncoder.load(folder, threads=threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_BATCH_TOKENS", batch)
        vectors = made.encode_passages(chosen)
    assert vectors.shape == (len(chosen), HIDDEN)
    if chosen:
        np.testing.assert_allclose(vectors, expected(weights, chosen), atol=2e-6)


def test_long_inputs_are_worked_on_in_windows_and_tiles(
    folder: Path, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_WINDOW_TEXTS", 3)
    monkeypatch.setattr(bert, "_SCORE_ELEMENTS", 50)
    monkeypatch.setattr(bert, "_NORM_ROWS", 2)
    monkeypatch.setattr(bert, "_GELU_ELEMENTS", 90)
    vectors = BertEncoder.load(folder).encode_passages(TEXTS * 2)
    np.testing.assert_allclose(vectors, expected(weights, TEXTS * 2), atol=2e-6)


def test_large_attention_scores_do_not_overflow(tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "loud", scale=12.0)
    vectors = BertEncoder.load(tmp_path / "loud").encode_passages(TEXTS)
    # Scores in the thousands make softmax a choice; float32 then keeps about four digits.
    assert (vectors * expected(weights, TEXTS)).sum(1).min() > 0.999


def test_token_vectors_and_attention(folder: Path, weights: dict[str, np.ndarray]) -> None:
    vectors, offsets, attention = BertEncoder.load(folder).encode_tokens(TEXTS)
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(POSITIONS)
    assert offsets[0] == 0 and offsets[-1] == len(vectors) == len(attention)
    for number, text in enumerate(TEXTS):
        states, received = reference(weights, tokenizer.encode(text).ids)
        rows = slice(offsets[number], offsets[number + 1])
        np.testing.assert_allclose(vectors[rows], unit(states[1:-1]), atol=1e-5)
        if len(states) > 2:
            mean = received[:, 1:-1, 1:-1].mean((0, 1))
            np.testing.assert_allclose(attention[rows], mean / mean.sum(), atol=1e-5)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_nothing_to_encode(folder: Path, texts: list[str]) -> None:
    made = BertEncoder.load(folder)
    assert made.encode_passages(texts).shape == (len(texts), HIDDEN)
    vectors, offsets, attention = made.encode_tokens(texts)
    assert vectors.shape == (0, HIDDEN) and attention.shape == (0,) and offsets.tolist() == [0] * (len(texts) + 1)


def test_gelu_is_within_its_stated_error() -> None:
    scratch = bert.Scratch(bert.BertConfig(8, 1, 1, 64, 8, 8, EPS), 8)
    x = np.concatenate([np.linspace(-12, 12, 60_000), [-1e30, -300, 300, 1e4, 0, -0.0]])
    x = np.pad(x, (0, -len(x) % 64)).astype(np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    rows = x.reshape(-1, 64).copy()
    bert._bias_gelu(rows, np.zeros(64, np.float32), scratch)
    assert np.abs(rows.ravel() - exact).max() <= 2e-6


def test_first_token_pooling_prompts_and_length(tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "m")
    (tmp_path / "m" / "1_Pooling").mkdir()
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "m" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    prompts = {"prompts": {"query": "the ", "passage": "a "}}
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    made = BertEncoder.load(tmp_path / "m")
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(5)
    for vectors, prompt in ((made.encode_queries(TEXTS), "the "), (made.encode_passages(TEXTS), "a ")):
        wanted = [unit(reference(weights, tokenizer.encode(prompt + text).ids)[0][0]) for text in TEXTS]
        np.testing.assert_allclose(vectors, np.stack(wanted), atol=3e-6)


def test_vocabulary_file_in_place_of_tokenizer_json(folder: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(SPECIAL + WORDS), "utf-8")
    ours, other = BertEncoder.load(tmp_path / "m"), BertEncoder.load(folder)
    np.testing.assert_array_equal(ours.encode_passages(TEXTS), other.encode_passages(TEXTS))


def test_half_precision_weights(tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "half", dtype=np.float16)
    vectors = BertEncoder.load(tmp_path / "half").encode_passages(TEXTS)
    np.testing.assert_allclose(vectors, expected(weights, TEXTS), atol=2e-6)


def test_fingerprint_follows_what_the_vectors_depend_on(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "same")
    make_folder(tmp_path / "other", seed=1)
    make_folder(tmp_path / "short")
    (tmp_path / "short" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    marks = [BertEncoder.load(tmp_path / name).fingerprint for name in ("a", "same", "other", "short")]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


def test_half_a_surrogate_pair_is_no_reason_to_fail(folder: Path) -> None:
    assert np.isfinite(BertEncoder.load(folder).encode_passages(["ship \ud83d", "\udce9"])).all()


@pytest.mark.parametrize("wrong", ["a bare string", ["ok", None], [b"bytes"]])
def test_only_strings_are_texts(folder: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match="string"):
        BertEncoder.load(folder).encode_queries(wrong)


def test_progress_counts_passages_and_cancels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Silent):
        done = 0

        def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
            self.done += done

    monkeypatch.setattr(encoder, "_WINDOW_TEXTS", 5)
    progress = Counting()
    BertEncoder.load(folder).encode_passages(TEXTS * 3, progress)
    assert progress.done == len(TEXTS) * 3
    progress.cancel()
    with pytest.raises(Cancelled):
        BertEncoder.load(folder).encode_passages(TEXTS, progress)


def _spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    elif how == "missing tensor":
        tensors.pop("encoder.layer.1.output.dense.bias")
        safetensors.numpy.save_file(tensors, weights)
    elif how == "wrong shape":
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(3, np.float32)
        safetensors.numpy.save_file(tensors, weights)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "list config":
        (folder / "config.json").write_text("[]")
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "broken tokenizer":
        (folder / "tokenizer.json").write_text('{"model": 3}')
    elif how == "module":
        (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    elif how == "pooling":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "truncated or damaged.*model.safetensors"),
        ("no weights", "no model.safetensors"),
        ("pickle", "no model.safetensors.*only safetensors"),
        ("missing tensor", "encoder.layer.1.output.dense.bias' is missing"),
        ("wrong shape", "has shape"),
        ("no config", "config.json"),
        ("broken config", "config.json"),
        ("list config", "does not hold a JSON object"),
        ("no tokenizer", "no tokenizer.json"),
        ("broken tokenizer", "cannot read the tokenizer"),
        ("module", "'Dense' is not supported"),
        ("pooling", "pooling is not supported"),
    ],
)
def test_a_bad_folder_is_refused_by_name(tmp_path: Path, how: str, says: str) -> None:
    make_folder(tmp_path / "m")
    _spoil(tmp_path / "m", how)
    with pytest.raises(ModelError, match=says):
        BertEncoder.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_type", "distilbert", "'distilbert' are not supported"),
        ("hidden_act", "relu", "'relu' is not supported"),
        ("position_embedding_type", "relative_key", "not supported"),
        ("num_attention_heads", 5, "no multiple"),
        ("hidden_size", "24", "not a positive whole number"),
        ("num_hidden_layers", True, "not a positive whole number"),
        ("vocab_size", 5, "more tokens than its model"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, field: str, value: Any, says: str) -> None:
    make_folder(tmp_path / "m", **{field: value})
    with pytest.raises(ModelError, match=says):
        BertEncoder.load(tmp_path / "m")


def test_weights_that_are_not_numbers_are_noticed(tmp_path: Path) -> None:
    make_folder(tmp_path / "m")
    tensors = safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelError, match="not numbers"):
        BertEncoder.load(tmp_path / "m").encode_queries(["ship"])
